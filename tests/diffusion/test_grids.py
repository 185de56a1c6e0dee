"""Grids against their formulas, written again in NumPy as the peers write them."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from safelight.diffusion.grids import GRIDS, Grid, grid_of_sigmas, grid_of_timesteps, make_grid
from safelight.diffusion.schedule import noise_schedule
from safelight.errors import InputError

SD = noise_schedule()
SIGMAS = SD.sigmas.numpy()
LOG_SIGMAS = np.log(SIGMAS)
T = 1000
COUNTS = (1, 2, 5, 20, 28, 50)
LOW, HIGH = SD.sigma_min, SD.sigma_max


def log_interpolated(timesteps):
    """k-diffusion's t_to_sigma."""
    return np.exp(np.interp(timesteps, np.arange(T), LOG_SIGMAS))


def linear_interpolated(timesteps):
    """diffusers' set_timesteps."""
    return np.interp(timesteps, np.arange(T), SIGMAS)


def karras(n, rho=7.0):
    ramp = np.linspace(0, 1, n)
    return (HIGH ** (1 / rho) + ramp * (LOW ** (1 / rho) - HIGH ** (1 / rho))) ** rho


def beta(n):
    stats = pytest.importorskip("scipy.stats")
    return LOW + stats.beta.ppf(1 - np.linspace(0, 1, n), 0.6, 0.6) * (HIGH - LOW)


def comfy_beta(n):
    stats = pytest.importorskip("scipy.stats")
    found = np.rint(stats.beta.ppf(1 - np.linspace(0, 1, n, endpoint=False), 0.6, 0.6) * (T - 1)).astype(int)
    return SIGMAS[list(dict.fromkeys(found.tolist()))]


def align_your_steps(n):
    # ComfyUI's table
    table = np.log([14.6146412293, 6.4745760956, 3.8636745985, 2.6946151520, 1.8841921177, 1.3943805092,
                    0.9642583904, 0.6523686016, 0.3977456272, 0.1515232662, 0.0291671582])  # fmt: skip
    return np.exp(np.interp(np.linspace(0, 1, n + 1), np.linspace(0, 1, 11), table))[:-1]


