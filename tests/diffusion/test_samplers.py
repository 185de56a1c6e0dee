"""Every registered sampler, by itself: a new one is tested here as soon as it is registered."""

import math
from inspect import isgeneratorfunction
from itertools import pairwise

import pytest
import torch
from closed_form import even, gaussian, gaussian_ode, mixture, mixture_ode, observed_orders

from safelight.diffusion.grids import make_grid
from safelight.diffusion.noise import SeededNoise, make_noise
from safelight.diffusion.samplers import SAMPLERS, Step, drive, sample, visited
from safelight.diffusion.schedule import noise_schedule
from safelight.errors import Cancelled, InputError

SD = noise_schedule()
START, END = 14.6, 0.1
X = torch.linspace(-2, 2, 41, dtype=torch.float64) * START
FIXED = [name for name, kind in SAMPLERS.items() if not kind.adaptive]
SOLVERS = [name for name in FIXED if SAMPLERS[name].order is not None]
MIXTURE_END = mixture_ode(X, START, END)


def never(sigma, sigma_next):
    raise AssertionError("this run should need no noise")


@pytest.mark.parametrize("name", SOLVERS)
@pytest.mark.parametrize("problem", ["gaussian", "mixture"])
def test_order_of_convergence(name, problem):
    """With its noise switched off, it solves the probability-flow ODE with at least the order it is registered with."""
    kind = SAMPLERS[name]
    denoise = gaussian if problem == "gaussian" else mixture
    exact = gaussian_ode(X, START, END) if problem == "gaussian" else MIXTURE_END
    errors = []
    for steps in (40, 80, 160):
        x = sample(denoise, X, even(steps, START, END), sampler=name, noise=never, **kind.quiet)
        errors.append(float((x - exact).square().mean().sqrt()))
    assert errors[-1] < 0.02
    assert observed_orders(errors)[-1] > kind.order - 0.2, errors


@pytest.mark.parametrize("name", [n for n, kind in SAMPLERS.items() if kind.adaptive])
def test_adaptive_error_follows_the_tolerance(name):
    errors, costs = [], []
    for rtol in (0.05, 0.005, 0.0005):
        asked = []
        x = sample(mixture, X, [START, END], sampler=name, rtol=rtol, atol=rtol / 6, watch=asked.append)
        errors.append(float((x - MIXTURE_END).square().mean().sqrt()))
        costs.append(len(asked))
    assert errors[0] > 3 * errors[1] > 9 * errors[2] and costs == sorted(costs)
    assert asked[0].total is None


DISTILLED = {"lcm", "tcd"}  # for networks whose x0 is a sample, not a mean


@pytest.mark.parametrize("name", [name for name in SAMPLERS if name not in DISTILLED])
def test_ends_on_the_data(name):
    """From pure noise down to 0, a long run with the sampler's own noise draws from N(0.5, 0.25)."""
    noise = SeededNoise([0], (20_000,))
    start = 0.5 + math.sqrt(START**2 + 0.25) * noise.initial()
    x = sample(gaussian, start, [*even(60, START, 0.03), 0.0], sampler=name, noise=noise)
    assert float(x.mean()) == pytest.approx(0.5, abs=0.02)
    assert float(x.std()) == pytest.approx(0.5, rel=0.06)


@pytest.mark.parametrize("name", FIXED)
def test_a_picture_does_not_depend_on_its_batch(name):
    """Picture k of a batch is, to the last bit, the picture of its own seed."""

    def run(seeds):
        noise = make_noise(SAMPLERS[name].noise, seeds, (4, 8, 8))
        grid = make_grid(SD, 7)
        x = grid.sigmas[0] * noise.initial()
        return sample(lambda x, s: torch.tanh(x / (1 + s)), x, grid.sigmas, sampler=name, noise=noise)

    together = run([10, 11, 12])
    for k in range(3):
        assert torch.equal(together[k : k + 1], run([10 + k]))


