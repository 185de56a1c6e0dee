"""Denoisers that are known exactly, and the exact solution of their probability-flow ODE dx/ds = (x - x0) / s."""

import math
from itertools import pairwise

import torch
from torch import Tensor

MEAN, VARIANCE = 0.5, 0.25


def gaussian(x: Tensor, sigma: float) -> Tensor:
    """The best x0 for data N(MEAN, VARIANCE)."""
    return MEAN + (x - MEAN) * VARIANCE / (VARIANCE + sigma**2)


def gaussian_ode(x: Tensor, start: float, end: float) -> Tensor:
    """Where the ODE takes x from sigma = start to sigma = end."""
    return MEAN + (x - MEAN) * math.sqrt((VARIANCE + end**2) / (VARIANCE + start**2))


CENTRES = torch.tensor([-1.0, 0.6, 1.5], dtype=torch.float64)
WEIGHTS = torch.tensor([0.3, 0.5, 0.2], dtype=torch.float64)
WIDTH = 0.1  # variance of each component


def mixture(x: Tensor, sigma: float) -> Tensor:
    """The best x0 for a mixture of three Gaussians: nonlinear in x."""
    away = x[..., None] - CENTRES
    total = WIDTH + sigma**2
    share = (WEIGHTS.log() - away**2 / (2 * total)).softmax(-1)
    return (share * (CENTRES + away * WIDTH / total)).sum(-1)


def mixture_ode(x: Tensor, start: float, end: float, steps: int = 1000) -> Tensor:
    """As `gaussian_ode`, by the classical Runge-Kutta method in log(sigma), where dx / dlog(s) = x - x0."""
    h = math.log(end / start) / steps
    for i in range(steps):
        u = math.log(start) + i * h
        k1 = x - mixture(x, math.exp(u))
        k2 = x + h / 2 * k1 - mixture(x + h / 2 * k1, math.exp(u + h / 2))
        k3 = x + h / 2 * k2 - mixture(x + h / 2 * k2, math.exp(u + h / 2))
        k4 = x + h * k3 - mixture(x + h * k3, math.exp(u + h))
        x = x + h / 6 * (k1 + 2 * k2 + 2 * k3 + k4)
    return x


def even(steps: int, start: float, end: float, rho: float = 7.0) -> list[float]:
    """steps + 1 sigmas from start to end, even in sigma^(1 / rho)."""
    a, b = start ** (1 / rho), end ** (1 / rho)
    return [start, *((a + i / steps * (b - a)) ** rho for i in range(1, steps)), end]


def observed_orders(errors: list[float]) -> list[float]:
    """Orders of convergence from errors at step counts that double."""
    return [math.log2(coarse / fine) for coarse, fine in pairwise(errors)]