FORMULAS = {
    "leading": lambda n: SIGMAS[(np.arange(n) * (T // n))[::-1] + 1],
    "linspace": lambda n: linear_interpolated(np.linspace(0, T - 1, n)[::-1] if n > 1 else [T - 1]),
    "trailing": lambda n: SIGMAS[np.arange(T, 0, -T / n).round().astype(int)[:n] - 1],
    "uniform": lambda n: log_interpolated(np.linspace(T - 1, 0, n)),
    "sgm_uniform": lambda n: log_interpolated(np.linspace(T - 1, 0, n + 1)[:-1]),
    "simple": lambda n: np.array([SIGMAS[-(1 + int(i * T / n))] for i in range(n)]),
    "ddim_uniform": lambda n: SIGMAS[np.arange(1, T, T // n)[::-1]],
    "karras": karras,
    "exponential": lambda n: np.exp(np.linspace(math.log(HIGH), math.log(LOW), n)),
    "polyexponential": lambda n: np.exp(np.linspace(math.log(HIGH), math.log(LOW), n)),
    "kl_optimal": lambda n: np.tan(np.linspace(math.atan(HIGH), math.atan(LOW), n)),
    "beta": beta,
    "align_your_steps": align_your_steps,
    "lcm": lambda n: SIGMAS[
        (np.arange(1, 51) * 20 - 1)[::-1][np.floor(np.linspace(0, 50, n, endpoint=False)).astype(int)]
    ],
}


@pytest.mark.parametrize("name", GRIDS)
@pytest.mark.parametrize("n", COUNTS)
def test_equals_its_formula(name, n):
    grid = make_grid(SD, n, name)
    expected = FORMULAS[name](n)
    assert len(grid) == len(expected)
    np.testing.assert_allclose(grid.sigmas[:-1], expected, rtol=1e-8)
    assert grid.sigmas[-1] == 0


@pytest.mark.parametrize("name", GRIDS)
@pytest.mark.parametrize("n", COUNTS)
def test_sigmas_and_timesteps_belong_together(name, n):
    grid = make_grid(SD, n, name)
    back = log_interpolated if name != "linspace" else linear_interpolated
    np.testing.assert_allclose(back(grid.timesteps), grid.sigmas[:-1], rtol=1e-9)
    assert all(grid.t(s) == t for s, t in zip(grid.sigmas, grid.timesteps, strict=False))
    assert grid.t(grid.sigmas[0] * 1.0001) is None
    assert 0 not in np.diff(grid.sigmas)


def test_every_trailing_count():
    for n in range(1, T + 1):
        peer = np.arange(T, 0, -T / n).round() - 1
        assert list(make_grid(SD, n, "trailing").timesteps) == peer[:n].tolist(), n


def test_compvis_counts():
    """Steps that do not divide 1000 give another count, as in CompVis's make_ddim_timesteps."""
    assert [len(make_grid(SD, n, "ddim_uniform")) for n in (28, 30, 60, 75, 150, 400)] == [29, 31, 63, 77, 167, 500]
    assert make_grid(SD, 50, "ddim_uniform") == make_grid(SD, 50, "leading")
    assert len(make_grid(SD, 3, "ddim_uniform")) == 3  # CompVis's table ends before


def test_options_change_the_numbers():
    np.testing.assert_allclose(make_grid(SD, 9, "karras", rho=3.0).sigmas[:-1], karras(9, 3.0), rtol=1e-12)
    assert make_grid(SD, 9, "leading", steps_offset=0).timesteps[-1] == 0
    ends = make_grid(SD, 9, "exponential", sigma_min=0.1, sigma_max=10.0).sigmas
    assert (ends[0], ends[-2]) == (pytest.approx(10), pytest.approx(0.1))
    ramp = np.linspace(1, 0, 9) ** 2.0 * (math.log(HIGH) - math.log(LOW)) + math.log(LOW)
    np.testing.assert_allclose(make_grid(SD, 9, "polyexponential", rho=2.0).sigmas[:-1], np.exp(ramp), rtol=1e-12)


@pytest.mark.parametrize("n", COUNTS)
def test_beta_in_timesteps(n):
    np.testing.assert_allclose(make_grid(SD, n, "beta", space="timestep").sigmas[:-1], comfy_beta(n), rtol=1e-12)


@pytest.mark.parametrize(("a", "b"), [(0.6, 0.6), (1.0, 1.0), (2.5, 0.4), (0.3, 3.0)])
def test_beta_quantiles_against_scipy(a, b):
    stats = pytest.importorskip("scipy.stats")
    n = 200
    span = (np.array(make_grid(SD, n, "beta", alpha=a, beta=b).sigmas[:-1]) - LOW) / (HIGH - LOW)
    np.testing.assert_allclose(span, stats.beta.ppf(1 - np.linspace(0, 1, n), a, b), atol=1e-12)


def test_final_sigma():
    assert make_grid(SD, 5, "leading", final_sigma="sigma_min").sigmas[-1] == SD.sigma_min
    assert make_grid(SD, 5, "leading", final_sigma=0.01).sigmas[-1] == 0.01
    grid = make_grid(SD, 5, "leading")
    last = make_grid(SD, 5, "leading", final_sigma="last")
    assert last == Grid(grid.sigmas[:-1], grid.timesteps[:-1])
    with pytest.raises(InputError, match="sigma_min"):
        make_grid(SD, 5, final_sigma="sigma_mni")
    with pytest.raises(InputError, match="none is left"):
        make_grid(SD, 1, final_sigma="last")


@pytest.mark.parametrize("n", [1, 20])
def test_discarding_the_penultimate_level(n):
    """As A1111 and ComfyUI cut their list for DPM2: sigmas[:-2] and sigmas[-1:] of a step more."""
    longer, grid = make_grid(SD, n + 1, "karras"), make_grid(SD, n, "karras", discard_penultimate=True)
    assert grid.sigmas == (*longer.sigmas[:-2], 0.0) and grid.timesteps == longer.timesteps[:-1]


@pytest.mark.parametrize("n", [3, 20, 27, 30])
def test_a1111s_timesteps(n):
    """Its get_timesteps."""
    expected = np.clip(np.arange(0, 1000, 1000 // n) + 1, 0, 999)[::-1]
    assert list(make_grid(SD, n, "ddim_uniform", clipped=True).timesteps) == expected.tolist()


@pytest.mark.parametrize("n", [2, 10, 20])
def test_a1111s_kl_optimal_and_align_your_steps(n):
    """Its KL Optimal ends at sigma_min; its Align Your Steps has n levels over the whole table."""
    share = np.arange(n + 1) / n
    kl = np.tan(share * math.atan(LOW) + (1 - share) * math.atan(HIGH))
    np.testing.assert_allclose(make_grid(SD, n + 1, "kl_optimal", final_sigma="last").sigmas, kl, rtol=1e-9)
    table = [14.615, 6.475, 3.861, 2.697, 1.886, 1.396, 0.963, 0.652, 0.399, 0.152, 0.029]
    ays = np.exp(np.interp(np.linspace(0, 1, n), np.linspace(0, 1, 11), np.log(table)))
    np.testing.assert_allclose(make_grid(SD, n, "align_your_steps", whole=True).sigmas, [*ays, 0], rtol=7e-3)


def test_own_lists():
    grid = grid_of_sigmas(SD, [10.0, 2.0, 0.5, 0.0])
    assert grid.sigmas == (10.0, 2.0, 0.5, 0.0) and grid.timesteps == (SD.t(10.0), SD.t(2.0), SD.t(0.5))
    grid = grid_of_timesteps(SD, [999, 500.5, 20])
    assert grid.timesteps == (999, 500.5, 20) and grid.sigmas == (SD.sigma(999), SD.sigma(500.5), SD.sigma(20), 0)
    assert grid_of_timesteps(SD, [500.5], interpolation="linear").sigmas[0] == linear_interpolated(500.5)


@given(st.integers(1, 60), st.floats(0, 1))
def test_strength_counts_as_diffusers_does(n, strength):
    grid = make_grid(SD, n)
    kept = min(int(n * strength), n)
    tail = grid.last(strength)
    assert len(tail) == kept
    assert tail.sigmas == grid.sigmas[n - kept :] and tail.timesteps == grid.timesteps[n - kept :]


@pytest.mark.parametrize("strength", [-0.01, 1.01, float("nan")])
def test_strength_outside(strength):
    with pytest.raises(InputError, match="strength"):
        make_grid(SD, 5).last(strength)


def test_errors_name_the_nearest():
    with pytest.raises(InputError, match="karras"):
        make_grid(SD, 5, "karas")
    with pytest.raises(InputError, match="rho"):
        make_grid(SD, 5, "karras", roh=3)
    with pytest.raises(InputError, match="no option"):
        make_grid(SD, 5, "simple", rho=3)
    with pytest.raises(InputError, match="at least 1"):
        make_grid(SD, 0)


@pytest.mark.parametrize("name", ["leading", "trailing", "simple", "ddim_uniform"])
def test_more_steps_than_timesteps(name):
    with pytest.raises(InputError, match="1001"):
        make_grid(SD, 1001, name)


def test_leading_offset_past_the_end():
    with pytest.raises(InputError, match="1000"):
        make_grid(SD, 1000, "leading")
    assert len(make_grid(SD, 1000, "leading", steps_offset=0)) == 1000


def test_lcm_has_its_own_limit():
    with pytest.raises(InputError, match="50"):
        make_grid(SD, 51, "lcm")


@pytest.mark.parametrize("sigmas", [(1.0, 2.0), (1.0, 0.0, 0.0), (1.0, -1.0), (0.5,)])
def test_a_grid_falls(sigmas):
    with pytest.raises(InputError):
        Grid(sigmas, tuple(range(max(1, len(sigmas) - 1))))


def test_other_lengths_of_schedule():
    short = noise_schedule(num_train_timesteps=40)
    for name in set(GRIDS) - {"align_your_steps", "lcm"}:
        assert len(make_grid(short, 10, name)) == 10
        assert torch.tensor(make_grid(short, 10, name).timesteps).max() <= 39
