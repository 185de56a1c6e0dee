"""The diffusers face against the real diffusers classes: one loop for both, and a closed-form network that knows t."""

import copy
import inspect
import json
import math
import pickle
import warnings
from itertools import pairwise

import diffusers
import pytest
import torch

import safelight.diffusion.schedulers as schedulers
from safelight.diffusion.noise import SeededNoise
from safelight.diffusion.parameterization import PARAMETERIZATIONS
from safelight.diffusion.samplers import drive, find
from safelight.diffusion.schedule import noise_schedule
from safelight.diffusion.schedulers import (
    DDIMScheduler,
    DDPMScheduler,
    DPMSolverMultistepScheduler,
    EulerDiscreteScheduler,
    HeunDiscreteScheduler,
    LMSDiscreteScheduler,
    PNDMScheduler,
    Scheduler,
    UniPCMultistepScheduler,
)
from safelight.errors import CheckpointError, InputError, MissingPartError

diffusers.utils.logging.set_verbosity_error()
pytestmark = pytest.mark.filterwarnings("ignore:__array:DeprecationWarning", "ignore::FutureWarning")  # diffusers'

NAMES = [name for name in schedulers.__all__ if name.endswith("Scheduler") and name != "Scheduler"]
SD = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}
V = {"prediction_type": "v_prediction"}
ZERO_SNR = {"rescale_betas_zero_snr": True, "timestep_spacing": "trailing", **V}
TO_MIN = {"final_sigmas_type": "sigma_min"}

DRAW = torch.Generator().manual_seed(0)
Z, SHIFT, PICTURE = (torch.randn(2, 4, 6, 6, generator=DRAW) for _ in range(3))
SCHEDULE = noise_schedule()


def network(x, t):
    """Best for data N(0, 1) if it predicts noise, and then bent."""
    s = SCHEDULE.sigma(float(t))
    return s / math.sqrt(1 + s * s) * x + 0.3 * torch.tanh(1.3 * x + SHIFT) * (0.5 + float(t) / 2000)


def run(scheduler, steps, *, start=0, edit_at=None, seed=7, network=network, set_timesteps=None, **options):
    """A tutorial's own loop. `start` counts steps, as image to image does; the sample is changed before `edit_at`."""
    scheduler.set_timesteps(steps, **(set_timesteps or {}))
    if "generator" in inspect.signature(scheduler.step).parameters and "generator" not in options:
        options["generator"] = torch.Generator().manual_seed(seed)
    timesteps = scheduler.timesteps
    x = Z * scheduler.init_noise_sigma
    if start:
        if hasattr(scheduler, "set_begin_index"):
            scheduler.set_begin_index(start * scheduler.order)
        timesteps = timesteps[start * scheduler.order :]
        x = scheduler.add_noise(PICTURE, Z, timesteps[:1].repeat(2))
    for i, t in enumerate(timesteps):
        if i == edit_at:
            x = 0.7 * x + 0.1
        output = network(scheduler.scale_model_input(x, t), t)
        x = scheduler.step(output, t, x, **options).prev_sample
    return x


def both(name, config):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return getattr(schedulers, name)(**config), getattr(diffusers, name)(**config)


def cases(table):
    return [(name, config) for name, configs in table.items() for config in configs]


