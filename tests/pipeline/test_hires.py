"""Drawn larger in a second pass: what it starts from, what it walks, and that a picture tells both passes."""

from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image

import safelight
from safelight.diffusion.noise import SeededNoise
from safelight.errors import InputError
from safelight.models.unet import UNet
from safelight.pipeline.hires import SecondPass
from safelight.pipeline.recipes.infotext import read
from safelight.pipeline.recipes.reading import read_picture
from safelight.pipeline.recipes.redraw import redraw

DRAW = {"steps": 4, "seed": 5, "guidance_scale": 3.0, "width": 64, "height": 80}


def pixels(picture):
    return np.asarray(picture).astype(int)


def test_the_second_pass_is_image_to_image_of_the_first_enlarged(model):
    first = safelight.text_to_image(model, "a fox", **DRAW)[0].resize((128, 160), Image.Resampling.LANCZOS)
    again = DRAW | {"width": None, "height": None, "steps": 10}
    expected = safelight.image_to_image(model, "a fox", first, strength=0.5, **again)
    drawn = safelight.text_to_image(model, "a fox", hires=2, hires_strength=0.5, hires_steps=10, **DRAW)
    assert drawn[0].size == (128, 160) and np.array_equal(pixels(drawn[0]), pixels(expected[0]))


MODES = {"latent": ("bilinear", False), "latent_antialiased": ("bilinear", True), "latent_bicubic": ("bicubic", False),
         "latent_bicubic_antialiased": ("bicubic", True), "latent_nearest": ("nearest", False),
         "latent_nearest_exact": ("nearest-exact", False)}  # fmt: skip


@pytest.mark.parametrize("upscaler", MODES)
def test_latents_are_enlarged_by_torchs_interpolation(model, upscaler):
    """A loop of Euler's steps around the denoiser, from what A1111 would start from."""
    mode, antialias = MODES[upscaler]
    plain = {"sampler": "euler", "grid": "karras", **DRAW}
    first = safelight.text_to_image(model, "a fox", **plain).latents
    grid, both = model.grid("karras", 4), model.condition(["a fox", ""])
    condition, nothing = both.select(slice(0, 1)), both.select(slice(1, 2))
    denoise = safelight.guided(model.denoiser.on(grid), condition, nothing, 3.0)
    size = (15, 12)
    x = F.interpolate(first, size, mode=mode, antialias=antialias)
    sigmas = grid.sigmas[1:]
    x = x + sigmas[0] * SeededNoise([5], (4, *size)).initial()
    for sigma, following in pairwise(sigmas):
        x = x + (following - sigma) / sigma * (x - denoise(x, sigma))
    drawn = safelight.text_to_image(model, "a fox", hires=1.5, hires_strength=0.75, hires_upscaler=upscaler, **plain)
    assert float((drawn.latents - x).norm() / x.norm()) < 1e-4  # float32 sums in other orders


def test_each_of_several_pictures_goes_on_from_its_own(model):
    options = {**DRAW, "hires": 1.5, "hires_strength": 0.5}
    several = safelight.text_to_image(model, ["a fox", "a hat"], count=2, batch_size=3, **options)
    assert several.seeds == (5, 6, 7, 8) and several.latents.shape[-2:] == (15, 12)
    for k, prompt in enumerate(("a fox", "a fox", "a hat", "a hat")):
        alone = safelight.text_to_image(model, prompt, **options | {"seed": 5 + k})
        assert np.abs(pixels(several[k]) - pixels(alone[0])).max() <= 1


@pytest.mark.parametrize("noise", [{}, {"noise": "comfyui"}, {"subseed": 3, "subseed_strength": 0.4}])
def test_a_picture_of_a_batch_is_drawn_by_itself(model, noise):
    options = {**DRAW, **noise, "hires": 1.5, "hires_strength": 0.5}
    several = safelight.text_to_image(model, "a fox", count=3, **options)
    alone = safelight.text_to_image(model, "a fox", batch_index=2, **options)
    assert np.abs(pixels(several[2]) - pixels(alone[0])).max() <= 1


def test_seeds_that_are_drawn_and_choices_of_words_are_those_of_the_first_pass(model, tmp_path):
    options = {**DRAW, "seed": None, "subseed_strength": 0.3, "hires": 1.5, "hires_strength": 0.5}
    drawn = safelight.text_to_image(model, "a {fox|hat|boat|car}", dynamic_prompts=True, **options)
    (file,) = drawn.save(tmp_path)
    again = redraw(read_picture(file), model).pictures
    assert np.array_equal(pixels(again[0]), pixels(drawn[0]))
    request = drawn.recipes[0].request
    assert (request["width"], request["height"], request["hires"]) == (64, 80, 1.5) and "{" not in request["prompt"]


