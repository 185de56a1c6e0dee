"""Attention for images: from a picture to itself, and from a picture to a context. Parameter names are diffusers'.

Attention           multi-head attention, to itself or to a context
AttentionBlock      an image attends to itself, + x: where a net has no context
TransformerBlock    self-attention, cross-attention, feed-forward
Transformer         an image's pixels as tokens through transformer blocks, + x: where a net has a context
"""

from torch import Tensor, nn

from safelight import kernels
from safelight.models.layers import Conv1x1, GroupNorm, Linear
from safelight.models.once import Once, fan_out, read

__all__ = ["GEGLU", "Attention", "AttentionBlock", "Transformer", "TransformerBlock"]


class Attention(nn.Module):
    """Multi-head attention (Vaswani et al. 2017, arXiv 1706.03762): `dim` wide outside, `heads` heads inside.

    Keys and values come from a context of width `context_dim`, or from the input itself where that is None. `bias`
    gives q, k and v a bias; the output projection always has one.
    """

    fast = False
    rough = False

    def __init__(self, dim: int, heads: int, *, context_dim: int | None = None, bias: bool = False) -> None:
        super().__init__()
        self.heads = heads
        # What is made of a context is made once a prompt: that layer stays as it is where the others turn to int8.
        source, layer = (dim, Linear) if context_dim is None else (context_dim, nn.Linear)
        self.to_q = Linear(dim, dim, bias=bias)
        self.to_k = layer(source, dim, bias=bias)
        self.to_v = layer(source, dim, bias=bias)
        self.to_out = nn.Sequential(Linear(dim, dim))  # a list of one, because the field names it to_out.0

    def forward(self, x: Tensor, context: Tensor | Once | None = None, *, residual: Tensor | None = None) -> Tensor:
        """x (B, L, dim) attends to context (B, M, context_dim), or to itself -> (B, L, dim), + `residual`."""
        return self.attend(x, *read(x if context is None else context, self.keys_values), residual=residual)

    def to_int8(self) -> None:
        """Compute scores no nearer than layers in 8 bits do, but for a prompt: see `rough` of `kernels.attention`."""
        self.rough = isinstance(self.to_k, Linear)

    def keys_values(self, context: Tensor) -> tuple[Tensor, Tensor]:
        """Context (B, M, D) -> keys and values, each (B, heads, M, d): all that a net needs to know of a prompt."""
        return self.split(self.to_k(context)), self.split(self.to_v(context))

    def attend(self, x: Tensor, keys: Tensor, values: Tensor, *, residual: Tensor | None = None) -> Tensor:
        """x (B, L, dim) asks; keys and values as from `keys_values` -> (B, L, dim), + `residual`."""
        y = kernels.attention(self.split(self.to_q(x)), keys, values, rough=self.rough, fast=self.fast)
        return self.to_out[0](y.transpose(1, 2).flatten(2), residual=residual)

    def split(self, x: Tensor) -> Tensor:
        """(B, L, heads·d) -> (B, heads, L, d)."""
        return x.unflatten(2, (self.heads, -1)).transpose(1, 2)


class AttentionBlock(Attention):
    """A picture attends to itself: x + attention(norm(x)), pixels as tokens.

    The non-local block of DDPM (Ho et al. 2020, arXiv 2006.11239) and of the autoencoders. `groups` None leaves the
    normalisation out.
    """

    def __init__(self, channels: int, heads: int, *, groups: int | None = 32, eps: float = 1e-5) -> None:
        super().__init__(channels, heads, bias=True)
        self.group_norm = nn.Identity() if groups is None else GroupNorm(groups, channels, eps)

    def forward(self, x: Tensor, context: Tensor | Once | None = None, *, residual: Tensor | None = None) -> Tensor:
        """x (B, C, H, W) -> the same shape. `context` is not used: a Transformer may stand in this place.

        What is added is x, + `residual` if there is one.
        """
        beside = x if residual is None else x + residual
        return to_image(super().forward(to_tokens(self.group_norm(x)), residual=to_tokens(beside)), x)


