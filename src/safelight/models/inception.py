"""The Inception-v3 network whose features the Fréchet inception distance is defined by (Szegedy et al. 2016).

It is the network of TensorFlow's archive of 2015-12-05, which Heusel et al. 2017 (arXiv 1706.08500) measured with, not
torchvision's: averages at a picture's edge leave the padding out, the last block takes a maximum where all others take
an average, and pictures are enlarged by TensorFlow 1's rule. Parameter names are those of the weights converted to
PyTorch, `pt_inception-2015-12-05-6726825d.pth`: `Mixed_5b.branch5x5_1.conv.weight`.
"""

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

__all__ = ["SIDE", "Inception", "enlarged_by_tensorflow"]

SIDE = 299  # pixels, of the pictures the network was trained on
WIDTH = 2048  # of its features
EPS = 1e-3  # of every normalisation

Kernel = int | tuple[int, int]
Branch = Sequence[tuple[str, int, Kernel]]  # convolutions in a row: name, channels, kernel
Pool = Literal["mean", "max"]


class Inception(nn.Module):
    """Pictures -> 2048 features each: what its last classifier would read. All weights are constants."""

    def __init__(self) -> None:
        super().__init__()
        self.Conv2d_1a_3x3 = ConvNorm(3, 32, 3, stride=2)
        self.Conv2d_2a_3x3 = ConvNorm(32, 32, 3)
        self.Conv2d_2b_3x3 = ConvNorm(32, 64, 3, padding=1)
        self.Conv2d_3b_1x1 = ConvNorm(64, 80, 1)
        self.Conv2d_4a_3x3 = ConvNorm(80, 192, 3)
        self.Mixed_5b = Mixed(192, *branches_5(), pool_channels=32)
        self.Mixed_5c = Mixed(256, *branches_5(), pool_channels=64)
        self.Mixed_5d = Mixed(288, *branches_5(), pool_channels=64)
        self.Mixed_6a = Halving(288, [("branch3x3", 384, 3)], triple("branch3x3dbl", 64, 96))
        self.Mixed_6b = Mixed(768, *branches_6(128), pool_channels=192)
        self.Mixed_6c = Mixed(768, *branches_6(160), pool_channels=192)
        self.Mixed_6d = Mixed(768, *branches_6(160), pool_channels=192)
        self.Mixed_6e = Mixed(768, *branches_6(192), pool_channels=192)
        self.Mixed_7a = Halving(
            768,
            [("branch3x3_1", 192, 1), ("branch3x3_2", 320, 3)],
            [("branch7x7x3_1", 192, 1), ("branch7x7x3_2", 192, (1, 7)), ("branch7x7x3_3", 192, (7, 1)),
             ("branch7x7x3_4", 192, 3)],
        )  # fmt: skip
        self.Mixed_7b = Mixed(1280, *branches_7(), pool_channels=192)
        self.Mixed_7c = Mixed(2048, *branches_7(), pool_channels=192, pool="max")
        self.requires_grad_(False)

    def forward(self, pictures: Tensor) -> Tensor:
        """Pictures (B, 3, H, W) in [-1, 1], of any size -> features (B, 2048), the mean over the last 8x8 places.

        The network saw pictures of 8 bits, so these are rounded to 8 bits before they are enlarged to 299x299.
        """
        x = ((pictures.clamp(-1, 1) + 1) * 127.5).round()
        x = (enlarged_by_tensorflow(x, SIDE) - 128) / 128
        x = F.max_pool2d(self.Conv2d_2b_3x3(self.Conv2d_2a_3x3(self.Conv2d_1a_3x3(x))), 3, 2)
        x = F.max_pool2d(self.Conv2d_4a_3x3(self.Conv2d_3b_1x1(x)), 3, 2)
        x = self.Mixed_6a(self.Mixed_5d(self.Mixed_5c(self.Mixed_5b(x))))
        x = self.Mixed_6e(self.Mixed_6d(self.Mixed_6c(self.Mixed_6b(x))))
        return self.Mixed_7c(self.Mixed_7b(self.Mixed_7a(x))).mean(dim=(2, 3))


def triple(name: str, inner: int, outer: int) -> Branch:
    """A 1x1 and two 3x3 convolutions."""
    return [(f"{name}_1", inner, 1), (f"{name}_2", outer, 3), (f"{name}_3", outer, 3)]


def branches_5() -> list[Branch]:
    """What sees 35x35 places."""
    return [
        [("branch1x1", 64, 1)],
        [("branch5x5_1", 48, 1), ("branch5x5_2", 64, 5)],
        triple("branch3x3dbl", 64, 96),
    ]


def branches_6(c: int) -> list[Branch]:
    """What sees 17x17 places: 7x7 convolutions as pairs of 1x7 and 7x1."""
    return [
        [("branch1x1", 192, 1)],
        [("branch7x7_1", c, 1), ("branch7x7_2", c, (1, 7)), ("branch7x7_3", 192, (7, 1))],
        [("branch7x7dbl_1", c, 1), ("branch7x7dbl_2", c, (7, 1)), ("branch7x7dbl_3", c, (1, 7)),
         ("branch7x7dbl_4", c, (7, 1)), ("branch7x7dbl_5", 192, (1, 7))],
    ]  # fmt: skip


