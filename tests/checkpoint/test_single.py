"""Single files from elsewhere: other names, marks, leavings, and networks that are not drawn here."""

import pytest
import torch
from diffusers import DDIMScheduler
from safetensors.torch import load_file, save_file
from small_models import SD_BETAS, published_file, same_weights

from safelight.checkpoint.errors import KeyMismatch, WrongModel
from safelight.checkpoint.load import load_parts
from safelight.checkpoint.save import save_folder, save_single_file
from safelight.errors import CheckpointError, InputError, MissingPartError
from safelight.pipeline.loading import bundle
from safelight.pipeline.tasks import text_to_image


def test_the_names_of_generative_models(sd2, tmp_path):
    """sd_turbo.safetensors is written so: Stable Diffusion 2, and not XL."""
    save_single_file(load_parts(sd2), tmp_path / "own.safetensors")
    tensors = load_file(tmp_path / "own.safetensors")
    renamed = {key.replace("cond_stage_model.", "conditioner.embedders.0."): t for key, t in tensors.items()}
    save_file(renamed, tmp_path / "m.safetensors")
    parts, folder = load_parts(tmp_path / "m.safetensors", prediction_type="epsilon"), load_parts(sd2)
    assert parts.family == "sd2"
    for part in ("unet", "autoencoder", "text_encoder"):
        assert same_weights(getattr(parts, part), getattr(folder, part))


def test_the_upscaler_predicts_v_on_noise_of_its_own(tmp_path):
    """Of a file that says neither: what x4-upscaling.yaml says, and the hub's folder."""
    published_file("sd2_upscaler", tmp_path / "m.safetensors")
    parts = load_parts(tmp_path / "m.safetensors")
    assert (parts.family, parts.prediction_type) == ("sd2-upscale", "v_prediction")
    for config in (parts.scheduler_config, parts.low_res_scheduler_config):
        assert (config["beta_schedule"], config["beta_start"], config["beta_end"]) == ("scaled_linear", 0.0001, 0.02)


def test_what_training_leaves_is_put_aside_and_what_is_unknown_refused(sd1_tensors, tmp_path):
    leavings = (
        "model_ema.decay",
        "denoiser.sigmas",
        "embedding_manager.string_to_param_dict.*",
        "first_stage_model.model_ema.decay",
        "cond_stage_model.transformer.text_model.embeddings.position_ids",
    )
    save_file(sd1_tensors | {name: torch.ones(1) for name in leavings}, tmp_path / "m.safetensors")
    parts = load_parts(tmp_path / "m.safetensors")
    assert not parts.extra and parts.prediction_type == "epsilon"
    save_file(sd1_tensors | {"other.weight": torch.ones(1)}, tmp_path / "m.safetensors")
    with pytest.raises(KeyMismatch, match=r"other\.weight"):
        load_parts(tmp_path / "m.safetensors")


def test_finetunes_say_by_empty_tensors_what_they_predict(sd1_tensors, tmp_path):
    marks = {"v_pred": torch.empty(0), "ztsnr": torch.empty(0)}
    save_file(sd1_tensors | marks, tmp_path / "m.safetensors")
    parts = load_parts(tmp_path / "m.safetensors")
    assert (parts.prediction_type, parts.prediction_from) == ("v_prediction", "config")
    theirs = DDIMScheduler(**SD_BETAS, rescale_betas_zero_snr=True)
    ours = bundle(parts).schedule.alphas_cumprod[:-1].float()  # the last is held above 0 by both, each in its way
    torch.testing.assert_close(ours, theirs.alphas_cumprod[:-1], rtol=1e-3, atol=0)
    save_single_file(parts, tmp_path / "again.safetensors")
    assert load_parts(tmp_path / "again.safetensors").scheduler_config == parts.scheduler_config
    assert load_parts(tmp_path / "m.safetensors", prediction_type="epsilon").prediction_type == "epsilon"