PARITY = {
    "DDPMScheduler": [
        {},
        {"variance_type": "fixed_large"},
        {"variance_type": "fixed_small_log"},
        {"timestep_spacing": "trailing"},
        {"timestep_spacing": "linspace"},
        {"prediction_type": "sample"},
        {"thresholding": True, **V},
        {"beta_schedule": "squaredcos_cap_v2"},
        {"beta_schedule": "sigmoid"},
        {"rescale_betas_zero_snr": True, **V},
        {"clip_sample": False, **SD},
    ],
    "DDIMScheduler": [
        {},
        {"set_alpha_to_one": False, "steps_offset": 1, "clip_sample": False, **SD},
        {"clip_sample": False, **SD, **V},
        {"thresholding": True, "sample_max_value": 2.0},
        {"rescale_betas_zero_snr": True, **V, **SD},
        {"prediction_type": "sample", "clip_sample_range": 0.8},
    ],
    "PNDMScheduler": [
        {},
        {"skip_prk_steps": True},
        {"skip_prk_steps": True, "steps_offset": 1, **SD},
        {"set_alpha_to_one": True, **SD},
    ],
    "LMSDiscreteScheduler": [
        {},
        SD,
        {"use_karras_sigmas": True, **SD},
        {"use_exponential_sigmas": True, **SD},
        {"use_beta_sigmas": True, **SD},
        {"timestep_spacing": "leading", "steps_offset": 1, **SD},
        {"timestep_spacing": "trailing", **V},
    ],
    "EulerDiscreteScheduler": [
        {},
        SD,
        {"use_karras_sigmas": True, **SD},
        {"use_exponential_sigmas": True, **SD},
        {"use_beta_sigmas": True, **SD},
        {"use_karras_sigmas": True, "timestep_spacing": "leading", "sigma_max": 10.0, "sigma_min": 0.05, **SD},
        {"timestep_spacing": "leading", "steps_offset": 1, **SD},
        {"interpolation_type": "log_linear", **SD},
        {"timestep_type": "continuous", **V, **SD},
        {"prediction_type": "sample", **TO_MIN},
        {**ZERO_SNR, **SD},
    ],
    "EulerAncestralDiscreteScheduler": [{}, SD, {"timestep_spacing": "leading", **SD}, {**ZERO_SNR, **SD}],
    "HeunDiscreteScheduler": [
        {},
        SD,
        {"use_karras_sigmas": True, **SD},
        {"timestep_spacing": "trailing", **V},
        {"clip_sample": True, **SD},
    ],
    "KDPM2DiscreteScheduler": [
        {},
        SD,
        {"use_karras_sigmas": True, **SD},
        {"use_beta_sigmas": True, "timestep_spacing": "trailing", **SD},
        V,
    ],
    "KDPM2AncestralDiscreteScheduler": [{}, SD, {"use_karras_sigmas": True, **SD}, V],
    "DPMSolverMultistepScheduler": [
        {},
        SD,
        *({"solver_order": order, **SD} for order in (1, 3)),
        *({f"use_{warp}": True, **SD} for warp in ("karras_sigmas", "exponential_sigmas", "lu_lambdas")),
        {"solver_type": "heun", **SD},
        {"euler_at_final": True, **TO_MIN, **SD},
        {"lower_order_final": False, "solver_order": 3, **SD},
        {"algorithm_type": "sde-dpmsolver++", **SD},
        {"algorithm_type": "sde-dpmsolver++", "use_karras_sigmas": True, "solver_type": "heun", **SD},
        {"algorithm_type": "sde-dpmsolver", **TO_MIN, **SD},
        {"algorithm_type": "dpmsolver", **TO_MIN, **SD},
        {"algorithm_type": "dpmsolver", "solver_order": 3, **TO_MIN, **SD},
        {"algorithm_type": "deis", "solver_type": "logrho", **TO_MIN},
        {"timestep_spacing": "leading", "steps_offset": 1, **SD},
        {"thresholding": True, "timestep_spacing": "trailing", **SD},
        {"prediction_type": "sample", **SD},
        {"beta_schedule": "squaredcos_cap_v2", "lambda_min_clipped": -5.1},
        {**ZERO_SNR, **SD},
    ],
    "DPMSolverSinglestepScheduler": [
        {},
        SD,
        *({"solver_order": 3, "solver_type": kind, **SD} for kind in ("midpoint", "heun")),
        {"solver_order": 1},
        {"solver_type": "heun", "use_exponential_sigmas": True, **SD},
        {"algorithm_type": "dpmsolver", "solver_order": 3, "lower_order_final": True, **TO_MIN, **SD},
        {"algorithm_type": "sde-dpmsolver++", **SD},
        {"use_karras_sigmas": True, **V, **SD},
        {**TO_MIN, **SD},
    ],
    "UniPCMultistepScheduler": [
        {},
        SD,
        *({"solver_order": order, **SD} for order in (1, 3, 4)),
        {"solver_type": "bh1", **TO_MIN, **SD},
        {"predict_x0": False, **TO_MIN, **SD},
        {"disable_corrector": [0, 1], **SD},
        {"use_karras_sigmas": True, **SD},
        {"use_karras_sigmas": True, **TO_MIN, **SD},
        {"lower_order_final": False, "solver_order": 3, **TO_MIN, **SD},
        {"timestep_spacing": "trailing", "thresholding": True, **V},
    ],
    "DEISMultistepScheduler": [
        {},
        SD,
        {"solver_order": 1, **SD},
        {"solver_order": 3, "timestep_spacing": "trailing"},
        {"use_karras_sigmas": True, **SD},
        {"timestep_spacing": "leading", **SD},
        {"thresholding": True, **V},
    ],
    "LCMScheduler": [{}, {"clip_sample": True}, V],
    "TCDScheduler": [{}, V],
}


@pytest.mark.parametrize(("name", "config"), cases(PARITY))
@pytest.mark.parametrize("steps", [5, 20, 50])
def test_equals_diffusers(name, config, steps):
    ours, theirs = both(name, config)
    expected, found = run(theirs, steps), run(ours, steps)
    assert ours.timesteps.shape == theirs.timesteps.shape
    # whole timesteps are equal; fractions are functions of diffusers' float32 sigmas
    assert ours.timesteps.tolist() == pytest.approx(theirs.timesteps.tolist(), abs=0 if ours.family.whole else 0.006)
    assert float(ours.init_noise_sigma) == pytest.approx(float(theirs.init_noise_sigma), rel=1e-5)
    limit = 2e-3 if config.get("solver_order") == 3 and name.startswith("DEIS") else 1e-4  # see the class
    assert float((found - expected).abs().max()) <= limit


def test_every_scheduler_is_compared():
    assert set(PARITY) == set(NAMES) and len(NAMES) == 15


# Where this face differs on purpose


