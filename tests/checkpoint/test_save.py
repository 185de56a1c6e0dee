import json
import sys

import pytest
import torch
from diffusers import StableDiffusionPipeline
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from small_models import same_weights, small_pipeline
from transformers import CLIPTextModel, CLIPTokenizer

from safelight.checkpoint.convert import convert
from safelight.checkpoint.load import load_autoencoder, load_parts
from safelight.checkpoint.save import save_folder, save_single_file
from safelight.errors import CheckpointError, InputError


def equal(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> bool:
    return a.keys() == b.keys() and all(a[k].dtype == b[k].dtype and torch.equal(a[k], b[k]) for k in a)


def weights(folder, part, name="diffusion_pytorch_model"):
    return load_file(folder / part / f"{name}.safetensors")


def test_folder_to_file_to_folder_is_bit_exact(sd1, tmp_path):
    convert(sd1, tmp_path / "m.safetensors")
    convert(tmp_path / "m.safetensors", tmp_path / "again")
    for part in ("unet", "vae"):
        assert equal(weights(sd1, part), weights(tmp_path / "again", part))
    ours, theirs = weights(tmp_path / "again", "text_encoder", "model"), weights(sd1, "text_encoder", "model")
    assert equal(ours, {f"text_model.{key.removeprefix('text_model.')}": t for key, t in theirs.items()})


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_file_to_folder_to_file_is_bit_exact(sd1_tensors, tmp_path, dtype):
    tensors = {key: t.to(dtype) if t.is_floating_point() else t for key, t in sd1_tensors.items()}
    save_file(tensors, tmp_path / "a.safetensors")
    convert(tmp_path / "a.safetensors", tmp_path / "folder")
    convert(tmp_path / "folder", tmp_path / "b.safetensors")
    assert equal(load_file(tmp_path / "b.safetensors"), tensors)


def test_diffusers_loads_what_we_write(sd1, sd2, tmp_path):
    for i, folder in enumerate((sd1, sd2)):
        save_folder(load_parts(folder), tmp_path / str(i))
        ours, theirs = (
            StableDiffusionPipeline.from_pretrained(f, safety_checker=None) for f in (tmp_path / str(i), folder)
        )
        for part in ("unet", "vae", "text_encoder"):
            assert same_weights(getattr(ours, part), getattr(theirs, part))
        assert type(ours.scheduler) is type(theirs.scheduler)
        assert ours.scheduler.config.prediction_type == theirs.scheduler.config.prediction_type
        assert ours.tokenizer("a photo of an otter").input_ids == theirs.tokenizer("a photo of an otter").input_ids


def test_diffusers_draws_the_same_from_our_folder(sd1, tmp_path):
    convert(sd1, tmp_path / "m.safetensors")
    convert(tmp_path / "m.safetensors", tmp_path / "m")
    pictures = []
    for folder in (sd1, tmp_path / "m"):
        pipe = StableDiffusionPipeline.from_pretrained(folder, safety_checker=None)
        pipe.set_progress_bar_config(disable=True)
        generator = torch.Generator().manual_seed(0)
        pictures.append(
            pipe("an otter", num_inference_steps=2, generator=generator, output_type="pt", height=64, width=64).images
        )
    assert torch.equal(*pictures)


def test_diffusers_reads_variants_and_shards(sd1, tmp_path):
    save_folder(load_parts(sd1, dtype=torch.float16), tmp_path / "m", variant="fp16", max_shard_size=200_000)
    assert len(list((tmp_path / "m" / "unet").glob("*.safetensors"))) > 2
    pipe = StableDiffusionPipeline.from_pretrained(
        tmp_path / "m", variant="fp16", torch_dtype=torch.float16, safety_checker=None
    )
    assert same_weights(pipe.unet, load_parts(tmp_path / "m", variant="fp16").unet)
    CLIPTextModel.from_pretrained(tmp_path / "m" / "text_encoder", variant="fp16")
    CLIPTokenizer.from_pretrained(tmp_path / "m" / "tokenizer")


def test_an_inpainting_model_is_called_one(clip_tokenizer, tmp_path):
    small_pipeline(clip_tokenizer, in_channels=9).save_pretrained(tmp_path / "in")
    parts = load_parts(tmp_path / "in")
    assert parts.family == "sd1-inpaint"
    save_folder(parts, tmp_path / "out")
    assert (
        json.loads((tmp_path / "out" / "model_index.json").read_text())["_class_name"]
        == "StableDiffusionInpaintPipeline"
    )


def openclip_leftovers() -> dict[str, torch.Tensor]:
    """What OpenCLIP has beyond the text encoder of SD 2: block 2 (the last of three here), the projection,
    logit_scale."""
    block = "cond_stage_model.model.transformer.resblocks.2."
    shapes = {"ln_1.weight": (64,), "attn.in_proj_weight": (192, 64), "mlp.c_fc.bias": (128,)}
    return {
        "cond_stage_model.model.text_projection": torch.randn(64, 64),
        "cond_stage_model.model.logit_scale": torch.tensor(4.6),
        **{block + name: torch.randn(shape) for name, shape in shapes.items()},
    }


def test_sd2_single_files_keep_openclips_last_block(sd2, tmp_path):
    save_single_file(load_parts(sd2), tmp_path / "ours.safetensors")
    tensors = load_file(tmp_path / "ours.safetensors")
    assert tensors["cond_stage_model.model.transformer.resblocks.1.attn.in_proj_weight"].shape == (192, 64)
    assert not any("text_projection" in key or "resblocks.2." in key for key in tensors)  # cannot be made up
    original = tensors | openclip_leftovers()
    save_file(original, tmp_path / "original.safetensors")
    parts = load_parts(tmp_path / "original.safetensors", prediction_type="v_prediction")
    assert parts.text_encoder.config.num_hidden_layers == 2
    assert parts.text_encoder.config.hidden_act == "gelu"
    assert same_weights(parts.text_encoder, load_parts(sd2).text_encoder)
    assert parts.extra.keys() == openclip_leftovers().keys()
    assert parts.tokenizer.pad == 0
    save_single_file(parts, tmp_path / "again.safetensors")
    assert equal(load_file(tmp_path / "again.safetensors"), original)


def test_metadata_tells_what_shapes_cannot(clip_tokenizer, tmp_path):
    """Four heads instead of SD's eight: no tensor shows it."""
    from diffusers import UNet2DConditionModel

    pipe = small_pipeline(clip_tokenizer)
    unet = UNet2DConditionModel.from_config({**pipe.unet.config, "attention_head_dim": 4})
    pipe.register_modules(unet=unet)
    pipe.save_pretrained(tmp_path / "m")
    convert(tmp_path / "m", tmp_path / "m.safetensors", prediction_type="v_prediction")
    parts = load_parts(tmp_path / "m.safetensors")
    assert parts.unet.config.attention_head_dim == 4
    assert (parts.prediction_type, parts.prediction_from) == ("v_prediction", "config")
    with safe_open(tmp_path / "m.safetensors", "pt") as file:
        assert file.metadata()["modelspec.prediction_type"] == "v"


@torch.no_grad()
def test_a_vocabulary_of_its_own_goes_with_the_file(tmp_path):
    """The model that ships has 2,048 words of its own, which CLIP's 49,408 would miss by far."""
    convert("default", tmp_path / "m.safetensors")
    convert(tmp_path / "m.safetensors", tmp_path / "m")
    before = load_parts("default").tokenizer
    for form in ("m.safetensors", "m"):
        parts = load_parts(tmp_path / form)
        assert parts.tokenizer.same_ids(before)
        assert parts.tokenizer.ids("a red apple") == before.ids("a red apple")
    with safe_open(tmp_path / "m.safetensors", "pt") as file:
        assert len(file.metadata()["safelight.tokenizer"]) < 200_000


def test_clips_vocabulary_needs_no_note(sd1, tmp_path):
    convert(sd1, tmp_path / "m.safetensors")
    with safe_open(tmp_path / "m.safetensors", "pt") as file:
        assert "safelight.tokenizer" not in file.metadata()


def test_learned_words_go_with_the_file(sd1, tmp_path):
    width = load_parts(sd1).text_encoder.config.hidden_size
    save_file({"<fox>": torch.randn(2, width)}, tmp_path / "fox.safetensors")
    taught = load_parts(sd1, embeddings=[tmp_path / "fox.safetensors"])
    save_single_file(taught, tmp_path / "m.safetensors")
    assert load_parts(tmp_path / "m.safetensors").tokenizer.same_ids(taught.tokenizer)


@pytest.mark.parametrize("note", ["nope", "[]", "{}", '{"vocab.json": "{}"}', '{"vocab.json": 1}', "[" * 100_000])
def test_a_noted_tokenizer_is_input_like_any_other(sd1_tensors, tmp_path, note):
    save_file(sd1_tensors, tmp_path / "m.safetensors", {"safelight.tokenizer": note})
    with pytest.raises(CheckpointError, match="is no tokenizer"):
        load_parts(tmp_path / "m.safetensors")


def test_an_autoencoder_out_of_our_file_is_the_one_that_went_in(tmp_path):
    convert("default", tmp_path / "m.safetensors")
    found, before = load_autoencoder(tmp_path / "m.safetensors"), load_autoencoder("default")
    assert (found.config.scaling_factor, found.config.norm_num_groups) == (
        before.config.scaling_factor, before.config.norm_num_groups)  # fmt: skip
    assert same_weights(found, before)


NOTE = {"family": "sd1", "unet": {}, "autoencoder": {}, "text_encoder": None, "text_dialect": None, "scheduler": None}
NOTES = ["nope", "[]", "{}", "[" * 100_000, *(json.dumps(NOTE | change) for change in (
    {"family": 1}, {"text_dialect": "evil"}, {"unet": []}, {"unet": None}, {"unet": {"_class_name": "os.system"}},
    {"unet": {"layers_per_block": 10**9}}, {"unet": {"auto_map": "evil.py"}}, {"unet": {"block_out_channels": "x"}},
    {"autoencoder": {"latent_channels": "many"}}, {"scheduler": {"_class_name": "Evil"}}, {"text_encoder": 5},
    {"text_encoder": {"hidden_size": -1}, "text_dialect": "clip"},
))]  # fmt: skip


@pytest.mark.parametrize("note", NOTES, ids=lambda note: note[:12] if len(note) > 1000 else None)
def test_metadata_is_input_like_any_other(sd1_tensors, tmp_path, note):
    save_file(sd1_tensors, tmp_path / "m.safetensors", {"safelight": note})
    with pytest.raises(CheckpointError) as caught:
        load_parts(tmp_path / "m.safetensors")
    assert caught.value.path == tmp_path / "m.safetensors"


def test_pickles_are_not_written(sd1, tmp_path):
    for name in ("m.ckpt", "m.pt", "m.bin"):
        with pytest.raises(InputError, match="pickle"):
            convert(sd1, tmp_path / name)
        with pytest.raises(InputError, match="pickle"):
            save_single_file(load_parts(sd1), tmp_path / name)
    with pytest.raises(InputError, match="float16"):
        convert(sd1, tmp_path / "m", dtype="float61")
    assert not list(tmp_path.iterdir())


def test_nobodys_folder_is_overwritten(sd1, tmp_path):
    parts = load_parts(sd1)
    (tmp_path / "holiday.jpg").touch()
    with pytest.raises(CheckpointError, match="other things"):
        save_folder(parts, tmp_path)
    save_folder(parts, tmp_path / "m")
    save_folder(parts, tmp_path / "m", variant="fp16")  # a model is replaced, whole
    assert not (tmp_path / "m" / "unet" / "diffusion_pytorch_model.safetensors").exists()
    (tmp_path / "m" / "samples").mkdir()
    with pytest.raises(CheckpointError, match="other things"):
        save_folder(parts, tmp_path / "m")
    with pytest.raises(CheckpointError, match="does not exist"):
        save_single_file(parts, tmp_path / "no" / "m.safetensors")


@pytest.mark.parametrize("name", ["m", "m.safetensors"])
def test_converting_replaces_nothing_unless_it_may(sd1, tmp_path, name):
    convert(sd1, tmp_path / name)
    before = load_parts(tmp_path / name)
    with pytest.raises(InputError, match=f"{name} exists"):
        convert(tmp_path / name, tmp_path / name, dtype="float16")
    assert same_weights(load_parts(tmp_path / name).unet, before.unet)
    convert(tmp_path / name, tmp_path / name, dtype="float16", overwrite=True)
    assert load_parts(tmp_path / name).unet.conv_in.weight.dtype == torch.float16


def test_a_folder_can_be_saved_onto_itself(sd1, tmp_path):
    """The weights are mapped from the very files that are replaced."""
    save_folder(load_parts(sd1), tmp_path / "m")
    save_folder(load_parts(tmp_path / "m"), tmp_path / "m")
    assert same_weights(load_parts(tmp_path / "m").unet, load_parts(sd1).unet)


def test_a_crash_while_writing_leaves_nothing(sd1, tmp_path, monkeypatch):
    from safelight.checkpoint import save

    parts = load_parts(sd1)

    def crash(parts):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(save, "model_index", crash)
    with pytest.raises(CheckpointError, match="No space left"):
        save_folder(parts, tmp_path / "m")
    assert not list(tmp_path.iterdir())


@pytest.mark.skipif(sys.platform == "win32", reason="no limits on file sizes")
def test_a_full_disk_is_an_error_and_leaves_the_old_file(sd1, tmp_path):
    import resource
    import signal

    path = tmp_path / "m.safetensors"
    save_file({"a": torch.ones(1)}, path)
    old, parts = path.read_bytes(), load_parts(sd1)
    limits, handler = resource.getrlimit(resource.RLIMIT_FSIZE), signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, limits[1]))
    try:
        with pytest.raises(CheckpointError, match="could not be written"):
            save_single_file(parts, path)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        signal.signal(signal.SIGXFSZ, handler)
    assert path.read_bytes() == old
    assert list(tmp_path.iterdir()) == [path]


