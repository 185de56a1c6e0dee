"""The parts that the U-Net and the autoencoder are drawn with. Parameter names are diffusers'.

    GroupNorm               group normalisation, then an activation
    Linear                  a linear layer, in int8 if asked to be
    Conv3x3                 the 3x3 convolution that most of the arithmetic is in
    ResBlock                norm, act, conv, (+ embedding), norm, act, dropout, conv, + x; may resample on the way
    Downsample, Upsample    a strided convolution; nearest neighbour and a convolution

Images are (B, C, H, W) throughout, in either memory format.
"""

from collections.abc import Callable
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from safelight import kernels
from safelight.errors import InputError, nearest
from safelight.models.once import Once, read

__all__ = [
    "ACTIVATIONS",
    "Conv3x3",
    "Downsample",
    "GroupNorm",
    "Linear",
    "ResBlock",
    "Upsample",
    "activation",
    "zero_init",
]

ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "silu": F.silu,
    "swish": F.silu,
    "gelu": F.gelu,
    "mish": F.mish,
    "relu": F.relu,
}


def activation(name: str) -> Callable[[Tensor], Tensor]:
    """Look an activation up by its name in a config's `act_fn`; an unknown name is an InputError."""
    if name not in ACTIVATIONS:
        raise InputError(f"There is no activation function {name!r}.", remedy=nearest(name, ACTIVATIONS))
    return ACTIVATIONS[name]


def zero_init(module: nn.Module) -> None:
    """Set a module's parameters to zero, so that the branch it ends adds nothing before training."""
    for parameter in module.parameters():
        nn.init.zeros_(parameter)


class GroupNorm(nn.GroupNorm):
    """Group normalisation (Wu & He 2018, arXiv 1803.08494), then the activation `act` if one is named.

    Normalisation and SiLU go to one kernel, which reads and writes the tensor once.
    """

    fast = False  # set by `kernels.prepare`, as in every part that has it

    def __init__(self, groups: int, channels: int, eps: float, *, act: str | None = None) -> None:
        if channels % groups:
            raise InputError(
                f"{channels} channels cannot be split into {groups} normalisation groups.",
                remedy="choose channel counts that norm_num_groups divides",
            )
        super().__init__(groups, channels, eps=eps)
        self.silu = act in ("silu", "swish")
        self.act = None if act is None or self.silu else activation(act)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, ...) -> the same shape."""
        y = kernels.group_norm(x, self.num_groups, self.weight, self.bias, self.eps, silu=self.silu, fast=self.fast)
        return y if self.act is None else self.act(y)


class Linear(nn.Linear):
    """A linear layer. Once it is told `to_int8`, `weight` is whole numbers, worth `scale` (out_features) each."""

    fast = False
    scale: Tensor | None

    def __init__(self, in_features: int, out_features: int, *, bias: bool = True) -> None:
        super().__init__(in_features, out_features, bias=bias)
        self.register_buffer("scale", None)

    def to_int8(self) -> None:
        """Round the weight, which is let go of: each row to 127ths of its largest. This cannot be undone."""
        if self.scale is None:
            whole, scale = kernels.quantize(self.weight.detach())
            self.weight, self.scale = nn.Parameter(whole.to(torch.int8), requires_grad=False), scale[:, 0]

    def forward(self, x: Tensor, *, act: str | None = None, residual: Tensor | None = None) -> Tensor:
        """(..., in_features) -> (..., out_features), then `act`, + `residual`; see `kernels.linear`."""
        return kernels.linear(x, self.weight, self.bias, scale=self.scale, act=act, residual=residual, fast=self.fast)


class Conv1x1(nn.Conv2d):
    """A 1x1 convolution: a linear layer of each pixel's channels."""

    fast = False

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__(in_channels, out_channels, 1)

    def forward(self, x: Tensor, *, residual: Tensor | None = None) -> Tensor:
        """(B, in_channels, H, W) -> (B, out_channels, H, W), + `residual`; see `kernels.conv1x1`."""
        return kernels.conv1x1(x, self.weight, self.bias, residual=residual, fast=self.fast)


class Conv3x3(nn.Conv2d):
    """A 3x3 convolution of stride 1 or 2 with a border of one zero, and what may be added to its result."""

    fast = False
    rough = False

    def __init__(self, in_channels: int, out_channels: int, *, stride: Literal[1, 2] = 1) -> None:
        super().__init__(in_channels, out_channels, 3, stride=stride, padding=1)
        self.down = stride == 2

    def to_int8(self) -> None:
        """Compute no nearer than layers in 8 bits do, where that is faster: see `rough` of `kernels.conv3x3`."""
        self.rough = True

    def forward(
        self, x: Tensor, *, shift: Tensor | None = None, residual: Tensor | None = None, up: bool = False
    ) -> Tensor:
        """(B, in_channels, H, W) -> (B, out_channels, H, W), twice H and W with `up`, half with stride 2.

        See `kernels.conv3x3`.
        """
        return kernels.conv3x3(
            x, self.weight, self.bias, shift=shift, residual=residual,
            up=up, down=self.down, rough=self.rough, fast=self.fast,
        )  # fmt: skip