def test_the_second_pass_may_have_words_and_settings_of_its_own(model):
    options = {**DRAW, "hires": 1.5, "hires_strength": 0.5}
    base = safelight.text_to_image(model, "a fox", **options)
    for change in (
        {"prompt": "a hat"},
        {"negative_prompt": "a hat"},
        {"sampler": "euler_ancestral"},
        {"guidance_scale": 6.0},
    ):
        other = safelight.text_to_image(model, "a fox", hires_options=change, **options)
        assert not torch.allclose(base.latents, other.latents, atol=1e-3), change
        assert other.recipes[0].request["prompt"] == "a fox"
    for wrong, words in (({"width": 64}, "'width' is the same"), ({"seed": 9}, "'seed' is the same"),
                         ({"count": 2}, "'count' is the same"), ({"steps": 0}, "steps=0"),
                         ({"prompt": ["a", "b"]}, "prompt is no text"), ({"sampler": "eular"}, "eular")):  # fmt: skip
        with pytest.raises(InputError, match=words):
            safelight.text_to_image(model, "a fox", hires_options=wrong, **options)
    with pytest.raises(InputError, match="no second pass"):
        safelight.text_to_image(model, "a fox", hires_options={"prompt": "a hat"}, **DRAW)


def test_another_sampler_has_options_of_its_own_and_may_name_its_grid(model):
    first = {"sampler": "euler_ancestral", "eta": 0.5, "grid": "uniform", "sampler_options": {"s_noise": 0.9}}
    options = {**DRAW, **first, "hires": 1.5, "hires_strength": 0.5}
    named = safelight.text_to_image(
        model, "a fox", hires_options={"sampler": "DPM++ 2M Karras", "guidance_scale": None}, **options
    )
    told = {"sampler": "dpmpp_2m", "grid": "karras"}
    assert torch.equal(named.latents, safelight.text_to_image(model, "a fox", hires_options=told, **options).latents)
    again = {"sampler": "euler", "sampler_options": {"s_churn": 0.2}}
    assert safelight.text_to_image(model, "a fox", hires_options=again, **options)[0].size == (96, 120)


@pytest.mark.parametrize(
    "request_",
    [
        {"prompt": ["a fox", "a boat"], "hires_options": {"prompt": "a large thing"}},
        {"prompt": "a {fox|hat|car}", "dynamic_prompts": True, "count": 3, "hires_options": {"prompt": "a {b|c} d"}},
        {"prompt": ["a fox", "a boat"], "negative_prompt": ["red", "blue"], "hires_options": {"negative_prompt": "c"}},
        {"prompt": "a fox", "count": 2, "subseed": 3, "subseed_strength": 0.3, "hires_options": {"sampler": "heun"}},
    ],
)
def test_what_a_second_pass_has_of_its_own_is_drawn_again(model, tmp_path, request_):
    drawn = safelight.text_to_image(model, **request_, **DRAW, hires=1.5, hires_strength=0.5)
    words = request_["prompt"]
    assert len(drawn) == (len(words) if isinstance(words, list) else request_["count"])
    for k, file in enumerate(drawn.save(tmp_path)):
        again = redraw(read_picture(file), model).pictures
        assert np.abs(pixels(again[0]) - pixels(drawn[k])).max() <= 1


def test_a_scale_that_is_a_ratio_of_sizes_reaches_them(model):
    line = "a fox\nSteps: 4, Sampler: Euler, Size: {0}x{0}, Denoising strength: 0.5, Hires resize: {1}x0, Version: v1.9"
    for first, large in ((832, 960), (832, 904), (88, 120), (512, 768), (1000, 1096)):
        scale = read(line.format(first, large)).request["hires"]
        second = SecondPass(scale, "latent", 0.5, {}, None, None)
        assert second.size(model, (first // 8, first // 8)) == (large // 8, large // 8)


def test_windows_inpainting_models_and_the_cache_of_features_go_with_it(model):
    options = {**DRAW, "hires": 2, "hires_strength": 0.5}
    assert safelight.text_to_image(model, "a fox", window=80, **options)[0].size == (128, 160)
    assert safelight.text_to_image(model, "a fox", fast=True, **options)[0].size == (128, 160)
    painter = replace(model, unet=UNet(replace(model.unet.config, in_channels=9)).eval())
    assert safelight.text_to_image(painter, "a fox", **options | {"steps": 2})[0].size == (128, 160)
    with pytest.raises(InputError, match="16384"):
        safelight.text_to_image(model, "a fox", hires=8, width=4096, height=64, steps=1)
