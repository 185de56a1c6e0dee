"""What tells a U-Net of time, class and size: vectors, added up to the embedding that every residual block receives."""

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from safelight.errors import InputError
from safelight.models.layers import activation
from safelight.models.unet_config import UNetConfig

__all__ = [
    "SIZES",
    "TimestepEmbedding",
    "beside_words",
    "check_pooled",
    "make_add_embedding",
    "make_class_embedding",
    "sinusoid",
    "wave",
]


SIZES = 6  # numbers that Stable Diffusion XL's U-Net is told, see `beside_words`


class TimestepEmbedding(nn.Module):
    """Two linear layers with an activation between: from sinusoids, or another vector, to the embedding."""

    def __init__(self, in_channels: int, out_channels: int, act: str = "silu") -> None:
        super().__init__()
        self.linear_1 = nn.Linear(in_channels, out_channels)
        self.act = activation(act)
        self.linear_2 = nn.Linear(out_channels, out_channels)

    def forward(self, x: Tensor) -> Tensor:
        """(B, in_channels) -> (B, out_channels)."""
        return self.linear_2(self.act(self.linear_1(x)))


def wave(c: UNetConfig, t: Tensor | float, *, like: Tensor) -> Tensor:
    """Timesteps () or (B,) as sinusoids (1 or B, C): computed in float32, then cast to a weight's dtype."""
    if not isinstance(t, Tensor):
        t = torch.full((1,), t, dtype=torch.float32, device=like.device)  # made there: to send it would be to wait
    t = t.to(like.device, torch.float32).reshape(-1)
    waves = sinusoid(t, c.block_out_channels[0], flip_sin_to_cos=c.flip_sin_to_cos, freq_shift=c.freq_shift)
    return waves.to(like.dtype)


def make_class_embedding(c: UNetConfig) -> nn.Module | None:
    """What takes class labels to the width of the time embedding, to which they are added; None: no classes."""
    if c.class_embed_type is None:
        return None if c.num_class_embeds is None else nn.Embedding(c.num_class_embeds, c.emb_channels)
    if c.class_embed_type == "timestep":
        return TimestepEmbedding(c.block_out_channels[0], c.emb_channels, c.outer_act_fn)
    if c.class_embed_type == "identity":
        return nn.Identity()
    width = c.projection_class_embeddings_input_dim
    assert width is not None  # UNetConfig has seen to it
    if c.class_embed_type == "projection":
        return TimestepEmbedding(width, c.emb_channels)
    return nn.Linear(width, c.emb_channels)


def make_add_embedding(c: UNetConfig) -> TimestepEmbedding | None:
    """What takes the pooled vector to the width of the time embedding, to which it is added; None: none is told."""
    return None if c.pooled_width is None else TimestepEmbedding(c.pooled_width, c.emb_channels)


def check_pooled(pooled: Tensor | None, c: UNetConfig) -> None:
    """Raise InputError unless there is a pooled vector exactly where the net is told one, and of its width."""
    width = c.pooled_width
    if (None if pooled is None else pooled.shape[-1]) != width:
        given = "none" if pooled is None else f"{tuple(pooled.shape)}"
        remedy = "leave it out" if width is None else f"pass (B, {width}), which `beside_words` makes"
        raise InputError(
            f"This U-Net takes {'no' if width is None else 'a'} pooled vector; got {given}.", remedy=remedy
        )


def beside_words(pooled: Tensor, sizes: Tensor, channels: int = 256) -> Tensor:
    """What Stable Diffusion XL's U-Net is told beside the words: float32 (B, P + n·channels), `pooled` and sinusoids.

    pooled: (B, P), what the text encoder says of the whole text. sizes: (B or 1, n) pixels: height and width of the
    picture that was learned from, top and left of the part that was cut out of it, height and width of what is drawn
    (Podell et al. 2023, arXiv 2307.01952, section 2.2).
    """
    waves = sinusoid(sizes.to(pooled.device, torch.float32).flatten(), channels).unflatten(0, sizes.shape).flatten(1)
    return torch.cat([pooled.float(), waves.expand(len(pooled), -1)], dim=1)


def sinusoid(
    timesteps: Tensor, channels: int, *, flip_sin_to_cos: bool = True, freq_shift: float = 0, max_period: float = 10_000
) -> Tensor:
    """Timesteps (B,) -> (B, channels) sines and cosines of geometric frequencies, from 1 down to about 1/max_period.

    Vaswani et al. 2017 (arXiv 1706.03762, section 3.5), as Ho et al. 2020 use it. Always float32. Sines come first,
    or cosines with `flip_sin_to_cos`; an odd number of channels ends with a zero.
    """
    half = channels // 2
    exponents = -math.log(max_period) * torch.arange(half, dtype=torch.float32, device=timesteps.device)
    angles = timesteps.float()[:, None] * torch.exp(exponents / (half - freq_shift))
    waves = [angles.cos(), angles.sin()] if flip_sin_to_cos else [angles.sin(), angles.cos()]
    return F.pad(torch.cat(waves, dim=1), (0, channels % 2))
