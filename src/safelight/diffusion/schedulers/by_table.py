"""The schedulers whose timesteps are rows of the schedule's table: DDPM, DDIM, PNDM."""

from collections.abc import Sequence
from math import sqrt
from typing import Any, ClassVar

from torch import Tensor

from safelight.diffusion.grids import Grid
from safelight.diffusion.samplers import Steps
from safelight.diffusion.samplers.multistep import adams_bashforth
from safelight.diffusion.samplers.onestep import ancestral_step
from safelight.diffusion.schedulers.defaults import DDPM_BETAS, Options
from safelight.diffusion.schedulers.face import Scheduler
from safelight.diffusion.schedulers.grid import TABLE
from safelight.errors import InputError


class DDPMScheduler(Scheduler):
    """DDPM (Ho et al. 2020), ancestral sampling.

    Unlike diffusers' it adds no noise in the last step, whatever its timestep (with the default offset of 0 the two are
    the same), and "fixed_large_log" means "fixed_large", where diffusers takes the root of a negative number.
    """

    sampler = "ddpm"
    family = TABLE
    memoryless = by_table = any_timestep = True
    step_options: ClassVar[Options] = {"generator": None}
    defaults: ClassVar[Options] = (
        DDPM_BETAS
        | {"variance_type": "fixed_small", "clip_sample": True, "prediction_type": "epsilon"}
        | {"thresholding": False, "dynamic_thresholding_ratio": 0.995, "clip_sample_range": 1.0}
        | {"sample_max_value": 1.0, "timestep_spacing": "leading", "steps_offset": 0, "rescale_betas_zero_snr": False}
    )

    def _denoised(self, output: Tensor, sample: Tensor, s: float, t: float, options: Options) -> tuple[Tensor, Tensor]:
        self._variance = output[:, sample.shape[1] :]  # of networks that predict it
        return super()._denoised(output, sample, s, t, options)

    def _noise(self, s: float, s_next: float) -> Tensor:
        """The sampler's noise has the posterior's standard deviation, `small`; this makes it the variance_type's."""
        kind, small = self.config.variance_type, ancestral_step(s, s_next)[1] * self._scale(s_next)
        large = sqrt((s**2 - s_next**2) / (1 + s**2))  # of x_t given x_{t-1}: sqrt(beta)
        if kind in ("fixed_large", "fixed_large_log"):
            return super()._noise(s, s_next) * (large / small)
        if kind == "learned":
            return super()._noise(s, s_next) * (self._variance.sqrt() / small)
        if kind == "learned_range":  # Nichol and Dhariwal 2021, eq. 15
            return super()._noise(s, s_next) * (large / small) ** ((self._variance + 1) / 2)
        return super()._noise(s, s_next)

    def _always_draws(self, t: float, options: Options) -> bool:
        return t > 0


class DDIMScheduler(Scheduler):
    """DDIM (Song et al. 2021), for any eta.

    Each step goes to the run's next timestep. diffusers goes to t - T // n instead, which is the next timestep only
    with "leading" spacing: there the two are equal. With "linspace" and "trailing" diffusers' samples end up at other
    noise levels than its network is then told (huggingface/diffusers#12633).
    """

    sampler = "ddim"
    family = TABLE
    memoryless = by_table = any_timestep = True
    step_options: ClassVar[Options] = {
        "eta": 0.0,
        "use_clipped_model_output": False,
        "generator": None,
        "variance_noise": None,
    }
    defaults: ClassVar[Options] = (
        DDPM_BETAS
        | {"clip_sample": True, "set_alpha_to_one": True, "steps_offset": 0, "prediction_type": "epsilon"}
        | {"thresholding": False, "dynamic_thresholding_ratio": 0.995, "clip_sample_range": 1.0}
        | {"sample_max_value": 1.0, "timestep_spacing": "leading", "rescale_betas_zero_snr": False}
    )

    def _final(self, last: float) -> float:
        return 0.0 if self.config.set_alpha_to_one else self.schedule.sigma_min

    def _denoised(self, output: Tensor, sample: Tensor, s: float, t: float, options: Options) -> tuple[Tensor, Tensor]:
        x, x0 = super()._denoised(output, sample, s, t, options)
        if (self.config.clip_sample or self.config.thresholding) and not options["use_clipped_model_output"]:
            whole = self._unclipped(output, x, s)
            x = x0 + (x - whole)  # the step's direction is the network's own noise, not that of the clipped x0
        return x, x0

    def _sampler_options(self, options: Options) -> dict[str, Any]:
        return {"eta": float(options["eta"])}

    def _always_draws(self, t: float, options: Options) -> bool:
        return float(options["eta"]) > 0