def branches_7() -> list[Branch]:
    """What sees 8x8 places: the branches end in a fork of 1x3 and 3x1."""
    return [
        [("branch1x1", 320, 1)],
        [("branch3x3_1", 384, 1), ("branch3x3_2a", 384, (1, 3)), ("branch3x3_2b", 384, (3, 1))],
        [("branch3x3dbl_1", 448, 1), ("branch3x3dbl_2", 384, 3), ("branch3x3dbl_3a", 384, (1, 3)),
         ("branch3x3dbl_3b", 384, (3, 1))],
    ]  # fmt: skip


class ConvNorm(nn.Module):
    """A convolution without bias, normalisation by stored means and variances, ReLU."""

    def __init__(self, inputs: int, outputs: int, kernel: Kernel, *, stride: int = 1, padding: Kernel = 0) -> None:
        super().__init__()
        self.conv = nn.Conv2d(inputs, outputs, kernel, stride=stride, padding=padding, bias=False)
        self.bn = StoredNorm(outputs)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, outputs, H', W')."""
        return F.relu(self.bn(self.conv(x)))


class StoredNorm(nn.Module):
    """Batch normalisation as it is after training: the batch has no say."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.register_buffer("weight", torch.ones(channels))
        self.register_buffer("bias", torch.zeros(channels))
        self.register_buffer("running_mean", torch.zeros(channels))
        self.register_buffer("running_var", torch.ones(channels))

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) -> the same shape."""
        return F.batch_norm(x, self.running_mean, self.running_var, self.weight, self.bias, eps=EPS)  # type: ignore[arg-type]


class Mixed(nn.Module):
    """Branches side by side, and a pooled one, joined along channels. Names that end in a and b fork from one input."""

    def __init__(self, inputs: int, *branches: Branch, pool_channels: int, pool: Pool = "mean") -> None:
        super().__init__()
        self.branches, self.pool = branches, pool
        for branch in branches:
            width = inputs
            for name, channels, kernel in branch:
                self.add_module(name, ConvNorm(width, channels, kernel, padding=_same(kernel)))
                width = width if name.endswith("a") else channels
        self.branch_pool = ConvNorm(inputs, pool_channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, sum of the branches' last channels, H, W)."""
        if self.pool == "mean":
            pooled = F.avg_pool2d(x, 3, stride=1, padding=1, count_include_pad=False)
        else:
            pooled = F.max_pool2d(x, 3, stride=1, padding=1)
        return torch.cat([*(self.run(branch, x) for branch in self.branches), self.branch_pool(pooled)], dim=1)

    def run(self, branch: Branch, x: Tensor) -> Tensor:
        """Give what one branch makes of x, both ends of its fork included."""
        before, ends = x, [x]
        for name, _, _ in branch:
            conv = self.get_submodule(name)
            if name.endswith("b"):
                ends.append(conv(before))
            else:
                before, ends = ends[0], [conv(ends[0])]
        return torch.cat(ends, dim=1)


class Halving(nn.Module):
    """Branches whose last convolution takes every second place, beside a maximum that does."""

    def __init__(self, inputs: int, *branches: Branch) -> None:
        super().__init__()
        self.branches = branches
        for branch in branches:
            width = inputs
            for name, channels, kernel in branch[:-1]:
                self.add_module(name, ConvNorm(width, channels, kernel, padding=_same(kernel)))
                width = channels
            name, channels, kernel = branch[-1]
            self.add_module(name, ConvNorm(width, channels, kernel, stride=2))

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, sum of the branches' last channels + C, (H-1)/2, (W-1)/2)."""
        outputs = []
        for branch in self.branches:
            y = x
            for name, _, _ in branch:
                y = self.get_submodule(name)(y)
            outputs.append(y)
        return torch.cat([*outputs, F.max_pool2d(x, 3, 2)], dim=1)


def _same(kernel: Kernel) -> Kernel:
    """The padding that keeps the size."""
    return kernel // 2 if isinstance(kernel, int) else (kernel[0] // 2, kernel[1] // 2)


def enlarged_by_tensorflow(x: Tensor, side: int) -> Tensor:
    """Bilinear (B, C, H, W) -> (B, C, side, side) as TensorFlow 1 did it by default: place i is read at i·H/side.

    (No half pixel is added, so that pictures move up and to the left.)
    """
    for axis in (2, 3):
        size = x.shape[axis]
        at = torch.arange(side, dtype=x.dtype, device=x.device) * torch.tensor(size / side, dtype=x.dtype)
        low = at.long()
        share = (at - low).view((-1, 1) if axis == 2 else (-1,))
        near, far = x.index_select(axis, low), x.index_select(axis, (low + 1).clamp(max=size - 1))
        x = near + (far - near) * share
    return x
