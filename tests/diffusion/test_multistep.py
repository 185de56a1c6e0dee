"""The samplers that remember: their weights, their orders, who they are in disguise, and CompVis's own code path."""

import math
from itertools import pairwise

import diffusers
import pytest
import torch
from closed_form import even, gaussian, gaussian_ode, mixture, mixture_ode, observed_orders
from scipy import integrate

from safelight.diffusion.grids import make_grid
from safelight.diffusion.noise import SeededNoise
from safelight.diffusion.samplers import sample, visited
from safelight.diffusion.samplers.dpmsolver import differences, singlestep_orders
from safelight.diffusion.samplers.multistep import log_polynomial_weights, polynomial_weights
from safelight.diffusion.schedule import noise_schedule
from safelight.diffusion.schedulers import DDIMScheduler, PNDMScheduler
from safelight.errors import InputError

pytestmark = pytest.mark.filterwarnings("ignore:__array:DeprecationWarning")  # diffusers'

SD = noise_schedule()
START, END = 14.6, 0.1
X = torch.linspace(-2, 2, 41, dtype=torch.float64) * START
EXACT = {"gaussian": gaussian_ode(X, START, END), "mixture": mixture_ode(X, START, END)}
PROBLEMS = {"gaussian": gaussian, "mixture": mixture}


# Weights


@pytest.mark.parametrize("s_next", [0.9, 0.4, 0.0])
@pytest.mark.parametrize("order", [1, 2, 3, 4])
def test_polynomial_weights_are_the_integrals(order, s_next):
    """k-diffusion's definition, by quadrature."""
    nodes = [1.2, 2.0, 3.5, 7.0][:order]

    def lagrange(j, at):
        return math.prod((at - node) / (nodes[j] - node) for k, node in enumerate(nodes) if k != j)

    found = polynomial_weights(nodes, s_next)
    for j in range(order):
        expected = integrate.quad(lambda s, j=j: lagrange(j, s), nodes[0], s_next, epsabs=1e-13)[0]
        assert found[j] == pytest.approx(expected, abs=1e-11)
    assert sum(found) == pytest.approx(s_next - nodes[0])


@pytest.mark.parametrize("s_next", [1.19, 0.9, 0.1])
@pytest.mark.parametrize("order", [1, 2, 3])
def test_log_polynomial_weights_are_the_integrals(order, s_next):
    """DEIS's definition, by quadrature; also over short steps, where diffusers' closed form in float32 loses digits."""
    nodes = [1.2, 1.21, 1.23][:order] if s_next > 1 else [1.2, 2.0, 3.5][:order]

    def lagrange(j, at):
        u, v = math.log(at), [math.log(node) for node in nodes]
        return math.prod((u - v[k]) / (v[j] - v[k]) for k in range(order) if k != j)

    found = log_polynomial_weights(nodes, s_next)
    for j in range(order):
        expected = integrate.quad(lambda s, j=j: lagrange(j, s), nodes[0], s_next, epsabs=1e-13)[0]
        assert found[j] == pytest.approx(expected, abs=1e-10)
    assert sum(found) == pytest.approx(s_next - nodes[0])


def test_differences_are_those_of_a_parabola():
    """In lambda = -log(sigma), in units of the step, from either end of the points."""
    a, b, c = 0.7, -1.3, 2.1

    def m(sigma):
        u = math.log(4.0 / sigma)
        return torch.tensor(a + b * u + c * u * u, dtype=torch.float64)

    h = math.log(4.0 / 1.0)
    for sigmas in ([4.0, 5.0, 9.0], [4.0, 3.0, 2.0]):
        slope, bend = differences([(s, m(s)) for s in sigmas], 1.0)
        assert float(slope) == pytest.approx(b * h) and float(bend) == pytest.approx(c * h * h)
    assert differences([(4.0, m(4.0))], 1.0) == (0.0, 0.0)


# Orders. `test_samplers.py` checks each sampler's defaults; these are the other settings.


