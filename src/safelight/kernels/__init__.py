"""The few hot operations of the networks: floor 0 of the house, torch alone.

`attention` and `group_norm` are what `safelight.models` calls instead of torch's functions, so that faster twins can
stand behind these two names without a change to any network. What stands here is the reference: plain torch.
"""

from torch import Tensor
from torch.nn import functional as F

__all__ = ["attention", "group_norm"]


def attention(q: Tensor, k: Tensor, v: Tensor, *, causal: bool = False, mask: Tensor | None = None) -> Tensor:
    """softmax(q·kᵀ/√d)·v, per head (Vaswani et al. 2017, arXiv 1706.03762, eq. 1).

    q is (B, heads, L, d); k and v are (B, heads, M, d); the result is (B, heads, L, d), in q's dtype. With `causal`,
    position i sees positions 0..i alone, and L must equal M. Instead of that, `mask`, of two dimensions or
    more and broadcast to (B, heads, L, M), says who sees whom: True where it may, or numbers to add before the softmax.
    """
    return F.scaled_dot_product_attention(q, k, v, attn_mask=mask, is_causal=causal)


def group_norm(
    x: Tensor, groups: int, weight: Tensor | None, bias: Tensor | None, eps: float, *, silu: bool = False
) -> Tensor:
    """Group normalisation (Wu & He 2018, arXiv 1803.08494), then SiLU if `silu`.

    x is (B, C, ...) with C divisible by `groups`; weight and bias are (C,). Mean and variance are taken in float32
    whatever x's dtype is; the result has x's shape and dtype.
    """
    y = F.group_norm(x, groups, weight, bias, eps)
    return F.silu(y) if silu else y