@pytest.mark.parametrize(("name", "more", "predicts", "refusal"), [
    ("sd2_depth", ("depth_model.model.scratch.conv.weight",), "epsilon", "depth maps"),
    ("sd2_unclip_h", ("embedder.model.visual.proj", "noise_augmentor.data_mean"), "v_prediction", "CLIP's embedding"),
])  # fmt: skip
def test_models_beside_networks_that_are_not_drawn_here(tmp_path, name, more, predicts, refusal):
    tensors = published_file(name, tmp_path / "m.safetensors")
    save_file(tensors | {key: torch.ones(2) for key in more}, tmp_path / "m.safetensors")
    parts = load_parts(tmp_path / "m.safetensors")
    assert (parts.family, parts.prediction_type) == (name.replace("_h", "").replace("_", "-"), predicts)
    assert torch.equal(parts.unet.conv_in.weight, tensors["model.diffusion_model.input_blocks.0.0.weight"])
    assert parts.extra.keys() == set(more)
    with pytest.raises(InputError, match=refusal):
        text_to_image(bundle(parts), "", steps=1)


def test_latent_diffusion_s_own_inpainting_keeps_its_family_and_takes_the_average(tmp_path):
    """inpainting_big.ckpt holds the average, its first stage twice, and is drawn with the average (inpaint.py)."""
    tensors = published_file("ldm_inpainting_big", tmp_path / "m.safetensors")
    averages = {"model_ema." + k.removeprefix("model.").replace(".", ""): t + 1 for k, t in tensors.items()
                if k.startswith("model.")}  # fmt: skip
    again = {k.replace("first_stage_model.", "cond_stage_model."): t.clone() for k, t in tensors.items()}
    save_file(again | tensors | averages, tmp_path / "m.safetensors")
    parts = load_parts(tmp_path / "m.safetensors")
    assert parts.family == "ldm-inpaint"
    assert torch.equal(parts.unet.conv_out.bias, tensors["model.diffusion_model.out.2.bias"] + 1)
    save_single_file(parts, tmp_path / "one.safetensors")
    save_folder(parts, tmp_path / "folder")
    for name in ("one.safetensors", "folder"):
        assert load_parts(tmp_path / name).family == "ldm-inpaint"
    index = tmp_path / "folder" / "model_index.json"
    index.write_text(index.read_text().replace("ldm-inpaint", "ldm-impaint"))
    with pytest.raises(CheckpointError, match="ldm-impaint"):
        load_parts(tmp_path / "folder")


@pytest.mark.parametrize("prefix", ["model.diffusion_model.", "diffusion_model.", ""])
def test_a_unet_alone_takes_the_autoencoder_that_it_is_given(sd1, sd1_tensors, tmp_path, prefix):
    unet = {prefix + key.removeprefix("model.diffusion_model."): tensor for key, tensor in sd1_tensors.items()
            if key.startswith("model.")}  # fmt: skip
    save_file(unet | {"v_pred": torch.empty(0)}, tmp_path / "unet.safetensors")
    parts, whole = load_parts(tmp_path / "unet.safetensors", vae=sd1), load_parts(sd1)
    assert same_weights(parts.unet, whole.unet) and same_weights(parts.autoencoder, whole.autoencoder)
    assert parts.prediction_type == "v_prediction" and parts.text_encoder is None
    with pytest.raises(MissingPartError, match="no autoencoder"):
        load_parts(tmp_path / "unet.safetensors")


def test_an_autoencoder_alone_is_no_model_and_half_of_one_no_autoencoder(sd1, sd1_tensors, tmp_path):
    stage = {key: tensor for key, tensor in sd1_tensors.items() if key.startswith("first_stage_model.")}
    save_file(stage, tmp_path / "vae.safetensors")
    with pytest.raises(WrongModel, match="an autoencoder alone"):
        load_parts(tmp_path / "vae.safetensors")
    save_file({key: t for key, t in stage.items() if "encoder" not in key}, tmp_path / "half.safetensors")
    with pytest.raises(WrongModel, match="the decoder of an autoencoder alone"):
        load_parts(sd1, vae=tmp_path / "half.safetensors")
