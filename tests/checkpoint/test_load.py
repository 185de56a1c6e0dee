import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from diffusers import AutoencoderKL, DDIMScheduler, LDMPipeline, StableDiffusionPipeline, UNet2DModel, VQModel
from safetensors.torch import load_file, save_file
from small_models import same_weights, small_pipeline

from safelight.checkpoint.build import cast
from safelight.checkpoint.load import load_autoencoder, load_parts, load_text_encoder, load_unet
from safelight.checkpoint.parts import Parts
from safelight.checkpoint.save import save_single_file
from safelight.errors import CheckpointError, InputError
from safelight.models.autoencoder import Autoencoder, AutoencoderConfig
from safelight.models.unet import UNet
from safelight.models.unet_config import UNetConfig

IDS = torch.tensor([[49406, 320, 2368, 49407, 49407]])


def agrees_with_diffusers(parts, folder: Path) -> bool:
    """Whether the networks compute what diffusers' and transformers' do on the folder's weights."""
    pipe = StableDiffusionPipeline.from_pretrained(folder, safety_checker=None)
    x, context = torch.randn(1, 4, 8, 8), torch.randn(1, 5, 64)
    with torch.no_grad():
        pairs = [
            (parts.unet(x, 7, context), pipe.unet(x, 7, context).sample),
            (parts.autoencoder.decode_raw(x), pipe.vae.decode(x).sample),
            (parts.text_encoder(IDS).last_hidden_state, pipe.text_encoder(IDS).last_hidden_state),
        ]
    return all(torch.allclose(ours, theirs, atol=1e-5, rtol=1e-5) for ours, theirs in pairs)


def test_a_folder_computes_what_diffusers_computes(sd1):
    parts = load_parts(sd1)
    assert agrees_with_diffusers(parts, sd1)
    assert (parts.family, parts.prediction_type, parts.prediction_from) == ("sd1", "epsilon", "config")
    assert parts.tokenizer.encode("a cat") == [320, 2368]
    assert parts.scheduler_config["_class_name"] == "PNDMScheduler"
    assert not parts.unet.training


def test_sd2_folder(sd2):
    parts = load_parts(sd2)
    assert agrees_with_diffusers(parts, sd2)
    assert (parts.family, parts.prediction_type, parts.prediction_from) == ("sd2", "v_prediction", "config")


def test_a_single_file_is_the_folder(sd1, sd1_file):
    folder, single = load_parts(sd1), load_parts(str(sd1_file))
    for part in ("unet", "autoencoder", "text_encoder"):
        assert same_weights(getattr(folder, part), getattr(single, part))
        assert getattr(folder, part).config == getattr(single, part).config
    assert single.family == "sd1"


@pytest.mark.parametrize("shape", ["state_dict", "flat", "legacy", "safetensors"])
def test_files_from_elsewhere(sd1, sd1_tensors, tmp_path, shape):
    """Without our metadata: the configs come from names and shapes, the betas from the file."""
    betas = torch.linspace(0.00085**0.5, 0.012**0.5, 1000, dtype=torch.float64) ** 2
    tensors = sd1_tensors | {"betas": betas.float(), "alphas_cumprod": (1 - betas).cumprod(0).float()}
    path = tmp_path / f"model.{'safetensors' if shape == 'safetensors' else 'ckpt'}"
    if shape == "safetensors":
        save_file(tensors, path)
    else:
        whole = {"state_dict": tensors, "global_step": 470000} if shape != "flat" else tensors
        torch.save(whole, path, _use_new_zipfile_serialization=shape != "legacy")
    parts = load_parts(path)
    assert agrees_with_diffusers(parts, sd1)
    assert (parts.family, parts.prediction_type, parts.prediction_from) == ("sd1", "epsilon", "family")
    assert parts.scheduler_config["beta_start"] == 0.00085
    assert parts.scheduler_config["beta_end"] == 0.012
    assert "trained_betas" not in parts.scheduler_config
    assert parts.global_step == (470000 if shape in ("state_dict", "legacy") else None)


def test_betas_of_their_own_are_kept(sd1_tensors, tmp_path):
    save_file(sd1_tensors | {"betas": torch.linspace(0.001, 0.02, 500)}, tmp_path / "m.safetensors")
    config = load_parts(tmp_path / "m.safetensors").scheduler_config
    assert config["num_train_timesteps"] == len(config["trained_betas"]) == 500


@pytest.mark.parametrize("change", ["missing", "float"])
def test_position_ids_may_be_missing_or_floats(sd1_tensors, tmp_path, change):
    name = "cond_stage_model.transformer.text_model.embeddings.position_ids"
    positions = sd1_tensors[name]
    tensors = {key: tensor for key, tensor in sd1_tensors.items() if key != name}
    save_file(tensors | ({name: positions.float()} if change == "float" else {}), tmp_path / "m.safetensors")
    assert load_parts(tmp_path / "m.safetensors").text_encoder is not None