@pytest.mark.parametrize("spacing", ["linspace", "trailing"])
@pytest.mark.parametrize("steps", [7, 30])
def test_ddim_steps_to_the_true_previous_timestep(spacing, steps):
    """The paper's eq. 12 over the run's own timesteps; diffusers goes elsewhere (huggingface/diffusers#12633)."""
    config = {"timestep_spacing": spacing, "clip_sample": False, **SD}
    ours, theirs = both("DDIMScheduler", config)
    found = run(ours, steps)
    x, alphas = Z, ours.alphas_cumprod
    for t, t_next in zip(ours.timesteps, [*ours.timesteps[1:], None], strict=True):
        a, a_next = alphas[t], torch.tensor(1.0) if t_next is None else alphas[t_next]
        noise = network(x, t)
        x = a_next.sqrt() * (x - (1 - a).sqrt() * noise) / a.sqrt() + (1 - a_next).sqrt() * noise
    assert float((found - x).abs().max()) < 1e-4
    assert float((run(theirs, steps) - x).abs().max()) > 1e-3


def test_third_order_sde_is_k_diffusions():
    """diffusers has -0.5 where the integral gives +0.5: its third-order term does not vanish with the step."""
    config = {"algorithm_type": "sde-dpmsolver++", "solver_order": 3, "solver_type": "heun", **SD}
    found = run(DPMSolverMultistepScheduler(**config), 20)
    scheduler = DPMSolverMultistepScheduler(**config)
    scheduler.set_timesteps(20)
    draw = torch.Generator().manual_seed(7)
    expected = by_function(scheduler, "dpmpp_3m_sde", lambda s, s_next: torch.randn(Z.shape, generator=draw), eta=1.0)
    assert float((found - expected).abs().max()) < 1e-5
    assert float((run(diffusers.DPMSolverMultistepScheduler(**config), 20) - found).abs().max()) > 1e-2


def by_function(scheduler, sampler, noise=None, network=network, **options):
    """What the function door gives, on the scheduler's own grid and in its own scaling of the sample."""
    grid = scheduler._ready().grid
    timesteps = dict(zip(scheduler._ready().evals, scheduler.timesteps, strict=True))
    kind = PARAMETERIZATIONS[scheduler.config.prediction_type]

    def denoise(x, s):
        return kind.denoised(network(x / math.sqrt(1 + s * s), timesteps[s]), x, s)

    x = Z * float(scheduler.init_noise_sigma) / scheduler._scale(grid.sigmas[0])
    options = {**scheduler._ready().options, **options}
    return drive(find(sampler)(x, grid.sigmas, noise, **options), denoise) * scheduler._scale(grid.sigmas[-1])


DOORS = [
    ("DDPMScheduler", "ddpm", {"clip_sample": False}, {}),
    ("DDIMScheduler", "ddim", {"clip_sample": False}, {}),
    ("PNDMScheduler", "plms", {"skip_prk_steps": True}, {}),
    ("PNDMScheduler", "pndm", {}, {}),
    ("LMSDiscreteScheduler", "lms", {}, {}),
    ("EulerDiscreteScheduler", "euler", {"use_karras_sigmas": True}, {}),
    ("EulerAncestralDiscreteScheduler", "euler_ancestral", {}, {}),
    ("HeunDiscreteScheduler", "heun", {}, {}),
    ("KDPM2DiscreteScheduler", "dpm2", {}, {}),
    ("KDPM2AncestralDiscreteScheduler", "dpm2_ancestral", {}, {}),
    ("DPMSolverMultistepScheduler", "dpmpp_2m", {"lower_order_final": False}, {}),
    ("DPMSolverMultistepScheduler", "dpm_solver", {"solver_order": 3, **TO_MIN}, {"order": 3}),
    ("DPMSolverSinglestepScheduler", "dpm_solver_singlestep", {"solver_order": 3}, {"order": 3}),
    ("UniPCMultistepScheduler", "unipc", {}, {}),
    ("DEISMultistepScheduler", "deis", {"solver_order": 3}, {"order": 3}),
    ("LCMScheduler", "lcm", {"timestep_scaling": 1e6}, {}),
    ("TCDScheduler", "tcd", {}, {}),
]


@pytest.mark.parametrize(("name", "sampler", "config", "options"), DOORS)
def test_both_doors_lead_to_the_same_picture(name, sampler, config, options):
    scheduler = getattr(schedulers, name)(**{**SD, **config})
    found = run(scheduler, 20)
    draw = torch.Generator().manual_seed(7)
    expected = by_function(scheduler, sampler, lambda s, s_next: torch.randn(Z.shape, generator=draw), **options)
    assert float((found - expected).abs().max()) < 2e-5


# Starting, editing, going back


def started(name):
    extra = {"PNDMScheduler": {"skip_prk_steps": True}, "DDIMScheduler": {"clip_sample": False}}
    return {**SD, **extra.get(name, {})}


@pytest.mark.parametrize("name", [name for name in NAMES if name != "LMSDiscreteScheduler"])
@pytest.mark.parametrize(("steps", "start"), [(5, 1), (20, 2), (20, 13), (20, 19)])
def test_image_to_image_starts_within_the_run(name, steps, start):
    ours, theirs = both(name, started(name))
    assert float((run(ours, steps, start=start) - run(theirs, steps, start=start)).abs().max()) <= 1e-4


