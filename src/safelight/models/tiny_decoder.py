"""A small decoder: latents to pictures nearly as an autoencoder's own decoder gives them, for a fraction of the work.

A chain of 3x3 convolutions, blocks of three with a short cut, and nearest-neighbour doubling between the levels; no
normalisation and no attention, so that a pixel depends on its neighbourhood alone. It is the decoder of TAESD (Bohan
2023, github.com/madebyollin/taesd), whose parameter names, those of diffusers' AutoencoderTiny, it has; it may have
fewer channels where the picture is large.
"""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any, Self

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from safelight import kernels
from safelight.errors import InputError, nearest
from safelight.models.autoencoder_config import AutoencoderConfig
from safelight.models.config import check_choice, check_types, frozen

__all__ = ["TinyDecoder", "TinyDecoderConfig"]

LARGEST = 3.0  # latents, which have variance 1, are bent to stay below this


@dataclass(frozen=True, kw_only=True)
class TinyDecoderConfig:
    """The shape of a tiny decoder, levels in the order of decoding: the smallest and first has the latent's size.

    block_out_channels: of each level. num_blocks: likewise. act_fn: silu or relu. scaling_factor: the one by which the
    latents are scaled that it was trained on, by which they are known again; None where nobody says.
    """

    latent_channels: int = 4
    out_channels: int = 3
    block_out_channels: tuple[int, ...] = (64, 64, 64, 64)
    num_blocks: tuple[int, ...] = (3, 3, 3, 1)
    act_fn: str = "silu"
    scaling_factor: float | None = None

    def __post_init__(self) -> None:
        check_types(self)
        check_choice("act_fn", self.act_fn, ("silu", "relu"))
        if len(self.block_out_channels) != len(self.num_blocks):
            what = f"{len(self.block_out_channels)} widths and {len(self.num_blocks)} numbers of blocks"
            raise InputError(what, remedy="give one of each for every level")

    @property
    def factor(self) -> int:
        """How much larger pictures are than latents, f = 2^(levels - 1)."""
        return 2 ** (len(self.num_blocks) - 1)

    @classmethod
    def from_json(cls, config: Mapping[str, Any]) -> Self:
        """Read a config.json, ours or that of diffusers' AutoencoderTiny. Raises InputError for a key or a value."""
        given = {key: frozen(value) for key, value in config.items() if not key.startswith("_")}
        if config.get("_class_name") == "AutoencoderTiny":
            names = {"block_out_channels": "decoder_block_out_channels", "num_blocks": "num_decoder_blocks"}
            names |= {name: name for name in ("latent_channels", "out_channels", "act_fn")}
            return cls(**{"act_fn": "relu"} | {ours: given[name] for ours, name in names.items() if name in given})
        known = [field.name for field in fields(cls)]
        for key in given.keys() - set(known):
            raise InputError(f"a TinyDecoder has no {key!r}", remedy=nearest(key, known))
        return cls(**given)

    def to_json(self) -> dict[str, Any]:
        """What is written as config.json."""
        return {"_class_name": "TinyDecoder", **asdict(self)}

    def check_fits(self, autoencoder: AutoencoderConfig) -> None:
        """Raise InputError unless the decoder takes the latents of this autoencoder, and gives pictures as large."""
        remedy = "make one for this model: safelight train decoder"
        theirs = (autoencoder.embed_dim, autoencoder.factor)
        if (self.latent_channels, self.factor) != theirs:
            what = "the decoder takes latents of {} channels and enlarges {} times; the model's have {} and need {}"
            raise InputError(what.format(self.latent_channels, self.factor, *theirs), remedy=remedy)
        scale = self.scaling_factor
        if scale is not None and abs(scale - autoencoder.scaling_factor) > 1e-6 * abs(scale):
            what = f"the decoder was trained on latents scaled by {scale:.6g}, the model's by"
            raise InputError(f"{what} {autoencoder.scaling_factor:.6g}", remedy=remedy)


class TinyDecoder(nn.Module):
    """Scaled latents (B, C, h, w) -> pictures (B, 3, f·h, f·w), about in [-1, 1], not clamped, float32."""

    def __init__(self, config: TinyDecoderConfig) -> None:
        super().__init__()
        self.config = config
        act, widths = config.act_fn, config.block_out_channels
        # Identities stand where diffusers has layers without parameters, since it counts them in the names.
        layers: list[nn.Module] = [Convolution(config.latent_channels, widths[0], act), nn.Identity()]
        for level, (width, blocks) in enumerate(zip(widths, config.num_blocks, strict=True)):
            layers += [Block(width, act) for _ in range(blocks)]
            if level + 1 < len(widths):
                layers += [nn.Identity(), Convolution(width, widths[level + 1], up=True, bias=False)]
        self.layers = nn.Sequential(*layers, Convolution(widths[-1], config.out_channels))

    @property
    def dtype(self) -> torch.dtype:
        """The dtype that it computes in."""
        return next(self.parameters()).dtype

    def forward(self, latent: Tensor) -> Tensor:
        """See the class. Raises InputError for another number of channels."""
        channels = self.config.latent_channels
        if latent.ndim != 4 or latent.shape[1] != channels:
            what = f"latents of shape {tuple(latent.shape)} do not fit this decoder"
            raise InputError(what, remedy=f"give a tensor of shape (batch, {channels}, height, width)")
        bent = torch.tanh(latent.to(self.dtype) / LARGEST) * LARGEST
        return self.layers(bent).float() * 2 - 1


class Block(nn.Module):
    """Three convolutions and a short cut around them, each followed by the activation."""

    def __init__(self, width: int, act: str) -> None:
        super().__init__()
        parts = [part for _ in range(3) for part in (Convolution(width, width, act), nn.Identity())]
        self.conv = nn.Sequential(*parts[:-1])

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) -> the same shape."""
        return self.conv[4](self.conv[2](self.conv[0](x)), residual=x)


class Convolution(nn.Conv2d):
    """A 3x3 convolution, of what is doubled first with `up`; then what is added to it, and the activation."""

    fast = False  # set by `kernels.prepare`

    def __init__(
        self, in_channels: int, out_channels: int, act: str | None = None, *, up: bool = False, bias: bool = True
    ) -> None:
        super().__init__(in_channels, out_channels, 3, padding=1, bias=bias)
        self.act, self.up = act, up

    def forward(self, x: Tensor, residual: Tensor | None = None) -> Tensor:
        """(B, in_channels, H, W) -> (B, out_channels, H, W), or twice H and W."""
        silu = self.act == "silu"
        y = kernels.conv3x3(x, self.weight, self.bias, residual=residual, up=self.up, silu=silu, fast=self.fast)
        return F.relu(y) if self.act == "relu" else y
