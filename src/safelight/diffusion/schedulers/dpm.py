"""The exponential integrators: DPM-Solver multistep and singlestep, UniPC, DEIS."""

from collections.abc import Mapping
from typing import Any, ClassVar

import torch

from safelight.diffusion.grids import Grid
from safelight.diffusion.samplers.dpmsolver import singlestep_orders
from safelight.diffusion.schedulers.defaults import DDPM_BETAS, FLOW, SHIFTING, THRESHOLDING, WARPS, Options
from safelight.diffusion.schedulers.face import Scheduler
from safelight.diffusion.schedulers.grid import DPM


class DPMSolverMultistepScheduler(Scheduler):
    """DPM-Solver++ multistep ("2M", "3M") and its SDE (Lu et al. 2022b).

    Any algorithm_type may end at sigma 0 here. At solver_order 3 "sde-dpmsolver++" is k-diffusion's 3M SDE; in
    diffusers a term has the wrong sign, so that the two differ (singlestep too).
    """

    sampler = "dpm_solver"
    family = DPM
    noise_dtype = torch.float32
    step_options: ClassVar[Options] = {"generator": None, "variance_noise": None}
    aliases: ClassVar[Mapping[str, Mapping[str, str]]] = {
        "algorithm_type": {"deis": "dpmsolver++"},
        "solver_type": {"logrho": "midpoint", "bh1": "midpoint", "bh2": "midpoint"},
    }
    defaults: ClassVar[Options] = (
        DDPM_BETAS
        | {"solver_order": 2, "prediction_type": "epsilon"}
        | THRESHOLDING
        | {"algorithm_type": "dpmsolver++", "solver_type": "midpoint", "lower_order_final": True}
        | {"euler_at_final": False}
        | WARPS
        | {"use_lu_lambdas": False}
        | FLOW
        | {"final_sigmas_type": "zero", "lambda_min_clipped": -float("inf"), "variance_type": None}
        | {"timestep_spacing": "linspace", "steps_offset": 0, "rescale_betas_zero_snr": False}
        | SHIFTING
    )

    def _options(self, grid: Grid, start: int) -> dict[str, Any]:
        config = self.config
        return {
            "order": config.solver_order,
            "algorithm_type": config.algorithm_type,
            "solver_type": config.solver_type,
            "lower_order_final": config.lower_order_final and len(grid) < 15,
            "euler_at_final": config.euler_at_final,
        }

    def _always_draws(self, t: float, options: Options) -> bool:
        return str(self.config.algorithm_type).startswith("sde")


class DPMSolverSinglestepScheduler(Scheduler):
    """DPM-Solver++ singlestep (Lu et al. 2022a, 2022b): groups of 1 to solver_order evaluations."""

    sampler = "dpm_solver_singlestep"
    family = DPM
    step_options: ClassVar[Options] = {"generator": None}
    aliases = DPMSolverMultistepScheduler.aliases
    defaults: ClassVar[Options] = (
        DDPM_BETAS
        | {"solver_order": 2, "prediction_type": "epsilon"}
        | THRESHOLDING
        | {"algorithm_type": "dpmsolver++", "solver_type": "midpoint", "lower_order_final": False}
        | WARPS
        | FLOW
        | {"final_sigmas_type": "zero", "lambda_min_clipped": -float("inf"), "variance_type": None}
        | SHIFTING
    )

    def _options(self, grid: Grid, start: int) -> dict[str, Any]:
        config, to_zero = self.config, grid.sigmas[-1] == 0
        lower = config.lower_order_final or to_zero or len(grid) % config.solver_order != 0
        orders = singlestep_orders(len(grid), config.solver_order, lower_order_final=lower, to_zero=to_zero)
        return {
            "order": config.solver_order,
            "algorithm_type": config.algorithm_type,
            "solver_type": config.solver_type,
            "orders": orders[start:],
        }

    def _always_draws(self, t: float, options: Options) -> bool:
        return str(self.config.algorithm_type).startswith("sde")


class UniPCMultistepScheduler(Scheduler):
    """UniPC (Zhao et al. 2023). A change made to the sample between two steps stays; diffusers' corrector drops it."""

    sampler = "unipc"
    family = DPM
    aliases: ClassVar[Mapping[str, Mapping[str, str]]] = {
        "solver_type": {"midpoint": "bh2", "heun": "bh2", "logrho": "bh2"}
    }
    defaults: ClassVar[Options] = (
        DDPM_BETAS
        | {"solver_order": 2, "prediction_type": "epsilon"}
        | THRESHOLDING
        | {"predict_x0": True, "solver_type": "bh2", "lower_order_final": True, "disable_corrector": []}
        | {"solver_p": None}
        | WARPS
        | FLOW
        | {"timestep_spacing": "linspace", "steps_offset": 0, "final_sigmas_type": "zero"}
        | {"rescale_betas_zero_snr": False}
        | SHIFTING
        | {"sigma_min": None, "sigma_max": None, "shift_terminal": None}
    )

    def _options(self, grid: Grid, start: int) -> dict[str, Any]:
        config = self.config
        return {
            "order": config.solver_order,
            "solver_type": config.solver_type,
            "predict_x0": config.predict_x0,
            "lower_order_final": config.lower_order_final,
            "disable_corrector": [i - start for i in config.disable_corrector],
        }


class DEISMultistepScheduler(Scheduler):
    """DEIS, log-rho (Zhang and Chen 2023).

    It ends at the schedule's sigma_min; with Karras's sigmas and their like at the last sigma that it has, so that the
    last evaluation changes nothing. Both as diffusers, whose weights of order 3 lose digits at 50 steps (to 1e-3).
    """

    sampler = "deis"
    family = DPM
    aliases: ClassVar[Mapping[str, Mapping[str, str]]] = {
        "algorithm_type": {"dpmsolver": "deis", "dpmsolver++": "deis"},
        "solver_type": {"midpoint": "logrho", "heun": "logrho", "bh1": "logrho", "bh2": "logrho"},
    }
    defaults: ClassVar[Options] = (
        DDPM_BETAS
        | {"solver_order": 2, "prediction_type": "epsilon"}
        | THRESHOLDING
        | {"algorithm_type": "deis", "solver_type": "logrho", "lower_order_final": True}
        | WARPS
        | FLOW
        | {"timestep_spacing": "linspace", "steps_offset": 0}
        | SHIFTING
    )

    def _final(self, last: float) -> float:
        return last if any(self.config[warp] for warp in WARPS) else self.schedule.sigma_min

    def _options(self, grid: Grid, start: int) -> dict[str, Any]:
        return {
            "order": self.config.solver_order,
            "lower_order_final": self.config.lower_order_final and len(grid) < 15,
        }
