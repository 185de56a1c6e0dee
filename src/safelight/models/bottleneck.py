"""What stands between an autoencoder's encoder and decoder: a Gaussian (KL) or a codebook (VQ).

Rombach et al. 2022 (arXiv 2112.10752, section 3.1) regularise the latent space in these two ways. Both parts have the
same face, so that an `Autoencoder` never asks which one it holds:

    moments_per_channel     how many numbers the encoder gives for each latent number
    posterior(moments)      what the encoder says about the latent: a `Posterior`
    snap(z)                 what the decoder gets of a raw latent z

Raw latents are what encoder and decoder speak; scaled latents, with about unit variance, are what a diffusion model
speaks. `LatentScale` is the only place where one becomes the other.
"""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from safelight.errors import InputError

Noise = Tensor | torch.Generator | Sequence[torch.Generator]

# Log-variances outside are an encoder gone astray; exp(-30) and exp(20) are still finite in float32.
LOGVAR_RANGE = (-30.0, 20.0)

# Rows of latent compared with the whole codebook at once: 4096·16384 distances are 256 MiB.
SEARCH_ROWS = 4096


@dataclass(frozen=True)
class LatentScale:
    """The affine map from raw to scaled latents (section 4.3.2 and appendix G): (z - shift)·factor."""

    factor: float = 1.0
    shift: float = 0.0

    def apply(self, raw: Tensor) -> Tensor:
        """Raw latents -> scaled latents."""
        return (raw - self.shift) * self.factor

    def undo(self, scaled: Tensor) -> Tensor:
        """Scaled latents -> raw latents."""
        return scaled / self.factor + self.shift


@dataclass(frozen=True, eq=False)
class Posterior(ABC):
    """What an encoder says about the latents of B pictures: a distribution with `mean` (B, C, h, w), raw.

    `mode()` and `sample()` give scaled latents, ready for a diffusion model. `mean`, `std`, `logvar`, `kl()` are raw.
    """

    mean: Tensor
    scale: LatentScale

    def mode(self) -> Tensor:
        """Give the most probable latents, scaled, (B, C, h, w)."""
        return self.scale.apply(self.mean)

    @abstractmethod
    def sample(self, noise: Noise) -> Tensor:
        """Draw latents, scaled, (B, C, h, w).

        `noise` is a standard normal tensor of the latents' shape, or a list of B generators, one per picture, or one
        generator that draws for the whole batch at once.
        """

    @property
    @abstractmethod
    def std(self) -> Tensor:
        """The raw standard deviation, (B, C, h, w)."""

    @property
    @abstractmethod
    def logvar(self) -> Tensor:
        """The raw log-variance, (B, C, h, w)."""

    @abstractmethod
    def kl(self) -> Tensor:
        """The regulariser of each picture, (B,), summed over C, h and w."""


@dataclass(frozen=True, eq=False)
class GaussianPosterior(Posterior):
    """A diagonal Gaussian (Kingma & Welling 2014, arXiv 1312.6114)."""

    log_variance: Tensor

    def sample(self, noise: Noise) -> Tensor:
        """Draw mean + std·noise, scaled."""
        return self.scale.apply(self.mean + self.std * drawn(noise, self.mean))

    @property
    def std(self) -> Tensor:
        """exp(logvar/2)."""
        return torch.exp(0.5 * self.log_variance)

    @property
    def logvar(self) -> Tensor:
        """The log-variance, clamped to `LOGVAR_RANGE`."""
        return self.log_variance

    def kl(self) -> Tensor:
        """KL divergence from the standard normal: 0.5·sum(mean² + var - 1 - logvar)."""
        return 0.5 * (self.mean**2 + self.logvar.exp() - 1 - self.logvar).sum(dim=(1, 2, 3))


@dataclass(frozen=True, eq=False)
class PointPosterior(Posterior):
    """The latent before quantisation, known exactly."""

    def sample(self, noise: Noise) -> Tensor:
        """Give the mode: there is nothing to draw, and `noise` stays untouched."""
        return self.mode()

    @property
    def std(self) -> Tensor:
        """Zero."""
        return torch.zeros_like(self.mean)

    @property
    def logvar(self) -> Tensor:
        """Minus infinity."""
        return torch.full_like(self.mean, -torch.inf)

    def kl(self) -> Tensor:
        """Zero: against a uniform prior over the codes the divergence is a constant, which training leaves out."""
        return self.mean.new_zeros(len(self.mean))