def test_parts_without_a_scheduler_get_their_familys(sd1, tmp_path):
    from dataclasses import replace

    save_folder(replace(load_parts(sd1), scheduler_config={}), tmp_path / "m")
    again = load_parts(tmp_path / "m")
    assert again.scheduler_config["_class_name"] == "PNDMScheduler"
    assert again.scheduler_config["beta_end"] == 0.012


def test_what_a_model_is_best_guided_by_is_kept_and_checked(sd1, tmp_path):
    from dataclasses import replace

    from safelight.checkpoint.errors import CorruptFile

    parts = load_parts(sd1)
    assert parts.guidance_scale == 7.5
    save_folder(parts, tmp_path / "m")
    assert "_guidance_scale" not in json.loads((tmp_path / "m" / "model_index.json").read_text())
    save_folder(replace(parts, guidance_scale=4.0), tmp_path / "n")
    save_single_file(load_parts(tmp_path / "n"), tmp_path / "n.safetensors")
    assert load_parts(tmp_path / "n.safetensors").guidance_scale == 4.0
    index = tmp_path / "n" / "model_index.json"
    for value in ("4", -1, True, [4]):
        index.write_text(json.dumps({**json.loads(index.read_text()), "_guidance_scale": value}))
        with pytest.raises(CorruptFile, match="_guidance_scale"):
            load_parts(tmp_path / "n")