def test_lms_started_within_the_run_rises_from_order_1():
    """With a constant x0 every consistent method is exact from any start; diffusers' first step is not."""
    answer = {"prediction_type": "sample", "timestep_spacing": "trailing", **SD}
    ours, theirs = both("LMSDiscreteScheduler", answer)
    ends = [run(s, 20, start=10, network=lambda x, t: PICTURE) for s in (ours, theirs)]
    assert float((ends[0] - PICTURE).abs().max()) < 1e-5
    expected = LMSDiscreteScheduler(**answer)
    expected.set_timesteps(20)
    first = expected.add_noise(PICTURE, Z, expected.timesteps[10:11].repeat(2))
    grid = expected.sigmas.tolist()[10:]
    found = drive(find("lms")(first, grid, None), lambda x, s: PICTURE)
    assert float((ends[0] - found).abs().max()) < 1e-5


@pytest.mark.parametrize("name", [name for name in NAMES if name != "UniPCMultistepScheduler"])
def test_edited_latents_are_heard_as_in_diffusers(name):
    ours, theirs = both(name, started(name))
    at = 3 * ours.order + ours.order - 1
    found = run(ours, 12, edit_at=at)
    assert float((found - run(theirs, 12, edit_at=at)).abs().max()) <= 1e-4
    assert float((found - run(ours, 12)).abs().max()) > 1e-5


def test_unipc_hears_edits_where_diffusers_does_not():
    """Its last step is undone and redone by the corrector: with a constant x0, an edit must still shrink with sigma."""
    config = {"prediction_type": "sample", **TO_MIN, **SD}
    ours, theirs = both("UniPCMultistepScheduler", config)
    for scheduler, heard in ((ours, True), (theirs, False)):
        plain = run(scheduler, 12, network=lambda x, t: PICTURE)
        edited = run(scheduler, 12, network=lambda x, t: PICTURE, edit_at=6)
        assert (float((edited - plain).abs().max()) > 1e-4) is heard


@pytest.mark.parametrize("name", ["DDIMScheduler", "EulerDiscreteScheduler", "LMSDiscreteScheduler"])
def test_peeking_at_x0_and_going_back(name):
    """The "Deep Dive" notebook asks for x0, sets _step_index back, and steps again; or does not set it back."""
    plain = run(getattr(schedulers, name)(**started(name)), 10, **({"order": 1} if name.startswith("LMS") else {}))
    scheduler = getattr(schedulers, name)(**started(name))
    options = {"order": 1} if name.startswith("LMS") else {}
    scheduler.set_timesteps(10)
    x = Z * scheduler.init_noise_sigma
    for i, t in enumerate(scheduler.timesteps):
        output = network(scheduler.scale_model_input(x, t), t)
        if i % 3 == 0:
            x0 = scheduler.step(output, t, x, **options).pred_original_sample
            assert x0.shape == x.shape
            if i % 2:
                scheduler._step_index = scheduler._step_index - 1
        x = scheduler.step(output, t, x, **options).prev_sample
    assert torch.equal(x, plain)


@pytest.mark.parametrize("name", ["PNDMScheduler", "LMSDiscreteScheduler", "UniPCMultistepScheduler"])
def test_peeking_with_a_memory_begins_it_anew(name):
    """Not the same picture, but near it: the steps from there rise from order 1 again."""
    plain = run(getattr(schedulers, name)(**started(name)), 40)
    scheduler = getattr(schedulers, name)(**started(name))
    scheduler.set_timesteps(40)
    x = Z * scheduler.init_noise_sigma
    for i, t in enumerate(scheduler.timesteps):
        output = network(scheduler.scale_model_input(x, t), t)
        if i and i % 10 == 0:
            scheduler.step(output, t, x)
        x = scheduler.step(output, t, x).prev_sample
    assert 0 < float((x - plain).abs().max()) < 0.02


def test_gradients_flow_through_x0():
    scheduler = LMSDiscreteScheduler(**SD)
    scheduler.set_timesteps(10)
    x = (Z * scheduler.init_noise_sigma).requires_grad_()
    x0 = scheduler.step(torch.zeros_like(Z), scheduler.timesteps[0], x).pred_original_sample
    (gradient,) = torch.autograd.grad(x0.sum(), x)
    assert torch.equal(gradient, torch.ones_like(Z))


def test_pndm_pictures_on_the_way():
    """Every x0 on the way is nearer to where the run ends; evaluations are one more than steps."""
    scheduler = PNDMScheduler(skip_prk_steps=True, steps_offset=1, **SD)
    scheduler.set_timesteps(20)
    assert len(scheduler.timesteps) == 21 and scheduler.timesteps[1] == scheduler.timesteps[2]
    end, x, away = run(scheduler, 20), Z, []
    for i, t in enumerate(scheduler.timesteps):
        out = scheduler.step(network(x, t), t, x)
        x = out["prev_sample"]
        if i % 5 == 0:
            away.append(float((out.pred_original_sample - end).abs().mean()))
    assert away == sorted(away, reverse=True) and torch.equal(x, end)