class GEGLU(nn.Module):
    """A linear layer whose one half gates the other: a·gelu(b) (Shazeer 2020, arXiv 2002.05202)."""

    fast = False

    def __init__(self, dim: int, inner: int) -> None:
        super().__init__()
        self.proj = Linear(dim, 2 * inner)

    def forward(self, x: Tensor) -> Tensor:
        """(..., dim) -> (..., inner)."""
        return kernels.geglu(x, self.proj.weight, self.proj.bias, scale=self.proj.scale, fast=self.fast)


class FeedForward(nn.Module):
    """GEGLU to four times the width, and back."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        # The middle place was once a dropout; the field names the last layer net.2 ever since.
        self.net = nn.Sequential(GEGLU(dim, 4 * dim), nn.Identity(), Linear(4 * dim, dim))

    def forward(self, x: Tensor, *, residual: Tensor | None = None) -> Tensor:
        """(..., dim) -> the same shape, + `residual`."""
        return self.net[2](self.net[1](self.net[0](x)), residual=residual)


class TransformerBlock(nn.Module):
    """Self-attention, cross-attention, feed-forward, each after a layer norm and with a residual.

    With `only_cross_attention` the first attention, too, looks at the context (`disable_self_attentions` of the
    x4 upscaler).
    """

    def __init__(self, dim: int, heads: int, context_dim: int, *, only_cross_attention: bool = False) -> None:
        super().__init__()
        self.only_cross_attention = only_cross_attention
        self.norm1, self.norm2, self.norm3 = (nn.LayerNorm(dim) for _ in range(3))
        self.attn1 = Attention(dim, heads, context_dim=context_dim if only_cross_attention else None)
        self.attn2 = Attention(dim, heads, context_dim=context_dim)
        self.ff = FeedForward(dim)

    def forward(self, x: Tensor, context: Tensor | Once) -> Tensor:
        """x (B, L, dim), context (B or n·B, M, context_dim) -> (B or n·B, L, dim).

        With n contexts for each x, all that comes before the first look at them is computed once.
        """
        if self.only_cross_attention:
            x = fan_out(x, len(context))
        x = self.attn1(self.norm1(x), context if self.only_cross_attention else None, residual=x)
        x = fan_out(x, len(context))
        x = self.attn2(self.norm2(x), context, residual=x)
        return self.ff(self.norm3(x), residual=x)


class Transformer(nn.Module):
    """The pixels of a picture, as tokens, through `depth` transformer blocks; the result is added to the picture.

    The SpatialTransformer of latent diffusion (Rombach et al. 2022, arXiv 2112.10752, section 3.3). Its outer
    projections are 1x1 convolutions in SD 1 and linear layers in SD 2: the same mathematics in another shape of weight.
    """

    def __init__(
        self,
        channels: int,
        heads: int,
        context_dim: int,
        *,
        depth: int = 1,
        groups: int = 32,
        linear_projection: bool = False,
        only_cross_attention: bool = False,
    ) -> None:
        super().__init__()
        self.linear_projection = linear_projection
        self.norm = GroupNorm(groups, channels, 1e-6)
        self.proj_in = nn.Linear(channels, channels) if linear_projection else Conv1x1(channels, channels)
        self.transformer_blocks = nn.ModuleList(
            TransformerBlock(channels, heads, context_dim, only_cross_attention=only_cross_attention)
            for _ in range(depth)
        )
        self.proj_out = nn.Linear(channels, channels) if linear_projection else Conv1x1(channels, channels)

    def forward(self, x: Tensor, context: Tensor | Once) -> Tensor:
        """x (B, C, H, W), context (B or n·B, M, context_dim) -> (B or n·B, C, H, W)."""
        h = self.norm(x)
        h = self.proj_in(to_tokens(h)) if self.linear_projection else to_tokens(self.proj_in(h))
        for block in self.transformer_blocks:
            h = block(h, context)
        x = fan_out(x, len(h))
        if self.linear_projection:
            return x + to_image(self.proj_out(h), x)
        return self.proj_out(to_image(h, x), residual=x)


def to_tokens(x: Tensor) -> Tensor:
    """(B, C, H, W) -> (B, H·W, C), row by row; free of cost if x is channels-last in memory."""
    return x.permute(0, 2, 3, 1).flatten(1, 2)


def to_image(tokens: Tensor, like: Tensor) -> Tensor:
    """(B, H·W, C) -> (B, C, H, W), height and width taken from `like`."""
    return tokens.unflatten(1, like.shape[-2:]).permute(0, 3, 1, 2)
