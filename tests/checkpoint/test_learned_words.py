"""Files of textual inversions: the words of each form are known to a model that is given them, as to diffusers."""

import base64
import json

import pytest
import torch
from diffusers import StableDiffusionPipeline
from PIL import Image
from PIL.PngImagePlugin import PngInfo
from safetensors.torch import save_file

import safelight
from safelight.checkpoint.files import open_file
from safelight.checkpoint.learned_words import read_words
from safelight.checkpoint.load import load_parts
from safelight.errors import CheckpointError, InputError, MissingPartError

VECTORS = torch.randn(2, 64, generator=torch.Generator().manual_seed(0))


def write(form, folder):
    ending = "safetensors" if "safetensors" in form else "png" if form == "picture" else "pt"
    path = folder / f"fox-style.{ending}"
    match form:
        case "diffusers":
            torch.save({"<fox>": VECTORS}, path)
        case "diffusers safetensors":
            save_file({"<fox>": VECTORS}, path)
        case "automatic":
            state = {"string_to_token": {"*": 265}, "string_to_param": {"*": VECTORS}, "name": "other", "step": 9}
            torch.save(state, path)
        case "automatic safetensors":
            save_file({"emb_params": VECTORS}, path)
        case "comfyui safetensors":
            save_file({"clip_l": VECTORS}, path)
        case "parameters":  # as the first implementation of textual inversion saves its modules
            words = {"*": torch.nn.Parameter(VECTORS)}
            state = {"string_to_token": {"*": torch.tensor(265)}, "string_to_param": torch.nn.ParameterDict(words)}
            torch.save(state, path)
        case "picture":
            said = {"string_to_param": {"*": {"TORCHTENSOR": VECTORS.tolist()}}, "name": "fox-style", "step": 9}
            text = PngInfo()
            text.add_text("sd-ti-embedding", base64.b64encode(json.dumps(said).encode()))
            Image.new("RGB", (8, 8)).save(path, pnginfo=text)
    return path


@pytest.mark.parametrize(
    ("form", "word"),
    [
        ("diffusers", "<fox>"),
        ("diffusers safetensors", "<fox>"),
        ("automatic", "fox-style"),
        ("automatic safetensors", "fox-style"),
    ],
)
def test_each_form_gives_the_word_that_its_users_write(sd1, tmp_path, form, word):
    path = write(form, tmp_path)
    parts = load_parts(sd1, embeddings=[path])
    ids = parts.tokenizer.ids(f"a {word} hat")
    rows = parts.text_encoder.text_model.embeddings.token_embedding.weight
    assert torch.equal(rows[-2:], VECTORS) and {len(rows) - 2, len(rows) - 1} <= set(ids)
    assert parts.weights[f"embedding: {word}"] == path

    pipe = StableDiffusionPipeline.from_pretrained(sd1)
    pipe.load_textual_inversion(str(path), token=word)
    prompt = f"a {word} hat"
    theirs, _ = pipe.encode_prompt(prompt, "cpu", 1, do_classifier_free_guidance=False)
    ours = safelight.load(sd1, embeddings=[path], dtype="float32").condition(prompt).context
    torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-5)  # one of them by C kernels


@pytest.mark.parametrize("form", ["comfyui safetensors", "parameters", "picture"])
def test_forms_that_diffusers_does_not_read(tmp_path, form):
    words = read_words(write(form, tmp_path))
    assert [word.token for word in words] == ["fox-style"]
    torch.testing.assert_close(words[0].vectors, VECTORS, rtol=0, atol=0)
    assert read_words(write(form, tmp_path), "<cat>")[0].token == "<cat>"


def test_a_list_of_parameters_is_read_and_a_forged_one_refused(tmp_path):
    torch.save({"words": torch.nn.ParameterList([VECTORS])}, tmp_path / "list.pt")
    assert torch.equal(open_file(tmp_path / "list.pt")["words.0"], VECTORS)
    forged = torch.nn.ParameterDict({"*": VECTORS})
    forged._parameters = 3
    torch.save({"words": forged}, tmp_path / "forged.pt")
    with pytest.raises(CheckpointError, match="holds no parameters"):
        open_file(tmp_path / "forged.pt")


def test_pictures_without_a_word_and_words_of_larger_models_are_named(tmp_path):
    Image.new("RGB", (8, 8)).save(tmp_path / "plain.png")
    (tmp_path / "cut.png").write_bytes(write("picture", tmp_path).read_bytes()[:60])
    for name in ("plain", "cut", "none"):
        with pytest.raises(CheckpointError, match=f"{name}.png"):
            read_words(tmp_path / f"{name}.png")
    save_file({"clip_l": VECTORS, "t5xxl": VECTORS + 1}, tmp_path / "flux.safetensors")
    with pytest.raises(MissingPartError, match="later model"):
        read_words(tmp_path / "flux.safetensors")


def test_a_word_may_get_another_name(sd1, tmp_path):
    path = write("diffusers", tmp_path)
    for name in ((path, "<cat>"), f"<cat>={path}"):
        parts = load_parts(sd1, embeddings=[name])
        assert parts.tokenizer.ids("<cat>") != load_parts(sd1).tokenizer.ids("<cat>")


def test_what_holds_no_word_or_does_not_fit_is_named(sd1, tmp_path):
    save_file({"emb_params": VECTORS[:, :32].contiguous()}, tmp_path / "narrow.safetensors")
    with pytest.raises(InputError, match="32 wide"):
        load_parts(sd1, embeddings=[tmp_path / "narrow.safetensors"])
    save_file({"emb_params": torch.zeros(1, 2, 64)}, tmp_path / "odd.safetensors")
    with pytest.raises(CheckpointError, match="odd"):
        load_parts(sd1, embeddings=[tmp_path / "odd.safetensors"])
