"""The few hot operations of the networks: floor 0 of the house, torch alone.

    attention, group_norm, conv3x3, conv1x1, linear, geglu    what `safelight.models` calls; `fast` asks for C
    prepare     lets every part of a network ask for them, and turns its linear layers to int8 if that is wanted
    quantize    rounds rows of numbers to 8 bits
    reused      keeps the memory of large results for later ones, within a `with` or a function; `release` lets go
    twins.py    each in plain torch: what it means, and what trains or runs wherever there is nothing faster
    gradients.py  the convolution in C, with its gradients
    c/          each in C, for CPUs with AVX2 or AVX-512; gemm.h is the loop that all share, vec.h the vectors
    buffers.py  memory of large results, used again
    native.py   the C kernels behind ctypes        build.py    how and where they are compiled
    choice.py   which of them this machine has, and where they pay

Without `fast` the twins compute, so that a network is the original's to the last bit. With it the results differ in
rounding: relative to torch by about 1e-6 of the norm for each operation in float32. Where the C kernels do not take the
arguments, or a gradient is wanted of anything but a convolution in float32, or torch is as fast, the twins compute as
well: no call fails for want of a kernel.
"""

from math import ceil, prod

import torch
from torch import Tensor, nn

from safelight.kernels import gradients, twins
from safelight.kernels.buffers import release, reused
from safelight.kernels.choice import convolution, kernels_for, pays, report
from safelight.kernels.twins import quantize

__all__ = [
    "attention", "conv1x1", "conv3x3", "geglu", "group_norm", "kernels_for", "linear", "prepare", "quantize",
    "release", "report", "reused",
]  # fmt: skip


def attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    *,
    causal: bool = False,
    mask: Tensor | None = None,
    rough: bool = False,
    fast: bool = False,
) -> Tensor:
    """softmax(q·kᵀ/√d)·v, per head (Vaswani et al. 2017, arXiv 1706.03762, eq. 1).

    q is (B, heads, L, d); k and v are (B, heads, M, d); the result is (B, heads, L, d), in q's dtype. With `causal`,
    position i sees positions 0..i alone, and L must equal M. Instead of that, `mask`, of two dimensions or
    more and broadcast to (B, heads, L, M), says who sees whom: True where it may, or numbers to add before the softmax.

    `rough` lets bfloat16 in C take q and k in whole numbers of 8 bits, where no position is hidden: of normal numbers
    the result is off by 1.2e-2 of the norm instead of 2.3e-3, for five sixths of the time.
    """
    c = kernels_for(q.dtype) if fast and mask is None else None
    kind = "causal attention" if causal else "attention"
    if c and pays(c, kind, q.shape[-2], head=q.shape[-1]) and c.takes_attention(q, k, v, causal=causal):
        return c.attention(q, k, v, causal=causal, rough=rough)
    return twins.attention(q, k, v, causal=causal, mask=mask)


def group_norm(
    x: Tensor,
    groups: int,
    weight: Tensor | None,
    bias: Tensor | None,
    eps: float,
    *,
    silu: bool = False,
    fast: bool = False,
) -> Tensor:
    """Group normalisation (Wu & He 2018, arXiv 1803.08494), then SiLU if `silu`.

    x is (B, C, ...) with C divisible by `groups`; weight and bias are (C,). Mean and variance are taken in float32
    whatever x's dtype is; the result has x's shape and dtype.
    """
    c = kernels_for(x.dtype) if fast else None
    if c and pays(c, "group_norm", x.numel()) and c.takes_group_norm(x, groups, weight, bias):
        return c.group_norm(x, groups, weight, bias, eps, silu=silu)
    return twins.group_norm(x, groups, weight, bias, eps, silu=silu)


def conv3x3(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    *,
    beside: Tensor | None = None,
    shift: Tensor | None = None,
    residual: Tensor | None = None,
    up: bool = False,
    down: bool = False,
    silu: bool = False,
    rough: bool = False,
    fast: bool = False,
) -> Tensor:
    """A 3x3 convolution of padding 1, and of stride 1 or with `down` 2, with what stands around it in the networks.

    x is (B, C, H, W); weight (C', C, 3, 3); bias (C'). `beside` (B, C2, H, W) is read as if joined to x by channels,
    and weight has C + C2 of them then; with `up`, H and W are doubled first, by nearest neighbour. To the result,
    (B, C', H, W), `shift` (B or 1, C') is added for each picture, and `residual`, of its shape; then SiLU if `silu`.

    `rough` lets bfloat16 in C be off by 1.1e-2 of the norm instead of 7e-3, for four fifths of the time.
    """
    c = kernels_for(x.dtype) if fast else None
    around = {"beside": beside, "shift": shift, "residual": residual}
    way = convolution(c, tiles(x, up, down), weight.numel(), down) if c else "torch"
    if c and way == "winograd" and differentiable(x, weight, bias, *around.values()):
        if gradients.takes_conv3x3(c, x, weight, bias, **around):
            y = gradients.Conv3x3.apply(twins.source(x, beside, up), weight, bias, shift, residual, c)
            return nn.functional.silu(y) if silu else y
    elif c and way != "torch" and c.takes_conv3x3(x, weight, bias, **around):
        if way == "linear":
            return c.conv3x3_of_few(x, weight, bias, **around, up=up, down=down, silu=silu)
        return c.conv3x3(x, weight, bias, **around, up=up, silu=silu, rough=rough)
    return twins.conv3x3(x, weight, bias, **around, up=up, down=down, silu=silu)


