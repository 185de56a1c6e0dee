"""The patch discriminator: is each patch of a picture real? (Isola et al. 2017, arXiv 1611.07004, section 3.2.2).

Latent diffusion trains its first stage against it (Rombach et al. 2022, appendix G; Esser et al. 2021). Parameter names
are those of taming-transformers' NLayerDiscriminator, `main.0.weight`, so that published discriminators load.
"""

from collections.abc import Callable
from dataclasses import dataclass
from math import gcd

import torch
from torch import Tensor, nn

from safelight.errors import InputError
from safelight.models.config import check_choice, check_types

__all__ = ["ActNorm", "DiscriminatorConfig", "PatchDiscriminator"]

# What normalises between the convolutions, by name. "none" leaves the signal as it is.
NORMS: dict[str, Callable[[int], nn.Module]] = {
    "batch": nn.BatchNorm2d,
    "act": lambda channels: ActNorm(channels),
    "group": lambda channels: nn.GroupNorm(gcd(channels, 32), channels),
    "none": lambda channels: nn.Identity(),
}


@dataclass(frozen=True, kw_only=True)
class DiscriminatorConfig:
    """The shape of a patch discriminator. The defaults are the paper's.

    Each of `layers` convolutions halves the resolution and doubles the channels, up to 8 times `channels`. A logit sees
    a patch of 70 pixels with 3 layers, of 34 with 2. `norm` is "batch", "act", "group" or "none": batch normalisation
    mixes the pictures of a batch, which the others do not, so that they suit small batches, several machines and the R1
    penalty better.
    """

    in_channels: int = 3
    channels: int = 64
    layers: int = 3
    norm: str = "batch"

    def __post_init__(self) -> None:
        check_types(self)
        check_choice("norm", self.norm, list(NORMS))

    @property
    def smallest_side(self) -> int:
        """The least side, in pixels, of a picture that has a patch."""
        return 3 * 2**self.layers


class PatchDiscriminator(nn.Module):
    """Strided 4x4 convolutions with leaky rectifiers, and a last one that gives a logit for each patch."""

    def __init__(self, config: DiscriminatorConfig) -> None:
        super().__init__()
        self.config = config
        norm, biased = NORMS[config.norm], config.norm != "batch"  # batch normalisation would take a bias out again
        widths = [config.channels * min(2**n, 8) for n in range(config.layers + 1)]
        blocks: list[nn.Module] = [conv(config.in_channels, widths[0], 2), nn.LeakyReLU(0.2)]
        for n in range(1, config.layers + 1):
            stride = 2 if n < config.layers else 1
            blocks += [conv(widths[n - 1], widths[n], stride, bias=biased), norm(widths[n]), nn.LeakyReLU(0.2)]
        self.main = nn.Sequential(*blocks, conv(widths[-1], 1, 1))
        self.apply(initialise)

    def forward(self, picture: Tensor) -> Tensor:
        """Pictures (B, 3, H, W) in [-1, 1] -> logits (B, 1, h, w), high where a patch looks real.

        With 3 layers a picture of 256x256 has 30x30. Raises InputError for a picture too small to have any.
        """
        least = self.config.smallest_side
        if picture.ndim != 4 or picture.shape[1] != self.config.in_channels or min(picture.shape[2:]) < least:
            raise InputError(
                f"pictures of shape {tuple(picture.shape)} do not fit a discriminator of {self.config.layers} layers",
                remedy=f"give (batch, {self.config.in_channels}, height, width) with sides of {least} or more, "
                "or take fewer layers",
            )
        return self.main(picture)


def conv(in_channels: int, out_channels: int, stride: int, *, bias: bool = True) -> nn.Conv2d:
    """The one kind of convolution there is here."""
    return nn.Conv2d(in_channels, out_channels, 4, stride=stride, padding=1, bias=bias)


def initialise(module: nn.Module) -> None:
    """Draw a discriminator's weights as pix2pix does: convolutions N(0, 0.02), batch normalisation N(1, 0.02)."""
    if isinstance(module, nn.Conv2d):
        nn.init.normal_(module.weight, 0.0, 0.02)
    elif isinstance(module, nn.BatchNorm2d):
        nn.init.normal_(module.weight, 1.0, 0.02)


class ActNorm(nn.Module):
    """A scale and a shift per channel that give the first batch mean 0 and variance 1, and are then trained.

    Kingma & Dhariwal 2018 (arXiv 1807.03039, section 3.1). The first batch is the first that is seen in training mode.
    """

    initialized: Tensor

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.loc = nn.Parameter(torch.zeros(1, channels, 1, 1))
        self.scale = nn.Parameter(torch.ones(1, channels, 1, 1))
        self.register_buffer("initialized", torch.tensor(0, dtype=torch.uint8))
        self._done = False  # what `initialized` says, once it was seen to say so: asking a GPU at each step costs time

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) -> the same shape."""
        if self.training and not self._done:
            self._initialise(x.detach().float())
        return self.scale * (x + self.loc)

    @torch.no_grad()
    def _initialise(self, x: Tensor) -> None:
        if not self.initialized:
            std, mean = torch.std_mean(x, dim=(0, 2, 3), keepdim=True)
            self.loc.copy_(-mean)
            self.scale.copy_(1 / (std + 1e-6))
            self.initialized.fill_(1)
        self._done = True
