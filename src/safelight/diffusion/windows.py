"""Pictures larger than a network knows, seen through windows that overlap (MultiDiffusion, Bar-Tal et al. 2023, arXiv
2302.08113, eq. 5): each window is denoised as a picture of its own, and where several look they agree on a mean.

Weights fall towards a window's edges (as in Mixture of Diffusers, Jiménez 2023, arXiv 2302.02412), so that no edge is
seen. What a picture shows as a whole the windows cannot know: it comes from a picture to start from.
"""

from collections.abc import Sequence
from math import ceil

import torch
from torch import Tensor

from safelight.diffusion.samplers import Denoise
from safelight.errors import InputError

Size = tuple[int, int]


def windowed(denoise: Denoise, window: Sequence[int], *, overlap: float = 0.5) -> Denoise:
    """A denoiser that sees x through windows of this (h, w), of which neighbours share `overlap` of their side.

    Where x is no larger than one window it is `denoise` itself. Raises InputError for a window of no size, and for an
    overlap outside of [0, 1).
    """
    if min(window) < 1 or not 0 <= overlap < 1:
        what = f"windows of {window[0]}x{window[1]} that overlap by {overlap:g}"
        raise InputError(what, remedy="give sides from 1 on, and an overlap from 0 to less than 1")

    def denoise_windows(x: Tensor, sigma: float) -> Tensor:
        """The mean of what the windows that look at a place say of it."""
        h, w = (min(side, whole) for side, whole in zip(window, x.shape[-2:], strict=True))
        tops, lefts = starts(x.shape[-2], h, overlap), starts(x.shape[-1], w, overlap)
        if len(tops) == len(lefts) == 1:
            return denoise(x, sigma)
        weight = (ramp(h)[:, None] * ramp(w)).to(x)
        total, weights = torch.zeros_like(x), torch.zeros_like(x[:1, :1])
        for top in tops:
            for left in lefts:
                place = (..., slice(top, top + h), slice(left, left + w))
                total[place] += weight * denoise(x[place], sigma)
                weights[place] += weight
        return total / weights

    return denoise_windows


def starts(whole: int, window: int, overlap: float) -> list[int]:
    """Where windows begin along a side, evenly from one end to the other, sharing `overlap` of theirs or more."""
    if window >= whole:
        return [0]
    count = 1 + ceil((whole - window) / max(window * (1 - overlap), 1))
    return [round(k * (whole - window) / (count - 1)) for k in range(count)]


def ramp(side: int) -> Tensor:
    """Weights along a window's side (side,): rising to its middle, and nowhere 0."""
    places = torch.arange(side, dtype=torch.float64) + 0.5
    return torch.minimum(places, side - places)
