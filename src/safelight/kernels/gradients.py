"""The C convolution with gradients, for training: all three of its sums are Winograd's.

The gradient by the input is again a convolution, with the weights turned by half a turn and their channels exchanged;
the gradient by the weights has a kernel of its own, c/conv3x3_weights.c.
"""

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from safelight.kernels.native import Kernels, channels_last

__all__ = ["Conv3x3", "takes_conv3x3"]


def takes_conv3x3(c: Kernels, x: Tensor, weight: Tensor, bias: Tensor | None, **around: Tensor | None) -> bool:
    """Whether the kernels take this convolution and both its gradients: float32, channels in of twice the lanes."""
    if c.dtype != torch.float32 or weight.shape[1] % (2 * c.lanes):
        return False
    with torch.no_grad():
        return c.takes_conv3x3(x, weight, bias, **around)


class Conv3x3(torch.autograd.Function):
    """A 3x3 convolution as in `kernels.conv3x3`, in C, with what may be added to its result."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, shift: Tensor | None, residual: Tensor | None,
        c: Kernels,
    ) -> Tensor:  # fmt: skip
        """conv(x, weight) + bias + shift + residual, (B, C', H, W) and channels-last."""
        ctx.save_for_backward(x, weight)
        ctx.kernels = c
        return c.conv3x3(x, weight, bias, shift=shift, residual=residual)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor | None, ...]:
        """The gradients by those arguments that want one, of dy (B, C', H, W)."""
        (x, weight), dy = ctx.saved_tensors, channels_last(dy)
        wanted, each = ctx.needs_input_grad, dy.sum((2, 3))
        return (
            ctx.kernels.conv3x3_input(dy, weight) if wanted[0] else None,
            ctx.kernels.conv3x3_weights(x, dy) if wanted[1] else None,
            each.sum(0) if wanted[2] else None,
            each if wanted[3] else None,
            dy if wanted[4] else None,
            None,
        )
