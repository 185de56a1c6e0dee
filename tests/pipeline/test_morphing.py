"""The way between two prompts and two seeds: its ends are pictures drawn alone, and what lies between is between."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image

import safelight
from safelight.diffusion.noise import make_noise
from safelight.errors import InputError
from safelight.models.presets import levels
from safelight.models.unet import UNet
from safelight.pipeline.morphing import Turned, morph, save_way
from safelight.pipeline.recipes.reading import read_picture
from safelight.pipeline.recipes.redraw import required

QUICK = {"steps": 3, "seed": 1, "width": 64, "height": 64}
CLOSE = {"atol": 3e-3, "rtol": 0}  # a batch of frames rounds otherwise than a picture alone


def single(model, prompt, seed, **options):
    return safelight.text_to_image(model, prompt, **QUICK | options | {"seed": seed}).latents


@pytest.mark.parametrize(
    "options",
    [
        {"sampler": "euler"},
        {"sampler": "dpmpp_sde", "negative_prompt": "blurry"},
        {"sampler": "euler_ancestral", "guidance_scale": 1},
        {"sampler": "dpm_adaptive", "sampler_options": {"rtol": 1.0, "atol": 1.0}},
        {"sampler": "euler", "noise": "cuda"},
    ],
    ids=str,
)
def test_the_ends_are_the_pictures_of_both_ends(model, options):
    way = morph(model, "a fox", "a (red:1.2) hat", frames=3, to_seed=9, **QUICK, **options)
    torch.testing.assert_close(way.latents[:1], single(model, "a fox", 1, **options), **CLOSE)
    torch.testing.assert_close(way.latents[2:], single(model, "a (red:1.2) hat", 9, **options), **CLOSE)
    assert way.seeds == (1, 1, 9) and way.prompts == ("a fox", None, "a (red:1.2) hat")
    assert not torch.allclose(way.latents[1], way.latents[0], atol=0.05)


def test_frames_do_not_depend_on_the_batch(model):
    options = {**QUICK, "sampler": "dpmpp_2m_sde", "frames": 5, "to_seed": 2}
    together = morph(model, "a fox", "a hat", batch_size=5, **options)
    apart = morph(model, "a fox", "a hat", batch_size=2, **options)
    torch.testing.assert_close(together.latents, apart.latents, **CLOSE)


def test_noise_is_turned_and_keeps_its_variance():
    shares = [0, 0.25, 0.5, 1]
    for kind in ("fresh", "brownian"):
        a, b, one, other = (make_noise(kind, [seed], (4, 32, 32)) for seed in (1, 2, 1, 2))
        turned = Turned(a, b, shares)
        for pair in (lambda noise: noise.initial(), lambda noise: noise(10.0, 9.0)):
            between, first, last = pair(turned), pair(one), pair(other)
            assert torch.equal(between[:1], first) and torch.equal(between[3:], last)
            # 4096 numbers: the deviation is known to 1 / sqrt(2 · 4096) = 0.011
            assert torch.allclose(between.std((1, 2, 3)), torch.ones(4), atol=0.05)
            half = (first + last) / (first + last).norm() * first.norm()
            assert torch.allclose(between[2:3], half, atol=0.05)


def test_schedules_are_mixed_step_by_step(model):
    """A prompt that changes on the way, mixed with itself, is itself; one that does not is mixed with each stretch."""
    options = {**QUICK, "sampler": "euler", "frames": 3}
    same = morph(model, "a [fox:hat:2]", "a [fox:hat:2]", to_seed=2, **options)
    torch.testing.assert_close(same.latents[:1], single(model, "a [fox:hat:2]", 1, sampler="euler"), **CLOSE)
    way = morph(model, "a [fox:hat:2]", "a [boat|tree]", **options)
    torch.testing.assert_close(way.latents[:1], single(model, "a [fox:hat:2]", 1, sampler="euler"), **CLOSE)
    torch.testing.assert_close(way.latents[2:], single(model, "a [boat|tree]", 1, sampler="euler"), **CLOSE)


def test_prompts_of_two_lengths(model):
    way = morph(model, "a fox", "a fox and " * 30, frames=2, **QUICK)
    torch.testing.assert_close(way.latents[1:], single(model, "a fox and " * 30, 1), **CLOSE)


def test_the_curve_matters_only_between(model):
    arc, line = (morph(model, "a fox", "a hat", frames=3, curve=c, **QUICK).latents for c in ("slerp", "lerp"))
    torch.testing.assert_close(arc[[0, 2]], line[[0, 2]], **CLOSE)
    assert not torch.equal(arc[1], line[1])


def test_files_say_how_the_way_was_drawn(model, tmp_path):
    way = morph(model, "a {fox|fox}", "a hat", frames=3, to_seed=9, dynamic_prompts=True, **QUICK)
    assert save_way(way, tmp_path / "way") == tmp_path / "way"
    files = [*sorted((tmp_path / "way").iterdir()), save_way(way, tmp_path / "sheet.png")]
    assert [path.name for path in files] == ["frame-0000.png", "frame-0001.png", "frame-0002.png", "sheet.png"]
    for path, number in zip(files, (0, 1, 2, 0), strict=True):
        said = read_picture(path).request
        wanted = {"prompt": "a fox", "to_prompt": "a hat", "seed": 1, "to_seed": 9, "frames": 3, "frame": number}
        assert wanted.items() <= said.items()
        with pytest.raises(InputError, match="frame of a way"):
            required(read_picture(path))
    with Image.open(save_way(way, tmp_path / "way.webp", fps=5)) as film:
        assert (film.n_frames, film.size) == (3, (64, 64))


def test_a_model_without_text_goes_from_seed_to_seed(model):
    plain = replace(
        model.unet.config, **levels("", "Attn"), block_out_channels=(32, 64), mid_block_type="UNetMidBlock2D"
    )
    torch.manual_seed(0)
    wordless = replace(model, unet=UNet(plain).eval(), text_encoder=None, tokenizer=None,
                       prediction_type="epsilon")  # fmt: skip
    way = morph(wordless, "", to_seed=2, frames=2, **QUICK)
    assert not np.array_equal(np.asarray(way[0]), np.asarray(way[1]))


@pytest.mark.parametrize(
    ("options", "what"),
    [
        ({}, "both ends are the same"),
        ({"to_seed": 1}, "both ends are the same"),
        ({"to_prompt": "a AND b"}, "cannot be mixed"),
        ({"to_prompt": "b", "frames": 1}, "frames=1"),
        ({"to_prompt": "b", "count": 2}, "count=2"),
        ({"to_prompt": 3}, "not text"),
        ({"to_prompt": "b", "curve": "arc"}, "curve='arc'"),
        ({"to_prompt": "b", "stepz": 3}, "did you mean steps"),
        ({"to_prompt": "(b:..)"}, "not a number"),
    ],
    ids=str,
)
def test_bad_input_is_named(model, options, what):
    with pytest.raises(InputError, match=what):
        morph(model, "a", **QUICK | options)
