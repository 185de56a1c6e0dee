"""diffusers' networks: `UNet2DConditionModel`, `UNet2DModel`, `AutoencoderKL`, `VQModel`. Latents are not scaled."""

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Self

import torch
from torch import Tensor

from safelight.checkpoint.build import Plan
from safelight.checkpoint.folders import plan_autoencoder, plan_unet
from safelight.checkpoint.load import load_autoencoder, load_parts
from safelight.compat.faces import Pretrained
from safelight.compat.loading import Options
from safelight.compat.outputs import (
    AutoencoderKLOutput,
    DecoderOutput,
    UNet2DConditionOutput,
    UNet2DOutput,
    VQEncoderOutput,
)
from safelight.compat.randomness import DiagonalGaussianDistribution, Generators
from safelight.errors import InputError, MissingPartError
from safelight.models.autoencoder import Autoencoder, AutoencoderConfig
from safelight.models.bottleneck import VectorQuantizer
from safelight.models.controlnet import ControlNet
from safelight.models.embedding import beside_words
from safelight.models.unet import Added, UNet, UNetConfig


class Diffuser(Pretrained):
    """What diffusers' models have beside their networks: the memory switches of scripts."""

    net: UNet | Autoencoder | ControlNet

    def enable_gradient_checkpointing(self) -> None:
        """Compute activations again in the backward pass instead of keeping them."""
        self._checkpointing(True)

    def disable_gradient_checkpointing(self) -> None:
        """Keep activations for the backward pass."""
        self._checkpointing(False)

    def _checkpointing(self, on: bool) -> None:
        for module in self.net.modules():
            if hasattr(module, "gradient_checkpointing"):
                setattr(module, "gradient_checkpointing", on)  # noqa: B010  (some modules have such a switch)

    def enable_xformers_memory_efficient_attention(self, *_: Any, **__: Any) -> None:
        """Do nothing: attention is memory-efficient as it is."""

    def disable_xformers_memory_efficient_attention(self) -> None:
        """Do nothing: attention is memory-efficient as it is."""

    def set_attention_slice(self, slice_size: Any = "auto") -> None:
        """Do nothing: attention is memory-efficient as it is."""

    def fuse_qkv_projections(self) -> None:
        """Do nothing: the result is the same without."""

    def unfuse_qkv_projections(self) -> None:
        """Do nothing: nothing was fused."""

    def set_default_attn_processor(self) -> None:
        """Do nothing: there is one kind of attention."""

    def set_attn_processor(self, processor: Any) -> None:
        """Raise MissingPartError."""
        raise MissingPartError(f"attention by a {type(processor).__name__} is not here yet", remedy="leave it out")


