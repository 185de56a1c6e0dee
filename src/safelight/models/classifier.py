"""A small network that says what a picture shows, in which style, and where. For measuring pictures, not for drawing.

Residual blocks at halving resolutions. Where the thing is, is a mask, from all resolutions together; what it is, and in
which style, is read from averages under that mask, of all resolutions too: a shape shows in the coarse ones, the stroke
in the fine ones. An average over the whole picture tells of what is around it.
"""

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from safelight.errors import InputError
from safelight.models.config import check_types
from safelight.models.layers import Downsample, ResBlock

__all__ = ["Classifier", "ClassifierConfig", "Seen"]

MASK_CHANNELS = 16


@dataclass(frozen=True, kw_only=True)
class ClassifierConfig:
    """The network's shape: the side of its pictures, channels from the finest level (side/2) on, and its answers."""

    concepts: int
    styles: int
    size: int = 64
    channels: tuple[int, ...] = (32, 64, 128, 256)
    features: int = 256
    groups: int = 8

    def __post_init__(self) -> None:
        check_types(self)
        if self.size % 2 ** len(self.channels):
            what = f"pictures of {self.size} pixels cannot be halved {len(self.channels)} times"
            raise InputError(what, remedy=f"choose a size that {2 ** len(self.channels)} divides")


@dataclass(frozen=True, eq=False)
class Seen:
    """What the network says of B pictures.

    `concepts` (B, concepts) and `styles` (B, styles) are logits; `masks` (B, S/2, S/2) the logits of the thing being at
    a place; `features` (B, features) what concept and style are read from.
    """

    concepts: Tensor
    styles: Tensor
    masks: Tensor
    features: Tensor


class Classifier(nn.Module):
    """Pictures -> `Seen`."""

    def __init__(self, config: ClassifierConfig) -> None:
        super().__init__()
        self.config = config
        self.conv_in = nn.Conv2d(3, config.channels[0], 3, stride=2, padding=1)
        widths = (config.channels[0], *config.channels)
        self.levels = nn.ModuleList(
            Level(before, width, groups=config.groups, halve=level > 0)
            for level, (before, width) in enumerate(zip(widths, config.channels, strict=False))
        )
        self.mask_in = nn.ModuleList(nn.Conv2d(width, MASK_CHANNELS, 1) for width in config.channels)
        self.mask_out = nn.Conv2d(MASK_CHANNELS, 1, 3, padding=1)
        width = sum(config.channels) + config.channels[-1]
        self.norm = nn.LayerNorm(width)
        self.to_features = nn.Linear(width, config.features)
        self.to_concepts = nn.Linear(config.features, config.concepts)
        self.to_styles = nn.Linear(config.features, config.styles)

    def forward(self, pictures: Tensor) -> Seen:
        """Pictures (B, 3, H, W) in [-1, 1]; of another size than the config's they are resized first."""
        side = self.config.size
        if pictures.shape[2:] != (side, side):
            pictures = F.interpolate(pictures, (side, side), mode="bilinear", antialias=True)
        x, levels = self.conv_in(pictures), []
        for level in self.levels:
            x = level(x)
            levels.append(x)
        masks = self.mask(levels)
        features = self.to_features(F.silu(self.norm(pooled(levels, masks.detach()))))
        active = F.silu(features)
        return Seen(self.to_concepts(active), self.to_styles(active), masks, features)

    def mask(self, levels: list[Tensor]) -> Tensor:
        """All levels' activations -> the mask's logits (B, S/2, S/2)."""
        size = levels[0].shape[2:]
        parts = [F.interpolate(conv(x), size, mode="bilinear") for conv, x in zip(self.mask_in, levels, strict=True)]
        return self.mask_out(F.silu(torch.stack(parts).sum(0)))[:, 0]


class Level(nn.Module):
    """A residual block, at half its input's resolution if it is to `halve` it."""

    def __init__(self, inputs: int, width: int, *, groups: int, halve: bool) -> None:
        super().__init__()
        self.down = Downsample(inputs) if halve else nn.Identity()
        self.block = ResBlock(inputs, width, groups=groups)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, width, H', W')."""
        return self.block(self.down(x))


def pooled(levels: list[Tensor], masks: Tensor) -> Tensor:
    """Levels' activations (B, C_l, h_l, w_l) and the mask's logits (B, h, w) -> (B, sum of C_l, and the last again).

    The mean of each level under the mask, then the mean of the last one over the whole picture.
    """
    means = [levels[-1].mean(dim=(2, 3))]
    for x in reversed(levels):
        weights = F.adaptive_avg_pool2d(masks.sigmoid()[:, None], x.shape[2:])  # type: ignore[arg-type]
        means.append((x * weights).sum(dim=(2, 3)) / (weights.sum(dim=(2, 3)) + 1e-3))
    return torch.cat(means[::-1], dim=1)
