"""Decode a large picture in strips: the numbers of the whole, in a fraction of its memory.

A map flows from top to bottom as a stream of strips, each of a few rows and the full width. A convolution needs of its
neighbours one row above and one below. A group norm needs the mean and the variance of the whole map before it can
give its first strip: they take a pass of their own, for which what comes before is computed again if it was too large
to keep. Through a residual block, three passes:

    x --+-- norm1 --- conv1 --- norm2 --- conv2 --- + --- kept
        | 1 ^                                       |
        | 2 ..................... ^                 |
        +------------ shortcut -------------------- +         3: all the way, letting go of x as it is used

Attention looks at the whole map, which where decoders have it, at the lowest resolution, is small.

What differs from the whole is the order in which a norm's sums are added. `safelight.models.tiling` takes less memory
still and less time, but not the same picture.
"""

import ctypes
import sys
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from safelight.models.layers import GroupNorm, ResBlock, enlarge

if TYPE_CHECKING:
    from safelight.models.autoencoder import Decoder

__all__ = ["decode_in_strips"]

Strips = Iterator[Tensor]  # (B, C, rows, W), from top to bottom
Map = Callable[[bool], Strips]  # begins a pass over a map; True: the last one, so nothing need be kept for another

TRIM = getattr(ctypes.CDLL(None), "malloc_trim", None) if sys.platform == "linux" else None  # glibc's
KEEP = 2**30  # bytes; a larger map between two norms, or before them, is not kept but computed again


def decode_in_strips(decoder: "Decoder", z: Tensor, *, rows: int = 8, keep: int = KEEP) -> Tensor:
    """Latents (B, latent_channels, h, w) -> decoder(z), (B, out_channels, f·h, f·w), for a `Decoder`.

    rows: of a strip; fewer take less memory and more time. keep: in bytes, see `KEEP`. At its peak this holds one map
    at the full resolution, (B, block_out_channels[0], f·h, f·w), and a few strips, or maps of `keep` bytes below it.
    """
    x: Map = whole(cut(decoder.mid_block(decoder.conv_in(z)), rows))
    height = z.shape[2]
    for level in cast(Iterable[Any], decoder.up_blocks):
        for i, resnet in enumerate(level.resnets):
            x = residual(resnet, x, height, keep)
            if level.attentions:
                x = whole(cut(level.attentions[i](torch.cat([*x(True)], dim=2)), rows))
        for up in level.upsamplers:
            height *= 2
            x = small(upsampled(up.conv, x), height, keep)
    out = normed(decoder.conv_norm_out, statistics(decoder.conv_norm_out, x(False)), x(True))
    return torch.cat([*convolved(decoder.conv_out, out)], dim=2)


def residual(block: ResBlock, x: Map, height: int, keep: int) -> Map:
    """x through a residual block without embedding, kept."""
    first = statistics(block.norm1, x(False))

    def half(strips: Strips) -> Strips:
        return convolved(block.conv1, normed(block.norm1, first, strips))

    middle = small(lambda last: half(x(False)), height, keep)
    second = statistics(block.norm2, middle(False))
    if isinstance(middle, Kept):
        branch, beside = middle(True), x(True)
    else:
        branch, beside = forked(x(True))
        branch = half(branch)
    branch = convolved(block.conv2, normed(block.norm2, second, branch))
    return whole(block.conv_shortcut(a) + b for b, a in zip(branch, beside, strict=True))


def forked(strips: Strips) -> tuple[Strips, Strips]:
    """One pass for two readers, of which the second never gets ahead. (`itertools.tee` would keep 57 strips.)"""
    between: deque[Tensor] = deque()

    def ahead() -> Strips:
        for strip in strips:
            between.append(strip)
            yield strip

    def behind() -> Strips:
        while between:
            yield between.popleft()

    return ahead(), behind()