class UNet2DConditionModel(Diffuser):
    """The conditional U-Net. Keywords of the constructor are the entries of config.json."""

    net: UNet

    def __init__(self, **config: Any) -> None:
        native = UNetConfig.from_diffusers({**config, "_class_name": type(self).__name__})
        super().__init__(UNet(native).eval(), self.describe(_Of(native)) | config)

    @classmethod
    def plan(cls, folder: Path, variant: str | None) -> Plan[UNet]:
        """Find the weights in a folder and check them against the network."""
        return plan_unet(folder, variant)

    @classmethod
    def from_single_file(cls, pretrained_model_link_or_path: str | os.PathLike[str], **options: Any) -> Self:
        """Load the U-Net of a single-file model."""
        chosen = Options.read(options)
        return cls.wrap(load_parts(os.fspath(pretrained_model_link_or_path), dtype=chosen.dtype).unet)

    def forward(
        self,
        sample: Tensor,
        timestep: Tensor | float,
        encoder_hidden_states: Tensor | None = None,
        class_labels: Tensor | None = None,
        timestep_cond: Tensor | None = None,
        attention_mask: Tensor | None = None,
        cross_attention_kwargs: dict[str, Any] | None = None,
        added_cond_kwargs: dict[str, Tensor] | None = None,
        down_block_additional_residuals: tuple[Tensor, ...] | None = None,
        mid_block_additional_residual: Tensor | None = None,
        down_intrablock_additional_residuals: tuple[Tensor, ...] | None = None,
        encoder_attention_mask: Tensor | None = None,
        return_dict: bool = True,
    ) -> Any:
        """Predict from `sample` (B, C, H, W) at `timestep`, a number or (B,), and context (B, L, D): `.sample`.

        The additional residuals of the way down and of the middle are a ControlNet's. Of `added_cond_kwargs` Stable
        Diffusion XL wants `text_embeds` (B, P) and `time_ids` (B, 6).
        """
        refused = {
            "timestep_cond": timestep_cond,
            "attention_mask": attention_mask,
            "cross_attention_kwargs": cross_attention_kwargs or None,
            "down_intrablock_additional_residuals (T2I-Adapter)": down_intrablock_additional_residuals,
            "encoder_attention_mask": encoder_attention_mask,
        }
        for name, value in refused.items():
            if value is not None:
                raise MissingPartError(f"this U-Net takes no {name} yet", remedy="leave it out")
        added = added_of(down_block_additional_residuals, mid_block_additional_residual)
        pooled = pooled_of(self.net.config, added_cond_kwargs or {})
        output = self.net(
            sample, timestep, encoder_hidden_states, class_labels=class_labels, pooled=pooled, added=added
        )
        return UNet2DConditionOutput(output) if return_dict else (output,)


def pooled_of(config: UNetConfig, told: Mapping[str, Tensor]) -> Tensor | None:
    """What a U-Net is told beside the words, of what diffusers calls `added_cond_kwargs`."""
    if config.addition_time_embed_dim is None or config.pooled_width is None:
        if told:
            raise MissingPartError(f"this U-Net takes no {', '.join(told)} yet", remedy="leave added_cond_kwargs out")
        return None
    if told.keys() != {"text_embeds", "time_ids"}:
        what = f"added_cond_kwargs has {', '.join(told) or 'nothing'}"
        raise InputError(what, remedy="give text_embeds (B, P) and time_ids (B, 6)")
    return beside_words(told["text_embeds"], told["time_ids"], config.addition_time_embed_dim)


class UNet2DModel(Diffuser):
    """The plain U-Net. Keywords of the constructor are the entries of config.json."""

    net: UNet

    def __init__(self, **config: Any) -> None:
        native = UNetConfig.from_diffusers({**config, "_class_name": type(self).__name__})
        super().__init__(UNet(native).eval(), self.describe(_Of(native)) | config)

    @classmethod
    def plan(cls, folder: Path, variant: str | None) -> Plan[UNet]:
        """Find the weights in a folder and check them against the network."""
        return plan_unet(folder, variant)

    def forward(
        self,
        sample: Tensor,
        timestep: Tensor | float,
        class_labels: Tensor | None = None,
        return_dict: bool = True,
    ) -> Any:
        """Predict from `sample` (B, C, H, W) at `timestep`, a number or (B,): `.sample`."""
        output = self.net(sample, timestep, class_labels=class_labels)
        return UNet2DOutput(output) if return_dict else (output,)


class FirstStage(Diffuser):
    """What the two autoencoders share."""

    net: Autoencoder
    _tile: int | None = None

    def __init__(self, **config: Any) -> None:
        native = AutoencoderConfig.from_diffusers({**config, "_class_name": type(self).__name__})
        super().__init__(Autoencoder(native).eval(), self.describe(_Of(native)) | config)

    @classmethod
    def plan(cls, folder: Path, variant: str | None) -> Plan[Autoencoder]:
        """Find the weights in a folder and check them against the network."""
        return plan_autoencoder(folder, variant)

    @classmethod
    def from_single_file(cls, pretrained_model_link_or_path: str | os.PathLike[str], **options: Any) -> Self:
        """Load an autoencoder's own file, or that of a single-file model."""
        chosen = Options.read(options)
        return cls.wrap(load_autoencoder(os.fspath(pretrained_model_link_or_path), dtype=chosen.dtype))

    def enable_slicing(self) -> None:
        """Do nothing. Decode fewer pictures at once, or in tiles, to save memory."""

    def disable_slicing(self) -> None:
        """Do nothing."""

    def enable_tiling(self, use_tiling: bool = True) -> None:
        """Encode and decode pictures larger than the model's own in overlapping tiles: less memory, faint seams."""
        size = self.net.config.sample_size
        side = size if isinstance(size, int) else max(size)
        factor = self.net.config.factor
        self._tile = max(side - side % factor, 2 * factor) if use_tiling else None

    def disable_tiling(self) -> None:
        """Encode and decode pictures whole."""
        self._tile = None