def test_ddim_takes_any_timestep():
    scheduler = DDIMScheduler(clip_sample=False, **SD)
    scheduler.set_timesteps(10)
    a, a_next = scheduler.alphas_cumprod[433], scheduler.alphas_cumprod[400]  # the run's next
    noise = network(Z, 433)
    expected = a_next.sqrt() * (Z - (1 - a).sqrt() * noise) / a.sqrt() + (1 - a_next).sqrt() * noise
    assert float((scheduler.step(noise, 433, Z).prev_sample - expected).abs().max()) < 1e-5


def test_a_timestep_off_the_run_is_an_error():
    scheduler = DPMSolverMultistepScheduler(**SD)
    scheduler.set_timesteps(10)
    with pytest.raises(InputError, match=r"timestep 3 is not one of this run's 10.*\n.*not their indices"):
        scheduler.step(Z, 3, Z)
    heun = HeunDiscreteScheduler(**SD)
    heun.set_timesteps(10)
    heun.set_begin_index(5)
    with pytest.raises(InputError, match="within a step"):
        heun.step(Z, heun.timesteps[5], Z)
    pndm = PNDMScheduler(**SD)
    pndm.set_timesteps(10)
    with pytest.raises(InputError, match="skip_prk_steps=True"):
        pndm.step(Z, pndm.timesteps[-1], Z)


# Randomness


@pytest.mark.parametrize(
    ("name", "config", "options"),
    [
        ("DDPMScheduler", {}, {}),
        ("DDIMScheduler", {}, {"eta": 0.7}),
        ("DDIMScheduler", {"clip_sample": True}, {"eta": 1.0, "use_clipped_model_output": True}),
        ("EulerAncestralDiscreteScheduler", {}, {}),
        ("KDPM2AncestralDiscreteScheduler", {}, {}),
        ("DPMSolverMultistepScheduler", {"algorithm_type": "sde-dpmsolver++"}, {}),
        ("DPMSolverSinglestepScheduler", {"algorithm_type": "sde-dpmsolver++"}, {}),
        ("LCMScheduler", {}, {}),
        ("TCDScheduler", {}, {"eta": 0.8}),
    ],
)
@pytest.mark.parametrize("kind", ["global", "one", "list"])
def test_noise_is_drawn_as_diffusers_draws_it(name, config, options, kind):
    """The same picture, and the generator left in the same state."""
    ends, states = [], []
    for scheduler in both(name, {**started(name), **config}):
        torch.manual_seed(5)
        generators = [torch.Generator().manual_seed(i) for i in (11, 12)]
        generator = {"global": None, "one": generators[0], "list": generators}[kind]
        if kind == "list" and name == "DDIMScheduler":
            generator = generators
        ends.append(run(scheduler, 8, generator=generator, **options))
        states.append(torch.cat([torch.get_rng_state(), generators[0].get_state(), generators[1].get_state()]))
    assert float((ends[0] - ends[1]).abs().max()) <= 1e-4
    assert torch.equal(*states)


def test_given_noise():
    noise = torch.ones_like(Z)
    ends = [run(s, 8, generator=None, variance_noise=noise, eta=1.0) for s in both("DDIMScheduler", SD)]
    assert float((ends[0] - ends[1]).abs().max()) <= 1e-4
    with pytest.raises(InputError, match="not both"):
        run(DDIMScheduler(**SD), 8, variance_noise=noise, eta=1.0, generator=torch.Generator())


@pytest.mark.parametrize("kind", ["learned", "learned_range"])
def test_a_predicted_variance(kind):
    def two(x, t):
        variance = torch.sigmoid(x + SHIFT) * 0.1 if kind == "learned" else torch.tanh(x + SHIFT)
        return torch.cat([network(x, t), variance], 1)

    ends = [run(s, 20, network=two) for s in both("DDPMScheduler", {"variance_type": kind, **SD})]
    assert float((ends[0] - ends[1]).abs().max()) <= 1e-4


def test_euler_churn_is_seen_by_the_network():
    """EDM's Algorithm 2 without its correction, written out; asked for in set_timesteps, refused in step."""
    churn = {"s_churn": 8.0, "s_noise": 1.01}
    scheduler = EulerDiscreteScheduler(**SD)
    found = run(scheduler, 10, set_timesteps=churn)
    draw, sigmas = torch.Generator().manual_seed(7), scheduler._ready().grid.sigmas
    gamma = min(8.0 / 10, 2**0.5 - 1)
    torch.randn(Z.shape, generator=draw)  # of the first raise, for which the caller's own noise stands
    x = Z * sigmas[0] * (1 + gamma)
    for i, (s, s_next) in enumerate(pairwise(sigmas)):
        s_hat = s * (1 + gamma)
        if i:
            x = x + math.sqrt(s_hat**2 - s**2) * 1.01 * torch.randn(Z.shape, generator=draw)
        output = network(x / math.sqrt(s_hat**2 + 1), SCHEDULE.t(s_hat))
        x = x + (s_next - s_hat) * output
    assert float((found - x).abs().max()) < 1e-4
    with pytest.raises(InputError, match="set_timesteps"):
        scheduler.step(Z, scheduler.timesteps[0], Z, s_churn=1.0)


