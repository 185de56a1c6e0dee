"""A1111's hires fix, read from its text as it walks it, and written so that it reads it."""

from itertools import pairwise

import pytest
import torch
import torch.nn.functional as F

import safelight
from safelight.diffusion.noise import SeededNoise
from safelight.errors import MissingPartError
from safelight.pipeline.recipes.adapters import named
from safelight.pipeline.recipes.infotext import read, write
from safelight.pipeline.recipes.redraw import redraw
from safelight.pipeline.standin import random_model

FIRST = "a fox\nNegative prompt: a hat\nSteps: 4, Sampler: {}, Schedule type: {}, CFG scale: 3, Seed: 5, Size: 64x80, "
HIRES = (
    "Denoising strength: 0.6, Hires upscale: 1.5, Hires steps: {}, Hires upscaler: Latent, RNG: CPU, Version: v1.10.1"
)


@pytest.fixture(scope="module")
def model():
    return random_model()


@pytest.mark.parametrize("steps", [0, 3, 7])
def test_the_second_pass_walks_as_many_steps_as_a1111_walks(model, steps):
    """Its setup_img2img_steps: of int(steps / strength) levels the last ones; Euler's steps, written out."""
    reading = read((FIRST + HIRES).format("Euler", "Karras", steps))
    drawn = redraw(reading, model).pictures
    count = steps or 4
    laid = int(count / 0.6)
    first = {name: value for name, value in reading.request.items() if not name.startswith("hires")}
    x = F.interpolate(safelight.text_to_image(model, **first).latents, (15, 12), mode="bilinear")
    grid, both = model.grid("karras", laid), model.condition(["a fox", "a hat"])
    denoise = safelight.guided(model.denoiser.on(grid), both.select(slice(0, 1)), both.select(slice(1, 2)), 3.0)
    sigmas = grid.sigmas[laid - (count - 1) - 1 :]
    assert len(sigmas) == count + 1
    x = x + sigmas[0] * SeededNoise([5], (4, 15, 12)).initial()
    for sigma, following in pairwise(sigmas):
        x = x + (following - sigma) / sigma * (x - denoise(x, sigma))
    assert float((drawn.latents - x).norm() / x.norm()) < 1e-4
    assert reading.kept == {} and reading.task == "text_to_image"


def test_a_sampler_a_prompt_and_a_size_of_its_own():
    more = ('Denoising strength: 0.5, Hires resize: 128x0, Hires steps: 6, Hires upscaler: Lanczos, Hires sampler: '
            'DPM++ 2M, Hires schedule type: Exponential, Hires CFG Scale: 5, Hires prompt: "a fox, large", '
            "Version: v1.10.1")  # fmt: skip
    request = read((FIRST + more).format("Euler a", "Karras")).request
    assert (request["hires"], request["hires_steps"], request["hires_upscaler"]) == (2.0, 12, "lanczos")
    assert int(request["hires_steps"] * request["hires_strength"]) == 6
    assert request["hires_options"] == {
        "sampler": "dpmpp_2m", "grid": "exponential", "guidance_scale": 5.0, "prompt": "a fox, large",
    }  # fmt: skip


@pytest.mark.parametrize(("sampler", "walked"), [("DDIM", 4), ("PLMS", 4), ("Euler", 6), ("DPM2", 6)])
def test_samplers_by_timesteps_walk_two_steps_less(sampler, walked):
    request = read((FIRST + HIRES).format(sampler, "Uniform", 6)).request
    assert int(request["hires_steps"] * request["hires_strength"]) == walked
    more = {k: v for k, v in request.get("hires_options", {}).items() if k in ("sampler", "grid")}
    assert more == {}


