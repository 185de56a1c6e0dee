"""AUTOMATIC1111's `parameters`: texts that its web UI wrote, and ours."""

import pytest
from random_requests import random_request

from safelight.pipeline.recipes.infotext import read, split, write
from safelight.pipeline.recipes.reading import checked
from safelight.pipeline.recipes.recipe import ModelCard, Recipe

# The example in the documentation of its own reader
ITS_OWN = """girl with an artist's beret, determined, blue eyes, ((eyeshadow)), (coquettish), detailed, intricate
Negative prompt: ugly, fat, (((deformed))), [blurry], (extra_limb), (ugly), (poorly drawn hands), messy drawing
Steps: 20, Sampler: Euler a, CFG scale: 7, Seed: 965400086, Size: 512x512, Model hash: 45dee52b"""

VERSION_1_9 = """a fox
in the snow
Negative prompt: blurry,
low quality
Steps: 25, Sampler: DPM++ 2M SDE, Schedule type: Automatic, CFG scale: 5.5, Seed: 3, Size: 640x448, \
Model hash: 6ce0161689, Model: v1-5-pruned-emaonly, VAE hash: 735e4c3a44, VAE: vae-ft.safetensors, Variation seed: 9, \
Variation seed strength: 0.25, Seed resize from: 512x512, Clip skip: 2, ENSD: 31337, RNG: CPU, \
Lora hashes: "one: 1a2b, two: 3c4d", Hires upscale: 2, Denoising strength: 0.5, Version: v1.9.4"""


def test_the_example_of_its_own_reader():
    reading = checked(read(ITS_OWN))
    assert reading.program == "AUTOMATIC1111" and reading.task == "text_to_image"
    assert reading.request == {
        "prompt": ITS_OWN.splitlines()[0],
        "negative_prompt": ITS_OWN.splitlines()[1].removeprefix("Negative prompt: "),
        "steps": 20, "sampler": "euler_ancestral", "grid": "uniform", "guidance_scale": 7.0, "seed": 965400086,
        "width": 512, "height": 512, "noise": "cuda", "initial_noise": "sigma", "prompt_delay": 1,
    }  # fmt: skip
    assert reading.model == {"hash": "45dee52b"} and reading.kept == {}


def test_every_field_of_a_later_version_is_understood_or_kept():
    reading = checked(read(VERSION_1_9))
    assert reading.program == "AUTOMATIC1111 v1.9.4"
    assert reading.request == {
        "prompt": "a fox\nin the snow", "negative_prompt": "blurry,\nlow quality", "steps": 25,
        "sampler": "dpmpp_2m_sde", "grid": "exponential", "guidance_scale": 5.5, "seed": 3, "width": 640,
        "height": 448, "subseed": 9, "subseed_strength": 0.25, "seed_resize_from_width": 512,
        "seed_resize_from_height": 512, "clip_skip": 1, "noise_seed_delta": 31337, "noise": "cpu",
        "initial_noise": "sigma", "prompt_delay": 1, "hires": 2.0, "hires_steps": 50, "hires_strength": 0.5,
        "hires_upscaler": "latent",
    }  # fmt: skip
    assert reading.model == {"name": "v1-5-pruned-emaonly", "hash": "6ce0161689"}
    assert reading.kept == {
        "VAE hash": "735e4c3a44", "VAE": "vae-ft.safetensors", "Lora hashes": "one: 1a2b, two: 3c4d",
    }  # fmt: skip


