"""CLIP's image encoder, a vision transformer (Radford et al. 2021, arXiv 2103.00020; Dosovitskiy et al. 2021).

Only for measuring pictures: nothing here draws with it. Parameter names are those of the checkpoints:
`vision_model.encoder.layers.0.self_attn.q_proj.weight`. The layers are those of the text encoder, without its mask.
"""

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from safelight.errors import InputError
from safelight.models.clip import TextConfig, TextLayers
from safelight.models.config import check_types

__all__ = ["VisionConfig", "VisionEncoder"]

# Of the pictures that CLIP was trained on, in [0, 1].
MEAN = (0.48145466, 0.4578275, 0.40821073)
STD = (0.26862954, 0.26130258, 0.27577711)


@dataclass(frozen=True, kw_only=True)
class VisionConfig:
    """The shape of an image encoder; names, meanings and defaults are those of transformers' `CLIPVisionConfig`."""

    hidden_size: int = 768
    intermediate_size: int = 3072
    projection_dim: int = 512
    num_hidden_layers: int = 12
    num_attention_heads: int = 12
    image_size: int = 224
    patch_size: int = 32
    hidden_act: str = "quick_gelu"
    layer_norm_eps: float = 1e-5

    def __post_init__(self) -> None:
        check_types(self)
        if self.image_size % self.patch_size:
            what = f"pictures of {self.image_size} pixels cannot be cut into patches of {self.patch_size}"
            raise InputError(what, remedy="choose an image_size that patch_size divides")

    @classmethod
    def from_transformers(cls, data: Mapping[str, Any]) -> "VisionConfig":
        """Read the config.json of an image encoder, or of a whole CLIP; what shapes no image encoder is passed over."""
        inner = {**data, **data.get("vision_config", {})}
        if "projection_dim" in data:  # a whole model's own, which its vision_config may state wrongly
            inner["projection_dim"] = data["projection_dim"]
        return cls(**{f.name: inner[f.name] for f in fields(cls) if inner.get(f.name) is not None})

    @property
    def patches(self) -> int:
        """How many patches a picture is cut into."""
        return (self.image_size // self.patch_size) ** 2

    @property
    def layers(self) -> TextConfig:
        """What the transformer's layers need to know."""
        return TextConfig(
            hidden_size=self.hidden_size,
            intermediate_size=self.intermediate_size,
            num_hidden_layers=self.num_hidden_layers,
            num_attention_heads=self.num_attention_heads,
            hidden_act=self.hidden_act,
            layer_norm_eps=self.layer_norm_eps,
        )


class VisionEncoder(nn.Module):
    """Pictures -> one embedding each, comparable with texts' by its direction."""

    def __init__(self, config: VisionConfig) -> None:
        super().__init__()
        self.config = config
        self.vision_model = VisionTransformer(config)
        self.visual_projection = nn.Linear(config.hidden_size, config.projection_dim, bias=False)

    def forward(self, pictures: Tensor) -> Tensor:
        """Pictures (B, 3, H, W) in [-1, 1], of any size -> embeddings (B, projection_dim), not normalised.

        The shorter side is resized to image_size (bicubic) and the middle cropped, as CLIP's preprocessing does.
        """
        x = framed(pictures, self.config.image_size) / 2 + 0.5
        mean, std = (torch.tensor(v, dtype=x.dtype, device=x.device).view(3, 1, 1) for v in (MEAN, STD))
        return self.visual_projection(self.vision_model((x - mean) / std))


class VisionTransformer(nn.Module):
    """Embeddings, norm, layers, norm of the class token: the `vision_model.` of the checkpoints."""

    def __init__(self, config: VisionConfig) -> None:
        super().__init__()
        self.embeddings = VisionEmbeddings(config)
        self.pre_layrnorm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)  # so it is spelt in the files
        self.encoder = TextLayers(config.layers)
        self.post_layernorm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)

    def forward(self, x: Tensor) -> Tensor:
        """Normalised pictures (B, 3, S, S) -> (B, D)."""
        hidden = self.pre_layrnorm(self.embeddings(x))
        tokens = hidden.shape[1]
        everyone = torch.ones(tokens, tokens, dtype=torch.bool, device=x.device)  # sees everyone: the default is causal
        hidden = self.encoder(hidden, everyone)[-1]
        return self.post_layernorm(hidden[:, 0])


class VisionEmbeddings(nn.Module):
    """A class token and the picture's patches, with learned positions."""

    def __init__(self, config: VisionConfig) -> None:
        super().__init__()
        self.class_embedding = nn.Parameter(torch.zeros(config.hidden_size))
        self.patch_embedding = nn.Conv2d(3, config.hidden_size, config.patch_size, config.patch_size, bias=False)
        self.position_embedding = nn.Embedding(config.patches + 1, config.hidden_size)

    def forward(self, x: Tensor) -> Tensor:
        """(B, 3, S, S) -> (B, 1 + patches, D)."""
        patches = self.patch_embedding(x).flatten(2).mT
        first = self.class_embedding.expand(len(x), 1, -1)
        return torch.cat([first, patches], dim=1) + self.position_embedding.weight


def framed(pictures: Tensor, side: int) -> Tensor:
    """Resize (B, 3, H, W) in [-1, 1] so that the shorter side is `side`, crop the middle; in 8 bits throughout.

    The order of the passes, and rounding after each, are Pillow's, with which CLIP's preprocessing resizes.
    """
    height, width = pictures.shape[2:]
    scale = side / min(height, width)
    high, wide = max(int(height * scale), side), max(int(width * scale), side)
    x = ((pictures.clamp(-1, 1) + 1) * 127.5).round()
    for size in ((height, wide), (high, wide)):
        if size != tuple(x.shape[2:]):
            x = F.interpolate(x, size, mode="bicubic", antialias=True).clamp(0, 255).round()
    top, left = (high - side) // 2, (wide - side) // 2
    return x[:, :, top : top + side, left : left + side] / 127.5 - 1