@pytest.mark.parametrize(
    ("fields", "left"),
    [
        ("Denoising strength: 0.5, Hires upscale: 2, Hires upscaler: 4x-UltraSharp", {"Hires upscaler"}),
        ("Hires upscale: 2, Hires upscaler: Latent", {"Hires upscale", "Hires upscaler"}),
        ("Denoising strength: 0.5, Hires resize: 640x640, Hires upscaler: Latent",
         {"Denoising strength", "Hires resize", "Hires upscaler"}),
        ("Denoising strength: 0.001, Hires upscale: 2, Hires steps: 20, Hires upscaler: Latent",
         {"Denoising strength", "Hires upscale", "Hires steps", "Hires upscaler"}),
        ("Denoising strength: 0.5, Hires upscale: 2, Hires steps: nan, Hires upscaler: Latent",
         {"Denoising strength", "Hires upscale", "Hires steps", "Hires upscaler"}),
        ("Denoising strength: 1e-320, Hires upscale: 2, Hires steps: -3, Hires upscaler: Latent",
         {"Denoising strength", "Hires upscale", "Hires steps", "Hires upscaler"}),
        ("Denoising strength: much, Hires upscale: nan, Hires upscaler: Latent",
         {"Denoising strength", "Hires upscale", "Hires upscaler"}),
    ],
)  # fmt: skip
def test_what_is_not_understood_is_kept_as_it_stands(fields, left):
    reading = read((FIRST + fields + ", Version: v1.10.1").format("Euler", "Karras"))
    assert reading.kept.keys() == left and reading.task == "text_to_image"
    assert ("hires" in reading.request) == ("4x-UltraSharp" in fields)


@pytest.mark.parametrize("field", ["Hires sampler: Use same sampler", "Hires schedule type: Use same scheduler",
                                   "Hires sampler: Foo", "Hires schedule type: Foo"])  # fmt: skip
def test_names_that_are_none_leave_the_first_passs(field):
    fields = f"Denoising strength: 0.5, Hires upscale: 2, {field}, Hires upscaler: Latent, Version: v1.10.1"
    reading = read((FIRST + fields).format("Euler", "Karras"))
    assert "hires_options" not in reading.request and reading.request["hires"] == 2
    assert list(reading.kept) == ([field.partition(":")[0]] if "Foo" in field else [])


def test_a_grid_of_one_step_more_stays_within_the_most(model):
    fields = "Denoising strength: 1, Hires upscale: 2, Hires steps: 999, Hires upscaler: Latent, Version: v1.10.1"
    assert "hires" not in read((FIRST + fields).format("Euler", "KL Optimal")).request


def test_eta_is_not_told_to_a_second_sampler_that_has_none(model):
    fields = ("Eta: 0.5, Denoising strength: 0.6, Hires upscale: 1.5, Hires upscaler: Latent, Hires sampler: DPM++ 2M, "
              "Version: v1.10.1")  # fmt: skip
    assert redraw(read((FIRST + fields).format("Euler a", "Karras")), model).pictures[0].size == (96, 120)


def test_loras_of_the_second_prompt_are_asked_for():
    with pytest.raises(MissingPartError, match="ink"):
        named({"prompt": "a fox", "hires_options": {"prompt": "a fox <lora:ink:0.7>"}}, ())


def test_what_we_write_is_read_as_it_was(model):
    draw = {"steps": 5, "seed": 5, "width": 64, "height": 64, "sampler": "euler", "guidance_scale": 3.0}
    drawn = safelight.text_to_image(
        model, "a fox", hires=2, hires_strength=0.6, hires_upscaler="latent_bicubic", **draw
    )
    text = write(drawn.recipes[0])
    assert "Size: 64x64" in text and "Hires upscale: 2" in text and "Hires steps: 3" in text
    again = redraw(read(text), model).pictures
    torch.testing.assert_close(again.latents, drawn.latents, rtol=0, atol=1e-4)
    own = {
        "sampler": "dpmpp_2m",
        "grid": "exponential",
        "prompt": "a fox, large",
        "negative_prompt": "c",
        "guidance_scale": 2.0,
    }
    drawn = safelight.text_to_image(model, "a fox", hires=2, hires_strength=0.6, hires_options=own, **draw)
    assert own.items() <= read(write(drawn.recipes[0])).request["hires_options"].items()