def test_sd1_layout_has_1131_tensors():
    """The full architecture, on the meta device: names, shapes and counts of the original file."""
    from safelight.checkpoint.build import on_meta
    from safelight.checkpoint.parts import Parts
    from safelight.checkpoint.save import single_file_tensors
    from safelight.models.autoencoder import Autoencoder
    from safelight.models.clip import TextEncoder
    from safelight.models.presets import AUTOENCODERS, TEXT_ENCODERS, UNETS
    from safelight.models.unet import UNet

    networks = on_meta(
        lambda: (UNet(UNETS["sd15"]), Autoencoder(AUTOENCODERS["sd15"]), TextEncoder(TEXT_ENCODERS["sd15"]))
    )
    tensors = single_file_tensors(Parts(unet=networks[0], autoencoder=networks[1], text_encoder=networks[2]))
    starts = ("model.diffusion_model.", "first_stage_model.", "cond_stage_model.transformer.text_model.")
    assert [sum(key.startswith(start) for key in tensors) for start in starts] == [686, 248, 197]
    assert len(tensors) == 1131
    shapes = {
        "model.diffusion_model.input_blocks.1.1.proj_in.weight": (320, 320, 1, 1),
        "first_stage_model.decoder.mid.attn_1.proj_out.weight": (512, 512, 1, 1),
        "first_stage_model.decoder.up.0.block.0.nin_shortcut.weight": (128, 256, 1, 1),
        "cond_stage_model.transformer.text_model.embeddings.position_ids": (1, 77),
    }
    assert {key: tensors[key].shape for key in shapes} == shapes
    assert sum(t.nbytes for t in tensors.values()) == 4 * (859_520_964 + 83_653_863 + 123_060_480) + 8 * 77
