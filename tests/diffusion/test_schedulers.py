"""The diffusers face against the real diffusers classes, and against the function door."""

import diffusers
import pytest
import torch
from scheduler_runs import NAMES, PICTURE, SD, TO_MIN, ZERO_SNR, V, Z, both, by_function, network, run, started

import safelight.diffusion.schedulers as schedulers
from safelight.diffusion.schedulers import (
    DDPMScheduler,
    DPMSolverMultistepScheduler,
    EulerDiscreteScheduler,
)
from safelight.errors import InputError

pytestmark = pytest.mark.filterwarnings("ignore:__array:DeprecationWarning", "ignore::FutureWarning")  # diffusers'


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


@pytest.mark.parametrize("name", ["DPMSolverMultistepScheduler", "UniPCMultistepScheduler"])
@pytest.mark.parametrize("steps", [5, 20, 50])
def test_beta_sigmas_begin_at_the_first_timestep(name, steps):
    """diffusers finds 998.99998 in float32, and cuts it to 998; the sigmas, and all other timesteps, are the same."""
    ours, theirs = both(name, {"use_beta_sigmas": True, **SD})
    for scheduler in (ours, theirs):
        scheduler.set_timesteps(steps)
    assert ours.timesteps[0] == 999 and theirs.timesteps[0] == 998
    assert ours.timesteps[1:].tolist() == theirs.timesteps[1:].tolist()
    assert torch.allclose(ours.sigmas, theirs.sigmas, rtol=1e-4, atol=0)


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
