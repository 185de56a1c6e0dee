"""Files of textual inversions: the words of each form are known to a model that is given them, as to diffusers."""

import pytest
import torch
from diffusers import StableDiffusionPipeline
from safetensors.torch import save_file

import safelight
from safelight.checkpoint.load import load_parts
from safelight.errors import CheckpointError, InputError

VECTORS = torch.randn(2, 64, generator=torch.Generator().manual_seed(0))


def write(form, folder):
    path = folder / ("fox-style.safetensors" if "safetensors" in form else "fox-style.pt")
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