# The forward process


@pytest.mark.parametrize("name", NAMES)
def test_forward_process_equals_diffusers(name):
    ours, theirs = both(name, SD)
    for scheduler in (ours, theirs):
        scheduler.set_timesteps(20)
    places = theirs.timesteps[[-1, 10]]
    expected = theirs.add_noise(PICTURE, Z, places)
    assert float((ours.add_noise(PICTURE, Z, places) - expected).abs().max()) < 1e-5
    assert float((ours.betas - theirs.betas).abs().max()) < 1e-7
    assert float((ours.alphas_cumprod - theirs.alphas_cumprod).abs().max()) < 1e-6
    assert len(ours) == len(theirs) == 1000


@pytest.mark.parametrize("name", NAMES)
def test_forward_process_of_training(name):
    """Any timesteps, before any run: that of DDPM, in the scheduler's scaling. (diffusers' DPM family errs.)"""
    times = torch.tensor([10, 700])
    scheduler, ddpm = getattr(schedulers, name)(**SD), diffusers.DDPMScheduler(**SD)
    scale = ddpm.alphas_cumprod[times].rsqrt()[:, None, None, None] if scheduler.variance_exploding else 1.0
    noisy = scheduler.add_noise(PICTURE, Z, times)
    assert torch.allclose(noisy, scale * ddpm.add_noise(PICTURE, Z, times), atol=1e-5, rtol=1e-5)
    velocity = scheduler.get_velocity(PICTURE, Z, times)
    assert torch.allclose(velocity, ddpm.get_velocity(PICTURE, Z, times), atol=1e-5)


def test_velocity_of_euler_is_that_of_the_timestep():
    """diffusers indexes ascending alphas with a place in descending timesteps."""
    times = torch.tensor([10.0, 700.0])
    expected = DDPMScheduler(**SD).get_velocity(PICTURE, Z, times.long())
    assert torch.allclose(EulerDiscreteScheduler(**SD).get_velocity(PICTURE, Z, times), expected, atol=1e-6)


@pytest.mark.parametrize("name", ["EulerDiscreteScheduler", "HeunDiscreteScheduler", "DPMSolverMultistepScheduler"])
def test_sigmas_equal_diffusers(name):
    ours, theirs = both(name, {"use_karras_sigmas": True, **SD})
    ours.set_timesteps(20)
    theirs.set_timesteps(20)
    assert torch.allclose(ours.sigmas, theirs.sigmas, rtol=1e-4, atol=0)


# Grids of one's own


AYS = [999, 850, 736, 645, 545, 455, 343, 233, 124, 24]


@pytest.mark.parametrize("name", ["EulerDiscreteScheduler", "DPMSolverMultistepScheduler", "DDPMScheduler"])
def test_own_timesteps_equal_diffusers(name):
    ends = [run(s, None, set_timesteps={"timesteps": AYS}) for s in both(name, SD)]
    assert float((ends[0] - ends[1]).abs().max()) <= 1e-4


def test_own_sigmas_equal_diffusers():
    sigmas = [14.6, 6.4, 3.8, 2.6, 1.8, 1.3, 0.9, 0.6, 0.4, 0.15, 0.0]
    ends = [run(s, None, set_timesteps={"sigmas": sigmas}) for s in both("EulerDiscreteScheduler", SD)]
    assert float((ends[0] - ends[1]).abs().max()) <= 1e-4


def test_timesteps_may_be_assigned():
    scheduler = EulerDiscreteScheduler(**SD)
    plain = run(scheduler, 10)
    scheduler.timesteps = scheduler.timesteps.to(torch.float64)  # another dtype is the same run
    x = Z * scheduler.init_noise_sigma
    for t in scheduler.timesteps:
        x = scheduler.step(network(scheduler.scale_model_input(x, t), t), t, x).prev_sample
    assert torch.equal(x, plain)
    own = EulerDiscreteScheduler(**SD)
    own.timesteps = AYS
    other = EulerDiscreteScheduler(**SD)
    other.set_timesteps(timesteps=AYS)
    assert own.timesteps.tolist() == AYS and torch.equal(own.sigmas, other.sigmas)
    own.sigmas = [10.0, 1.0, 0.0]
    assert own.sigmas.tolist() == [10.0, 1.0, 0.0] and len(own.timesteps) == 2


@pytest.mark.parametrize("name", ["DDIMScheduler", "HeunDiscreteScheduler", "DPMSolverMultistepScheduler"])
def test_the_rest_of_a_run_may_be_assigned(name):
    scheduler = getattr(schedulers, name)(**started(name))
    expected = run(scheduler, 10, start=4)
    scheduler.set_timesteps(10)
    x = scheduler.add_noise(PICTURE, Z, scheduler.timesteps[4 * scheduler.order :][:1].repeat(2))
    scheduler.timesteps = scheduler.timesteps[4 * scheduler.order :]
    for t in scheduler.timesteps:
        x = scheduler.step(network(scheduler.scale_model_input(x, t), t), t, x).prev_sample
    assert torch.equal(x, expected)


