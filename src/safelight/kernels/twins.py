"""The hot operations in plain torch: what they mean, what trains, and what runs wherever there is no faster twin."""

import torch
from torch import Tensor
from torch.nn import functional as F

__all__ = ["attention", "conv3x3", "geglu", "group_norm", "linear"]


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
    silu: bool = False,
) -> Tensor:
    """See `kernels.conv3x3`."""
    if beside is not None:
        x = torch.cat([x, beside], dim=1)
    if up:
        x = F.interpolate(x, size=(2 * x.shape[-2], 2 * x.shape[-1]), mode="nearest")
    y = F.conv2d(x, weight, bias, padding=1)
    if shift is not None:
        y = y + shift[:, :, None, None]
    if residual is not None:
        y = residual + y
    return F.silu(y) if silu else y


def linear(x: Tensor, weight: Tensor, bias: Tensor | None = None, *, residual: Tensor | None = None) -> Tensor:
    """See `kernels.linear`."""
    y = F.linear(x, weight, bias)
    return y if residual is None else residual + y


def geglu(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """See `kernels.geglu`."""
    a, b = F.linear(x, weight, bias).chunk(2, dim=-1)
    return a * F.gelu(b)
