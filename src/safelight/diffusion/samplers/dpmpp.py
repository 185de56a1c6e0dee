"""The DPM-Solver++ family in k-diffusion's forms (Lu et al. 2022, arXiv 2211.01095), with and without noise.

They solve the ODE, or with eta > 0 the SDE, in lambda = -log(sigma), where its linear part is exact. With x0 constant
over a step of h = log(s / s_next), it comes to x0 + (s_next / s) * (x - x0): Euler's step. The rest is how to guess the
x0 of the whole step better: from the steps before (2M, 3M), or by an evaluation inside it (2S, SDE).
"""

from collections.abc import Sequence
from itertools import pairwise
from math import log, sqrt

from torch import Tensor

from safelight.diffusion.samplers.driver import Noise, Steps, sampler
from safelight.diffusion.samplers.onestep import ancestral_step
from safelight.errors import InputError


@sampler("dpmpp_2m", label="DPM++ 2M", order=2)
def dpmpp_2m(x: Tensor, sigmas: Sequence[float], noise: Noise) -> Steps:
    """DPM-Solver++(2M), Algorithm 2: x0 extrapolated from this step and the last to the middle of the next."""
    last = None  # (x0, h) of the step before
    for s, s_next in pairwise(sigmas):
        x, x0 = yield x, s
        if s_next == 0:
            return x0
        h = log(s / s_next)
        target = x0 if last is None else x0 + (x0 - last[0]) * h / (2 * last[1])
        x = target + (s_next / s) * (x - target)
        last = x0, h
    return x


@sampler("dpmpp_2s_ancestral", label="DPM++ 2S a", order=2, noise="fresh", quiet={"eta": 0.0})
def dpmpp_2s_ancestral(
    x: Tensor, sigmas: Sequence[float], noise: Noise, *, eta: float = 1.0, s_noise: float = 1.0
) -> Steps:
    """DPM-Solver++(2S), Algorithm 1 with r = 1/2, down; fresh noise up."""
    for s, s_next in pairwise(sigmas):
        x, x0 = yield x, s
        down, up = ancestral_step(s, s_next, eta)
        if down > 0:
            middle = sqrt(s * down)
            _, x0 = yield x0 + (middle / s) * (x - x0), middle
        x = x0 + (down / s) * (x - x0)
        if up > 0:
            x = x + up * s_noise * noise(s, s_next)
    return x


@sampler("dpmpp_sde", label="DPM++ SDE", order=2, noise="brownian", quiet={"eta": 0.0})
def dpmpp_sde(
    x: Tensor, sigmas: Sequence[float], noise: Noise, *, eta: float = 1.0, s_noise: float = 1.0, r: float = 0.5
) -> Steps:
    """DPM-Solver++(2S) with noise in both halves; the middle lies at the fraction r of the step in log(sigma)."""
    for s, s_next in pairwise(sigmas):
        x, x0 = yield x, s
        if s_next == 0:
            return x0
        middle = s ** (1 - r) * s_next**r
        down, up = ancestral_step(s, middle, eta)
        x_mid = x0 + (down / s) * (x - x0)
        if up > 0:
            x_mid = x_mid + up * s_noise * noise(s, middle)
        _, x0_mid = yield x_mid, middle
        target = x0 + (x0_mid - x0) / (2 * r)
        down, up = ancestral_step(s, s_next, eta)
        x = target + (down / s) * (x - target)
        if up > 0:
            x = x + up * s_noise * noise(s, s_next)
    return x


@sampler("dpmpp_2m_sde", label="DPM++ 2M SDE", order=2, noise="brownian", quiet={"eta": 0.0})
@sampler("dpmpp_2m_sde_heun", label="DPM++ 2M SDE Heun", order=2, noise="brownian", quiet={"eta": 0.0},
         defaults={"solver_type": "heun"})  # fmt: skip
def dpmpp_2m_sde(
    x: Tensor,
    sigmas: Sequence[float],
    noise: Noise,
    *,
    eta: float = 1.0,
    s_noise: float = 1.0,
    solver_type: str = "midpoint",
) -> Steps:
    """SDE-DPM-Solver++(2M): as 2M, on the SDE. eta 0 with "midpoint" is 2M itself.

    solver_type: "midpoint" as in the paper, or "heun".
    """
    if solver_type not in ("midpoint", "heun"):
        raise InputError(f"solver_type {solver_type!r} is unknown", remedy="choose 'midpoint' or 'heun'")
    last = None  # (x0, h) of the step before
    for s, s_next in pairwise(sigmas):
        x, x0 = yield x, s
        if s_next == 0:
            return x0
        h = log(s / s_next)
        keep = (s_next / s) ** (1 + eta)  # what is left of x - x0
        x = x0 + keep * (x - x0)
        if last is not None and h > 0:
            weight = (1 - keep) / 2 if solver_type == "midpoint" else 1 - (1 - keep) / (h * (1 + eta))
            x = x + weight * (h / last[1]) * (x0 - last[0])
        x = x + _sde_noise(noise, s, s_next, eta, s_noise)
        last = x0, h
    return x


@sampler("dpmpp_3m_sde", label="DPM++ 3M SDE", order=2, noise="brownian", quiet={"eta": 0.0})
def dpmpp_3m_sde(x: Tensor, sigmas: Sequence[float], noise: Noise, *, eta: float = 1.0, s_noise: float = 1.0) -> Steps:
    """SDE-DPM-Solver++(3M): a parabola through the last three x0 in log(sigma).

    d1 and d2 are the first and half the second derivative of x0 over one step; phi_2 is the integral that weighs d1.
    The weight of d2 is k-diffusion's (and diffusers' at solver_order 3). The integral is twice that, so this converges
    with order 2, not 3: we draw what the original draws.
    """
    past: list[tuple[Tensor, float]] = []  # (x0, h) of the two steps before, the later one first
    for s, s_next in pairwise(sigmas):
        x, x0 = yield x, s
        if s_next == 0:
            return x0
        h = log(s / s_next)
        span = h * (1 + eta)
        x = x0 + (s_next / s) ** (1 + eta) * (x - x0)
        if past and h > 0:
            phi_2 = 1 - (1 - (s_next / s) ** (1 + eta)) / span
            (x0_1, h_1) = past[0]
            d1 = (x0 - x0_1) * h / h_1
            if len(past) == 2:
                x0_2, h_2 = past[1]
                slope = (x0_1 - x0_2) * h / h_2
                d2 = (d1 - slope) * h / (h_1 + h_2)
                x = x - (phi_2 / span - 0.5) * d2
                d1 = d1 + d2 * h_1 / h
            x = x + phi_2 * d1
        x = x + _sde_noise(noise, s, s_next, eta, s_noise)
        past = [(x0, h), *past[:1]]
    return x


def _sde_noise(noise: Noise, s: float, s_next: float, eta: float, s_noise: float) -> Tensor | float:
    """What the SDE adds over a step from s to s_next."""
    std = s_next * sqrt(1 - (s_next / s) ** (2 * eta)) * s_noise
    return std * noise(s, s_next) if std > 0 else 0.0