def conv1x1(
    x: Tensor, weight: Tensor, bias: Tensor | None = None, *, residual: Tensor | None = None, fast: bool = False
) -> Tensor:
    """A 1x1 convolution, which is a `linear` of each pixel's channels, + `residual`.

    x is (B, C, H, W); weight (C', C, 1, 1); bias (C'); the result and `residual` are (B, C', H, W).
    """
    pixels, weights = x.permute(0, 2, 3, 1), weight.flatten(1)
    beside = None if residual is None else residual.permute(0, 2, 3, 1)
    c = kernels_for(x.dtype) if fast else None
    worth = c and pays(c, "linear", rows(pixels), weights=weight.numel())
    if c and worth and c.takes_linear(pixels, weights, bias, residual=beside):
        return c.linear(pixels, weights, bias, residual=beside).permute(0, 3, 1, 2)
    return twins.conv1x1(x, weight, bias, residual=residual)


def linear(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    *,
    scale: Tensor | None = None,
    residual: Tensor | None = None,
    act: str | None = None,
    fast: bool = False,
) -> Tensor:
    """act(x·weightᵀ + bias) + residual: x (..., K), weight (N, K), bias (N), residual like the result, (..., N).

    `act` is "gelu", "quick_gelu" or None.

    With `scale` (N), weight is int8 and row n of it stands for weight·scale[n]. Each row of x is then rounded to whole
    numbers as well, in 127ths of its largest (W8A8): see `quantize`, and docs/speed.md for what that costs.
    """
    c = kernels_for(x.dtype) if fast else None
    kind = "linear" if scale is None else "linear_int8"
    worth = c and pays(c, kind, rows(x), weights=weight.numel())
    if c and worth and c.takes_linear(x, weight, bias, scale=scale, residual=residual, act=act):
        return c.linear(x, weight, bias, scale=scale, residual=residual, act=act)
    return twins.linear(x, weight, bias, scale=scale, residual=residual, act=act)


def geglu(
    x: Tensor, weight: Tensor, bias: Tensor | None = None, *, scale: Tensor | None = None, fast: bool = False
) -> Tensor:
    """a·gelu(b), where (a, b) = x·weightᵀ + bias (Shazeer 2020, arXiv 2002.05202): weight (2N, K) -> (..., N).

    `scale` (2N) as in `linear`.
    """
    c = kernels_for(x.dtype) if fast else None
    kind = "geglu" if scale is None else "linear_int8"
    if c and pays(c, kind, rows(x)) and c.takes_linear(x, weight, bias, scale=scale):
        return c.linear(x, weight, bias, scale=scale, gate=True)
    return twins.geglu(x, weight, bias, scale=scale)


def tiles(x: Tensor, up: bool, down: bool) -> int:
    """How many 4x4 pixels a convolution of x (B, C, H, W) gives: a tile or two of its C kernel."""
    if x.ndim != 4:
        return 0
    batch, _, height, width = x.shape
    return batch * ceil((height << up) / (4 << down)) * ceil((width << up) / (4 << down))


def differentiable(*tensors: Tensor | None) -> bool:
    """Whether autograd follows what is made of these."""
    return torch.is_grad_enabled() and any(t is not None and t.requires_grad for t in tensors)


def rows(x: Tensor) -> int:
    """How many vectors x (..., K) holds."""
    return prod(x.shape[:-1])


def prepare(network: nn.Module, *, fast: bool = True, int8: bool = False) -> bool:
    """Let a network's parts use the C kernels where this machine has them for its dtype; tell whether it has.

    The kernels read the weights themselves, so a prepared network is saved, moved and trained as before, and with
    `fast` False computes in torch again. Convolutions are laid out channels-last in memory, for the kernels and torch;
    a network without a part that asks for kernels is left as it is.

    `int8` rounds the weights of linear layers in attention and feed-forward for good, and lets convolutions and
    attention be `rough`: such a network is for drawing alone, with or without C kernels.
    """
    parameter, parts = next(network.parameters()), [part for part in network.modules() if hasattr(part, "fast")]
    fast = bool(parts) and fast and parameter.device.type == "cpu" and kernels_for(parameter.dtype) is not None
    for part in parts:
        part.fast = fast  # type: ignore[assignment]  # torch types attributes as tensors or modules
        if int8 and hasattr(part, "to_int8"):
            part.to_int8()  # type: ignore[operator]
    for part in network.modules():
        if fast and isinstance(part, nn.Conv2d):
            part.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    return fast