@pytest.mark.parametrize("name", FIXED)
@pytest.mark.parametrize("final", ["zero", "sigma_min"])
@pytest.mark.parametrize("steps", [1, 2, 3, 9])
def test_the_dry_run_is_the_run(name, final, steps):
    grid = make_grid(SD, steps, final_sigma=final)
    seen = []
    x = torch.full((1, 4, 4, 4), grid.sigmas[0])
    noise = make_noise(SAMPLERS[name].noise, [0], (4, 4, 4))
    result = sample(gaussian, x, grid.sigmas, sampler=name, noise=noise, watch=seen.append)
    expected = visited(name, grid.sigmas)
    assert [step.sigma for step in seen] == expected
    assert [step.index for step in seen] == list(range(len(expected)))
    assert {step.total for step in seen} == {len(expected)}
    assert result.isfinite().all() and result.dtype == torch.float32


@pytest.mark.parametrize("name", FIXED)
def test_one_step_to_zero_lands_on_the_prediction(name):
    x = torch.randn(1, 4, 4, 4, dtype=torch.float64)
    found = sample(gaussian, x, [5.0, 0.0], sampler=name, noise=never, **SAMPLERS[name].quiet)
    torch.testing.assert_close(found, gaussian(x, 5.0))


@pytest.mark.parametrize("name", SAMPLERS)
def test_no_steps_at_all(name):
    x = torch.randn(1, 4, 4, 4)
    assert torch.equal(sample(gaussian, x, [0.0], sampler=name), x)


@pytest.mark.parametrize("name", SAMPLERS)
def test_the_row_is_whole(name):
    kind = SAMPLERS[name]
    assert kind.name == name and kind.label and kind.coroutine.__doc__
    assert isgeneratorfunction(kind.coroutine)
    assert kind.noise in ("", "fresh", "brownian")
    assert set(kind.defaults) | set(kind.quiet) <= set(kind.options)
    assert len({k.label for k in SAMPLERS.values()}) == len(SAMPLERS)


@pytest.mark.parametrize("name", [n for n in FIXED if SAMPLERS[n].noise])
def test_missing_noise_is_named(name):
    loud = {"eta": 0.7, "algorithm_type": "sde-dpmsolver++"}  # what makes a sampler draw that by default does not
    loud = {option: value for option, value in loud.items() if option in SAMPLERS[name].options}
    with pytest.raises(InputError, match=name):
        sample(gaussian, X, even(40, START, END), sampler=name, **loud)


# What k-diffusion 0.1.1.post1 gives in float64, for `golden_denoiser` from 14.6 * (1, -0.5, 0.3) down these sigmas;
# the n-th noise is cos(n), cos(2 n), cos(3 n). Its DPM fast and adaptive end at 0.05, without the last denoising.
GOLDEN_SIGMAS = (14.6, 8.0, 4.0, 2.0, 1.0, 0.5, 0.2, 0.05, 0.0)
GOLDEN = [
    ("euler", {}, [2.473722098463, -2.029624901716, 1.61286457764]),
    ("euler", {"s_churn": 2.0, "s_noise": 1.01}, [1.936663064096, -1.66961469709, 0.343183815461]),
    ("euler_ancestral", {}, [0.578797675708, -1.624919023027, 0.739876584938]),
    ("euler_ancestral", {"eta": 0.5, "s_noise": 0.9}, [2.125555258869, -2.047038563321, 1.000730683725]),
    ("heun", {}, [4.072865977588, -3.634035131999, 3.277169121008]),
    ("heun", {"s_churn": 2.0}, [3.948104927355, -4.02203598408, 2.60357551813]),
    ("dpm2", {}, [3.62542296011, -3.195089779606, 2.842272214664]),
    ("dpm2", {"s_churn": 2.0}, [3.270338888368, -3.2754787301, 2.15594657103]),
    ("dpm2_ancestral", {"eta": 0.7}, [3.367324896879, -3.663721794275, 1.735421898044]),
    ("dpmpp_2m", {}, [3.135404155876, -2.657396201783, 2.226510867039]),
    ("dpmpp_2s_ancestral", {"eta": 0.7}, [2.550084970769, -2.821119282306, 1.21369450416]),
    ("dpmpp_sde", {}, [2.938298061308, -2.602295715095, 3.28157220209]),
    ("dpmpp_sde", {"eta": 0.6, "r": 0.3}, [2.994994922527, -2.855564437381, 3.321638546481]),
    ("dpmpp_2m_sde", {}, [-0.910124728817, -2.430423806238, 1.358960654868]),
    ("dpmpp_2m_sde", {"eta": 0.5, "solver_type": "heun"}, [1.526556723088, -2.933786833697, 1.222663376465]),
    ("dpmpp_3m_sde", {"eta": 0.8}, [-0.730117986556, -3.788483422779, 2.044972742998]),
    ("dpm_fast", {}, [1.656828723596, -1.298160856561, 0.989531285467]),
    ("dpm_fast", {"eta": 0.7}, [1.60157439501, -1.515773229781, -1.139555884145]),
    ("dpm_adaptive", {}, [2.703170491047, -2.30417874793, 1.988681226291]),
    ("dpm_adaptive", {"eta": 0.7}, [2.826400846503, -2.475996298664, 2.09052282292]),
    ("dpm_adaptive", {"order": 2, "pcoeff": 0.1, "dcoeff": 0.1}, [2.681724790935, -2.272706334146, 1.950045403397]),
]