def test_old_merges_lack_text_model(sd1, sd1_tensors, tmp_path):
    save_file({key.replace(".text_model.", "."): t for key, t in sd1_tensors.items()}, tmp_path / "m.safetensors")
    assert agrees_with_diffusers(load_parts(tmp_path / "m.safetensors"), sd1)


def test_moving_averages(sd1_tensors, tmp_path):
    averages = {
        "model_ema." + key.removeprefix("model.").replace(".", ""): tensor + 1
        for key, tensor in sd1_tensors.items()
        if key.startswith("model.")
    }
    path = tmp_path / "full.ckpt"
    torch.save({"state_dict": sd1_tensors | averages | {"model_ema.decay": torch.tensor(0.9999)}}, path)
    bias = sd1_tensors["model.diffusion_model.out.2.bias"]
    assert torch.equal(load_parts(path).unet.conv_out.bias, bias)  # Stable Diffusion: the weights themselves
    assert torch.equal(load_parts(path, ema=False).unet.conv_out.bias, bias)
    assert torch.equal(load_parts(path, ema=True).unet.conv_out.bias, bias + 1)
    del averages["model_ema.diffusion_modelout2bias"]
    torch.save({"state_dict": sd1_tensors | averages}, path)
    with pytest.raises(CheckpointError, match=r"moving average of 1 weights.*out\.2\.bias"):
        load_parts(path, ema=True)


def test_variants_shards_and_bins(clip_tokenizer, sd1, tmp_path):
    pipe = small_pipeline(clip_tokenizer).to(torch.float16)
    pipe.save_pretrained(tmp_path / "m", variant="fp16", max_shard_size="200KB")
    assert list((tmp_path / "m" / "unet").glob("*-of-*"))
    parts = load_parts(tmp_path / "m", variant="fp16")
    assert parts.unet.conv_in.weight.dtype == torch.float16
    with pytest.raises(CheckpointError, match="variant='fp16'"):
        load_parts(tmp_path / "m")
    small_pipeline(clip_tokenizer).save_pretrained(tmp_path / "b", safe_serialization=False)
    assert list((tmp_path / "b" / "unet").glob("*.bin"))
    for part in ("unet", "autoencoder"):
        assert same_weights(getattr(load_parts(tmp_path / "b"), part), getattr(load_parts(sd1), part))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_dtype_is_the_one_asked_for(sd1_file, dtype):
    parts = load_parts(sd1_file, dtype=dtype)
    for network in (parts.unet, parts.autoencoder, parts.text_encoder):
        assert {p.dtype for p in network.parameters()} == {dtype}


def test_mixed_precisions_become_the_widest_and_eight_bits_become_sixteen(sd1_tensors, tmp_path):
    tensors = {
        key: t.half() if "down" in key or "input" in key else t
        for key, t in sd1_tensors.items()
        if t.is_floating_point()
    }
    save_file(tensors, tmp_path / "mixed.safetensors")
    parts = load_parts(tmp_path / "mixed.safetensors")
    assert {p.dtype for p in parts.unet.parameters()} == {torch.float32}
    save_file({key: t.clamp(-9, 9).to(torch.float8_e4m3fn) for key, t in tensors.items()}, tmp_path / "f8.safetensors")
    assert {p.dtype for p in load_parts(tmp_path / "f8.safetensors").unet.parameters()} == {torch.float16}


def test_the_older_names_of_diffusers_attention(sd1, tmp_path):
    shutil.copytree(sd1, tmp_path / "old")
    weights = tmp_path / "old" / "vae" / "diffusion_pytorch_model.safetensors"
    words = {"to_q": "query", "to_k": "key", "to_v": "value", "to_out.0": "proj_attn"}
    renamed = load_file(weights)
    for new, word in words.items():
        renamed = {key.replace(f".{new}.", f".{word}."): tensor for key, tensor in renamed.items()}
    save_file(renamed, weights)
    assert same_weights(load_parts(tmp_path / "old").autoencoder, load_parts(sd1).autoencoder)


