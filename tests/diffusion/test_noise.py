import math
from itertools import pairwise

import pytest
import torch

from safelight.diffusion.grids import make_grid
from safelight.diffusion.noise import BrownianNoise, SeededNoise, make_noise
from safelight.diffusion.samplers import sample
from safelight.diffusion.schedule import noise_schedule
from safelight.errors import InputError

SHAPE = (4, 16, 16)
SD = noise_schedule()


@pytest.mark.parametrize("kind", ["fresh", "brownian"])
def test_each_picture_has_its_own_stream(kind):
    batch, alone = make_noise(kind, [7, 8, 9], SHAPE), make_noise(kind, [9], SHAPE)
    assert torch.equal(batch.initial()[2:], alone.initial())
    for s, s_next in ((14.0, 9.0), (9.0, 3.0)):
        assert torch.equal(batch(s, s_next)[2:], alone(s, s_next))


def test_seed_zero_is_a_seed_and_the_stream_is_torchs():
    stream = torch.Generator().manual_seed(0)
    noise = SeededNoise([0], SHAPE)
    for drawn in (noise.initial(), noise(2.0, 1.0), noise.draw()):
        assert torch.equal(drawn, torch.randn((1, *SHAPE), generator=stream))


def test_a_sampler_does_not_change_where_a_seed_begins():
    assert torch.equal(make_noise("brownian", [3, 4], SHAPE).initial(), make_noise("", [3, 4], SHAPE).initial())


def test_brownian_answers_do_not_depend_on_the_questions_before():
    busy, fresh = BrownianNoise([1], SHAPE), BrownianNoise([1], SHAPE)
    for s, s_next in ((14.0, 9.0), (0.3, 0.1), (9.0, 0.3)):
        busy(s, s_next)
    assert torch.equal(busy(5.0, 2.0), fresh(5.0, 2.0))


@pytest.mark.parametrize("steps", [3, 30, 300])
def test_brownian_increments_are_unit_and_independent(steps):
    noise = BrownianNoise([1, 2], SHAPE)
    sigmas = make_grid(SD, steps).sigmas[:-1]
    z = torch.stack([noise(s, s_next) for s, s_next in pairwise(sigmas)])
    n = z.numel()
    assert abs(float(z.mean())) < 5 / n**0.5
    assert abs(float(z.var()) - 1) < 5 * (2 / n) ** 0.5
    for lag in (1, 2):
        if lag < len(z):
            assert abs(float((z[lag:] * z[:-lag]).mean())) < 5 / z[lag:].numel() ** 0.5


def test_brownian_path_is_the_same_for_any_number_of_steps():
    def travelled(steps):
        pairs = pairwise(make_grid(SD, steps).sigmas[:-1])
        return sum(noise(s, s_next) * math.sqrt(math.log(s / s_next)) for s, s_next in pairs)

    noise = BrownianNoise([1], SHAPE)
    for steps in (5, 17, 100):
        torch.testing.assert_close(travelled(steps), travelled(2), rtol=0, atol=1e-4)


def test_brownian_covariance_of_overlapping_intervals():
    """Cov(W(b) - W(a), W(c) - W(a)) is the length of the shorter one, as the middle of DPM++ SDE's step relies on."""
    noise = BrownianNoise(range(8), (4, 32, 32))
    half, whole = noise(4.0, 2.0), noise(4.0, 1.0)
    assert float((half * whole).mean()) == pytest.approx(math.sqrt(1 / 2), abs=0.02)


def test_more_steps_approach_one_picture():
    """The same path: DPM++ SDE's result settles as steps are added, while with fresh noise it does not."""

    def picture(noise, steps):
        x = 14.6 * SeededNoise([5], SHAPE).initial()
        return sample(
            lambda x, s: 0.25 * x / (0.25 + s * s), x, make_grid(SD, steps).sigmas, sampler="dpmpp_sde", noise=noise
        )

    def change(make):
        return float((picture(make(), 200) - picture(make(), 100)).std())

    assert change(lambda: BrownianNoise([1], SHAPE)) < 0.12
    assert change(lambda: SeededNoise([1], SHAPE)) > 0.4


@pytest.mark.parametrize("pair", [(1.0, 0.0), (1.0, 1.0), (0.0, 1.0), (1e9, 1.0), (float("nan"), 1.0)])
def test_no_increment_there(pair):
    with pytest.raises(InputError):
        BrownianNoise([1], SHAPE)(*pair)