@pytest.mark.parametrize(
    ("name", "options", "order"),
    [
        ("lms", {"order": 1}, 1),
        ("lms", {"order": 2}, 2),
        ("lms", {"order": 3}, 2),
        ("deis", {"order": 1}, 1),
        ("deis", {"order": 2}, 2),
        ("dpm_solver", {"order": 1}, 1),
        ("dpm_solver", {"order": 3}, 2),
        ("dpm_solver", {"solver_type": "heun"}, 2),
        ("dpm_solver", {"algorithm_type": "dpmsolver"}, 2),
        ("dpm_solver", {"algorithm_type": "dpmsolver", "order": 3}, 2),
        ("dpm_solver_singlestep", {"order": 1}, 1),
        ("dpm_solver_singlestep", {"solver_type": "heun"}, 2),
        ("dpm_solver_singlestep", {"order": 3}, 2),
        ("dpm_solver_singlestep", {"order": 3, "solver_type": "heun"}, 2),
        ("dpm_solver_singlestep", {"algorithm_type": "dpmsolver"}, 2),
        ("unipc", {"order": 1}, 2),
        ("unipc", {"order": 3}, 2),
        ("unipc", {"solver_type": "bh1"}, 2),
        ("unipc", {"predict_x0": False}, 2),
        ("unipc", {"order": 1, "disable_corrector": range(1000)}, 1),
    ],
)
@pytest.mark.parametrize("problem", ["gaussian", "mixture"])
def test_order_of_convergence(name, options, order, problem):
    errors = []
    for steps in (96, 192, 384):  # multiples of 3, so that singlestep ends in the same way
        x = sample(PROBLEMS[problem], X, even(steps, START, END), sampler=name, **options)
        errors.append(float((x - EXACT[problem]).square().mean().sqrt()))
    assert errors[-1] < 0.02
    assert observed_orders(errors)[-1] > order - 0.2, errors


def test_higher_orders_pay():
    """At 20 steps each order of LMS and DEIS errs less than the one below."""
    for name, orders in (("lms", (1, 2, 4)), ("deis", (1, 2, 3))):
        ends = [sample(gaussian, X, even(20, START, END), sampler=name, order=order) for order in orders]
        errors = [float((x - EXACT["gaussian"]).abs().max()) for x in ends]
        assert errors[0] > 2 * errors[1] > 4 * errors[2]


# In disguise


def run(name, sigmas=None, seed=3, **options):
    noise = SeededNoise([seed], (4, 8, 8), dtype=torch.float64)
    x = START * noise.initial()
    return sample(mixture, x, sigmas or make_grid(SD, 12).sigmas, sampler=name, noise=noise, **options)


TO_MIN = make_grid(SD, 12, final_sigma=0.02).sigmas


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (("dpm_solver", {"lower_order_final": False}), ("dpmpp_2m", {})),
        (("dpm_solver", {"algorithm_type": "sde-dpmsolver++", "lower_order_final": False}), ("dpmpp_2m_sde", {})),
        (
            ("dpm_solver", {"algorithm_type": "sde-dpmsolver++", "solver_type": "heun", "lower_order_final": False}),
            ("dpmpp_2m_sde_heun", {}),
        ),
        (
            (
                "dpm_solver",
                {"algorithm_type": "sde-dpmsolver++", "solver_type": "heun", "order": 3, "lower_order_final": False},
            ),
            ("dpmpp_3m_sde", {}),
        ),
        (("dpm_solver", {"order": 1}), ("euler", {})),
        (("dpm_solver", {"order": 1, "algorithm_type": "dpmsolver"}), ("euler", {})),
        (("dpm_solver", {"order": 1, "algorithm_type": "sde-dpmsolver++"}), ("euler_ancestral", {})),
        (("dpm_solver_singlestep", {"order": 1}), ("euler", {})),
        (("unipc", {"order": 1, "disable_corrector": range(12)}), ("euler", {})),
        (("lms", {"order": 1}), ("euler", {})),
        (("deis", {"order": 1}), ("euler", {})),
    ],
)
@pytest.mark.parametrize("sigmas", [None, TO_MIN])
def test_the_same_sampler_by_another_name(one, other, sigmas):
    found, expected = run(one[0], sigmas, **one[1]), run(other[0], sigmas, **other[1])
    torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-9)


def test_lms_is_k_diffusions():
    """k-diffusion 0.1.1.post1 in float64 (its weights come from scipy), on the golden problem of test_samplers."""

    def denoise(x, sigma):
        shift = torch.tensor([0.5, -0.2, 0.1], dtype=torch.float64)
        wave = torch.tanh(1.3 * x / math.sqrt(sigma**2 + 1) + shift) * (0.5 + 0.3 * math.cos(sigma))
        return wave + x * 0.25 / (0.25 + sigma**2)

    x = 14.6 * torch.tensor([1.0, -0.5, 0.3], dtype=torch.float64)
    sigmas = [14.6, 8.0, 4.0, 2.0, 1.0, 0.5, 0.2, 0.05, 0.0]
    for order, expected in (
        (4, [2.956839269428, -2.509223053456, 2.096458070938]),
        (2, [2.786159954252, -2.336883262593, 1.918679844902]),
    ):
        assert sample(denoise, x, sigmas, sampler="lms", order=order).tolist() == pytest.approx(expected, abs=1e-10)