@pytest.mark.parametrize(
    ("fields", "sampler", "grid"),
    [
        ("Sampler: DPM++ 2M Karras", "dpmpp_2m", "karras"),
        ("Sampler: DPM++ 2M SDE Exponential", "dpmpp_2m_sde", "exponential"),
        ("Sampler: DPM++ 2M", "dpmpp_2m", "uniform"),
        ("Sampler: DPM++ 2M, Schedule type: Automatic", "dpmpp_2m", "karras"),
        ("Sampler: Euler, Schedule type: SGM Uniform", "euler", "sgm_uniform"),
        ("Sampler: Euler, Schedule type: Align Your Steps", "euler", "align_your_steps"),
        ("Sampler: Euler, Schedule type: Normal", "euler", "uniform"),
        ("Sampler: Euler, Schedule type: SGMUniform", "euler", "sgm_uniform"),
        ("Sampler: Euler, Schedule type: Turbo", "euler", "trailing"),
        ("Sampler: DPM++ 2M Karras, Schedule type: Exponential", "dpmpp_2m", "exponential"),
        ("Sampler: Euler, Schedule type: DDIM", "euler", "ddim_uniform"),
        ("Sampler: Euler, Schedule type: Polyexponential", "euler", "polyexponential"),
        ("Sampler: Euler, Schedule type: Wonder", "euler", None),
        ("Sampler: Wonder, Schedule type: Karras", None, None),
    ],
)
def test_samplers_and_schedules(fields, sampler, grid):
    reading = read(f"a fox\nSteps: 20, {fields}, Seed: 1")
    assert (reading.request.get("sampler"), reading.request.get("grid")) == (sampler, grid)
    assert ("Schedule type" in reading.kept) == (grid is None)


def test_a_strength_makes_it_image_to_image():
    reading = read("a fox\nSteps: 20, Sampler: Euler, Seed: 1, Denoising strength: 0.6, Mask blur: 4")
    assert reading.task == "image_to_image" and reading.request["strength"] == 0.65  # 13 of 20 steps
    assert reading.kept == {"Mask blur": "4"}


def test_fields_out_of_bounds_are_kept_aside():
    reading = checked(read("x\nSteps: 99999, Sampler: Euler, CFG scale: much, Seed: -1, Size: 513x512, Clip skip: 40"))
    assert reading.request.keys() & {"steps", "guidance_scale", "seed", "width", "clip_skip"} == set()
    assert reading.kept == {"steps": 99999, "CFG scale": "much", "seed": -1, "width": 513, "clip_skip": 39}


@pytest.mark.parametrize("text", ["", "\n", "just words: and, a colon", "Negative prompt: only this", "a\n\n\nb"])
def test_texts_without_fields(text):
    prompt, negative, fields = split(text)
    assert fields == {} and (prompt or negative or not text.strip())


def test_a_long_hostile_line_takes_linear_time():
    """Were it quadratic, a million characters would not end within the test's time limit."""
    for line in ("word " * 200_000, "a: " * 300_000, 'k: "' * 250_000, ", " * 500_000, "a b: " + '"' * 1_000_000):
        split(f"a fox\n{line}")


def test_what_we_write_we_read_again():
    for seed in range(200):
        task, request = random_request(seed)
        words = {"prompt": "a (fox:1.2),\nwith: commas", "negative_prompt": "no, none"}
        request |= {name: text for name, text in words.items() if name in request}
        recipe = Recipe(
            task, request, ModelCard("m.safetensors", weights={"m.safetensors": "0123456789abcdef"}), (64, 72)
        )
        reading = read(write(recipe))
        assert reading.program == "Safelight" and reading.kept == {}
        assert reading.model == {"name": "m", "hash": "0123456789"}
        same = ["steps", "sampler", "grid", "guidance_scale", "seed", "eta", "clip_skip", "noise_seed_delta", *words]
        for name in same:
            if request.get(name):
                assert reading.request[name] == request[name], name


def test_a_schedule_is_written_by_a1111s_label_where_it_has_one():
    for grid, field in (("sgm_uniform", "Schedule type: SGM Uniform"), ("leading", "Grid: leading")):
        text = write(Recipe("text_to_image", {"prompt": "x", "steps": 3, "sampler": "ddim", "eta": 0.5, "grid": grid}))
        assert field in text and ("Schedule type" in text) == (grid == "sgm_uniform")
        assert "Eta DDIM: 0.5" in text
        assert read(text).request["grid"] == grid