class AutoencoderKL(FirstStage):
    """The KL autoencoder. Its latents are raw: scripts multiply by `config.scaling_factor` and divide by it."""

    def encode(self, x: Tensor, return_dict: bool = True) -> Any:
        """Pictures (B, 3, H, W) in [-1, 1] -> `.latent_dist`, over latents (B, C, H/f, W/f)."""
        posterior = DiagonalGaussianDistribution(self.net.moments(x, tile=self._tile))
        return AutoencoderKLOutput(posterior) if return_dict else (posterior,)

    def decode(self, z: Tensor, return_dict: bool = True, generator: Generators = None) -> Any:
        """Latents (B, C, h, w), not scaled -> `.sample`, pictures about in [-1, 1]. `generator` is not used."""
        picture = self.net.decode_raw(z, tile=self._tile)
        return DecoderOutput(picture) if return_dict else (picture,)

    def forward(
        self, sample: Tensor, sample_posterior: bool = False, return_dict: bool = True, generator: Generators = None
    ) -> Any:
        """Reconstruct pictures, from the mode of the posterior or from a sample of it."""
        posterior = self.encode(sample).latent_dist
        z = posterior.sample(generator) if sample_posterior else posterior.mode()
        return self.decode(z, return_dict=return_dict)


class VQModel(FirstStage):
    """The VQ autoencoder. Encoding does not quantise; decoding does."""

    def encode(self, x: Tensor, return_dict: bool = True) -> Any:
        """Pictures (B, 3, H, W) in [-1, 1] -> `.latents` (B, C, H/f, W/f), before quantisation."""
        latents = self.net.moments(x, tile=self._tile)
        return VQEncoderOutput(latents) if return_dict else (latents,)

    def decode(self, h: Tensor, force_not_quantize: bool = False, return_dict: bool = True, shape: Any = None) -> Any:
        """Latents (B, C, h, w) -> `.sample`, pictures about in [-1, 1], and `.commit_loss`."""
        if shape is not None:
            raise MissingPartError("decoding from codebook indices is not here", remedy="decode latents")
        loss = torch.zeros(len(h), device=h.device, dtype=h.dtype)
        if not force_not_quantize:
            assert isinstance(self.net.quantize, VectorQuantizer)
            quantized = self.net.quantize(h)
            h, loss = quantized.codes, quantized.loss(legacy=True)
        picture = self.net.decode_raw(h, quantize=False, tile=self._tile)
        return DecoderOutput(picture, loss) if return_dict else (picture, loss)

    def forward(self, sample: Tensor, return_dict: bool = True) -> Any:
        """Reconstruct pictures through the codebook."""
        return self.decode(self.encode(sample).latents, return_dict=return_dict)


class _Of:
    """A config in the place of its network, for `describe`."""

    def __init__(self, config: Any) -> None:
        self.config = config


def added_of(down: tuple[Tensor, ...] | None, mid: Tensor | None) -> Added | None:
    """diffusers' additional residuals as our U-Net takes them. Raises InputError for one without the other."""
    if (down is None) != (mid is None):
        remedy = "give down_block_additional_residuals and mid_block_additional_residual"
        raise InputError("half of what a ControlNet adds was given", remedy=remedy)
    return None if down is None or mid is None else Added(tuple(down), mid)
