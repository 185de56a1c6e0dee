"""One sampling loop for our schedulers and diffusers', and a closed-form network that knows t."""

import inspect
import math
import warnings

import diffusers
import torch

import safelight.diffusion.schedulers as schedulers
from safelight.diffusion.parameterization import PARAMETERIZATIONS
from safelight.diffusion.samplers import drive, find
from safelight.diffusion.schedule import noise_schedule

diffusers.utils.logging.set_verbosity_error()

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


def started(name):
    extra = {"PNDMScheduler": {"skip_prk_steps": True}, "DDIMScheduler": {"clip_sample": False}}
    return {**SD, **extra.get(name, {})}


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