def drawn(noise: Noise, like: Tensor) -> Tensor:
    """Turn `noise` into a standard normal tensor of the shape, dtype and device of `like` (B, ...).

    Generators draw in float32 on their own device, so that a seed means the same picture on every machine.
    """
    if isinstance(noise, torch.Generator):
        noise = torch.randn(like.shape, generator=noise, device=noise.device)
    elif not isinstance(noise, Tensor):
        if len(noise) != len(like):
            raise InputError(
                f"{len(noise)} generators were given for {len(like)} pictures", remedy="give one generator per picture"
            )
        noise = torch.stack([torch.randn(like.shape[1:], generator=g, device=g.device) for g in noise])
    if noise.shape != like.shape:
        raise InputError(
            f"noise of shape {tuple(noise.shape)} does not fit latents of shape {tuple(like.shape)}",
            remedy="draw the noise in the shape of the latents",
        )
    return noise.to(like)


class GaussianBottleneck(nn.Module):
    """The encoder gives mean and log-variance; the decoder gets the latent as it is."""

    moments_per_channel = 2

    def posterior(self, moments: Tensor, scale: LatentScale) -> Posterior:
        """Moments (B, 2C, h, w): the means, then the log-variances."""
        mean, logvar = moments.chunk(2, dim=1)
        return GaussianPosterior(mean, scale, logvar.clamp(*LOGVAR_RANGE))

    def snap(self, z: Tensor) -> Tensor:
        """(B, C, h, w), unchanged."""
        return z


@dataclass(frozen=True, eq=False)
class Quantized:
    """Latents after quantisation: each replaced by the nearest vector of the codebook.

    `codes` (B, C, h, w) are these vectors, with the gradient of the latents they stand for (straight-through).
    `indices` (B, h, w) are their rows in the codebook. `codebook_loss` draws the vectors towards the latents,
    `commitment_loss` the latents towards the vectors; both are mean squares, scalars.
    """

    codes: Tensor
    indices: Tensor
    codebook_loss: Tensor
    commitment_loss: Tensor

    def loss(self, beta: float = 0.25, *, legacy: bool = False) -> Tensor:
        """Give codebook_loss + beta·commitment_loss (van den Oord et al. 2017, arXiv 1711.00937, eq. 3).

        `legacy` puts beta on the codebook loss instead, as taming-transformers and latent diffusion do: use it to
        continue or reproduce their trainings.
        """
        if legacy:
            return self.commitment_loss + beta * self.codebook_loss
        return self.codebook_loss + beta * self.commitment_loss


@dataclass(frozen=True)
class CodebookUsage:
    """How a codebook is used: the number of vectors in use, and exp(entropy) of their frequencies (1 to n)."""

    used: int
    perplexity: float


class VectorQuantizer(nn.Module):
    """A codebook of `size` vectors, `dim` wide; each latent pixel becomes the nearest of them (VQ-VAE, VQGAN)."""

    moments_per_channel = 1

    def __init__(self, size: int, dim: int) -> None:
        super().__init__()
        self.embedding = nn.Embedding(size, dim)
        nn.init.uniform_(self.embedding.weight, -1 / size, 1 / size)

    def posterior(self, moments: Tensor, scale: LatentScale) -> Posterior:
        """Moments (B, C, h, w): the latents before quantisation. A diffusion model works on these."""
        return PointPosterior(moments, scale)

    def snap(self, z: Tensor) -> Tensor:
        """(B, C, h, w) -> the nearest vectors of the codebook, with the gradient of z."""
        return self(z).codes

    def forward(self, z: Tensor) -> Quantized:
        """Quantise raw latents z (B, C, h, w), with all that training needs."""
        indices = self.nearest(z)
        codes = self.lookup(indices).to(z)
        return Quantized(
            codes=z + (codes - z).detach(),
            indices=indices,
            codebook_loss=F.mse_loss(codes, z.detach()),
            commitment_loss=F.mse_loss(z, codes.detach()),
        )

    @torch.no_grad()
    def nearest(self, z: Tensor) -> Tensor:
        """(B, C, h, w) -> the row (B, h, w) of the nearest vector, by Euclidean distance taken in float32."""
        vectors = self.embedding.weight.float()
        rows = z.movedim(1, -1).float()
        half_squares = 0.5 * (vectors**2).sum(1)  # |z - e|²/2 = |e|²/2 - z·e + what is the same for every e
        nearest = [
            torch.addmm(half_squares, part, vectors.T, alpha=-1).argmin(1)
            for part in rows.flatten(0, 2).split(SEARCH_ROWS)
        ]
        return torch.cat(nearest).view(rows.shape[:-1])

    def lookup(self, indices: Tensor) -> Tensor:
        """Rows (B, h, w) -> their vectors (B, C, h, w)."""
        return self.embedding(indices).movedim(-1, 1)

    def usage(self, indices: Tensor) -> CodebookUsage:
        """Count how the codebook is used by `indices` of any shape, of one batch or of many put together."""
        counts = torch.bincount(indices.flatten(), minlength=self.embedding.num_embeddings).cpu().double()
        frequency = counts / counts.sum()
        return CodebookUsage(int((counts > 0).sum()), float(torch.special.entr(frequency).sum().exp()))


Bottleneck = GaussianBottleneck | VectorQuantizer
