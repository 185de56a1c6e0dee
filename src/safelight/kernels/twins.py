"""The hot operations in plain torch: what they mean, what trains, and what runs wherever there is no faster twin."""

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.nn.grad import conv2d_weight

__all__ = [
    "attention", "conv1x1", "conv3x3", "conv3x3_input", "conv3x3_weights", "geglu", "group_norm", "linear", "quantize",
]  # fmt: skip


def attention(q: Tensor, k: Tensor, v: Tensor, *, causal: bool = False, mask: Tensor | None = None) -> Tensor:
    """See `kernels.attention`."""
    return F.scaled_dot_product_attention(q, k, v, attn_mask=mask, is_causal=causal)


def group_norm(
    x: Tensor, groups: int, weight: Tensor | None, bias: Tensor | None, eps: float, *, silu: bool = False
) -> Tensor:
    """See `kernels.group_norm`."""
    y = F.group_norm(x, groups, weight, bias, eps)
    return F.silu(y) if silu else y


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
) -> Tensor:
    """See `kernels.conv3x3`."""
    y = F.conv2d(source(x, beside, up), weight, bias, stride=1 + down, padding=1)
    if shift is not None:
        y = y + shift[:, :, None, None]
    if residual is not None:
        y = residual + y
    return F.silu(y) if silu else y


def conv1x1(x: Tensor, weight: Tensor, bias: Tensor | None = None, *, residual: Tensor | None = None) -> Tensor:
    """See `kernels.conv1x1`."""
    y = F.conv2d(x, weight, bias)
    return y if residual is None else residual + y


def conv3x3_input(dy: Tensor, weight: Tensor) -> Tensor:
    """The gradient by the input, (B, C, H, W), of a loss whose gradient by conv3x3(x, weight) is dy (B, C', H, W)."""
    return F.conv_transpose2d(dy, weight, padding=1)


def conv3x3_weights(x: Tensor, dy: Tensor) -> Tensor:
    """The gradient by the weight, (C', C, 3, 3), of a loss whose gradient by conv3x3(x, weight) is dy (B, C', H, W)."""
    return conv2d_weight(x, (dy.shape[1], x.shape[1], 3, 3), dy, padding=1)


def source(x: Tensor, beside: Tensor | None, up: bool) -> Tensor:
    """What a convolution reads: x, joined to `beside` by channels, and doubled in height and width with `up`."""
    if beside is not None:
        x = torch.cat([x, beside], dim=1)
    return F.interpolate(x, size=(2 * x.shape[-2], 2 * x.shape[-1]), mode="nearest") if up else x


def linear(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    *,
    scale: Tensor | None = None,
    residual: Tensor | None = None,
    act: str | None = None,
) -> Tensor:
    """See `kernels.linear`."""
    y = F.linear(x, weight, bias) if scale is None else linear_int8(x, weight, scale, bias)
    y = y if act is None else ACTS[act](y)
    return y if residual is None else residual + y


def quick_gelu(x: Tensor) -> Tensor:
    """x·sigmoid(1.702 x), the approximation of GELU that OpenAI's CLIP was trained with."""
    gate = (1.702 * x).sigmoid_()  # in place wherever that can be: fresh memory costs more than these sums
    return x * gate if gate.requires_grad else gate.mul_(x)


ACTS: dict[str, Callable[[Tensor], Tensor]] = {"gelu": F.gelu, "quick_gelu": quick_gelu}


def geglu(x: Tensor, weight: Tensor, bias: Tensor | None = None, *, scale: Tensor | None = None) -> Tensor:
    """See `kernels.geglu`."""
    a, b = linear(x, weight, bias, scale=scale).chunk(2, dim=-1)
    return a * F.gelu(b)


def linear_int8(x: Tensor, weight: Tensor, scale: Tensor, bias: Tensor | None) -> Tensor:
    """`kernels.linear` with a scale, in float32; for a gradient, which rounding has none of, x is left as it is."""
    if torch.is_grad_enabled() and x.requires_grad:
        return F.linear(x, (weight * scale[:, None]).to(x.dtype), bias)
    whole, step = quantize(x)
    y = F.linear(whole, weight.float()) * (step * scale.float())
    return (y if bias is None else y + bias.float()).to(x.dtype)


def quantize(x: Tensor) -> tuple[Tensor, Tensor]:
    """x (..., K) -> whole numbers from -127 to 127, as floats, and what one of them is worth in each row, (..., 1)."""
    x = x.float()
    largest = x.abs().amax(-1, keepdim=True).clamp_min(1e-30)
    return (x * (largest.reciprocal() * 127)).clamp(-127, 127).round(), largest / 127
