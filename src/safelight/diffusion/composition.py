"""Several conditions for one picture, weighed; and conditions that change on the way.

composed    composable diffusion with classifier-free guidance: a weighted sum of what several conditions say
scheduled   another denoiser at each noise level
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cache
from math import inf

import torch
from torch import Tensor

from safelight.diffusion.condition import Condition
from safelight.diffusion.denoiser import Denoiser
from safelight.diffusion.guidance import guided, joined, rescaled
from safelight.diffusion.samplers import Denoise
from safelight.errors import InputError


@dataclass(frozen=True, eq=False)
class Composition:
    """What steers B pictures: row p of `condition` speaks for the picture `owners[p]`, with the weight `weights[p]`."""

    condition: Condition
    owners: tuple[int, ...]
    weights: tuple[float, ...]

    def __post_init__(self) -> None:
        rows = self.condition.batch if self.condition.present() else len(self.owners)  # nothing suits any number
        if not len(self.owners) == len(self.weights) == rows:
            what = f"{len(self.owners)} owners and {len(self.weights)} weights for {rows} conditions"
            raise InputError(what, remedy="give one of each for every row")

    @property
    def single(self) -> bool:
        """Whether every picture has one condition of weight 1, in order."""
        return self.owners == tuple(range(len(self.owners))) and all(weight == 1 for weight in self.weights)


def composed(
    denoiser: Denoiser,
    positive: Composition,
    negative: Condition | None,
    scale: float,
    *,
    rescale: float = 0.0,
    interval: tuple[float, float] = (0.0, inf),
) -> Denoise:
    """Composable diffusion (Liu et al. 2022, arXiv 2206.01714, eq. 11): u + scale · Σ w_i (c_i - u).

    u is what the network says under `negative`, c_i what it says under each condition of a picture. With one condition
    of weight 1 a picture, this is `guided`, whose options these are; in any other case `negative` is needed even at
    scale 1, which is also the scale outside of the interval. Everything goes through the network in one batch, u first;
    in two where shapes differ. Weights may be negative: away from what a condition says.

    Raises InputError without a negative condition where one is needed.
    """
    if positive.single:
        return guided(denoiser, positive.condition, negative, scale, rescale=rescale, interval=interval)
    if negative is None:
        raise InputError("a composition needs a negative condition", remedy="encode an empty prompt")
    low, high = interval
    conditions = cache(lambda batch: joined(negative.expand(batch), positive.condition))

    @cache  # what the host sends to a device, it sends once
    def table(values: tuple[float, ...], device: torch.device) -> Tensor:
        return torch.tensor(values, device=device)

    def denoise(x: Tensor, sigma: float) -> Tensor:
        owners = table(positive.owners, x.device)
        weights = table(positive.weights, x.device).to(x.dtype).view(-1, *[1] * (x.ndim - 1))
        away, toward = _together(denoiser, x, sigma, conditions(len(x)), owners)
        pull = torch.zeros_like(away).index_add(0, owners, weights * (toward - away[owners]))
        if not low <= sigma <= high:
            return denoiser.parameterization.denoised(away + pull, x, sigma)
        output = away + scale * pull
        if rescale > 0:
            output = rescaled(output, away + pull, rescale)
        return denoiser.parameterization.denoised(output, x, sigma)

    return denoise


def _together(
    denoiser: Denoiser, x: Tensor, sigma: float, conditions: Sequence[Condition], owners: Tensor
) -> tuple[Tensor, Tensor]:
    """The network's raw output under the negative conditions (B) and under the positive ones (P)."""
    seen = [x, x[owners]]
    if len(conditions) == 1:
        seen = [torch.cat(seen)]
    both = torch.cat([denoiser.output(a, sigma, b) for a, b in zip(seen, conditions, strict=True)])
    return both[: len(x)], both[len(x) :]


def scheduled(denoise_at: Callable[[float], Denoise]) -> Denoise:
    """Another denoiser at each noise level: `denoise_at(sigma)` gives the one that acts there."""
    return lambda x, sigma: denoise_at(sigma)(x, sigma)


def rows_of(condition: Condition, rows: Sequence[int], concat: Tensor | None = None) -> Condition:
    """Some rows of a condition, in any order, and further input channels (1, C, H, W) of the U-Net beside each."""
    picked = Condition.cat([condition.select(slice(row, row + 1)) for row in rows])
    return picked if concat is None else replace(picked, concat=concat.repeat(len(rows), 1, 1, 1))
