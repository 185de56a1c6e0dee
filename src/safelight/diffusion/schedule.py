"""The noise schedule a network was trained on: betas -> alphas_cumprod -> sigmas; sigma(t) and its inverse t(sigma).

A picture x0 is noised as x = x0 + sigma * noise, with sigma = sqrt((1 - ᾱ) / ᾱ) (Karras et al. 2022, "variance
exploding"). DDPM's x_t ("variance preserving", Ho et al. 2020) is that x divided by sqrt(1 + sigma²) = 1 / sqrt(ᾱ).
Everything here is float64 on the CPU; samplers see the sigmas as Python floats.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from safelight.errors import InputError, nearest

# With zero terminal SNR the last sigma would be infinite. This is float16's smallest positive number: sigma_max = 4096.
SMALLEST_ALPHA_CUMPROD = 2.0**-24


@dataclass(frozen=True, eq=False)
class NoiseSchedule:
    """Noise levels of the training timesteps 0 .. T-1; all tensors (T,), float64, on the CPU."""

    betas: Tensor  # variance added at each step, in (0, 1); after a rescale, of the rescaled schedule
    alphas_cumprod: Tensor  # ᾱ, falling, in (0, 1)
    sigmas: Tensor  # sqrt((1 - ᾱ) / ᾱ), rising, > 0

    @property
    def num_train_timesteps(self) -> int:
        """T, 1000 for all of Stable Diffusion."""
        return len(self.betas)

    @property
    def sigma_min(self) -> float:
        """Sigma at timestep 0."""
        return float(self.sigmas[0])

    @property
    def sigma_max(self) -> float:
        """Sigma at timestep T - 1."""
        return float(self.sigmas[-1])

    def sigma(self, t: float) -> float:
        """Sigma at timestep `t`; between two timesteps log(sigma) is interpolated. `t` is held inside [0, T-1]."""
        return float(self.sigmas_at(torch.tensor(t, dtype=torch.float64)))

    def t(self, sigma: float) -> float:
        """The (fractional) timestep whose sigma is `sigma`: the exact inverse of `sigma(t)`, held inside [0, T-1]."""
        return float(self.timesteps_at(torch.tensor(sigma, dtype=torch.float64)))

    def sigmas_at(self, t: Tensor) -> Tensor:
        """`sigma(t)` for a tensor of timesteps, of any shape; float64."""
        t = t.cpu().double().clamp(0, self.num_train_timesteps - 1)
        low = t.long().clamp(max=self.num_train_timesteps - 2)
        a, b = self.sigmas[low], self.sigmas[low + 1]
        # (b/a)^w and not exp(w log b + ...): at whole t the result is the table's own number, to the last bit
        return torch.where(t - low == 1, b, a * (b / a) ** (t - low))

    def timesteps_at(self, sigma: Tensor) -> Tensor:
        """`t(sigma)` for a tensor of sigmas, of any shape; float64."""
        s = sigma.cpu().double().clamp(self.sigma_min, self.sigma_max)
        low = (torch.searchsorted(self.sigmas, s, right=True) - 1).clamp(0, self.num_train_timesteps - 2)
        a, b = self.sigmas[low], self.sigmas[low + 1]
        return low + (s / a).log() / (b / a).log()


def noise_schedule(
    beta_schedule: str = "scaled_linear",
    *,
    beta_start: float = 0.00085,
    beta_end: float = 0.012,
    num_train_timesteps: int = 1000,
    trained_betas: Sequence[float] | Tensor | None = None,
    rescale_betas_zero_snr: bool = False,
) -> NoiseSchedule:
    """Make a schedule from the names and numbers of diffusers' scheduler_config.json. The defaults are SD's.

    `beta_schedule` is one of `BETA_SCHEDULES`; "scaled_linear" is what CompVis's configs call "linear". `trained_betas`
    replaces it. `rescale_betas_zero_snr` makes the last timestep pure noise (Lin et al. 2023, Algorithm 1); its ᾱ is
    then held at 2⁻²⁴, so that sigma_max = 4096 instead of infinity.

    Raises InputError for an unknown name, or betas outside (0, 1).
    """
    if trained_betas is not None:
        betas = torch.as_tensor(trained_betas, dtype=torch.float64).clone()
    elif beta_schedule in BETA_SCHEDULES:
        betas = BETA_SCHEDULES[beta_schedule](num_train_timesteps, beta_start, beta_end)
    else:
        raise InputError(f"beta_schedule {beta_schedule!r} is unknown", remedy=nearest(beta_schedule, BETA_SCHEDULES))
    if betas.ndim != 1 or len(betas) < 2 or not bool(((betas > 0) & (betas < 1)).all()):
        raise InputError("betas must be two or more numbers above 0 and below 1", remedy="check the scheduler's config")
    return _from_alphas_cumprod(_zero_terminal_snr(betas) if rescale_betas_zero_snr else (1 - betas).cumprod(0))


def _from_alphas_cumprod(alphas_cumprod: Tensor) -> NoiseSchedule:
    previous = torch.cat([alphas_cumprod.new_ones(1), alphas_cumprod[:-1]])
    sigmas = ((1 - alphas_cumprod) / alphas_cumprod).sqrt()
    return NoiseSchedule(1 - alphas_cumprod / previous, alphas_cumprod, sigmas)


def _zero_terminal_snr(betas: Tensor) -> Tensor:
    """Lin et al. 2023, Algorithm 1: shift and scale sqrt(ᾱ) so that it ends at 0 and begins where it began."""
    root = (1 - betas).cumprod(0).sqrt()
    root = (root - root[-1]) * root[0] / (root[0] - root[-1])
    return (root**2).clamp(min=SMALLEST_ALPHA_CUMPROD)


def _linear(n: int, start: float, end: float) -> Tensor:
    return torch.linspace(start, end, n, dtype=torch.float64)


def _scaled_linear(n: int, start: float, end: float) -> Tensor:
    return _linear(n, start**0.5, end**0.5) ** 2


def _sigmoid(n: int, start: float, end: float) -> Tensor:
    """GeoDiff (Xu et al. 2022)."""
    return torch.sigmoid(_linear(n, -6, 6)) * (end - start) + start


def _of_alpha_bar(alpha_bar: Callable[[float], float]) -> Callable[[int, float, float], Tensor]:
    """Betas whose cumulative product follows ᾱ(t), t in [0, 1]; capped at 0.999. start and end have no say."""

    def betas(n: int, start: float, end: float) -> Tensor:
        level = torch.tensor([alpha_bar(i / n) for i in range(n + 1)], dtype=torch.float64)
        return (1 - level[1:] / level[:-1]).clamp(max=0.999)

    return betas


def _cosine(t: float) -> float:
    """Nichol and Dhariwal 2021, eq. 17."""
    return math.cos((t + 0.008) / 1.008 * math.pi / 2) ** 2


def _laplace(t: float) -> float:
    """Hang et al. 2024 (arXiv 2407.03297), with mu 0 and b 0.5, as diffusers writes it."""
    snr = math.exp(-0.5 * math.copysign(1, 0.5 - t) * math.log(1 - 2 * abs(0.5 - t) + 1e-6))
    return math.sqrt(snr / (1 + snr))


# name -> (T, beta_start, beta_end) -> betas. The names are diffusers'.
BETA_SCHEDULES: dict[str, Callable[[int, float, float], Tensor]] = {
    "linear": _linear,
    "scaled_linear": _scaled_linear,
    "squaredcos_cap_v2": _of_alpha_bar(_cosine),
    "sigmoid": _sigmoid,
    "laplace": _of_alpha_bar(_laplace),
    "exp": _of_alpha_bar(lambda t: math.exp(-12 * t)),
}