def golden_denoiser(x, sigma):
    shift = torch.tensor([0.5, -0.2, 0.1], dtype=torch.float64)
    wave = torch.tanh(1.3 * x / math.sqrt(sigma**2 + 1) + shift) * (0.5 + 0.3 * math.cos(sigma))
    return wave + x * 0.25 / (0.25 + sigma**2)


@pytest.mark.parametrize(("name", "options", "expected"), GOLDEN)
def test_equals_k_diffusion(name, options, expected):
    drawn = []

    def noise(sigma, sigma_next):
        drawn.append(sigma)
        return torch.cos(len(drawn) * torch.tensor([1.0, 2.0, 3.0], dtype=torch.float64))

    x = 14.6 * torch.tensor([1.0, -0.5, 0.3], dtype=torch.float64)
    sigmas = GOLDEN_SIGMAS[:-1] if name in ("dpm_fast", "dpm_adaptive") else GOLDEN_SIGMAS
    found = sample(golden_denoiser, x, sigmas, sampler=name, noise=noise, **options)
    assert found.tolist() == pytest.approx(expected, abs=1e-10)


# Samplers that are others in disguise


def run(name, sigmas=None, **options):
    noise = SeededNoise([3], (4, 8, 8), dtype=torch.float64)
    x = START * noise.initial()
    return sample(mixture, x, sigmas or make_grid(SD, 12).sigmas, sampler=name, noise=noise, **options)


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (("ddim", {}), ("euler", {})),
        (("ddim", {"eta": 1.0}), ("euler_ancestral", {})),
        (("ddpm", {}), ("euler_ancestral", {})),
        (("edm", {"s_churn": 0.0}), ("heun", {})),
        (("dpmpp_2m_sde", {"eta": 0.0}), ("dpmpp_2m", {})),
        (("dpmpp_sde", {"eta": 0.0}), ("dpmpp_2s_ancestral", {"eta": 0.0})),
        (("dpm2_ancestral", {"eta": 0.0}), ("dpm2", {})),
        (("restart", {"restart_times": 0}), ("heun", {})),
        (("tcd", {"eta": 0.0}), ("euler", {})),
    ],
)
def test_the_same_sampler_by_another_name(one, other):
    torch.testing.assert_close(run(one[0], **one[1]), run(other[0], **other[1]), rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("eta", [0.0, 0.4, 1.0])
def test_ddim_is_the_papers_formula(eta):
    """Song et al. 2021, eq. 12 and 16, in the paper's variance-preserving x."""
    grid = make_grid(SD, 12, "leading")
    noise = SeededNoise([3], (4, 8, 8), dtype=torch.float64)
    z = noise.initial()
    ours = sample(mixture, z * math.sqrt(1 + grid.sigmas[0] ** 2), grid.sigmas, sampler="ddim", noise=noise, eta=eta)
    noise = SeededNoise([3], (4, 8, 8), dtype=torch.float64)
    x = noise.initial()
    levels = [*(float(SD.alphas_cumprod[int(t)]) for t in grid.timesteps), 1.0]
    for a, a_next in pairwise(levels):
        s = math.sqrt((1 - a) / a)
        x0 = mixture(x / math.sqrt(a), s)
        eps = (x - math.sqrt(a) * x0) / math.sqrt(1 - a)
        std = eta * math.sqrt((1 - a_next) / (1 - a) * (1 - a / a_next))
        x = math.sqrt(a_next) * x0 + math.sqrt(1 - a_next - std**2) * eps
        if std > 0:
            x = x + std * noise.draw()
    torch.testing.assert_close(ours, x, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("variance_type", ["fixed_small", "fixed_large"])
def test_ddpm_is_the_papers_formula(variance_type):
    """Ho et al. 2020, eq. 7 and Algorithm 2, between any two timesteps."""
    grid = make_grid(SD, 12, "leading", steps_offset=0)
    noise = SeededNoise([3], (4, 8, 8), dtype=torch.float64)
    x = noise.initial()
    start = x * math.sqrt(1 + grid.sigmas[0] ** 2)
    ours = sample(mixture, start, grid.sigmas, sampler="ddpm", noise=noise, variance_type=variance_type)
    noise = SeededNoise([3], (4, 8, 8), dtype=torch.float64)
    x = noise.initial()
    levels = [*(float(SD.alphas_cumprod[int(t)]) for t in grid.timesteps), 1.0]
    for a, a_next in pairwise(levels):
        beta = 1 - a / a_next
        x0 = mixture(x / math.sqrt(a), math.sqrt((1 - a) / a))
        x = (math.sqrt(a_next) * beta * x0 + math.sqrt(1 - beta) * (1 - a_next) * x) / (1 - a)
        if a_next < 1:
            variance = beta if variance_type == "fixed_large" else (1 - a_next) / (1 - a) * beta
            x = x + math.sqrt(variance) * noise.draw()
    torch.testing.assert_close(ours, x, rtol=1e-9, atol=1e-9)


def test_tcd_is_diffusers():
    diffusers = pytest.importorskip("diffusers")
    peer = diffusers.TCDScheduler()
    peer.set_timesteps(6)
    stream, ours_stream = torch.Generator().manual_seed(4), SeededNoise([4], (4, 8, 8), dtype=torch.float64)
    x = torch.randn((1, 4, 8, 8), generator=stream, dtype=torch.float64)
    start = ours_stream.initial()
    for t in peer.timesteps:
        a = float(SD.alphas_cumprod[int(t)])
        eps = (x - math.sqrt(a) * mixture(x / math.sqrt(a), math.sqrt((1 - a) / a))) / math.sqrt(1 - a)
        x = peer.step(eps, t, x, eta=0.3, generator=stream).prev_sample
    grid = make_grid(SD, 6, "lcm", final_sigma="sigma_min")
    assert list(grid.timesteps) == peer.timesteps.tolist()
    start = start * math.sqrt(1 + grid.sigmas[0] ** 2)
    ours = sample(mixture, start, grid.sigmas, sampler="tcd", noise=ours_stream, schedule=SD)
    torch.testing.assert_close(ours / math.sqrt(1 + SD.sigma_min**2), x, rtol=1e-3, atol=1e-4)


def test_lcm_is_diffusers():
    diffusers = pytest.importorskip("diffusers")
    peer = diffusers.LCMScheduler(beta_schedule="scaled_linear", clip_sample=False)
    peer.set_timesteps(4)
    stream, ours_stream = torch.Generator().manual_seed(4), SeededNoise([4], (4, 8, 8), dtype=torch.float64)
    x = torch.randn((1, 4, 8, 8), generator=stream, dtype=torch.float64)
    start = ours_stream.initial()
    for t in peer.timesteps:
        a = float(SD.alphas_cumprod[int(t)])
        eps = (x - math.sqrt(a) * mixture(x / math.sqrt(a), math.sqrt((1 - a) / a))) / math.sqrt(1 - a)
        output = peer.step(eps, t, x, generator=stream)
        x = output.prev_sample
    grid = make_grid(SD, 4, "lcm")
    assert list(grid.timesteps) == peer.timesteps.tolist()
    ours = sample(mixture, start * math.sqrt(1 + grid.sigmas[0] ** 2), grid.sigmas, sampler="lcm", noise=ours_stream)
    torch.testing.assert_close(ours, x, rtol=1e-3, atol=1e-4)


def test_restart_goes_up_and_down_again():
    grid = make_grid(SD, 20)
    low = min(grid.sigmas, key=lambda s: abs(s - 0.1))
    high = min(grid.sigmas, key=lambda s: abs(s - 2.0))
    asked = visited("restart", grid.sigmas, restart_times=2, restart_steps=4)
    assert len(asked) == len(visited("heun", grid.sigmas)) + 2 * 2 * 4
    climbs = [(a, b) for a, b in pairwise(asked) if b > a]
    assert climbs == [(low, high)] * 2


def test_churn_raises_the_noise_before_the_evaluation():
    sigmas = even(10, 10.0, 1.0)
    asked = visited("heun", sigmas, s_churn=2.0, s_tmin=2.0, s_tmax=8.0)
    for s in sigmas[:-1]:
        assert any(math.isclose(a, s * 1.2 if 2 <= s <= 8 else s) for a in asked)
    assert max(visited("euler", sigmas, s_churn=1000)) == pytest.approx(
        10 * math.sqrt(2)
    )  # gamma is held at sqrt(2) - 1


# The driver


def test_edits_are_adopted_and_the_last_is_at_the_end():
    seen = []

    def edit(x, sigma):
        seen.append(sigma)
        return x * 0 + sigma

    sigmas = [4.0, 2.0, 1.0, 0.0]
    x = sample(lambda x, s: x, X, sigmas, sampler="euler", edit=edit)
    assert seen == sigmas
    assert torch.equal(x, torch.zeros_like(X))


def test_watch_sees_what_the_network_saw():
    steps: list[Step] = []
    sample(gaussian, X, [4.0, 1.0, 0.0], sampler="heun", watch=steps.append)
    assert [s.sigma for s in steps] == [4.0, 1.0, 1.0]
    assert all(torch.equal(s.x0, gaussian(s.x, s.sigma)) for s in steps)


@pytest.mark.parametrize("where", ["edit", "watch"])
def test_cancel(where):
    calls = []

    def denoise(x, sigma):
        calls.append(sigma)
        return gaussian(x, sigma)

    def stop(*args):
        if len(calls) == 2:
            raise Cancelled("enough")
        return args[0]

    with pytest.raises(Cancelled):
        sample(denoise, X, even(10, 10.0, 1.0), sampler="heun", **{where: stop})
    assert len(calls) == 2


def test_no_gradients_and_no_change_in_place():
    weight = torch.ones((), requires_grad=True)
    x = X.clone()
    assert not sample(lambda x, s: weight * gaussian(x, s), x, [4.0, 1.0, 0.0], sampler="heun").requires_grad
    assert torch.equal(x, X)


def test_drive_needs_nothing_but_a_coroutine():
    def twice(x):
        x, x0 = yield x, 2.0
        return x + x0

    assert drive(twice(3.0), lambda x, s: x * s) == 9.0


def test_errors_say_what_is_near():
    with pytest.raises(InputError, match="dpmpp_2m"):
        sample(gaussian, X, [1.0, 0.0], sampler="dpmpp2mm")
    with pytest.raises(InputError, match="s_churn"):
        sample(gaussian, X, [1.0, 0.0], sampler="euler", churn=1.0)
    with pytest.raises(InputError, match="no options at all"):
        sample(gaussian, X, [1.0, 0.0], sampler="dpmpp_2m", eta=1.0)
    with pytest.raises(InputError, match="midpoint"):
        sample(gaussian, X, [1.0, 0.0], sampler="dpmpp_2m_sde", solver_type="huen")
    with pytest.raises(InputError, match="adaptive"):
        visited("dpm_adaptive", [1.0, 0.0])


@pytest.mark.parametrize("sigmas", [[], [1.0, 2.0], [1.0, 0.0, 0.0], [1.0, -0.5], [float("nan"), 0.0]])
def test_sigmas_fall(sigmas):
    with pytest.raises(InputError, match="fall"):
        sample(gaussian, X, sigmas, sampler="euler")