@pytest.mark.parametrize(
    "arguments",
    [
        {},
        {"num_inference_steps": 5, "timesteps": AYS},
        {"num_inference_steps": 0},
        {"num_inference_steps": 1001},
        {"timesteps": [1, 2, 3]},
        {"timesteps": []},
        {"timesteps": [2000]},
        {"num_inference_steps": 5, "strenght": 1.0},
    ],
)
def test_grids_that_cannot_be(arguments):
    with pytest.raises(InputError):
        DPMSolverMultistepScheduler(**SD).set_timesteps(**arguments)


@pytest.mark.parametrize("strength", [0.6, 1.0])
@pytest.mark.parametrize("original", [None, 25])
def test_distilled_timesteps(strength, original):
    for name in ("LCMScheduler", "TCDScheduler"):
        ours, theirs = both(name, {})
        for steps in (1, 4, 7, 13):
            for scheduler in (ours, theirs):
                scheduler.set_timesteps(steps, original_inference_steps=original, strength=strength)
            assert ours.timesteps.tolist() == theirs.timesteps.tolist()
        with pytest.raises(InputError, match=r"strength"):
            ours.set_timesteps(1001, original_inference_steps=original, strength=strength)


# Configurations


@pytest.mark.parametrize("name", NAMES)
def test_configuration_equals_diffusers(name, tmp_path):
    """The same keys and defaults; the file is the same, and each reads the other's."""
    ours, theirs = both(name, {"beta_start": 0.001})
    ours.save_pretrained(tmp_path / "ours")
    theirs.save_pretrained(tmp_path / "theirs")
    written = [json.loads((tmp_path / who / "scheduler_config.json").read_text()) for who in ("ours", "theirs")]
    for config in written:
        config.pop("_diffusers_version")
    assert written[0] == written[1]
    read = getattr(diffusers, name).from_pretrained(tmp_path / "ours")
    back = getattr(schedulers, name).from_pretrained(tmp_path, subfolder="theirs")
    drop = ("_diffusers_version", "_use_default_values")
    for config in (read.config, back.config):
        assert {k: v for k, v in config.items() if k not in drop} == written[1]
    assert list(inspect.signature(type(ours)).parameters) == list(inspect.signature(type(theirs)).parameters)
    assert set(inspect.signature(ours.step).parameters) == set(inspect.signature(theirs.step).parameters)
    assert isinstance(ours, Scheduler) and type(ours).__name__ == name == ours.config._class_name
    assert ours.order == theirs.order


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("other", ["DDIMScheduler", "DPMSolverMultistepScheduler"])
def test_from_config_of_another_scheduler(name, other):
    """As in diffusers: keys that stood at their default take the new class's default, foreign ones are carried."""
    ours, theirs = both(other, {"timestep_spacing": "trailing", **SD})
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        found = getattr(schedulers, name).from_config(ours.config)
    expected = getattr(diffusers, name).from_config(theirs.config)
    drop = ("_diffusers_version", "_use_default_values", "_class_name")
    assert {k: v for k, v in found.config.items() if k not in drop} == {
        k: v for k, v in expected.config.items() if k not in drop
    }


def test_keys():
    with pytest.raises(InputError, match="beta_start"):
        DDIMScheduler(beta_strat=0.001)
    with pytest.raises(InputError, match="eta"):
        scheduler = DDIMScheduler()
        scheduler.step(Z, 1, Z, etta=1.0)
    with pytest.warns(UserWarning, match="a_new_key"):
        scheduler = DDIMScheduler.from_config({"a_new_key": 3, "skip_prk_steps": True, "beta_start": 0.001})
    assert scheduler.config.a_new_key == 3 and scheduler.config["beta_start"] == 0.001
    assert PNDMScheduler.from_config({"skip_prk_steps": True}).config.skip_prk_steps is True
    assert scheduler.num_train_timesteps == 1000
    with pytest.raises(AttributeError):
        _ = scheduler.config.beta_strat
    with pytest.raises(InputError, match="cannot be changed"):
        scheduler.config["beta_start"] = 2
    with pytest.raises(InputError, match="cannot be changed"):
        scheduler.config.beta_start = 2
    assert DDIMScheduler(500, 0.001).config.num_train_timesteps == 500


@pytest.mark.parametrize(
    ("name", "config", "error"),
    [
        ("DDIMScheduler", {"prediction_type": "epsilom"}, InputError),
        ("DDIMScheduler", {"beta_schedule": "lineer"}, InputError),
        ("DDIMScheduler", {"timestep_spacing": "trailling"}, InputError),
        ("EulerDiscreteScheduler", {"use_karras_sigmas": True, "use_beta_sigmas": True}, InputError),
        ("EulerDiscreteScheduler", {"final_sigmas_type": "one"}, InputError),
        ("DPMSolverMultistepScheduler", {"algorithm_type": "dpmsolver+"}, InputError),
        ("DPMSolverMultistepScheduler", {"solver_order": 4}, InputError),
        ("UniPCMultistepScheduler", {"solver_type": "bh3"}, InputError),
        ("UniPCMultistepScheduler", {"use_flow_sigmas": True}, MissingPartError),
    ],
)
def test_bad_settings(name, config, error):
    with pytest.raises(error):
        getattr(schedulers, name)(**config).set_timesteps(10)


