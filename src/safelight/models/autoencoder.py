"""The first stage: pictures to latents and back (Rombach et al. 2022, arXiv 2112.10752, section 3.1 and appendix G).

One encoder and one decoder, with a KL or a VQ bottleneck between them (`safelight.models.bottleneck`). Every level but
the last halves the resolution on the way down and doubles it on the way up: n levels make a factor of f = 2^(n-1).
Parameter names are those of diffusers' AutoencoderKL and VQModel: `encoder.down_blocks.0.resnets.0.conv1.weight`.
"""

from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import replace

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from safelight import kernels
from safelight.errors import InputError
from safelight.models.attention import AttentionBlock
from safelight.models.autoencoder_config import DOWN_BLOCKS, UP_BLOCKS, AutoencoderConfig
from safelight.models.bottleneck import Bottleneck, GaussianBottleneck, LatentScale, Posterior, VectorQuantizer
from safelight.models.layers import Downsample, GroupNorm, ResBlock, Upsample
from safelight.models.strips import decode_in_strips
from safelight.models.tiling import tiled

__all__ = ["Autoencoder", "AutoencoderConfig", "Decoder", "Encoder"]

EPS = 1e-6  # of every group norm in an autoencoder; the U-Net's is 1e-5


class Autoencoder(nn.Module):
    """An encoder, a bottleneck and a decoder.

    >>> posterior = autoencoder.encode(picture)        # doctest: +SKIP
    >>> again = autoencoder.decode(posterior.mode())   # doctest: +SKIP

    Memory grows with the picture's area. At its peak decoding holds 4 to 5 tensors, encoding 3, of the size
    (B, block_out_channels[1], H, W), beside the weights: 1.2 GB to decode 512x512 in float32 with Stable Diffusion's.
    `tile`, the side of a tile in pixels, bounds H and W in that sum; what it changes is told in
    `safelight.models.tiling`. `strips` changes nothing but rounding: decoding then holds little more than one tensor of
    the size (B, block_out_channels[0], H, W), for more time where pictures are very large; see
    `safelight.models.strips`. When to use them is the caller's choice.
    """

    def __init__(self, config: AutoencoderConfig) -> None:
        super().__init__()
        self.config = config
        self.scale = LatentScale(config.scaling_factor, 0.0 if config.shift_factor is None else config.shift_factor)
        z, embed_dim = config.latent_channels, config.embed_dim
        # The bottleneck has diffusers' name for a codebook; a Gaussian has no parameters, so its name shows nowhere.
        self.quantize: Bottleneck = (
            GaussianBottleneck()
            if config.num_vq_embeddings is None
            else VectorQuantizer(config.num_vq_embeddings, embed_dim)
        )
        n = self.quantize.moments_per_channel
        self.encoder = Encoder(config, n * z)
        self.quant_conv = nn.Conv2d(n * z, n * embed_dim, 1) if config.use_quant_conv else nn.Identity()
        self.post_quant_conv = nn.Conv2d(embed_dim, z, 1) if config.use_post_quant_conv else nn.Identity()
        self.decoder = Decoder(config)

    def rescale(self, scaling_factor: float) -> None:
        """Have latents of another scale from now on, for a U-Net that was trained on such."""
        self.config = replace(self.config, scaling_factor=scaling_factor)
        self.scale = LatentScale(scaling_factor, self.scale.shift)

    def encode(self, picture: Tensor, *, tile: int | None = None) -> Posterior:
        """Pictures (B, 3, H, W) in [-1, 1], H and W multiples of the factor f -> `Posterior` over latents, float32.

        The latents are (B, C, H/f, W/f). Of a VQ autoencoder they are those before quantisation.
        Raises InputError for another shape.
        """
        return self.quantize.posterior(self.moments(picture, tile=tile).float(), self.scale)

    def decode(self, latent: Tensor, *, quantize: bool = True, tile: int | None = None, strips: bool = False) -> Tensor:
        """Scaled latents (B, C, h, w) -> pictures (B, 3, f·h, f·w), about in [-1, 1], not clamped, float32.

        A VQ autoencoder first takes the nearest codes, unless `quantize` is False; a KL autoencoder has none.
        Raises InputError for another number of channels.
        """
        return self.decode_raw(self.scale.undo(latent), quantize=quantize, tile=tile, strips=strips).float()

    def forward(self, picture: Tensor) -> Tensor:
        """Reconstruct pictures (B, 3, H, W) from the mode of their posterior: the same shape."""
        return self.decode(self.encode(picture).mode())

    def moments(self, picture: Tensor, *, tile: int | None = None) -> Tensor:
        """Pictures -> what the bottleneck's posterior is made of, in the network's dtype.

        KL: raw means and log-variances, unclamped, (B, 2C, h, w). VQ: raw latents before quantisation, (B, C, h, w).
        """
        self._check_picture(picture)
        return self._run(lambda x: self.quant_conv(self.encoder(x)), picture, tile, self.config.factor, 1)

    def decode_raw(self, z: Tensor, *, quantize: bool = True, tile: int | None = None, strips: bool = False) -> Tensor:
        """Like `decode`, of raw (unscaled) latents, and in the network's dtype."""
        channels = self.config.embed_dim
        if z.ndim != 4 or z.shape[1] != channels:
            raise InputError(
                f"latents of shape {tuple(z.shape)} do not fit this autoencoder",
                remedy=f"give a tensor of shape (batch, {channels}, height, width)",
            )
        z = self.quantize.snap(z) if quantize else z
        if strips and tile is None:
            return decode_in_strips(self.decoder, self.post_quant_conv(z.to(self.dtype)))
        return self._run(lambda x: self.decoder(self.post_quant_conv(x)), z, tile, 1, self.config.factor)

    @property
    def dtype(self) -> torch.dtype:
        """The dtype that encoder and decoder compute in."""
        return self.decoder.conv_out.weight.dtype

    def _run(
        self, network: Callable[[Tensor], Tensor], x: Tensor, tile: int | None, unit_in: int, unit_out: int
    ) -> Tensor:
        """Put x through a network whole, or in tiles with a side of `tile` pixels that overlap by a quarter."""
        x = x.to(self.dtype)
        if tile is None:
            with nullcontext() if torch.is_grad_enabled() else kernels.reused():
                return network(x)
        cells, rest = divmod(tile, self.config.factor)
        if rest or cells < 2:
            raise InputError(
                f"a tile of {tile} pixels does not fit an autoencoder of factor {self.config.factor}",
                remedy=f"choose a multiple of {self.config.factor}, at least twice that; 512 is usual",
            )
        return tiled(network, x, tile=cells, overlap=max(cells // 4, 1), unit_in=unit_in, unit_out=unit_out).to(x)

    def _check_picture(self, picture: Tensor) -> None:
        channels, factor = self.config.in_channels, self.config.factor
        if picture.ndim != 4 or picture.shape[1] != channels:
            raise InputError(
                f"pictures of shape {tuple(picture.shape)} do not fit this autoencoder",
                remedy=f"give a tensor of shape (batch, {channels}, height, width)",
            )
        height, width = picture.shape[2:]
        if height % factor or width % factor:
            fit = f"{max(width // factor, 1) * factor}x{max(height // factor, 1) * factor}"
            raise InputError(
                f"a picture of {width}x{height} pixels cannot be encoded: the sides must be multiples of {factor}",
                remedy=f"crop or resize it, for example to {fit}",
            )


class Encoder(nn.Module):
    """Pictures (B, in_channels, H, W) -> (B, out_channels, H/f, W/f)."""

    def __init__(self, config: AutoencoderConfig, out_channels: int) -> None:
        super().__init__()
        channels, last = config.block_out_channels, len(config.block_out_channels) - 1
        self.gradient_checkpointing = False
        self.conv_in = nn.Conv2d(config.in_channels, channels[0], 3, padding=1)
        self.down_blocks = nn.ModuleList(
            Level(
                config, channels[max(i - 1, 0)], channels[i], config.layers_per_block, DOWN_BLOCKS[kind], down=i < last
            )
            for i, kind in enumerate(config.down_block_types)
        )
        self.mid_block = Middle(config)
        self.conv_norm_out = GroupNorm(config.norm_num_groups, channels[-1], EPS, act="silu")
        self.conv_out = nn.Conv2d(channels[-1], out_channels, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        """See the class."""
        x = through([*self.down_blocks, self.mid_block], self.conv_in(x), checkpointed=self.gradient_checkpointing)
        return self.conv_out(self.conv_norm_out(x))


class Decoder(nn.Module):
    """Latents (B, latent_channels, h, w) -> pictures (B, out_channels, f·h, f·w).

    `conv_out` is the "last layer" at which the paper's adversarial training weighs its losses against each other.
    """

    def __init__(self, config: AutoencoderConfig) -> None:
        super().__init__()
        channels, last = config.block_out_channels[::-1], len(config.block_out_channels) - 1
        self.gradient_checkpointing = False
        self.conv_in = nn.Conv2d(config.latent_channels, channels[0], 3, padding=1)
        self.mid_block = Middle(config)
        self.up_blocks = nn.ModuleList(
            Level(
                config, channels[max(i - 1, 0)], channels[i], config.layers_per_block + 1, UP_BLOCKS[kind], up=i < last
            )
            for i, kind in enumerate(config.up_block_types)
        )
        self.conv_norm_out = GroupNorm(config.norm_num_groups, channels[-1], EPS, act="silu")
        self.conv_out = nn.Conv2d(channels[-1], config.out_channels, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        """See the class."""
        return self.conv_out(self.features(x))

    def features(self, x: Tensor) -> Tensor:
        """Latents (B, latent_channels, h, w) -> what `conv_out` makes the picture of, (B, C, f·h, f·w)."""
        x = through([self.mid_block, *self.up_blocks], self.conv_in(x), checkpointed=self.gradient_checkpointing)
        return self.conv_norm_out(x)


class Level(nn.Module):
    """Residual blocks at one resolution, each followed by an attention if there is any, then a change of resolution."""

    def __init__(
        self,
        config: AutoencoderConfig,
        before: int,
        channels: int,
        layers: int,
        attention: bool,
        *,
        down: bool = False,
        up: bool = False,
    ) -> None:
        super().__init__()
        widths = [before] + [channels] * layers
        self.resnets = nn.ModuleList(residual(config, widths[i], widths[i + 1]) for i in range(layers))
        self.attentions = nn.ModuleList(self_attention(config, channels) for _ in range(layers if attention else 0))
        self.downsamplers = nn.ModuleList([Downsample(channels, padding=0)] if down else [])
        self.upsamplers = nn.ModuleList([Upsample(channels)] if up else [])

    def forward(self, x: Tensor) -> Tensor:
        """(B, before, H, W) -> (B, channels, H', W')."""
        for i, resnet in enumerate(self.resnets):
            x = resnet(x)
            if self.attentions:
                x = self.attentions[i](x)
        for resample in (*self.downsamplers, *self.upsamplers):
            x = resample(x)
        return x


class Middle(nn.Module):
    """Residual block, attention (unless the config leaves it out), residual block, at the lowest resolution."""

    def __init__(self, config: AutoencoderConfig) -> None:
        super().__init__()
        channels = config.block_out_channels[-1]
        self.resnets = nn.ModuleList(residual(config, channels, channels) for _ in range(2))
        self.attentions = nn.ModuleList([self_attention(config, channels)] if config.mid_block_add_attention else [])

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, h, w) -> the same shape."""
        for block in (self.resnets[0], *self.attentions, self.resnets[1]):
            x = block(x)
        return x


def residual(config: AutoencoderConfig, in_channels: int, out_channels: int) -> ResBlock:
    """A residual block without any embedding: an autoencoder knows no time."""
    return ResBlock(in_channels, out_channels, groups=config.norm_num_groups, eps=EPS)


def self_attention(config: AutoencoderConfig, channels: int) -> AttentionBlock:
    """Attention of all pixels to each other, in one head as wide as the picture has channels."""
    return AttentionBlock(channels, 1, groups=config.norm_num_groups, eps=EPS)


def through(blocks: list[nn.Module], x: Tensor, *, checkpointed: bool) -> Tensor:
    """Put x through blocks in turn; `checkpointed`, the backward pass computes them anew instead of keeping them."""
    for block in blocks:
        x = checkpoint(block, x, use_reentrant=False) if checkpointed and torch.is_grad_enabled() else block(x)
    return x
