"""End to end beside diffusers: the same small model, the same seed, the same picture.

Weights are seeded and random, in the real architecture made small. PSNR is taken between the two 8-bit pictures; at
60 dB one pixel in a thousand may differ by one level. Randomness agrees because both draw with one CPU generator.
"""

import shutil
import subprocess
import sys

import diffusers
import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

import safelight

SMALL = {"block_out_channels": (32, 64), "norm_num_groups": 8, "layers_per_block": 1}


@pytest.fixture(scope="module")
def pipe(folder):
    pipe = diffusers.StableDiffusionPipeline.from_pretrained(folder, safety_checker=None, requires_safety_checker=False)
    pipe.set_progress_bar_config(disable=True)
    return pipe


def psnr(a, b):
    error = np.mean((np.asarray(a).astype(float) - np.asarray(b).astype(float)) ** 2)
    return np.inf if error == 0 else 10 * np.log10(255**2 / error)


LINSPACE = {"timestep_spacing": "linspace"}
DDIM = {"sampler": "ddim", "grid": "leading", "grid_options": {"final_sigma": "sigma_min"}}
K = {"grid": "linspace", "initial_noise": "sigma"}  # k-diffusion's way, which diffusers' Euler and Heun follow
CASES = [
    ("DDIMScheduler", {}, DDIM),
    ("DDIMScheduler", {"timestep_spacing": "trailing"}, DDIM | {"grid": "trailing"}),
    ("EulerDiscreteScheduler", LINSPACE, K | {"sampler": "euler"}),
    ("EulerAncestralDiscreteScheduler", LINSPACE, K | {"sampler": "euler_ancestral"}),
    ("EulerDiscreteScheduler", LINSPACE | {"use_karras_sigmas": True}, K | {"sampler": "euler", "grid": "karras"}),
    ("HeunDiscreteScheduler", LINSPACE, K | {"sampler": "heun"}),
    ("PNDMScheduler", {"skip_prk_steps": True}, DDIM | {"sampler": "plms"}),
]


@pytest.mark.parametrize(("scheduler", "config", "ours"), CASES, ids=lambda case: str(case)[:40])
@pytest.mark.parametrize("guidance", [1.0, 7.5])
def test_text_to_image(folder, pipe, scheduler, config, ours, guidance):
    base = diffusers.DDIMScheduler.from_pretrained(folder, subfolder="scheduler").config
    pipe.scheduler = getattr(diffusers, scheduler).from_config(base, **config)
    ours = {"steps": 10} | ours
    words = {"prompt": "a red fox, résumé", "negative_prompt": "a hat", "guidance_scale": guidance}
    theirs = pipe(
        **words, num_inference_steps=ours["steps"], generator=torch.Generator().manual_seed(4), width=128, height=96
    )
    model = safelight.load(folder)
    drawn = safelight.text_to_image(model, **words, **ours, seed=4, width=128, height=96)
    assert psnr(drawn[0], theirs.images[0]) >= 60


def test_an_inpainting_model_draws_from_words_as_under_a_white_mask(folder, pipe, tmp_path):
    """diffusers samples the posterior of what it masks, which is made narrow here; its noise comes first."""
    torch.manual_seed(1)
    vae, unet = diffusers.AutoencoderKL.from_config(pipe.vae.config), pipe.unet.config | {"in_channels": 9}
    vae.load_state_dict(pipe.vae.state_dict())
    vae.quant_conv.weight.data[4:], vae.quant_conv.bias.data[4:] = 0, -30
    parts = pipe.components | {"vae": vae, "unet": diffusers.UNet2DConditionModel.from_config(unet)}
    painter = diffusers.StableDiffusionInpaintPipeline(**parts, requires_safety_checker=False)
    painter.set_progress_bar_config(disable=True)
    painter.scheduler = diffusers.DDIMScheduler.from_pretrained(folder, subfolder="scheduler")
    painter.save_pretrained(tmp_path)
    words = {"prompt": "a red fox", "guidance_scale": 5.0}
    white, grey = Image.new("L", (128, 96), 255), Image.new("RGB", (128, 96), "gray")
    theirs = painter(**words, image=grey, mask_image=white, strength=1.0, num_inference_steps=6, width=128, height=96,
                     generator=torch.Generator().manual_seed(4)).images[0]  # fmt: skip
    model = safelight.load(tmp_path, device="cpu")
    drawn = safelight.text_to_image(model, **words, **DDIM, steps=6, seed=4, width=128, height=96)
    assert psnr(drawn[0], theirs) >= 60


def test_a_single_file_draws_the_same_picture(folder, tmp_path):
    safelight.convert(folder, tmp_path / "model.safetensors")
    a, b = (
        safelight.text_to_image(safelight.load(name), "a fox", steps=3, seed=0, width=128, height=128)
        for name in (folder, tmp_path / "model.safetensors")
    )
    assert np.array_equal(np.asarray(a[0]), np.asarray(b[0]))


def test_the_command_line_draws_a_folder_that_has_one_variant_only(folder, pipe, tmp_path):
    pipe.save_pretrained(tmp_path / "half", variant="fp16")
    command = [sys.executable, "-m", "safelight", "a fox", "--steps", "1", "--seed", "0", "--model", tmp_path / "half"]
    without = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert without.returncode == 1 and "fp16" in without.stderr
    drawn = subprocess.run([*command, "--variant", "fp16"], cwd=tmp_path, capture_output=True, text=True)
    assert drawn.returncode == 0, drawn.stderr
    from safelight import compat

    with pytest.raises(safelight.SafelightError, match="fp9"):
        compat.StableDiffusionPipeline.from_pretrained(tmp_path / "half", variant="fp9")


def test_whole_numbers_are_no_weights(folder, tmp_path):
    shutil.copytree(folder, tmp_path / "whole")
    file = tmp_path / "whole" / "unet" / "diffusion_pytorch_model.safetensors"
    weights = load_file(file)
    save_file(weights | {"conv_in.weight": weights["conv_in.weight"].int()}, file)
    with pytest.raises(safelight.SafelightError, match="floating-point"):
        safelight.load(tmp_path / "whole")


def test_a_slip_in_the_name_of_a_target_is_no_folder(folder, tmp_path):
    with pytest.raises(safelight.SafelightError, match="looks like a file"):
        safelight.convert(folder, tmp_path / "model.safetensor")
    assert not list(tmp_path.iterdir())
