"""The schedulers after k-diffusion: LMS, Euler, Euler ancestral, Heun, DPM2, DPM2 ancestral."""

from collections.abc import Sequence
from typing import Any, ClassVar

from torch import Tensor

from safelight.diffusion.grids import Grid
from safelight.diffusion.samplers import Steps
from safelight.diffusion.samplers.multistep import polynomial_weights
from safelight.diffusion.schedulers.defaults import DDPM_BETAS, LDM_BETAS, WARPS, Options
from safelight.diffusion.schedulers.face import Scheduler
from safelight.diffusion.schedulers.grid import K_ROUNDED, K
from safelight.errors import InputError


class LMSDiscreteScheduler(Scheduler):
    """Linear multistep (k-diffusion). It can be entered anywhere, and then does as diffusers': see `entered`."""

    sampler = "lms"
    family = K
    variance_exploding = True
    step_options: ClassVar[Options] = {"order": 4}
    defaults: ClassVar[Options] = (
        DDPM_BETAS | WARPS | {"prediction_type": "epsilon", "timestep_spacing": "linspace", "steps_offset": 0}
    )

    def _sampler_options(self, options: Options) -> dict[str, Any]:
        return {"order": int(options["order"])}

    def _start(self, index: int | None, s: float, x: Tensor, wanted: Options) -> Steps:
        if not index or self._awaited is not None:  # from the top, or again within the run
            return super()._start(index, s, x, wanted)
        return entered(x, self._ready().grid.sigmas, index, wanted["order"])


def entered(x: Tensor, sigmas: Sequence[float], index: int, order: int) -> Steps:
    """LMS begun at sigmas[index] with index > 0: what diffusers makes of it.

    diffusers counts the steps from the run's begin, so that the first ones after entering weigh the derivatives there
    are by polynomials through levels that were never visited. Equal pictures mattered more here;
    `sample(..., sampler="lms")` on the rest of a grid rises from order 1.
    """
    past: list[Tensor] = []  # derivatives, newest first
    for i in range(index, len(sigmas) - 1):
        x, x0 = yield x, sigmas[i]
        past = [(x - x0) / sigmas[i], *past][:order]
        nodes = [sigmas[i - j] for j in range(min(i + 1, order))]
        for weight, derivative in zip(polynomial_weights(nodes, sigmas[i + 1]), past, strict=False):
            x = x + weight * derivative
    return x


class EulerDiscreteScheduler(Scheduler):
    """Euler's method (Karras et al. 2022, Algorithm 2 without its correction).

    Noise (`s_churn`) has to be added before the network is asked, hence before `step`: give s_churn, s_tmin, s_tmax
    and s_noise to `set_timesteps`, and the timesteps, `scale_model_input` and `init_noise_sigma` follow. diffusers
    takes them in `step`, and there adds noise that the network has not seen.
    """

    sampler = "euler"
    family = K
    variance_exploding = memoryless = True
    set_options: ClassVar[Options] = {"s_churn": 0.0, "s_tmin": 0.0, "s_tmax": float("inf"), "s_noise": 1.0}
    step_options: ClassVar[Options] = {**set_options, "generator": None}
    defaults: ClassVar[Options] = (
        DDPM_BETAS
        | {"prediction_type": "epsilon", "interpolation_type": "linear"}
        | WARPS
        | {"sigma_min": None, "sigma_max": None, "timestep_spacing": "linspace", "timestep_type": "discrete"}
        | {"steps_offset": 0, "rescale_betas_zero_snr": False, "final_sigmas_type": "zero"}
    )

    def _planned(self, grid: Grid, special: Options) -> dict[str, Any]:
        return dict(special)

    def _sampler_options(self, options: Options) -> dict[str, Any]:
        if options["s_churn"] > 0:
            what = "s_churn comes too late in step(): the network has already seen the sample without its noise"
            raise InputError(what, remedy="give it to set_timesteps(steps, s_churn=...)")
        return {}


class EulerAncestralDiscreteScheduler(Scheduler):
    """Euler's method down, fresh noise up (k-diffusion's "Euler a")."""

    sampler = "euler_ancestral"
    family = K
    variance_exploding = memoryless = True
    step_options: ClassVar[Options] = {"generator": None}
    defaults: ClassVar[Options] = DDPM_BETAS | {
        "prediction_type": "epsilon",
        "timestep_spacing": "linspace",
        "steps_offset": 0,
        "rescale_betas_zero_snr": False,
    }

    def _always_draws(self, t: float, options: Options) -> bool:
        return True


class HeunDiscreteScheduler(Scheduler):
    """Heun's method (Karras et al. 2022, Algorithm 1). All timesteps but the first come twice."""

    sampler = "heun"
    family = K
    order = 2
    variance_exploding = True
    defaults: ClassVar[Options] = (
        LDM_BETAS
        | {"prediction_type": "epsilon"}
        | WARPS
        | {"clip_sample": False, "clip_sample_range": 1.0, "timestep_spacing": "linspace", "steps_offset": 0}
    )


class KDPM2DiscreteScheduler(Scheduler):
    """The midpoint method in log(sigma) (k-diffusion's "DPM2"). Between two timesteps comes the one in the middle."""

    sampler = "dpm2"
    family = K_ROUNDED
    order = 2
    variance_exploding = True
    defaults: ClassVar[Options] = (
        LDM_BETAS | WARPS | {"prediction_type": "epsilon", "timestep_spacing": "linspace", "steps_offset": 0}
    )

    def _timesteps_of(self, grid: Grid, evals: Sequence[float]) -> list[float]:
        """Every second evaluation is at a middle; also where that happens to be a sigma of the grid."""
        middles = [self.schedule.t(s) for s in evals[1::2]]
        return [t for pair in zip(grid.timesteps, [*middles, 0.0], strict=True) for t in pair][: len(evals)]


class KDPM2AncestralDiscreteScheduler(KDPM2DiscreteScheduler):
    """`KDPM2DiscreteScheduler` down, fresh noise up (k-diffusion's "DPM2 a")."""

    sampler = "dpm2_ancestral"
    step_options: ClassVar[Options] = {"generator": None}