def test_files_that_cannot_be_read(tmp_path):
    with pytest.raises(CheckpointError, match="subfolder"):
        DDIMScheduler.from_pretrained(tmp_path)
    for content in ("{", "[1]"):
        (tmp_path / "scheduler_config.json").write_text(content)
        with pytest.raises(CheckpointError, match="JSON"):
            DDIMScheduler.from_pretrained(tmp_path)
    DDIMScheduler(beta_start=0.001).save_pretrained(tmp_path)
    assert DDIMScheduler.from_pretrained(tmp_path, beta_end=0.03).config.beta_start == 0.001
    assert [p.name for p in tmp_path.iterdir()] == ["scheduler_config.json"]


@pytest.mark.parametrize("name", NAMES)
def test_copies_before_and_after_a_run(name):
    scheduler = getattr(schedulers, name)(**started(name))
    scheduler.set_timesteps(6)
    copies = [copy.deepcopy(scheduler), pickle.loads(pickle.dumps(scheduler))]
    expected = run(scheduler, 6)
    for one in [*copies, copy.deepcopy(scheduler)]:
        assert torch.equal(run(one, 6), expected)


def test_a_half_run_scheduler_with_memory_cannot_be_copied():
    scheduler = UniPCMultistepScheduler(**SD)
    scheduler.set_timesteps(6)
    scheduler.step(Z, scheduler.timesteps[0], Z)
    with pytest.raises(InputError, match="half-run"):
        copy.deepcopy(scheduler)


# Forms


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
@pytest.mark.parametrize("name", NAMES)
def test_dtype_of_the_sample_is_kept(name, dtype):
    scheduler = getattr(schedulers, name)(**started(name))
    scheduler.set_timesteps(5)
    out = scheduler.step(Z.to(dtype), scheduler.timesteps[0], Z.to(dtype))
    assert out.prev_sample.dtype == out.pred_original_sample.dtype == dtype


def test_outputs():
    scheduler = DDIMScheduler(**SD)
    scheduler.set_timesteps(5)
    t = scheduler.timesteps[0]
    out = scheduler.step(Z, t, Z)
    again = scheduler.step(Z, t, Z, 0.0, False, None, None, False)
    assert isinstance(again, tuple) and torch.equal(again[0], out[0]) and torch.equal(again[1], out["denoised"])
    assert torch.equal(scheduler.scale_model_input(Z, t), Z) and scheduler.init_noise_sigma == 1.0
    prev, x0 = out
    assert torch.equal(prev, out["prev_sample"]) and torch.equal(x0, out["pred_original_sample"])


def test_a_scheduler_works_before_set_timesteps():
    """All timesteps of training, as diffusers' DDPM tutorials sample."""
    ours, theirs = both("DDPMScheduler", SD)
    assert ours.timesteps.tolist() == theirs.timesteps.tolist()
    found = ours.step(Z, 999, Z, generator=torch.Generator().manual_seed(0)).prev_sample
    expected = theirs.step(Z, 999, Z, generator=torch.Generator().manual_seed(0)).prev_sample
    assert float((found - expected).abs().max()) < 1e-4


def test_seeded_noise_of_the_function_door_can_be_given():
    """The house's noise, one stream per picture, enters as variance_noise."""
    noise = SeededNoise([1, 2], Z.shape[1:])
    scheduler = DDIMScheduler(clip_sample=False, **SD)
    scheduler.set_timesteps(4)
    x = noise.initial()
    for t in scheduler.timesteps:
        x = scheduler.step(network(x, t), t, x, eta=1.0, variance_noise=noise(1.0, 0.5)).prev_sample
    alone = SeededNoise([1], Z.shape[1:])
    y = alone.initial()
    for t in scheduler.timesteps:
        output = network(y.repeat(2, 1, 1, 1), t)[:1]
        y = scheduler.step(output, t, y, eta=1.0, variance_noise=alone(1.0, 0.5)).prev_sample
    assert torch.allclose(x[:1], y, atol=1e-6)


@pytest.mark.parametrize("name", ["EulerDiscreteScheduler", "DPMSolverSinglestepScheduler", "PNDMScheduler"])
def test_what_another_scheduler_left_in_the_config_has_no_effect(name):
    """diffusers carries keys that a class lacks (clip_sample, timestep_spacing, ...) without reading them."""
    foreign = {"clip_sample": True, "thresholding": True, "timestep_spacing": "leading", "rescale_betas_zero_snr": True}
    kind = getattr(schedulers, name)
    foreign = {key: value for key, value in foreign.items() if key not in kind.defaults}
    assert foreign
    plain, carrying = kind(**SD), kind.from_config({**SD, **foreign})
    assert carrying.config["clip_sample"] is True
    assert torch.equal(run(carrying, 10), run(plain, 10))
