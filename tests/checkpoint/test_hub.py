"""Hub ids against a cache laid out as huggingface_hub lays it out, with no network."""

import shutil

import pytest
import torch
from safetensors.torch import save_file

from safelight.checkpoint.hub import chosen, chosen_addition
from safelight.checkpoint.load import load_parts, load_text_encoder, locate
from safelight.errors import CheckpointError

COMMIT = "0123456789abcdef0123456789abcdef01234567"


@pytest.fixture
def cache(sd1, tmp_path, monkeypatch):
    """A cache that holds somebody/small at its main branch."""
    repo = tmp_path / "models--somebody--small"
    shutil.copytree(sd1, repo / "snapshots" / COMMIT)
    (repo / "refs").mkdir()
    (repo / "refs" / "main").write_text(COMMIT)
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    return tmp_path


def test_a_cached_model_loads_without_a_network(cache):
    for revision in (None, "main", COMMIT):
        assert load_parts("somebody/small", revision=revision, local_files_only=True).family == "sd1"


def test_what_is_not_cached_is_an_error_that_says_so(cache):
    for name, revision in (("somebody/else", None), ("somebody/small", "v2")):
        with pytest.raises(CheckpointError, match="not in the cache") as caught:
            load_parts(name, revision=revision, local_files_only=True)
        assert caught.value.remedy


def test_loras_and_learned_words_are_found_in_the_cache(cache, sd1):
    lora = {f"lora_unet_conv_in.lora_{way}.weight": torch.ones(shape)
            for way, shape in (("down", (1, 4, 3, 3)), ("up", (32, 1, 1, 1)))}  # fmt: skip
    for name, file, state in (("ink", "pytorch_lora_weights.safetensors", lora),
                              ("fox", "learned_embeds.safetensors", {"<fox>": torch.ones(64)})):  # fmt: skip
        repo = cache / f"models--somebody--{name}"
        (repo / "snapshots" / COMMIT).mkdir(parents=True)
        (repo / "refs").mkdir()
        (repo / "refs" / "main").write_text(COMMIT)
        save_file(state, repo / "snapshots" / COMMIT / file)
    plain = load_parts(sd1).unet.conv_in.weight
    for name in ("somebody/ink", "somebody/ink/pytorch_lora_weights.safetensors"):
        parts = load_parts(sd1, loras=[f"{name}:0.5"], embeddings=["somebody/fox"], local_files_only=True)
        torch.testing.assert_close(parts.unet.conv_in.weight, plain + 0.5)
        assert parts.loras == {f"lora: {name.rpartition('/')[2]}": 0.5} and "embedding: <fox>" in parts.weights
    with pytest.raises(CheckpointError, match="not in the cache"):
        load_parts(sd1, loras=["somebody/else:0.5"], local_files_only=True)


def test_the_file_of_a_lora_or_a_word_is_told_from_others():
    files = ["README.md", "image.png", "pytorch_lora_weights.safetensors", "other.safetensors"]
    assert chosen_addition(files, "a/b")[0] == "pytorch_lora_weights.safetensors"
    peft = ["adapter_config.json", "adapter_model.bin", "adapter_model.safetensors"]
    assert chosen_addition(peft, "a/b") == ["adapter_model.safetensors", "adapter_config.json"]
    assert chosen_addition(["fox.pt", "README.md"], "a/b")[0] == "fox.pt"
    with pytest.raises(CheckpointError, match=r"a/b/one\.safetensors"):
        chosen_addition(["one.safetensors", "two.safetensors"], "a/b")


def test_an_unreachable_hub_falls_back_on_the_cache(cache, monkeypatch):
    """A closed port stands for the hub."""
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
    assert load_parts("somebody/small").family == "sd1"
    with pytest.raises(CheckpointError, match="could not be fetched"):
        load_parts("somebody/else")


def test_one_file_of_a_repository(cache):
    assert locate("somebody/small/unet/config.json", local_files_only=True).name == "config.json"


def test_names_that_are_paths_are_never_asked_for(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("./some/model", "/some/model", "some/model.safetensors", "~/some/model", tmp_path / "a" / "b"):
        with pytest.raises(CheckpointError, match="no such file"):
            locate(name)


def test_only_one_form_of_the_weights_is_downloaded():
    files = [
        "unet/diffusion_pytorch_model.bin", "unet/diffusion_pytorch_model.safetensors",
        "unet/diffusion_pytorch_model.fp16.safetensors", "unet/diffusion_pytorch_model.non_ema.safetensors",
        "vae/diffusion_pytorch_model.bin", "text_encoder/model-00001-of-00002.safetensors",
        "text_encoder/model-00002-of-00002.safetensors", "text_encoder/model.fp16-00001-of-00001.safetensors",
        "safety_checker/model.safetensors", "v1-5-pruned.ckpt", "unet/diffusion_flax_model.msgpack",
    ]  # fmt: skip
    assert chosen(files, None, "a/b") == [
        "unet/diffusion_pytorch_model.safetensors", "vae/diffusion_pytorch_model.bin",
        "text_encoder/model-00001-of-00002.safetensors", "text_encoder/model-00002-of-00002.safetensors",
    ]  # fmt: skip
    assert chosen(files, "fp16", "a/b") == [
        "unet/diffusion_pytorch_model.fp16.safetensors", "text_encoder/model.fp16-00001-of-00001.safetensors"
    ]  # fmt: skip
    with pytest.raises(CheckpointError, match=r"a/b/v1-5-pruned\.ckpt"):
        chosen(["v1-5-pruned.ckpt"], None, "a/b")


def test_a_repository_that_is_one_network_is_taken_at_its_top():
    vae = ["config.json", "diffusion_pytorch_model.bin", "diffusion_pytorch_model.safetensors", "vae-ft-mse.ckpt"]
    assert chosen(vae, None, "a/b") == ["diffusion_pytorch_model.safetensors"]
    assert chosen(["pytorch_model.bin", "flax_model.msgpack"], None, "a/b") == ["pytorch_model.bin"]
    assert chosen(["model.safetensors", "unet/diffusion_pytorch_model.bin"], None, "a/b") == [
        "unet/diffusion_pytorch_model.bin"
    ]


def test_a_whole_clip_gives_its_text_half(tmp_path):
    """openai/clip-vit-large-patch14 is such a folder."""
    import torch
    from transformers import CLIPConfig, CLIPModel

    small = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
    config = CLIPConfig(text_config=small, vision_config={**small, "image_size": 16, "patch_size": 8}, projection_dim=8)
    theirs = CLIPModel(config).eval()
    theirs.save_pretrained(tmp_path)
    ours = load_text_encoder(tmp_path)
    ids = torch.tensor([[49406, 320, 49407]])
    expected = theirs.text_model(ids).last_hidden_state
    assert torch.allclose(ours(ids).last_hidden_state, expected, atol=1e-6)
