"""`step` in a script's hands: starts within the run, edits, second looks, randomness, dtypes, copies."""

import copy
import math
import pickle
from itertools import pairwise

import pytest
import torch
from scheduler_runs import (
    NAMES,
    PICTURE,
    SCHEDULE,
    SD,
    SHIFT,
    TO_MIN,
    Z,
    both,
    network,
    run,
    started,
)

import safelight.diffusion.schedulers as schedulers
from safelight.diffusion.noise import SeededNoise
from safelight.diffusion.samplers import drive, find
from safelight.diffusion.schedulers import (
    DDIMScheduler,
    DPMSolverMultistepScheduler,
    EulerDiscreteScheduler,
    HeunDiscreteScheduler,
    LMSDiscreteScheduler,
    PNDMScheduler,
    UniPCMultistepScheduler,
)
from safelight.errors import InputError

pytestmark = pytest.mark.filterwarnings("ignore:__array:DeprecationWarning", "ignore::FutureWarning")  # diffusers'


# Starting, editing, going back


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize(("steps", "start"), [(5, 1), (20, 2), (20, 13), (20, 19)])
def test_image_to_image_starts_within_the_run(name, steps, start):
    ours, theirs = both(name, started(name))
    assert float((run(ours, steps, start=start) - run(theirs, steps, start=start)).abs().max()) <= 1e-4


def test_lms_entered_within_the_run_is_exact_by_the_function_alone():
    """With a constant x0 every consistent method is exact from any start; diffusers' first steps are not."""
    answer = {"prediction_type": "sample", "timestep_spacing": "trailing", **SD}
    scheduler = LMSDiscreteScheduler(**answer)
    entered = run(scheduler, 20, start=10, network=lambda x, t: PICTURE)
    assert float((entered - PICTURE).abs().max()) > 1e-2
    scheduler.set_timesteps(20)
    first = scheduler.add_noise(PICTURE, Z, scheduler.timesteps[10:11].repeat(2))
    found = drive(find("lms")(first, scheduler.sigmas.tolist()[10:], None), lambda x, s: PICTURE)
    assert float((found - PICTURE).abs().max()) < 1e-5


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
