from dataclasses import replace

import pytest
import torch

from safelight.diffusion.guidance import guided
from safelight.errors import InputError
from safelight.pipeline.developing import decode, encode
from safelight.pipeline.seeing.measuring import guidance_pulls, round_trip
from safelight.pipeline.seeing.watching import Record
from safelight.pipeline.tasks import text_to_image

ASKED = {"steps": 3, "seed": 3, "sampler": "euler", "width": 64, "height": 64, "negative_prompt": "blurry"}


def test_the_term_is_what_guidance_adds(model):
    """guided x0 = x0 of u - sigma · scale · (c - u): so the distance of the two is the term, in units of sigma."""
    record = Record()
    pulls = guidance_pulls(model, "a red fox", guidance_scale=4, watch=record, **ASKED)
    both = model.condition(["a red fox", "blurry"])
    positive, negative = both.select(slice(0, 1)), both.select(slice(1, 2))
    with torch.no_grad():
        for pull, step in zip(pulls, record.steps, strict=True):
            under = model.denoiser(step.x, step.sigma, negative)
            led = guided(model.denoiser, positive, negative, 4)(step.x, step.sigma)
            term = (led - under).square().mean().sqrt().item() / step.sigma
            assert pull.term == pytest.approx(term, rel=1e-3)  # passes of one row and of two round otherwise
            assert pull.term == pytest.approx(4 * pull.difference)
            noise = (step.x - under).square().mean().sqrt().item() / step.sigma
            assert pull.noise == pytest.approx(noise, rel=1e-3)
    assert [pull.number for pull in pulls] == [1, 2, 3]
    assert [pull.sigma for pull in pulls] == list(model.grid("karras", 3).sigmas[:-1])


def test_prompts_joined_by_and_pull_together(model):
    one = guidance_pulls(model, "a fox", **ASKED)
    halves = guidance_pulls(model, "a fox :0.5 AND a fox :0.5", **ASKED)
    for a, b in zip(one, halves, strict=True):
        assert b.difference == pytest.approx(a.difference, rel=1e-3)


def test_where_nothing_guides_it_is_said(model):
    with pytest.raises(InputError, match="nothing guides"):
        guidance_pulls(model, "a fox", guidance_scale=1, **ASKED)
    with pytest.raises(InputError, match="count=2"):
        guidance_pulls(model, "a fox", count=2, **ASKED)


def test_the_run_is_as_ever(model):
    record = Record()
    guidance_pulls(model, "a fox", watch=record, **ASKED)
    alone = text_to_image(model, "a fox", **ASKED)
    assert torch.equal(record.steps[-1].x0, alone.latents)


def test_a_round_trip_keeps_the_size_and_measures_the_error(model, picture):
    odd = picture[:, :53, :70]
    trip = round_trip(model, odd)
    assert trip.again.shape == (1, 3, 53, 70) and trip.latent.shape == (1, 4, 7, 9)
    whole = round_trip(model, picture)
    assert torch.equal(whole.again, decode(model, encode(model, picture[None])).clamp(-1, 1))
    grey = replace(trip, again=trip.picture + 0.1)
    assert torch.allclose(grey.error, torch.full((53, 70), 12.75), atol=1e-4)
    assert grey.psnr == pytest.approx(26.0206, abs=1e-3)  # 10 log10(4 / 0.01)
    assert replace(trip, again=trip.picture).psnr == float("inf")