class Downsample(nn.Module):
    """Halve height and width by a 3x3 convolution of stride 2.

    With `padding` 1 an odd side is rounded up. With 0, one row and column of zeros are added at the bottom and the
    right only, as in the original autoencoder, and an odd side is rounded down.
    """

    def __init__(self, channels: int, *, padding: int = 1) -> None:
        super().__init__()
        self.padding = padding
        self.conv = Conv3x3(channels, channels, stride=2) if padding else nn.Conv2d(channels, channels, 3, stride=2)

    def forward(self, x: Tensor, emb: Tensor | None = None) -> Tensor:
        """(B, C, H, W) -> (B, C, H/2, W/2). `emb` is not used: a ResBlock, which uses it, may stand in this place."""
        return self.conv(x if self.padding else F.pad(x, (0, 1, 0, 1)))


class Upsample(nn.Module):
    """Double height and width by nearest neighbour, then a 3x3 convolution."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = Conv3x3(channels, channels)

    def forward(self, x: Tensor, emb: Tensor | None = None, size: tuple[int, int] | None = None) -> Tensor:
        """(B, C, H, W) -> (B, C, *size), by default (B, C, 2H, 2W). `emb` is not used, as in Downsample."""
        if size is None or tuple(size) == (2 * x.shape[-2], 2 * x.shape[-1]):
            return self.conv(x, up=True)
        return self.conv(enlarge(x, size))


def enlarge(x: Tensor, size: tuple[int, int] | None = None) -> Tensor:
    """Nearest neighbour, (B, C, H, W) -> (B, C, *size), by default twice the size."""
    if size is None:
        size = (2 * x.shape[-2], 2 * x.shape[-1])
    return F.interpolate(x, size=size, mode="nearest")


class ResBlock(nn.Module):
    """A residual block: norm, act, conv, norm, act, dropout, conv, + x (He et al. 2016, arXiv 1603.05027).

    The embedding of time and class, if `emb_channels` is given, is added between the convolutions; with `scale_shift`
    it scales and shifts the second normalisation instead (Dhariwal & Nichol 2021, arXiv 2105.05233, "AdaGN").
    With `resample`, both the branch and x are halved ("down", mean of 2x2) or doubled ("up", nearest) before the
    first convolution: the `resblock_updown` of ADM and of some latent diffusion models.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        *,
        emb_channels: int | None = None,
        groups: int = 32,
        eps: float = 1e-5,
        dropout: float = 0.0,
        act: str = "silu",
        scale_shift: bool = False,
        resample: Literal["down", "up"] | None = None,
    ) -> None:
        super().__init__()
        self.act = activation(act)
        self.scale_shift = scale_shift
        self.resample = resample
        self.norm1 = GroupNorm(groups, in_channels, eps, act=act)
        self.conv1 = Conv3x3(in_channels, out_channels)
        if emb_channels is not None:
            self.time_emb_proj = nn.Linear(emb_channels, out_channels * (2 if scale_shift else 1))
        self.norm2 = GroupNorm(groups, out_channels, eps, act=None if scale_shift else act)
        self.dropout = nn.Dropout(dropout)
        self.conv2 = Conv3x3(out_channels, out_channels)
        same = in_channels == out_channels
        self.conv_shortcut = nn.Identity() if same else Conv1x1(in_channels, out_channels)

    def forward(self, x: Tensor, emb: Tensor | Once | None = None, size: tuple[int, int] | None = None) -> Tensor:
        """x (B, C, H, W) and emb (B or 1, emb_channels) -> (B, out_channels, H', W'); `size` is H', W' for "up"."""
        h = self.norm1(x)
        if self.resample == "down":
            x, h = F.avg_pool2d(x, 2), F.avg_pool2d(h, 2)
        elif self.resample == "up":
            x, h = enlarge(x, size), enlarge(h, size)
        h = self.modulate(h, emb)
        return self.conv2(self.dropout(h), residual=self.conv_shortcut(x))

    def modulate(self, h: Tensor, emb: Tensor | Once | None) -> Tensor:
        """The first convolution and what follows: act(norm(conv(h) + e)), or act(norm(conv(h))·(1 + scale) + shift)."""
        if emb is None:
            return self.norm2(self.conv1(h))
        e = read(emb, self.project)
        if not self.scale_shift:
            return self.norm2(self.conv1(h, shift=e))
        scale, shift = torch.chunk(e[:, :, None, None], 2, dim=1)
        return self.act(self.norm2(self.conv1(h)) * (1 + scale) + shift)

    def project(self, emb: Tensor) -> Tensor:
        """Embeddings (B, emb_channels) -> what this block takes from them, (B, out_channels or twice that)."""
        return self.time_emb_proj(self.act(emb))