def upsampled(conv: nn.Conv2d, x: Map) -> Map:
    """Twice the height and width, by nearest neighbour and a convolution; strips keep their number of rows."""

    def doubled(strips: Strips) -> Strips:
        for strip in strips:
            yield from enlarge(strip).chunk(2, dim=2)

    return lambda last: convolved(conv, doubled(x(last)))


def convolved(conv: nn.Conv2d, strips: Strips) -> Strips:
    """A 3x3 convolution with padding 1: each strip sees the last row above it and the first one below."""
    above: Tensor | None = None
    strip: Tensor | None = next(strips)
    while strip is not None:
        below = next(strips, None)
        zeros = torch.zeros_like(strip[:, :, :1])
        rows = [zeros if above is None else above, strip, zeros if below is None else below[:, :, :1]]
        yield inner(conv, torch.cat(rows, dim=2))
        above, strip = strip[:, :, -1:].clone(), below


def inner(conv: nn.Conv2d, x: Tensor) -> Tensor:
    """A 3x3 convolution of x (B, C, rows + 2, W) -> the rows within. A kernel's own pads, and what it pads is cut."""
    if getattr(conv, "fast", False):
        return conv(x)[:, :, 1:-1]
    return F.conv2d(x, conv.weight, conv.bias, padding=(0, 1))


def statistics(norm: GroupNorm, strips: Strips) -> tuple[Tensor, Tensor]:
    """Mean and variance (B, groups) of a map: those of its strips, put together (Chan et al. 1979, eq. 2.1)."""
    parts = []
    for strip in strips:
        groups = strip.unflatten(1, (norm.num_groups, -1)).flatten(2)
        groups = groups if groups.dtype == torch.float64 else groups.float()
        variance, mean = torch.var_mean(groups, dim=2, correction=0)
        parts.append((mean, variance, torch.full_like(mean, groups.shape[2])))
    means, variances, sizes = map(torch.stack, zip(*parts, strict=True))
    share = sizes / sizes.sum(0)
    mean = (share * means).sum(0)
    return mean, (share * (variances + (means - mean).square())).sum(0)


def normed(norm: GroupNorm, moments: tuple[Tensor, Tensor], strips: Strips) -> Strips:
    """Group normalisation with known mean and variance, and the activation behind it."""
    mean, scale = moments[0], (moments[1] + norm.eps).rsqrt()
    per_channel = norm.num_channels // norm.num_groups
    mean, scale = (m.repeat_interleave(per_channel, dim=1)[:, :, None, None] for m in (mean, scale))
    scale = scale * norm.weight.to(scale).view(1, -1, 1, 1)
    shift = norm.bias.to(scale).view(1, -1, 1, 1) - mean * scale
    for strip in strips:
        y = torch.addcmul(shift, strip.to(shift), scale).to(strip)
        y = F.silu(y) if norm.silu else y
        yield y if norm.act is None else norm.act(y)


class Kept:
    """A map in memory, as strips. The last pass lets go of each strip as the next is asked for."""

    def __init__(self, strips: list[Tensor]) -> None:
        self.strips = strips

    def __call__(self, last: bool) -> Strips:
        return self.fall() if last else iter(self.strips)

    def fall(self) -> Strips:
        """Every strip, for the last time."""
        self.strips.reverse()
        while self.strips:
            give_back()
            yield self.strips.pop()


def give_back() -> None:
    """Ask the C library to return freed memory to the system: strips leave holes, which would add up to another map."""
    if TRIM is not None:
        TRIM(0)


def whole(strips: Iterable[Tensor]) -> Map:
    """Keep a map."""
    return Kept(list(strips))


def small(x: Map, height: int, keep: int) -> Map:
    """Keep a map of that height if it takes at most `keep` bytes; leave a larger one to be computed at every pass."""
    strip = next(x(False))
    row = strip.numel() // strip.shape[2] * strip.element_size()
    return whole(x(True)) if row * height <= keep else x


def cut(x: Tensor, rows: int) -> list[Tensor]:
    """A map as strips that stand alone in memory."""
    return [strip.clone() for strip in x.split(rows, dim=2)]