# What is asked for


def test_evaluations():
    sigmas = (8.0, 4.0, 2.0, 1.0, 0.5, 0.0)
    assert visited("plms", sigmas) == [8, 4, 4, 2, 1, 0.5]
    middle = [math.sqrt(32), math.sqrt(8), math.sqrt(2)]
    asked = [8, middle[0], middle[0], 4, 4, middle[1], middle[1], 2, 2, middle[2], middle[2], 1, 1, 0.5]
    assert visited("pndm", sigmas) == pytest.approx(asked)
    assert visited("pndm", sigmas, middles=[6.0])[:4] == [8, 6, 6, 4]
    assert visited("pndm", (8.0, 4.0, 0.0)) == pytest.approx([8, middle[0], middle[0], 4, 4])
    for name in ("lms", "deis", "dpm_solver", "dpm_solver_singlestep", "unipc"):
        assert visited(name, sigmas) == [8, 4, 2, 1, 0.5]


@pytest.mark.parametrize("name", ["plms", "pndm", "lms", "deis", "dpm_solver", "dpm_solver_singlestep", "unipc"])
def test_a_step_of_no_length_changes_nothing(name):
    """Some grids of diffusers repeat their last sigma."""
    found = run(name, (14.6, 6.0, 3.0, 1.0, 0.5, 0.5))
    assert bool(found.isfinite().all())
    if name not in ("plms", "pndm", "unipc"):  # those correct themselves with the evaluation that it brings
        lower = {} if name == "lms" else {"order": 1} if name.startswith("dpm") else {"lower_order_final": False}
        torch.testing.assert_close(
            run(name, (14.6, 6.0, 3.0, 1.0, 0.5, 0.5), **lower), run(name, (14.6, 6.0, 3.0, 1.0, 0.5), **lower)
        )


@pytest.mark.parametrize("name", ["dpm_solver", "dpm_solver_singlestep", "unipc"])
def test_an_edit_is_heard(name):
    """With x0 the same everywhere, these are exact: noise shrinks with sigma, and so must what an edit adds."""
    target, sigmas = torch.zeros(1, 1, 2, 2, dtype=torch.float64), even(8, START, END)
    at = sigmas[3]

    def edit(x, sigma):
        return x + 1.0 if sigma == at else x

    if name == "dpm_solver_singlestep":  # in the middle of a group the way is gone again from the group's start
        at = sigmas[4]
    x = torch.full_like(target, START)
    found = sample(lambda x, s: target, x, sigmas, sampler=name, edit=edit)
    assert found.flatten().tolist() == pytest.approx([END * (1 + 1 / at)] * 4, rel=1e-9)


@pytest.mark.parametrize("order", [1, 2, 3])
@pytest.mark.parametrize("to_zero", [True, False])
def test_singlestep_orders_are_diffusers(order, to_zero):
    final = {"final_sigmas_type": "zero" if to_zero else "sigma_min"}
    peer = diffusers.DPMSolverSinglestepScheduler(solver_order=order, lower_order_final=True, **final)
    for steps in range(1, 16):
        assert singlestep_orders(steps, order, to_zero=to_zero) == peer.get_order_list(steps)


@pytest.mark.parametrize(
    ("name", "options", "remedy"),
    [
        ("dpm_solver", {"algorithm_type": "dpmsolver+"}, r"dpmsolver\+\+"),
        ("dpm_solver", {"solver_type": "hoin"}, "heun"),
        ("dpm_solver", {"order": 4}, "1, 2 and 3"),
        ("dpm_solver_singlestep", {"algorithm_type": "sde"}, "sde-dpmsolver"),
        ("unipc", {"solver_type": "bh"}, "bh1"),
        ("unipc", {"order": 0}, "at least 1"),
    ],
)
def test_bad_options(name, options, remedy):
    with pytest.raises(InputError, match=remedy):
        run(name, **options)


# CompVis's samplers, from their definition: timesteps range(0, T, T // S) + 1, alphas_prev[0] = alphas_cumprod[0], and
# x_prev = sqrt(a_prev) * x0 + sqrt(1 - a_prev) * e (ldm-style DDIM with eta 0, in the variance-preserving x).


