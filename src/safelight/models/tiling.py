"""Large pictures in tiles: memory that does not grow with the picture.

`tiled` runs a network over overlapping windows of its input and blends what comes out, so that no seam shows. What a
tile changes is in the network: a GroupNorm takes its mean and variance, and an attention its context, from the tile
alone, and a convolution meets zeros at the tile's edge. The last fades out with the blending weight, the first two do
not: tiles differ in tone and contrast from the whole, the less the larger and the more alike they are. (An f4 decoder
with random weights, on noise: by 17% of the picture's norm in 5x5 tiles, by 5% in 3x3, by 2.5% in 2x2.)
"""

from collections.abc import Callable
from itertools import product
from math import ceil

import torch
from torch import Tensor


def tiled(
    network: Callable[[Tensor], Tensor], x: Tensor, *, tile: int, overlap: int, unit_in: int = 1, unit_out: int = 1
) -> Tensor:
    """Run `network` on overlapping tiles of x (B, C, H, W) and blend the results, in float32.

    Tiles are `tile` cells wide and high and share at least `overlap` < `tile` cells with their neighbours. A cell is
    `unit_in` pixels of the input and `unit_out` pixels of the output (a decoder of factor 8: 1 and 8; the encoder: 8
    and 1). H and W must be multiples of `unit_in`. Along a side no longer than one tile there is one tile.
    """
    height, width = x.shape[-2] // unit_in, x.shape[-1] // unit_in  # in cells
    total = weights = None
    for top, left in product(starts(height, tile, overlap), starts(width, tile, overlap)):
        part = network(window(x, top, left, tile, unit_in)).float()
        if total is None or weights is None:
            total = part.new_zeros(*part.shape[:2], height * unit_out, width * unit_out)
            weights = part.new_zeros(height * unit_out, width * unit_out)
        down = ramp(top, tile, height, overlap, unit_out).to(part)
        across = ramp(left, tile, width, overlap, unit_out).to(part)
        weight = down[:, None] * across
        window(total, top, left, tile, unit_out).add_(part * weight)
        window(weights, top, left, tile, unit_out).add_(weight)
    assert total is not None and weights is not None  # there is always a first tile
    return total / weights


def window(x: Tensor, top: int, left: int, tile: int, unit: int) -> Tensor:
    """View the tile of x (..., H, W) that begins at cell (top, left); a cell is `unit` pixels."""
    return x[..., top * unit : (top + tile) * unit, left * unit : (left + tile) * unit]


def starts(length: int, tile: int, overlap: int) -> list[int]:
    """Where tiles begin along `length` cells: evenly spread, the first at 0, the last ending at the end."""
    if length <= tile:
        return [0]
    gaps = ceil((length - tile) / (tile - overlap))
    return [round(i * (length - tile) / gaps) for i in range(gaps + 1)]


def ramp(start: int, tile: int, length: int, overlap: int, unit: int) -> Tensor:
    """Weights along one side of a tile: 1, falling smoothly to almost 0 at edges inside the picture, over `overlap`."""
    size, slope = min(tile, length) * unit, max(overlap * unit, 1)
    inward = torch.arange(size, dtype=torch.float32) + 0.5  # distance of each pixel's middle from the tile's first edge
    rise = smooth(inward / slope) if start > 0 else torch.ones(size)
    fall = smooth(inward.flip(0) / slope) if start + tile < length else torch.ones(size)
    return rise * fall


def smooth(t: Tensor) -> Tensor:
    """From 0 at t <= 0 to 1 at t >= 1, flat at both ends."""
    t = t.clamp(0, 1)
    return t * t * (3 - 2 * t)
