"""Chance as diffusers draws it. The rest of Safelight draws one generator per picture, on the CPU; here scripts decide.

Without a generator, torch's global one of the device is used; one generator draws for the whole batch at once; a list
has one for each picture.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from safelight.diffusion.schedulers import randn
from safelight.errors import InputError

Generators = torch.Generator | list[torch.Generator] | None


def randn_tensor(
    shape: Sequence[int],
    generator: Generators = None,
    device: torch.device | str | None = None,
    dtype: torch.dtype | None = None,
) -> Tensor:
    """Draw standard normal noise of `shape`, whose first axis is the batch, and put it on `device`.

    It is drawn where the generators live (a CPU generator gives the same noise on every machine), else on `device`.
    Raises InputError for a generator of another accelerator, or a list of another length than the batch.
    """
    target = torch.device(device if device is not None else "cpu")
    for one in generator if isinstance(generator, list) else [generator]:
        if one is not None and one.device.type not in ("cpu", target.type):
            what = f"a generator on {one.device} cannot draw for {target}"
            raise InputError(what, remedy=f"use torch.Generator('cpu') or torch.Generator('{target.type}')")
    return randn(shape, generator, target, torch.get_default_dtype() if dtype is None else dtype)


class DiagonalGaussianDistribution:
    """N(mean, std²) of latents (B, C, h, w), each component by itself; as the network gives them, not scaled.

    `parameters` (B, 2C, h, w) holds mean and log-variance, clamped to [-30, 20] (Rombach et al. 2022, Sec. G).
    """

    def __init__(self, parameters: Tensor, deterministic: bool = False) -> None:
        self.parameters = parameters
        self.deterministic = deterministic
        self.mean, logvar = parameters.chunk(2, dim=1)
        self.logvar = logvar.clamp(-30.0, 20.0)
        self.std = torch.zeros_like(self.mean) if deterministic else torch.exp(0.5 * self.logvar)
        self.var = torch.zeros_like(self.mean) if deterministic else torch.exp(self.logvar)

    def sample(self, generator: Generators = None) -> Tensor:
        """Draw latents (B, C, h, w): mean + std·noise."""
        noise = randn_tensor(self.mean.shape, generator, self.mean.device, self.mean.dtype)
        return self.mean + self.std * noise

    def mode(self) -> Tensor:
        """Give the likeliest latents: the mean."""
        return self.mean

    def kl(self, other: "DiagonalGaussianDistribution | None" = None) -> Tensor:
        """Kullback-Leibler divergence (B,) from the standard normal, or from `other`, in nats."""
        if self.deterministic:
            return torch.zeros(1)
        if other is None:
            terms = self.mean**2 + self.var - 1.0 - self.logvar
        else:
            distance = (self.mean - other.mean) ** 2
            terms = distance / other.var + self.var / other.var - 1.0 - self.logvar + other.logvar
        return 0.5 * terms.sum(dim=(1, 2, 3))

    def nll(self, sample: Tensor, dims: tuple[int, ...] = (1, 2, 3)) -> Tensor:
        """Negative log-likelihood of `sample`, summed over `dims`, in nats."""
        if self.deterministic:
            return torch.zeros(1)
        log_two_pi = torch.log(torch.tensor(2.0 * torch.pi))
        return 0.5 * (log_two_pi + self.logvar + (sample - self.mean) ** 2 / self.var).sum(dim=dims)


def retrieve_latents(encoder_output: Any, generator: Generators = None, sample_mode: str = "sample") -> Tensor:
    """Take latents from what `vae.encode` returned: drawn, or with `sample_mode` "argmax" the likeliest."""
    if not hasattr(encoder_output, "latent_dist"):
        return encoder_output.latents
    posterior = encoder_output.latent_dist
    return posterior.sample(generator) if sample_mode == "sample" else posterior.mode()