def epsilon(x, t):
    s = math.sqrt((1 - SD.alphas_cumprod[t]) / SD.alphas_cumprod[t])
    ve = x * math.sqrt(1 + s * s)
    return (ve - mixture(ve, s)) / s


def compvis(kind, z, S):
    steps = list(range(0, 1000, 1000 // S))
    timesteps = [t + 1 for t in steps]
    alphas = [float(SD.alphas_cumprod[t]) for t in timesteps]
    alphas_prev = [float(SD.alphas_cumprod[0]), *alphas[:-1]]

    def back(x, e, i):
        x0 = (x - math.sqrt(1 - alphas[i]) * e) / math.sqrt(alphas[i])
        return math.sqrt(alphas_prev[i]) * x0 + math.sqrt(1 - alphas_prev[i]) * e

    x, old = z, []
    for i in reversed(range(len(timesteps))):
        e = epsilon(x, timesteps[i])
        if kind == "ddim":
            mean = e
        elif not old:  # pseudo improved Euler
            mean = (e + epsilon(back(x, e, i), timesteps[max(i - 1, 0)])) / 2
        elif len(old) == 1:
            mean = (3 * e - old[-1]) / 2
        elif len(old) == 2:
            mean = (23 * e - 16 * old[-1] + 5 * old[-2]) / 12
        else:
            mean = (55 * e - 59 * old[-1] + 37 * old[-2] - 9 * old[-3]) / 24
        x, old = back(x, mean, i), [*old[-2:], e]
    return x, timesteps[::-1]


@pytest.mark.parametrize("S", [5, 20, 50])
@pytest.mark.parametrize("kind", ["ddim", "plms"])
def test_both_doors_are_compvis_code_path(kind, S):
    """The +1 offset: "leading" spacing, steps_offset 1, and an end at timestep 0 instead of a clean picture."""
    z = torch.randn(1, 4, 6, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    expected, timesteps = compvis(kind, z, S)

    grid = make_grid(SD, S, "leading", steps_offset=1, final_sigma="sigma_min")
    assert list(grid.timesteps) == timesteps
    x = sample(mixture, z * math.sqrt(1 + grid.sigmas[0] ** 2), grid.sigmas, sampler=kind)
    torch.testing.assert_close(x / math.sqrt(1 + grid.sigmas[-1] ** 2), expected, rtol=1e-9, atol=1e-9)

    betas = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}
    config = {"steps_offset": 1, "set_alpha_to_one": False, **betas}
    ddim, plms = DDIMScheduler(clip_sample=False, **config), PNDMScheduler(skip_prk_steps=True, **config)
    scheduler, x = (ddim if kind == "ddim" else plms), z
    scheduler.set_timesteps(S)
    for t in scheduler.timesteps:
        x = scheduler.step(epsilon(x, int(t)), t, x).prev_sample
    torch.testing.assert_close(x, expected, rtol=1e-9, atol=1e-9)


def test_pndm_is_the_papers_algorithm():
    """Liu et al. 2022, Algorithm 2 with eq. 9, 12, 13, in the variance-preserving x, through the scheduler's door."""
    scheduler = PNDMScheduler(beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear")
    scheduler.set_timesteps(10)
    a = SD.alphas_cumprod

    def phi(x, e, t, t_next):  # eq. 9
        now, then = float(a[t]), float(a[max(t_next, 0)])
        slope = (then - now) / (math.sqrt(now) * (math.sqrt((1 - then) * now) + math.sqrt((1 - now) * then)))
        return math.sqrt(then / now) * x - slope * e

    z = torch.randn(1, 4, 6, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    x, past = z, []
    for t, t_next in pairwise([*range(900, -1, -100), -100]):
        if len(past) < 3:
            middle = (t + t_next) // 2
            e1 = epsilon(x, t)
            e2 = epsilon(phi(x, e1, t, middle), middle)
            e3 = epsilon(phi(x, e2, t, middle), middle)
            e4 = epsilon(phi(x, e3, t, t_next), t_next)
            mean, e = (e1 + 2 * e2 + 2 * e3 + e4) / 6, e1
        else:
            e = epsilon(x, t)
            mean = (55 * e - 59 * past[-1] + 37 * past[-2] - 9 * past[-3]) / 24
        x, past = phi(x, mean, t, t_next), [*past, e]
    found = z
    for t in scheduler.timesteps:
        found = scheduler.step(epsilon(found, int(t)), t, found).prev_sample
    torch.testing.assert_close(found, x, rtol=1e-8, atol=1e-8)
