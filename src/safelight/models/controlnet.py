"""A ControlNet: steers a U-Net by a picture, of edges, depths or poses, that the result is to follow.

    picture -- embedding --+
    x ------ conv_in ------+-- the U-Net's way down, a copy of it --+-- its middle --+
                               |        |        |        |                          |
                             zero     zero     zero     zero    1x1 convolutions    zero
                               |        |        |        |     that begin at zero   |
              added to what the U-Net leaves for its way up,        and to its middle

Zhang, Rao & Agrawala 2023, "Adding conditional control to text-to-image diffusion models", arXiv 2302.05543. Parameter
names are those of diffusers' ControlNetModel.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, Self, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from safelight.errors import InputError
from safelight.models.config import check_choice, check_types, frozen
from safelight.models.embedding import TimestepEmbedding, check_pooled, make_add_embedding, wave
from safelight.models.layers import zero_init
from safelight.models.once import Once
from safelight.models.unet import Added, descend, embed_steps, make_down, make_mid
from safelight.models.unet_config import UNetConfig

__all__ = ["Control", "ControlNet", "ControlNetConfig"]

FACTOR = 8  # how much larger the picture is than the latent: three halvings on the way
# Keys of diffusers' config.json that are not the U-Net's
OWN = {"conditioning_channels", "conditioning_embedding_out_channels", "controlnet_conditioning_channel_order",
       "global_pool_conditions"}  # fmt: skip
OF_THE_WAY_UP = {"up_block_types", "out_channels", "sample_size", "center_input_sample", "dropout"}


@dataclass(frozen=True, kw_only=True)
class ControlNetConfig:
    """The shape of a ControlNet: that of the U-Net whose way down it copies, and how it looks at its picture.

    Fields beside `unet` have diffusers' names and defaults.
    """

    unet: UNetConfig
    conditioning_channels: int = 3
    conditioning_embedding_out_channels: tuple[int, ...] = (16, 32, 96, 256)
    controlnet_conditioning_channel_order: str = "rgb"
    global_pool_conditions: bool = False  # what is added is one number a channel: for pictures in another order

    def __post_init__(self) -> None:
        check_types(self)
        check_choice(
            "controlnet_conditioning_channel_order", self.controlnet_conditioning_channel_order, ("rgb", "bgr")
        )
        if len(self.conditioning_embedding_out_channels) != 4:
            widths = self.conditioning_embedding_out_channels
            raise InputError(f"conditioning_embedding_out_channels {widths}", remedy="give four: three halvings")

    @classmethod
    def from_diffusers(cls, config: Mapping[str, Any]) -> Self:
        """Read the config.json of a ControlNetModel. Raises InputError for a key or a value."""
        own = {key: frozen(value) for key, value in config.items() if key in OWN}
        downs = config.get("down_block_types", UNetConfig.down_block_types)
        ups = [str(name).replace("Down", "Up") for name in reversed(downs)]
        shared = {key: value for key, value in config.items() if key not in OWN and not key.startswith("_")}
        unet = {**shared, "up_block_types": ups, "_class_name": "UNet2DConditionModel"}
        return cls(unet=UNetConfig.from_diffusers(unet), **own)

    def to_diffusers(self) -> dict[str, Any]:
        """What is written as config.json."""
        written = {key: value for key, value in self.unet.to_diffusers().items() if key not in OF_THE_WAY_UP}
        own = {key: getattr(self, key) for key in sorted(OWN)}
        listed = {key: list(value) if isinstance(value, tuple) else value for key, value in own.items()}
        return {**written, **listed, "_class_name": "ControlNetModel"}

    def check_fits(self, unet: UNetConfig) -> None:
        """Raise InputError unless what this adds has the shapes of what that U-Net leaves."""
        shape = ("block_out_channels", "layers_per_block", "down_block_types", "cross_attention_dim", "pooled_width")
        for name in shape:
            mine, its = getattr(self.unet, name), getattr(unet, name)
            if mine != its:
                remedy = "take one that was made for models of this kind, such as Stable Diffusion 1"
                raise InputError(f"the ControlNet's {name} is {mine}, the U-Net's {its}", remedy=remedy)


class ControlNet(nn.Module):
    """What to add to a U-Net, from a noisy latent, its timestep, a context and a picture. A new one adds nothing."""

    def __init__(self, config: ControlNetConfig) -> None:
        super().__init__()
        self.config, c = config, config.unet
        channels = c.block_out_channels[0]
        self.conv_in = nn.Conv2d(c.in_channels, channels, 3, padding=1)
        self.time_embedding = TimestepEmbedding(channels, c.emb_channels)
        self.add_embedding = make_add_embedding(c)
        self.controlnet_cond_embedding = PictureEmbedding(
            config.conditioning_channels, config.conditioning_embedding_out_channels, channels
        )
        self.down_blocks, widths = make_down(c)
        self.mid_block = make_mid(c)
        self.controlnet_down_blocks = nn.ModuleList(nn.Conv2d(width, width, 1) for width in widths)
        self.controlnet_mid_block = nn.Conv2d(widths[-1], widths[-1], 1)
        for ending in (*self.controlnet_down_blocks, self.controlnet_mid_block):
            zero_init(ending)

    def forward(
        self, x: Tensor, timesteps: Tensor | float, context: Tensor, picture: Tensor, pooled: Tensor | None = None
    ) -> Added:
        """x (B, in_channels, h, w), a timestep for all or each, context (B, L, D), picture (B or 1, 3, 8·h, 8·w).

        The picture is in [0, 1]; `pooled` (B, width) is what Stable Diffusion XL is told beside the words. Raises
        InputError where the sizes do not fit.
        """
        return self.forward_embedded(x, self.embed_time(timesteps, pooled), context, self.look(picture, x.shape[-2:]))

    def embed_time(self, timesteps: Tensor | float, pooled: Tensor | None = None) -> Tensor:
        """Timesteps () or (B,), and what is told beside the words -> embedding (1 or B, emb_channels)."""
        check_pooled(pooled, self.config.unet)
        emb = self.time_embedding(wave(self.config.unet, timesteps, like=self.conv_in.weight))
        if self.add_embedding is None or pooled is None:
            return emb
        return emb + self.add_embedding(pooled.to(emb.dtype))

    def look(self, picture: Tensor, size: Sequence[int]) -> Tensor:
        """The picture's part of what `forward_embedded` takes, for latents of this (h, w): once for all steps."""
        wanted = (self.config.conditioning_channels, *(FACTOR * n for n in size))
        if tuple(picture.shape[1:]) != wanted:
            what = f"The ControlNet's picture is {tuple(picture.shape)}."
            raise InputError(what, remedy=f"give one of {wanted}, {FACTOR} times the latent's size")
        bgr = self.config.controlnet_conditioning_channel_order == "bgr"
        return self.controlnet_cond_embedding((picture.flip(1) if bgr else picture).to(self.conv_in.weight))

    def first(self, x: Tensor, seen: Tensor) -> Tensor:
        """What is added to the U-Net's first convolution, which is nearest to its way out."""
        return self._pooled(self.controlnet_down_blocks[0](self.conv_in(x) + seen))

    def forward_embedded(self, x: Tensor, emb: Tensor | Once, context: Tensor | Once | None, seen: Tensor) -> Added:
        """The net proper, with emb from `embed_time` and what `look` saw; contexts as `UNet.forward_embedded` does."""

        def layer(x: Tensor, res: nn.Module, attention: nn.Module | None) -> Tensor:
            x = res(x, emb)
            return x if attention is None else attention(x, context)

        x, skips = descend(
            self.down_blocks, self.mid_block, self.conv_in(x) + seen, layer, lambda part, *a: part(*a), emb
        )
        zero = cast(Sequence[nn.Module], self.controlnet_down_blocks)
        added = tuple(self._pooled(conv(skip)) for conv, skip in zip(zero, skips, strict=True))
        return Added(added, self._pooled(self.controlnet_mid_block(x)))

    def _pooled(self, x: Tensor) -> Tensor:
        return x.mean((2, 3), keepdim=True) if self.config.global_pool_conditions else x


