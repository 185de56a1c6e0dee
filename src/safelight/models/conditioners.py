"""What carries something other than words to a U-Net: a class, a layout, a map of classes.

ClassEmbedder    a class -> one token of context
LayoutEmbedder   boxes with classes -> one token of context each
MapEmbedder      the class at each pixel -> channels beside the noisy latent

They are the `cond_stage_model` of the latent-diffusion models (Rombach et al. 2022, arXiv 2112.10752, sections 4.1, 4.3
and 4.4), trained together with the U-Net. A folder keeps one as `conditioner/`, with a config.json.
"""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from math import pi
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from safelight.errors import InputError, nearest
from safelight.models.attention import Attention, FeedForward
from safelight.models.config import check_types

__all__ = ["CONDITIONERS", "ClassEmbedder", "Conditioner", "LayoutEmbedder", "MapEmbedder", "make_conditioner"]

NO_OBJECT = -1  # the class of a place in a layout where there is nothing


@dataclass(frozen=True, kw_only=True)
class _Config:
    def __post_init__(self) -> None:
        check_types(self, may_be_zero=("null_class",))


class ClassEmbedder(nn.Module):
    """A row of a table for each class, as the only token of the context."""

    @dataclass(frozen=True, kw_only=True)
    class Config(_Config):
        """`null_class` is the row that stands for no class in particular, if one was trained, for guidance."""

        num_classes: int
        embed_dim: int
        null_class: int | None = None

    steers: ClassVar[str] = "class"

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.config = config
        self.embedding = nn.Embedding(config.num_classes, config.embed_dim)

    def forward(self, labels: Tensor) -> Tensor:
        """Classes (B,), whole numbers -> context (B, 1, embed_dim)."""
        return self.embedding(labels)[:, None]


class LayoutEmbedder(nn.Module):
    """Objects, each a class and a box, become tokens that see each other, in no order: a transformer without positions.

    The paper writes a layout as a sentence of discrete tokens, three an object (section 4.3.1), for a transformer to
    read; here a box stays four numbers, told by sines (Li et al. 2023, arXiv 2301.07093, eq. 5), and an object is one
    token. A place without an object has a class of its own, and a layout of those alone is the null condition.
    """

    @dataclass(frozen=True, kw_only=True)
    class Config(_Config):
        """`num_classes` counts the classes of objects, `frequencies` the pairs of sine and cosine of a coordinate."""

        num_classes: int
        embed_dim: int
        max_objects: int = 8
        num_layers: int = 2
        num_heads: int = 4
        frequencies: int = 6

    steers: ClassVar[str] = "layout"

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.config = config
        self.class_embedding = nn.Embedding(config.num_classes + 1, config.embed_dim)
        self.box_embedding = nn.Linear(4 * 2 * config.frequencies, config.embed_dim)
        self.layers = nn.ModuleList(Layer(config.embed_dim, config.num_heads) for _ in range(config.num_layers))
        self.norm = nn.LayerNorm(config.embed_dim)

    def forward(self, boxes: Tensor, labels: Tensor) -> Tensor:
        """Boxes (B, K, 4): x0, y0, x1, y1 as shares of width and height; classes (B, K), -1 where there is no object.

        Gives the context (B, K, embed_dim). A box without an object says nothing, whatever its numbers are.
        """
        nothing = labels == NO_OBJECT
        classes = self.class_embedding(labels.masked_fill(nothing, self.config.num_classes))
        x = classes + self.box_embedding(self.waves(boxes)).masked_fill(nothing[..., None], 0)
        for layer in self.layers:
            x = layer(x)
        return self.norm(x)

    def waves(self, boxes: Tensor) -> Tensor:
        """Boxes (B, K, 4) -> sines and cosines of π, 2π, 4π, … times each number, (B, K, 4·2·frequencies)."""
        dtype = self.box_embedding.weight.dtype
        octaves = pi * 2.0 ** torch.arange(self.config.frequencies, device=boxes.device)
        angles = boxes.float()[..., None] * octaves
        return torch.cat([angles.sin(), angles.cos()], -1).flatten(2).to(dtype)


class Layer(nn.Module):
    """Self-attention of all to all, then a feed-forward network, each after a layer norm and with a residual."""

    def __init__(self, dim: int, heads: int) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(dim), nn.LayerNorm(dim)
        self.attn = Attention(dim, heads)
        self.ff = FeedForward(dim)

    def forward(self, x: Tensor) -> Tensor:
        """(B, K, dim) -> the same shape."""
        x = x + self.attn(self.norm1(x))
        return x + self.ff(self.norm2(x))


class MapEmbedder(nn.Module):
    """A few channels for the class of each pixel, shrunk to the latent's size by taking means.

    The original shrinks a map of one channel a class, and mixes these by a 1x1 convolution (LDM's `SpatialRescaler`).
    Both are linear, so that looking the classes up in a table first is the same.
    """

    @dataclass(frozen=True, kw_only=True)
    class Config(_Config):
        """`num_classes` counts what a pixel can be, background included; `out_channels` go beside the latent."""

        num_classes: int
        out_channels: int = 3

    steers: ClassVar[str] = "map"

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.config = config
        self.embedding = nn.Embedding(config.num_classes, config.out_channels)

    def forward(self, class_map: Tensor, size: tuple[int, int]) -> Tensor:
        """Maps (B, H, W) of whole numbers -> (B, out_channels, h, w) for latents of this (h, w)."""
        return F.adaptive_avg_pool2d(self.embedding(class_map).movedim(-1, 1), size)


Conditioner = ClassEmbedder | LayoutEmbedder | MapEmbedder
CONDITIONERS: dict[str, type[ClassEmbedder] | type[LayoutEmbedder] | type[MapEmbedder]] = {
    kind.__name__: kind for kind in (ClassEmbedder, LayoutEmbedder, MapEmbedder)
}


def make_conditioner(config: Mapping[str, Any]) -> Conditioner:
    """Draw the conditioner that a config.json describes. Raises InputError for another class, a key or a value."""
    name, given = config.get("_class_name"), {k: v for k, v in config.items() if not k.startswith("_")}
    if name not in CONDITIONERS:
        raise InputError(f"there is no conditioner {name!r}", remedy=nearest(str(name), CONDITIONERS))
    kind = CONDITIONERS[name]
    known = [field.name for field in fields(kind.Config)]
    for key in given.keys() - set(known):
        raise InputError(f"a {name} has no {key!r}", remedy=nearest(key, known))
    return kind(kind.Config(**given))  # type: ignore[arg-type]


def config_of(conditioner: Conditioner) -> dict[str, Any]:
    """The config.json of a conditioner: `make_conditioner(config_of(c))` has the shape of c."""
    return {"_class_name": type(conditioner).__name__, **asdict(conditioner.config)}