class PNDMScheduler(Scheduler):
    """PNDM (Liu et al. 2022); with skip_prk_steps=True CompVis's PLMS, the scheduler of Stable Diffusion 1.

    Its timesteps count evaluations: the second one is doubled, or the first three steps have four each. As for DDIM,
    each step goes to the run's next timestep. Like diffusers' it can be entered anywhere with skip_prk_steps, and then
    does as diffusers does: see `entered`. With v_prediction it extrapolates the noise, where diffusers extrapolates v.
    """

    sampler = "pndm"
    family = TABLE
    by_table = True
    defaults: ClassVar[Options] = DDPM_BETAS | {
        "skip_prk_steps": False,
        "set_alpha_to_one": False,
        "prediction_type": "epsilon",
        "timestep_spacing": "leading",
        "steps_offset": 0,
    }

    def _check(self) -> None:
        super()._check()
        self.sampler = "plms" if self.config.skip_prk_steps else "pndm"

    def _final(self, last: float) -> float:
        return 0.0 if self.config.set_alpha_to_one else self.schedule.sigma_min

    def _planned(self, grid: Grid, special: Options) -> dict[str, Any]:
        if self.config.skip_prk_steps:
            return {}
        half = len(self) // len(grid) // 2
        return {"middles": [self.schedule.sigma(t + half) for t in grid.timesteps[1:4]]}

    def _timesteps_of(self, grid: Grid, evals: Sequence[float]) -> list[float]:
        return [float(round(t)) for t in super()._timesteps_of(grid, evals)]  # a middle one is whole, too

    def _start_of(self, index: int) -> int:
        if index and not self.config.skip_prk_steps:
            what = "PNDM with its Runge-Kutta start cannot begin within the run"
            raise InputError(what, remedy="use skip_prk_steps=True, or another scheduler")
        return max(index - 1, min(index, 1))  # timesteps[1] and timesteps[2] are the same

    def _start(self, index: int | None, s: float, x: Tensor, wanted: Options) -> Steps:
        if not index:
            return super()._start(index, s, x, wanted)
        sigmas, place = self._ready().grid.sigmas, self._start_of(index)
        if self._awaited is None:
            return entered(x, sigmas, index, place)
        return adams_bashforth(x, sigmas[place:], [])  # back within a run: one evaluation for each timestep left


def entered(x: Tensor, sigmas: tuple[float, ...], index: int, place: int) -> Steps:
    """PLMS begun at timesteps[index] with index > 0, which is sigmas[place]: what diffusers makes of it.

    diffusers counts calls, and takes the second one for the doubled timestep of the start, which a caller who enters
    later does not ask for. So its first step is the improved Euler step, but the sample that it reaches is then taken
    for one of the timestep after (and at index 1, where it was begun, for one of the timestep before). Equal pictures
    mattered more here; `sample(..., sampler="plms")` on the rest of a grid does it right.
    """

    def taken_for(x: Tensor, s: float, other: float) -> Tensor:
        return x * sqrt((1 + other**2) / (1 + s**2))  # the same sample, with another sigma

    s = sigmas[place]
    x, x0 = yield x, s
    d = (x - x0) / s
    if index == len(sigmas) - 1:
        return x + (sigmas[index] - s) * d
    before, second, after = sigmas[index - 1 : index + 2]  # diffusers' second evaluation, and the levels around it
    end = x + (sigmas[place + 1] - s) * d
    end, x0 = yield taken_for(end, sigmas[place + 1], second), second
    x = taken_for(x, s, before) + (second - before) * (d + (end - x0) / second) / 2
    return (yield from adams_bashforth(taken_for(x, second, after), sigmas[index + 1 :], [d]))
