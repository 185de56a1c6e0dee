"""LPIPS: how different two pictures look (Zhang et al. 2018, arXiv 1801.03924).

A VGG network looks at both pictures; the distance is taken between what it sees, not between pixels. The published
metric is `LPIPS()` with the published weights: VGG16 and the linear heads that were fitted to what people said. The
same class with a smaller `VGGConfig` and heads of equal weights measures distances in any other features, which are
then not called LPIPS.
"""

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from safelight.errors import InputError
from safelight.models.config import check_types
from safelight.models.layers import Conv3x3

__all__ = ["LPIPS", "VGG", "VGG16", "VGGConfig", "unit"]

# What brings pictures in [-1, 1] to the mean and spread of ImageNet's channels, as the published heads expect.
SHIFT = (-0.030, -0.088, -0.188)
SCALE = (0.458, 0.448, 0.450)

MEAN_HEAD = 0.088  # the mean over the stages of the published heads' mean weights

EPS = 1e-10  # beside a feature vector's length, so that a vector of zeros stays one


@dataclass(frozen=True, kw_only=True)
class VGGConfig:
    """A VGG network's stages: the channels of each, and how many convolutions it has. The default is VGG16's."""

    channels: tuple[int, ...] = (64, 128, 256, 512, 512)
    layers: tuple[int, ...] = (2, 2, 3, 3, 3)

    def __post_init__(self) -> None:
        check_types(self)
        if len(self.channels) != len(self.layers):
            what = f"channels names {len(self.channels)} stages, layers {len(self.layers)}"
            raise InputError(what, remedy="give one of each for every stage")

    @property
    def smallest_side(self) -> int:
        """The least side, in pixels, of a picture that still has a pixel in the last stage."""
        return 2 ** (len(self.channels) - 1)


VGG16 = VGGConfig()


class VGG(nn.Module):
    """The convolutions of a VGG network (Simonyan & Zisserman 2015, arXiv 1409.1556).

    Parameter names are torchvision's, `features.0.weight`. Between two stages stands a 2x2 maximum.
    """

    def __init__(self, config: VGGConfig = VGG16) -> None:
        super().__init__()
        self.config = config
        blocks: list[nn.Module] = []
        self.taps: list[int] = []  # where each stage's last activation comes out
        width = 3
        for channels, layers in zip(config.channels, config.layers, strict=True):
            blocks += [nn.MaxPool2d(2, 2)] if blocks else []
            for _ in range(layers):
                blocks += [Conv3x3(width, channels), nn.ReLU()]
                width = channels
            self.taps.append(len(blocks) - 1)
        self.features = nn.Sequential(*blocks)
        self.shift: Tensor
        self.scale: Tensor
        self.register_buffer("shift", torch.tensor(SHIFT).view(1, 3, 1, 1), persistent=False)
        self.register_buffer("scale", torch.tensor(SCALE).view(1, 3, 1, 1), persistent=False)

    def forward(self, picture: Tensor) -> list[Tensor]:
        """Pictures (B, 3, H, W) in [-1, 1] -> the last activations of each stage, (B, C_l, H_l, W_l).

        Of VGG16 these are relu1_2, relu2_2, relu3_3, relu4_3 and relu5_3. Raises InputError for pictures that are not
        RGB, or too small to have a last stage.
        """
        self._check(picture)
        x, seen = (picture - self.shift) / self.scale, []
        for i, block in enumerate(self.features):
            x = block(x)
            if i in self.taps:
                seen.append(x)
        return seen

    def _check(self, picture: Tensor) -> None:
        least = self.config.smallest_side
        if picture.ndim != 4 or picture.shape[1] != 3 or min(picture.shape[2:]) < least:
            raise InputError(
                f"pictures of shape {tuple(picture.shape)} do not fit this feature network",
                remedy=f"give a tensor of shape (batch, 3, height, width) with sides of {least} or more",
            )


class LPIPS(nn.Module):
    """Distance between pictures in the features of a VGG network.

    `name` says what it measures, for logs and model cards. The heads start with equal weights (what the paper calls
    uncalibrated), of the published heads' mean, so that a training weighs either distance alike. All weights are
    constants: gradients flow to the pictures only.
    """

    def __init__(self, config: VGGConfig = VGG16, *, name: str = "LPIPS (VGG16)") -> None:
        super().__init__()
        self.name = name
        self.vgg = VGG(config)
        self.heads = nn.ParameterList(torch.full((channels,), MEAN_HEAD) for channels in config.channels)
        self.requires_grad_(False)

    def forward(self, x: Tensor, y: Tensor, *, dropout: torch.Generator | None = None) -> Tensor:
        """Pictures x and y, both (B, 3, H, W) in [-1, 1] -> their distances (B,), 0 or more, float32.

        sum over stages l of mean over pixels of w_l · (unit(f_l(x)) - unit(f_l(y)))² (equation 1). Features are
        compared in float32, whatever precision the network computes in. With `dropout`, a generator, half of the
        squared differences are left out and the rest doubled, which is what fitting the heads did; a training loss
        that does so is an accident of the original code (`original` in `safelight.training.stages.autoencoder`).
        """
        return torch.stack(
            [
                head_distance(unit(a), unit(b), head, dropout)
                for a, b, head in zip(self.vgg(x), self.vgg(y), self.heads, strict=True)
            ]
        ).sum(0)


def unit(features: Tensor) -> Tensor:
    """(B, C, h, w) -> each pixel's vector at length 1, float32. Where all channels are zero its gradient is zero too.

    The square root of a sum of squares would have NaN for a gradient there; rectified features are often zero.
    """
    features = features.float()
    return features / (torch.linalg.vector_norm(features, dim=1, keepdim=True) + EPS)


def head_distance(a: Tensor, b: Tensor, head: Tensor, dropout: torch.Generator | None = None) -> Tensor:
    """Weigh the squared differences of features (B, C, h, w) by `head` (C,), and take their mean over pixels: (B,)."""
    squares = (a - b) ** 2
    if dropout is not None:
        kept = torch.rand(squares.shape, generator=dropout, device=dropout.device) < 0.5
        squares = 2 * squares * kept.to(squares.device)
    return (squares.mean(dim=(2, 3)) * head.float()).sum(1)