class PictureEmbedding(nn.Module):
    """A picture (B, 3, 8·h, 8·w) -> (B, channels, h, w), to be added to the first convolution. It begins at zero."""

    def __init__(self, in_channels: int, widths: Sequence[int], channels: int) -> None:
        super().__init__()
        self.conv_in = nn.Conv2d(in_channels, widths[0], 3, padding=1)
        self.blocks = nn.ModuleList()
        for a, b in pairwise(widths):
            self.blocks.extend([nn.Conv2d(a, a, 3, padding=1), nn.Conv2d(a, b, 3, padding=1, stride=2)])
        self.conv_out = nn.Conv2d(widths[-1], channels, 3, padding=1)
        zero_init(self.conv_out)

    def forward(self, picture: Tensor) -> Tensor:
        """See the class."""
        x = F.silu(self.conv_in(picture))
        for block in self.blocks:
            x = F.silu(block(x))
        return self.conv_out(x)


class Control:
    """A ControlNet during one run: it looks at its picture once, and embeds the timesteps together.

    picture: (1, 3, H, W) in [0, 1]. scale: by how much it adds what it adds. acts: at which timesteps it does.
    """

    def __init__(
        self, network: ControlNet, picture: Tensor, timesteps: Sequence[float], *, scale: float = 1.0,
        acts: Callable[[float], bool] = lambda t: True,
    ) -> None:  # fmt: skip
        self.network, self.scale, self.acts = network, scale, acts
        with torch.no_grad():
            size = [n // FACTOR for n in picture.shape[-2:]]
            self.seen = network.look(picture.to(network.conv_in.weight.device), size)
            self.times: dict[float, Once] = {}
            if network.add_embedding is None:  # else the embedding depends on more than time
                steps = embed_steps(network, network.embed_time(torch.tensor(timesteps)))
                self.times = dict(zip(timesteps, steps, strict=True))

    def __call__(
        self, x: Tensor, timestep: float, context: Tensor | Once | None, pooled: Tensor | None = None
    ) -> Added | None:
        """What to add at a timestep to a U-Net that is told this; None where it does not act."""
        if not self.acts(timestep):
            return None
        known = self.times.get(timestep)
        emb = self.network.embed_time(timestep, pooled) if known is None else known
        return self.network.forward_embedded(self._own(x), emb, context, self.seen).scaled(self.scale)

    def first(self, x: Tensor, timestep: float) -> Tensor | None:
        """What to add to the U-Net's first convolution alone."""
        return self.network.first(self._own(x), self.seen) * self.scale if self.acts(timestep) else None

    def _own(self, x: Tensor) -> Tensor:
        """The noisy latent, without what an inpainting U-Net sees beside it."""
        return x[:, : self.network.config.unet.in_channels]