@pytest.mark.parametrize(
    "form", ["own folder", "model folder", "compvis file", "diffusers file", "whole model", "ckpt with loss", "vae."]
)
def test_another_autoencoder(clip_tokenizer, sd1, sd1_file, sd1_tensors, tmp_path, form):
    torch.manual_seed(1)
    vae = AutoencoderKL.from_pretrained(sd1, subfolder="vae")
    with torch.no_grad():
        vae.decoder.conv_out.bias.fill_(0.5)
    prefix = "first_stage_model."
    stage = {key.removeprefix(prefix): t for key, t in sd1_tensors.items() if key.startswith(prefix)}
    stage["decoder.conv_out.bias"] = torch.full((3,), 0.5)
    path = tmp_path / {"own folder": "vae", "model folder": "m", "ckpt with loss": "v.pt"}.get(form, "v.safetensors")
    if form == "own folder":
        vae.save_pretrained(path)
    elif form == "model folder":
        pipe = small_pipeline(clip_tokenizer)
        pipe.register_modules(vae=vae)
        pipe.save_pretrained(path)
    elif form == "diffusers file":
        save_file(vae.state_dict(), path)
    elif form == "whole model":
        save_file(sd1_tensors | {prefix + key: t for key, t in stage.items()}, path)
    elif form == "ckpt with loss":
        torch.save({"state_dict": stage | {"loss.logvar": torch.zeros(())}}, path)
    else:
        save_file({f"vae.{key}" if form == "vae." else key: t for key, t in stage.items()}, path)
    for parts in (load_parts(sd1, vae=path), load_parts(sd1_file, vae=path)):
        assert parts.autoencoder.decoder.conv_out.bias.tolist() == [0.5] * 3
        assert parts.autoencoder.config.scaling_factor == 0.18215
        assert torch.equal(parts.autoencoder.encoder.conv_in.weight, vae.encoder.conv_in.weight)


def test_single_networks(sd1):
    parts = load_parts(sd1)
    assert same_weights(load_unet(sd1 / "unet"), parts.unet)
    assert same_weights(load_autoencoder(sd1), parts.autoencoder)
    assert same_weights(load_text_encoder(sd1), parts.text_encoder)


def test_an_unconditional_ldm(tmp_path):
    torch.manual_seed(0)
    unet = UNet2DModel(
        sample_size=8, in_channels=3, out_channels=3, block_out_channels=(32, 64), layers_per_block=1,
        down_block_types=("DownBlock2D", "AttnDownBlock2D"), up_block_types=("AttnUpBlock2D", "UpBlock2D"),
        attention_head_dim=32,
    )  # fmt: skip
    vqvae = VQModel(
        down_block_types=("DownEncoderBlock2D",) * 2, up_block_types=("UpDecoderBlock2D",) * 2,
        block_out_channels=(32, 64), latent_channels=3, num_vq_embeddings=16,
    )  # fmt: skip
    LDMPipeline(vqvae=vqvae, unet=unet, scheduler=DDIMScheduler(clip_sample=False)).save_pretrained(tmp_path / "ldm")
    parts = load_parts(tmp_path / "ldm")
    assert (parts.family, parts.text_encoder, parts.prediction_type) == ("ldm", None, "epsilon")
    x = torch.randn(1, 3, 8, 8)
    with torch.no_grad():
        assert torch.allclose(parts.unet(x, 3), unet.eval()(x, 3).sample, atol=1e-5)
        assert torch.allclose(parts.autoencoder.decode_raw(x), vqvae.eval().decode(x).sample, atol=1e-5)


def test_a_single_file_of_the_ldm_family(tmp_path):
    """KL or VQ, head-major attention, residual blocks that resample, the moving average, a measured scale."""
    unet = UNetConfig.from_diffusers({
        "_class_name": "UNet2DModel", "in_channels": 4, "out_channels": 4, "block_out_channels": (32, 64, 64),
        "down_block_types": ("ResnetDownsampleBlock2D", "AttnDownBlock2D", "DownBlock2D"), "downsample_type": "resnet",
        "up_block_types": ("ResnetUpsampleBlock2D", "AttnUpBlock2D", "UpBlock2D"), "upsample_type": "resnet",
        "layers_per_block": 1, "attention_head_dim": 32, "resnet_time_scale_shift": "scale_shift",
        "attn_norm_num_groups": 32,
    })  # fmt: skip
    stage = AutoencoderConfig(
        block_out_channels=(32, 64), down_block_types=("DownEncoderBlock2D", "AttnDownEncoderBlock2D"),
        up_block_types=("AttnUpDecoderBlock2D", "UpDecoderBlock2D"),
    )  # fmt: skip
    torch.manual_seed(0)
    parts = Parts(unet=UNet(unet), autoencoder=Autoencoder(stage), family="ldm")
    for parameter in parts.unet.parameters():
        torch.nn.init.normal_(parameter)
    save_single_file(parts, tmp_path / "own.safetensors")
    tensors = load_file(tmp_path / "own.safetensors")
    assert tensors["model.diffusion_model.middle_block.1.qkv.weight"].shape == (192, 64, 1)
    averages = {
        "model_ema." + key.removeprefix("model.").replace(".", ""): tensors.pop(key)
        for key in [key for key in tensors if key.startswith("model.")]
    }
    rest = {
        key: torch.zeros_like(tensor)
        for key, tensor in load_file(tmp_path / "own.safetensors").items()
        if key not in tensors
    }
    torch.save({"state_dict": tensors | rest | averages | {"scale_factor": torch.tensor(0.3)}}, tmp_path / "ldm.ckpt")
    again = load_parts(tmp_path / "ldm.ckpt")
    assert again.family == "ldm"
    assert again.unet.config == unet
    assert same_weights(again.unet, parts.unet)  # the average: what LDM's own scripts draw with
    assert same_weights(again.autoencoder, parts.autoencoder)
    assert again.autoencoder.config.scaling_factor == pytest.approx(0.3)
    assert again.scheduler_config["beta_end"] == 0.0195
    assert not load_parts(tmp_path / "ldm.ckpt", ema=False).unet.conv_out.weight.any()


