"""The schedulers for distilled networks: LCM, TCD."""

from math import sqrt
from typing import Any, ClassVar

from torch import Tensor

from safelight.diffusion.grids import Grid
from safelight.diffusion.schedulers.defaults import LDM_BETAS, THRESHOLDING, Options
from safelight.diffusion.schedulers.face import Scheduler
from safelight.diffusion.schedulers.grid import TABLE, grid_at_timesteps
from safelight.errors import InputError


class _Distilled(Scheduler):
    """What LCM and TCD share: the timesteps are some of those the network was distilled on."""

    family = TABLE
    memoryless = by_table = True
    set_options: ClassVar[Options] = {"original_inference_steps": None, "strength": 1.0}
    defaults: ClassVar[Options] = (
        LDM_BETAS
        | {"beta_schedule": "scaled_linear", "original_inference_steps": 50}
        | {"clip_sample": False, "clip_sample_range": 1.0, "set_alpha_to_one": True, "steps_offset": 0}
        | {"prediction_type": "epsilon"}
        | THRESHOLDING
        | {"timestep_spacing": "leading", "timestep_scaling": 10.0, "rescale_betas_zero_snr": False}
    )

    def _grid(self, steps: int, special: Options) -> Grid:
        distilled = self._distilled(special["original_inference_steps"], special["strength"])
        if not 1 <= steps <= len(distilled):
            what = f"num_inference_steps must lie in 1 to {len(distilled)} (original_inference_steps * strength)"
            raise InputError(f"{what}, got {steps}")
        chosen = [distilled[-1 - int(i * (len(distilled) / steps))] for i in range(steps)]
        return grid_at_timesteps(self.schedule, chosen, self._final)

    def _distilled(self, original: int | None, strength: float) -> list[int]:
        n = self.config.original_inference_steps if original is None else original
        if n > len(self):
            raise InputError(f"original_inference_steps {n} is more than the {len(self)} timesteps of training")
        stride = len(self) // n
        return [i * stride - 1 for i in range(1, int(n * strength) + 1)]


class LCMScheduler(_Distilled):
    """Latent consistency models (Luo et al. 2023). Further arguments of set_timesteps: `_Distilled.set_options`."""

    sampler = "lcm"
    step_options: ClassVar[Options] = {"generator": None}

    def _denoised(self, output: Tensor, sample: Tensor, s: float, t: float, options: Options) -> tuple[Tensor, Tensor]:
        """With the boundary scalings (Song et al. 2023, app. C), which matter at the smallest timesteps only."""
        x, x0 = super()._denoised(output, sample, s, t, options)
        scaled, sigma_data = t * self.config.timestep_scaling, 0.5
        total = scaled**2 + sigma_data**2
        return x, scaled / sqrt(total) * x0 + sigma_data**2 / total * sample


class TCDScheduler(_Distilled):
    """Trajectory consistency distillation (Zheng et al. 2024); `eta` in step() is the paper's gamma.

    With return_dict=False the second of the tuple is x0 here, and the sample before its noise in diffusers. With
    `clip_sample` or `thresholding` x0 is clipped here, as the config says; diffusers' TCD passes over both.
    """

    sampler = "tcd"
    step_options: ClassVar[Options] = {"eta": 0.3, "generator": None}

    def _final(self, last: float) -> float:
        return self.schedule.sigma_min

    def _distilled(self, original: int | None, strength: float) -> list[int]:
        return super()._distilled(None, strength) if original is None else list(range(int(len(self) * strength)))

    def _planned(self, grid: Grid, special: Options) -> dict[str, Any]:
        return {"schedule": self.schedule}

    def _sampler_options(self, options: Options) -> dict[str, Any]:
        if not 0 <= options["eta"] <= 1:
            raise InputError(f"TCD's eta must lie in [0, 1], got {options['eta']}")
        return {"eta": float(options["eta"])}
