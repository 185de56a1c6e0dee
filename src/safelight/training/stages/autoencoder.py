"""The first stage: an autoencoder trained for likeness, against a discriminator (Rombach et al. 2022, appendix G).

The losses are functions in `adversarial`; the stage puts them together. Its gradients are taken in two parts: first
at the reconstruction, x̂, for each loss alone; then, weighed, from there back through the autoencoder. The adaptive
weight needs the first part anyway, and so no network is gone through backwards twice.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from math import isfinite
from pathlib import Path
from typing import Any, NamedTuple, cast

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn
from torch.nn.grad import conv2d_weight

from safelight.checkpoint.build import on_meta
from safelight.checkpoint.save import save_autoencoder
from safelight.diffusion.noise import sent
from safelight.errors import InputError, MissingPartError
from safelight.models.autoencoder import Autoencoder
from safelight.models.bottleneck import GaussianPosterior, LatentScale, VectorQuantizer
from safelight.models.discriminator import DiscriminatorConfig, PatchDiscriminator
from safelight.models.lpips import LPIPS
from safelight.training.data.batches import Data
from safelight.training.loop.cards import write_card
from safelight.training.loop.distributed import sharded
from safelight.training.loop.optim import adamw
from safelight.training.stages.adversarial import (
    DISCRIMINATOR_LOSSES,
    Reduction,
    adaptive_weight,
    generator_loss,
    negative_log_likelihood,
    pixel_error,
    r1_penalty,
    with_gradient,
)
from safelight.training.stages.autoencoder_config import AutoencoderTraining
from safelight.training.stages.codebook import CodebookUse, revive
from safelight.training.stages.noise import BatchNoise
from safelight.training.stages.perceptual import figure_name, placed
from safelight.training.stages.reconstructions import reconstruction_sheet
from safelight.training.stages.stage import Loss, Stage, Weights

__all__ = ["AutoencoderStage", "FirstStage", "Judge", "Reconstruction", "measure_scale"]

NO_PERCEPTUAL = "none"


class Reconstruction(NamedTuple):
    """What a training pass gives; float32 where losses use it.

    `picture` (B, 3, H, W) is x̂; `features` (B, C, H, W) what the decoder's last layer makes it of; `penalty` the KL
    divergence, a sum over each latent and a mean over the batch, or the codebook's loss; `logvar` that of the
    likelihood; `latent` (B, c, h, w) the raw latent before quantisation; `indices` (B, h, w) its codes, None without a
    codebook.
    """

    picture: Tensor
    features: Tensor
    penalty: Tensor
    logvar: Tensor
    latent: Tensor
    indices: Tensor | None


class FirstStage(nn.Module):
    """An autoencoder as it is trained: with the likelihood's log-variance, and a forward pass that keeps everything."""

    def __init__(self, autoencoder: Autoencoder, config: AutoencoderTraining) -> None:
        super().__init__()
        self.autoencoder = autoencoder
        self.beta, self.legacy = config.commitment_beta, config.original
        learned = not isinstance(autoencoder.quantize, VectorQuantizer) and not config.original
        learned &= config.reduction != "log"  # to which each picture has its own
        self.logvar = nn.Parameter(torch.zeros(1), requires_grad=learned)  # the paper's VQ models have none

    def forward(self, picture: Tensor, noise: Tensor | None, more: Tensor | float = 0.0) -> Reconstruction:
        """Pictures (B, 3, H, W) in [-1, 1], and standard normal noise of the latent's shape (None: take the mode).

        more: the deviation of noise beside the posterior's own, one for all or (B, 1, 1, 1). A VQ autoencoder has no
        use for either.
        """
        network, logvar = self.autoencoder, self.logvar.sum()  # no view: shards give their memory back after a pass
        if isinstance(network.quantize, VectorQuantizer):
            z = network.moments(picture).float()
            with torch.autocast(z.device.type, enabled=False):  # distances between codes need float32
                quantized = network.quantize(z)
            decoded = self._decoded(quantized.codes)
            return Reconstruction(
                *decoded, quantized.loss(self.beta, legacy=self.legacy), logvar, z.detach(), quantized.indices
            )
        posterior = cast(GaussianPosterior, network.encode(picture))
        deviation = (posterior.std.square() + more**2).sqrt()  # of the sum of two independent noises
        z = posterior.mean if noise is None else posterior.mean + deviation * noise
        return Reconstruction(*self._decoded(z), posterior.kl().mean(), logvar, z.detach(), None)

    def _decoded(self, z: Tensor) -> tuple[Tensor, Tensor]:
        """Raw latents -> pictures, and the features before the last layer."""
        decoder = self.autoencoder.decoder
        features = decoder.features(self.autoencoder.post_quant_conv(z))
        return decoder.conv_out(features).float(), features.detach()