def test_prediction_type(sd1, sd2, tmp_path):
    assert load_parts(sd1, prediction_type="v_prediction").prediction_type == "v_prediction"
    assert load_parts(sd1, prediction_type="v_prediction").scheduler_config["prediction_type"] == "v_prediction"
    with pytest.raises(InputError, match="epsilon"):
        load_parts(sd1, prediction_type="epsylon")
    shutil.copytree(sd2, tmp_path / "m")
    path = tmp_path / "m" / "scheduler" / "scheduler_config.json"
    path.write_text(path.read_text().replace("v_prediction", "flow_prediction"))
    with pytest.raises(CheckpointError, match="flow_prediction"):
        load_parts(tmp_path / "m")


def test_a_text_encoder_is_optional_in_a_single_file(sd1_tensors, tmp_path):
    save_file(
        {key: t for key, t in sd1_tensors.items() if not key.startswith("cond_stage_model")}, tmp_path / "m.safetensors"
    )
    parts = load_parts(tmp_path / "m.safetensors", prediction_type="epsilon")
    assert parts.text_encoder is None
    assert parts.tokenizer is None


MEASURE = """
import sys, torch, resource
from safelight.checkpoint.build import Plan, on_meta
from safelight.checkpoint.files import open_file
from safelight.checkpoint.keymap import identity
def resident(kind):
    return next(int(l.split()[1]) for l in open("/proc/self/status") if l.startswith(kind)) / 1024
from pathlib import Path
net = on_meta(lambda: torch.nn.ModuleList(torch.nn.Linear(1024, 1024) for _ in range(24)))
file = open_file(Path(sys.argv[1]))
before = resident("RssAnon"), resident("RssFile")
Plan(net, file, identity(net.state_dict())).fill(dtype=getattr(torch, sys.argv[2]))
print(resident("RssAnon") - before[0], resident("RssFile") - before[1])
"""


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
@pytest.mark.parametrize(("dtype", "own", "mapped"), [("float32", 8, 104), ("float16", 60, 12)])
def test_loading_takes_no_more_memory_than_the_weights(tmp_path, dtype, own, mapped):
    """96 MiB in float32: mapped they take that and nothing else, cast to float16 their 48 MiB and a tensor beside."""
    path = tmp_path / "big.safetensors"
    save_file(torch.nn.ModuleList(torch.nn.Linear(1024, 1024) for _ in range(24)).state_dict(), path)
    done = subprocess.run([sys.executable, "-c", MEASURE, path, dtype], capture_output=True, text=True, check=True)
    assert all(took < most for took, most in zip(map(float, done.stdout.split()), (own, mapped), strict=True))


def test_parts_say_which_files_they_came_from(sd1, sd1_file):
    folder, single = load_parts(sd1), load_parts(sd1_file, vae=sd1)
    assert set(folder.weights) == {
        "unet/diffusion_pytorch_model.safetensors",
        "vae/diffusion_pytorch_model.safetensors",
        "text_encoder/model.safetensors",
    }
    assert all(file == sd1 / name for name, file in folder.weights.items())
    assert single.weights == {
        sd1_file.name: sd1_file,
        "vae: diffusion_pytorch_model.safetensors": sd1 / "vae" / "diffusion_pytorch_model.safetensors",
    }


def test_float16_becomes_bfloat16_as_torch_makes_it():
    every = torch.arange(-(2**15), 2**15).to(torch.int16).view(torch.float16)
    for tensor in (every, every.view(256, 256), every.view(256, 256).T, every[:0], every.repeat(9)):
        made = cast(tensor, "cpu", torch.bfloat16)
        assert made.dtype == torch.bfloat16 and made.shape == tensor.shape
        torch.testing.assert_close(made, tensor.to(torch.bfloat16), rtol=0, atol=0, equal_nan=True)
    assert cast(every, "cpu", None) is every and cast(every, "cpu", torch.float32).dtype == torch.float32
