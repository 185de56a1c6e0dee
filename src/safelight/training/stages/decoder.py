"""A tiny decoder: it learns to give from latents what an autoencoder's own decoder gives, for a fraction of the work.

What is decoded is a function of the latent, sharp as it is, and not one of many pictures that a latent could stand for.
So a distance is enough to learn it, without the discriminator that a first stage needs. The latents are drawn from the
posteriors of pictures: there the second stage's are.
"""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from safelight.checkpoint.build import on_meta
from safelight.checkpoint.save import save_decoder
from safelight.models.autoencoder import Autoencoder
from safelight.models.lpips import LPIPS
from safelight.models.tiny_decoder import TinyDecoder
from safelight.training.data.batches import Data
from safelight.training.loop.cards import write_card
from safelight.training.loop.optim import adamw
from safelight.training.loop.recipes import DecoderConfig
from safelight.training.stages.adversarial import pixel_error
from safelight.training.stages.noise import BatchNoise
from safelight.training.stages.perceptual import figure_name, placed
from safelight.training.stages.reconstructions import decoder_sheet
from safelight.training.stages.stage import Loss, Stage, Weights


class DecoderStage(Stage):
    """Trains a tiny decoder beside an autoencoder, which stays as it is."""

    name = "decoder"

    def __init__(
        self,
        decoder: TinyDecoder,
        autoencoder: Autoencoder,
        config: DecoderConfig,
        data: Data[Any],
        *,
        perceptual: LPIPS | None = None,
        seed: int = 0,
    ) -> None:
        """decoder, autoencoder: in float32, on the training device. data, seed: for sheets.

        perceptual: LPIPS or what stands in for it; without, `perceptual_weight` must be 0.
        """
        decoder.config.check_fits(autoencoder.config)
        self.decoder, self.autoencoder, self.config = decoder.train(), autoencoder.eval().requires_grad_(False), config
        self.data, self.seed = data, seed
        self.device = next(decoder.parameters()).device
        self.perceptual = placed(perceptual, config.perceptual_weight, self.device)
        self.modules = {"decoder": decoder}
        self.averaged = ("decoder",)
        rates = {"learning_rate": config.learning_rate, "weight_decay": config.weight_decay}
        self.optimizers = {"decoder": adamw([decoder], **rates, betas=(config.beta1, config.beta2))}

    def losses(self, batch: Any, noise: BatchNoise) -> Iterator[Loss]:
        """The distance between what is decoded, or the picture, and what is made of the same latents."""
        config = self.config
        latent, decoded = self._decoded(batch.pictures, noise)
        made = self.modules["decoder"](latent)
        target = decoded if config.target == "decoded" else batch.pictures
        error = pixel_error(target, made, config.pixel_loss).mean()
        figures, loss = {config.pixel_loss: error, "psnr": mean_psnr(decoded, made)}, error
        if self.perceptual is not None:
            figures[figure_name(self.perceptual)] = distance = self.perceptual(target, made).mean()
            loss = loss + config.perceptual_weight * distance
        yield Loss("decoder", loss, {name: value.detach() for name, value in {"loss": loss, **figures}.items()})

    @torch.no_grad()
    def _decoded(self, pictures: Tensor, noise: BatchNoise) -> tuple[Tensor, Tensor]:
        """Scaled latents of pictures, and what the autoencoder decodes of them, in [-1, 1]."""
        posterior = self.autoencoder.encode(pictures)
        latent = posterior.sample(noise.normal(*posterior.mean.shape[1:]))
        return latent, self.autoencoder.decode(latent).clamp(-1, 1)

    @torch.no_grad()
    def sheet(self) -> Image.Image:
        """Some of the data's pictures, what is decoded of their latents, and what the tiny decoder makes of these."""
        numbers = range(self.config.sheet_pictures)
        pictures = self.data.batch(self.seed, numbers, self.device).pictures
        latent, decoded = self._decoded(pictures, BatchNoise(self.seed, numbers, device=self.device))
        return decoder_sheet(pictures, decoded, self.decoder(latent))

    def finish(self, folder: Path, weights: Weights, record: Mapping[str, Any]) -> None:
        """Write the decoder, as a folder for `safelight.load(…, decoder=folder)`, with a card."""
        config = self.decoder.config
        network = on_meta(lambda: TinyDecoder(config))
        network.load_state_dict(dict(weights["decoder"]), assign=True)
        save_decoder(network, folder)
        write_card(folder, self.name, {**record, "config": self.config.model_dump()})


def mean_psnr(x: Tensor, y: Tensor) -> Tensor:
    """The mean PSNR of pictures (B, C, H, W) in [-1, 1], y clamped to it: a scalar that stays on the device.

    Equal pictures count as 100 dB. (`evaluation.metrics.psnr` is the exact one, in float64 on the CPU.)
    """
    error = (x - y.detach().float().clamp(-1, 1)).square().mean(dim=(1, 2, 3))
    return (10 * torch.log10(4 / error.clamp(min=4e-10))).mean()