class Judge(nn.Module):
    """A discriminator as it is used: on several batches, such as pictures and reconstructions, one after the other."""

    def __init__(self, discriminator: PatchDiscriminator) -> None:
        super().__init__()
        self.discriminator = discriminator

    def forward(self, *batches: Tensor) -> tuple[Tensor, ...]:
        """Pictures (B, 3, H, W) -> the logits of each batch. Batch normalisation sees each batch by itself."""
        return tuple(self.discriminator(pictures) for pictures in batches)


class AutoencoderStage(Stage):
    """Trains an autoencoder, KL or VQ, and the discriminator it plays against."""

    name = "autoencoder"

    def __init__(
        self,
        autoencoder: Autoencoder,
        config: AutoencoderTraining,
        data: Data[Any],
        *,
        perceptual: LPIPS | None = None,
        seed: int = 0,
    ) -> None:
        """autoencoder: in float32, on the training device, where all else goes too.

        data: for sheets, and to measure the latents' scale on at the end. perceptual: LPIPS or what stands in for it;
        without, `perceptual_weight` must be 0. seed: of sheets, of new places for codes, and of the scale's samples.
        The discriminator is drawn with torch's global generator.
        """
        self.config, self.data, self.seed = config, data, seed
        self.device = autoencoder.decoder.conv_out.weight.device
        self.perceptual = placed(perceptual, config.perceptual_weight, self.device)
        if config.decoder_only:
            for part in (autoencoder.encoder, autoencoder.quant_conv, autoencoder.quantize):
                part.requires_grad_(False)
        self.generator = FirstStage(autoencoder, config).to(self.device).train()
        self.modules: dict[str, nn.Module] = {"autoencoder": self.generator}
        rates = {"autoencoder": config.learning_rate}
        if config.adversarial:
            self.judge = Judge(discriminator(config, autoencoder.config.out_channels)).to(self.device).train()
            self.modules["discriminator"] = self.judge
            rates["discriminator"] = config.disc_learning_rate or config.learning_rate
        betas = (config.beta1, config.beta2)
        self.optimizers: dict[str, torch.optim.Optimizer] = {
            name: adamw([self.modules[name]], learning_rate=rate, betas=betas, weight_decay=0.0)
            for name, rate in rates.items()
        }
        self.averaged = ("autoencoder",)
        if config.latent_noise and isinstance(autoencoder.quantize, VectorQuantizer):
            raise InputError("latent_noise for a VQ model, whose codebook takes it away", remedy="leave it out")
        self._codebook = autoencoder.quantize if isinstance(autoencoder.quantize, VectorQuantizer) else None
        if self._codebook is not None:
            size = self._codebook.embedding.num_embeddings
            self.use = CodebookUse(size, device=self.device)
            # Codes that nobody has moved from where they were drawn, U(-1/n, 1/n), are all as good as dead.
            self._new_codes = bool(self._codebook.embedding.weight.abs().max() <= 1 / size)
        self.reduction: Reduction = config.reduction or ("sum" if self._codebook is None else "mean")
        self._latents: list[Tensor] = []

    @property
    def perceptual_name(self) -> str:
        """Which perceptual distance is used: for logs and cards."""
        return NO_PERCEPTUAL if self.perceptual is None else self.perceptual.name

    def losses(self, batch: Any, noise: BatchNoise) -> Iterator[Loss]:
        """The autoencoder's loss, then the discriminator's, each while it takes part.

        Both are of the same reconstructions. (The original makes new ones for the discriminator, with the autoencoder
        already one step further.)
        """
        config, pictures = self.config, batch.pictures
        made: Reconstruction = self.modules["autoencoder"](
            pictures, self._latent_noise(pictures, noise), self._disturbance(noise)
        )
        if made.indices is not None:
            self.use.see(made.indices)
            self._latents += [made.latent] if self._moving(noise.step) else []
        yield self._generator_loss(pictures, made, noise)
        if config.judging(noise.step):
            yield self._discriminator_loss(pictures, made.picture.detach())

    def _latent_noise(self, pictures: Tensor, noise: BatchNoise) -> Tensor | None:
        shape = self.generator.autoencoder.config
        height, width = (side // shape.factor for side in pictures.shape[2:])
        return None if self._codebook is not None else noise.normal(shape.embed_dim, height, width)

    def _disturbance(self, noise: BatchNoise) -> Tensor | float:
        """How much each latent is disturbed so that the decoder learns to bear a denoiser's errors, (B, 1, 1, 1).

        Yang et al. 2025, "Latent denoising makes good visual tokenizers", disturb them likewise; here each sample has
        its own deviation, from 0 to `latent_noise`, so that clean latents are still decoded well.
        """
        if not self.config.latent_noise:
            return 0.0
        share = sent(noise.uniform().float(), self.device)[:, None, None, None]
        return share * (self.config.latent_noise / self.generator.autoencoder.config.scaling_factor)

    def _generator_loss(self, pictures: Tensor, made: Reconstruction, noise: BatchNoise) -> Loss:
        config, x = self.config, made.picture
        error = pixel_error(pictures, x, config.pixel_loss)
        distance = self._distance(pictures, x, noise)
        nll = negative_log_likelihood(error, config.perceptual_weight * distance, made.logvar, self.reduction)
        weight = config.kl_weight if self._codebook is None else config.codebook_weight
        figures = {"nll": nll, config.pixel_loss: error.mean(), figure_name(self.perceptual): distance.mean()}
        if self._codebook is None:
            figures |= {"kl": made.penalty, "logvar": made.logvar}
        else:
            figures |= {"codebook": made.penalty, **self.use.figures()}
        if config.judged(noise.step):
            nll = self._judged(nll, made, figures)
        loss = nll + weight * made.penalty
        return Loss("autoencoder", loss, {"loss": loss.detach(), **{k: v.detach() for k, v in figures.items()}})

    def _distance(self, pictures: Tensor, x: Tensor, noise: BatchNoise) -> Tensor:
        """The perceptual distance of each picture, (B,)."""
        if self.perceptual is None:
            return x.new_zeros(len(x))
        dropout = self._generator(noise.step, noise.numbers[0], device=self.device) if self.config.original else None
        return self.perceptual(pictures, x, dropout=dropout)

    def _judged(self, nll: Tensor, made: Reconstruction, figures: dict[str, Tensor]) -> Tensor:
        """Nll + weight·adversarial loss, with gradients at x̂ and logvar that have been computed here."""
        x = made.picture
        adversarial = generator_loss(self.judge(x)[0])
        (of_adversarial,) = torch.autograd.grad(adversarial, x)
        at = [x, made.logvar] if made.logvar.requires_grad else [x]
        of_nll = torch.autograd.grad(nll, at)
        adaptive = adaptive_weight(*(last_layer_gradient(made.features, g) for g in (of_nll[0], of_adversarial)))
        weight = adaptive * self.config.disc_weight * self.config.disc_factor
        figures |= {"adversarial": adversarial, "adaptive_weight": adaptive}
        gradients = [of_nll[0] + weight * of_adversarial, *of_nll[1:]]
        return with_gradient(nll + weight * adversarial, zip(at, gradients, strict=True))

    def _discriminator_loss(self, real: Tensor, fake: Tensor) -> Loss:
        config = self.config
        real = real.detach().requires_grad_() if config.r1_gamma else real
        of_real, of_fake = self.modules["discriminator"](real, fake)
        loss = config.disc_factor * DISCRIMINATOR_LOSSES[config.disc_loss](of_real, of_fake)
        figures = {"disc_loss": loss, "logits_real": of_real.mean(), "logits_fake": of_fake.mean()}
        if config.r1_gamma:
            if sharded(self.modules):
                raise MissingPartError("the R1 penalty of a sharded discriminator", remedy="train with --parallel ddp")
            figures["r1"] = r1_penalty(of_real, real)
            loss = loss + config.r1_gamma * figures["r1"]
        return Loss("discriminator", loss, {name: value.detach().float() for name, value in figures.items()})

    def updated(self, step: int) -> None:
        """Count the codes of the step, and move unused ones when it is time; at step 0 all codes, if they are new."""
        if self._codebook is None:
            return
        self.use.update()
        if self._moving(step) and self._latents:
            dead = torch.ones_like(self.use.dead()) if step == 0 else self.use.dead()
            weight, latents = self._codebook.embedding.weight, torch.cat(self._latents)
            revive(weight, dead, latents, self._generator(step), self.optimizers["autoencoder"])
        self._latents = []

    def _moving(self, step: int) -> bool:
        """Whether codes are moved after this step."""
        new = step == 0 and self._new_codes and not (self.config.original or self.config.decoder_only)
        return new or self.config.reviving(step)

    def _generator(self, *place: int, device: torch.device | str = "cpu") -> torch.Generator:
        """A generator of this place in the run alone."""
        words = np.random.SeedSequence([self.seed, *place]).generate_state(1, np.uint64)
        return torch.Generator(device).manual_seed(int(words[0] >> 1))

    def state_tensors(self) -> dict[str, Tensor]:
        """How the codebook has been used."""
        return {} if self._codebook is None else self.use.tensors()

    def load_state_tensors(self, tensors: Mapping[str, Tensor]) -> None:
        """Take it back."""
        if self._codebook is not None:
            self.use.load(tensors)

    @torch.no_grad()
    def sheet(self) -> Image.Image:
        """Some of the data's pictures, and under them their reconstructions from the mode of the posterior."""
        pictures = self.data.batch(self.seed, range(self.config.sheet_pictures), self.device).pictures
        made = self.generator(pictures, None).picture  # called bare: where there are replicas, only rank 0 draws
        return reconstruction_sheet(pictures, made, difference=self.config.sheet_difference)

    def finish(self, folder: Path, weights: Weights, record: Mapping[str, Any]) -> None:
        """Write the autoencoder, its latents' scale measured, with a card: as diffusers' AutoencoderKL or VQModel."""
        config, tensors = self.generator.autoencoder.config, weights["autoencoder"]
        network = on_meta(lambda: Autoencoder(config)).eval()
        start = "autoencoder."
        own = {key.removeprefix(start): tensor for key, tensor in tensors.items() if key.startswith(start)}
        network.load_state_dict(own, assign=True)
        network = self._measured(network.to(self.device))
        save_autoencoder(network, folder)
        kept = {"perceptual loss": self.perceptual_name, "latents' scale": network.config.scaling_factor}
        write_card(folder, self.name, {**record, **kept, "config": self.config.model_dump()})

    def _measured(self, network: Autoencoder) -> Autoencoder:
        """The same autoencoder with the scale of its latents on the data, or its own where they stay as they are."""
        if self.config.decoder_only:
            return network
        count = min(self.config.scale_samples, len(self.data))
        scale = measure_scale(network, self.data, range(count), seed=self.seed, device=self.device)
        if scale is None:
            return network
        shift = scale.shift if self.config.measure_shift and self._codebook is None else network.config.shift_factor
        measured = Autoencoder(replace(network.config, scaling_factor=scale.factor, shift_factor=shift))
        measured.load_state_dict(network.state_dict())
        return measured


def discriminator(config: AutoencoderTraining, channels: int) -> PatchDiscriminator:
    """The discriminator that a training asks for, of pictures with so many channels."""
    return PatchDiscriminator(
        DiscriminatorConfig(
            in_channels=channels, channels=config.disc_channels, layers=config.disc_layers, norm=config.disc_norm
        )
    )


def last_layer_gradient(features: Tensor, gradient: Tensor) -> Tensor:
    """From a loss's gradient at pictures (B, 3, H, W), its gradient at the weight (3, C, 3, 3) that made them.

    The pictures are a 3x3 convolution of `features` (B, C, H, W). Float32, whatever the pass was computed in.
    """
    shape = (gradient.shape[1], features.shape[1], 3, 3)
    return conv2d_weight(features.float(), shape, gradient.float(), padding=1)


@torch.no_grad()
def measure_scale(
    autoencoder: Autoencoder, data: Data[Any], numbers: Sequence[int], *, seed: int, device: torch.device | str
) -> LatentScale | None:
    """The scale that gives latents of these samples of the data variance 1, and mean 0 if its shift is used.

    factor = 1/std of all numbers in raw latents drawn from their posteriors, shift = their mean (appendix G). None for
    no samples, or latents that do not vary.
    """
    total = torch.zeros(3, dtype=torch.float64)  # count, sum, sum of squares
    for number in numbers:  # one by one: pictures may differ in shape
        posterior = autoencoder.encode(data.batch(seed, [number], device).pictures)
        noise = BatchNoise(seed, [number], device=device).normal(*posterior.mean.shape[1:])
        raw = autoencoder.scale.undo(posterior.sample(noise)).cpu().double()  # MPS has no float64
        total += torch.stack([torch.full_like(raw, 1.0).sum(), raw.sum(), raw.square().sum()])
    count, mean, square = (float(value) for value in total / total[0].clamp(min=1))
    variance = square - mean * mean
    return LatentScale(variance**-0.5, mean) if count and isfinite(variance) and variance > 0 else None
