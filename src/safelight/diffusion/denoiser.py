"""Denoiser(x, sigma, condition) -> x0: the one place that calls a network, and the only one where precisions meet.

sigma is a Python float, x is float32, the network runs in its own dtype; the timestep it is told stays float32.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from safelight.diffusion.condition import Condition
from safelight.diffusion.grids import Grid
from safelight.diffusion.parameterization import PARAMETERIZATIONS, Parameterization
from safelight.diffusion.schedule import NoiseSchedule

NOTHING = Condition()


@dataclass(frozen=True, eq=False)
class Denoiser:
    """A network with all one must know to use it. `network(x, timesteps, context=..., class_labels=...)` -> like x;
    `pooled=...` is passed where the condition has it.

    A network with a true attribute `shares` takes one number for all timesteps, and contexts (n·B, L, D) for x
    (B, ...): it may compute once what n conditions have in common. Others get each x as often as it is asked about.
    """

    network: Callable[..., Any]
    schedule: NoiseSchedule
    parameterization: Parameterization = PARAMETERIZATIONS["epsilon"]
    grid: Grid | None = None

    def on(self, grid: Grid) -> "Denoiser":
        """The same, with the grid's own timestep for each of its sigmas; off the grid the schedule interpolates."""
        return replace(self, grid=grid)

    def __call__(self, x: Tensor, sigma: float, condition: Condition = NOTHING) -> Tensor:
        """The picture x0 (B, C, H, W) that the network sees in x = x0 + sigma * noise; in x's dtype."""
        return self.parameterization.denoised(self.output(x, sigma, condition), x, sigma)

    def output(self, x: Tensor, sigma: float, condition: Condition = NOTHING) -> Tensor:
        """The network's raw answer (noise, v, ...) in x's dtype, before it is turned into x0."""
        return self.outputs(x, sigma, condition.expand(len(x)))

    def outputs(self, x: Tensor, sigma: float, conditions: Condition) -> Tensor:
        """The raw answers (n·B, C, H, W) under n·B conditions for B pictures, where row i is of picture i mod B."""
        dtype = self.dtype or x.dtype
        conditions = conditions.to(x.device, dtype)
        present, rows = conditions.present(), max(conditions.batch, len(x))
        shares = getattr(self.network, "shares", False)
        c_in = self.parameterization.coefficients(sigma)[2]
        scaled = (c_in * x).to(dtype)
        if rows > len(x) and not (shares and present.keys() == {"context"}):
            scaled = scaled.repeat(rows // len(x), *[1] * (x.ndim - 1))
        if conditions.concat is not None:
            scaled = torch.cat([scaled, conditions.concat], dim=1)
        t = self.timestep(sigma)
        timesteps = t if shares else torch.full((rows,), t, dtype=torch.float32, device=x.device)
        told = {"pooled": conditions.pooled} if conditions.pooled is not None else {}
        answers = self.network(
            scaled, timesteps, context=conditions.context, class_labels=conditions.class_labels, **told
        )
        return answers.to(x.dtype)

    def timestep(self, sigma: float) -> float:
        """What the network is told about the noise level: exact on the grid, interpolated off it."""
        if self.parameterization.c_noise is not None:
            return self.parameterization.c_noise(sigma)
        t = None if self.grid is None else self.grid.t(sigma)
        return self.schedule.t(sigma) if t is None else t

    @property
    def dtype(self) -> torch.dtype | None:
        """The floating type that the network runs in, or else that of its parameters; None for one without."""
        named = getattr(self.network, "dtype", None)
        if isinstance(named, torch.dtype):
            return named
        if not isinstance(self.network, torch.nn.Module):
            return None
        return next((p.dtype for p in self.network.parameters() if p.is_floating_point()), None)
