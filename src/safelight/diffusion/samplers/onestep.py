"""Samplers that remember nothing between two steps: Euler, ancestral, DDIM, DDPM, Heun, EDM's Algorithm 2, DPM2.

s and s_next are this step's noise levels, d = (x - x0) / s is dx/ds on the probability-flow ODE (Karras et al. 2022,
eq. 1 and 3). Where s_next is 0 every method here ends with Euler's step, which lands on x0.
"""

from collections.abc import Sequence
from itertools import pairwise
from math import inf, sqrt

from torch import Tensor

from safelight.diffusion.samplers.driver import Noise, Steps, sampler


def ancestral_step(s: float, s_next: float, eta: float = 1.0) -> tuple[float, float]:
    """Split a step to s_next: go down to `down` by the ODE, then come up by fresh noise of standard deviation `up`.

    down² + up² = s_next². At eta 1, `up` is the standard deviation of DDPM's posterior (Ho et al. 2020, eq. 7; in VP
    scaling DDIM's eq. 16, Song et al. 2021); eta 0 is the ODE.
    """
    up = min(s_next, eta * sqrt(s_next**2 * (s**2 - s_next**2) / s**2))
    return sqrt(max(0.0, s_next**2 - up**2)), up


def churned(
    x: Tensor, s: float, n: int, noise: Noise, s_churn: float, s_tmin: float, s_tmax: float, s_noise: float
) -> tuple[Tensor, float]:
    """Raise x from s to s_hat by fresh noise (Karras et al. 2022, Algorithm 2, lines 4 to 6), one of n steps."""
    gamma = min(s_churn / n, sqrt(2) - 1) if s_tmin <= s <= s_tmax else 0.0
    if gamma == 0:
        return x, s
    s_hat = s * (1 + gamma)
    return x + sqrt(s_hat**2 - s**2) * s_noise * noise(s_hat, s), s_hat


@sampler("euler", label="Euler", order=1)
def euler(
    x: Tensor,
    sigmas: Sequence[float],
    noise: Noise,
    *,
    s_churn: float = 0.0,
    s_tmin: float = 0.0,
    s_tmax: float = inf,
    s_noise: float = 1.0,
) -> Steps:
    """Euler's method (Karras et al. 2022, Algorithm 2 without its second half). With s_churn 0 it equals DDIM."""
    for s, s_next in pairwise(sigmas):
        x, s = churned(x, s, len(sigmas) - 1, noise, s_churn, s_tmin, s_tmax, s_noise)
        x, x0 = yield x, s
        x = x0 + (s_next / s) * (x - x0)
    return x


@sampler("euler_ancestral", label="Euler a", order=1, noise="fresh", quiet={"eta": 0.0})
@sampler("ddim", label="DDIM", order=1, noise="fresh", quiet={"eta": 0.0}, defaults={"eta": 0.0})
def euler_ancestral(
    x: Tensor, sigmas: Sequence[float], noise: Noise, *, eta: float = 1.0, s_noise: float = 1.0
) -> Steps:
    """Euler's method down, fresh noise up (k-diffusion). In VP scaling this is DDIM(eta), eq. 12 of Song et al. 2021.

    The two names differ in nothing but the default eta.
    """
    for s, s_next in pairwise(sigmas):
        x, x0 = yield x, s
        down, up = ancestral_step(s, s_next, eta)
        x = x0 + (down / s) * (x - x0)
        if up > 0:
            x = x + up * s_noise * noise(s, s_next)
    return x


@sampler("ddpm", label="DDPM", noise="fresh")
def ddpm(x: Tensor, sigmas: Sequence[float], noise: Noise, *, variance_type: str = "fixed_small") -> Steps:
    """Ancestral sampling (Ho et al. 2020, Algorithm 2): the posterior's mean, and noise of a fixed variance.

    variance_type "fixed_small" is the posterior's variance, hence `euler_ancestral` with eta 1; "fixed_large" is beta.
    """
    for s, s_next in pairwise(sigmas):
        x, x0 = yield x, s
        up = ancestral_step(s, s_next)[1]
        if variance_type == "fixed_large":
            up = sqrt((s**2 - s_next**2) * (1 + s_next**2) / (1 + s**2))
        x = x0 + (s_next / s) ** 2 * (x - x0)
        if s_next > 0:
            x = x + up * noise(s, s_next)
    return x


@sampler("heun", label="Heun", order=2)
@sampler("edm", label="EDM", order=2, noise="fresh", quiet={"s_churn": 0.0}, defaults={
    "s_churn": 40.0, "s_tmin": 0.05, "s_tmax": 50.0, "s_noise": 1.003})  # fmt: skip
def heun(
    x: Tensor,
    sigmas: Sequence[float],
    noise: Noise,
    *,
    s_churn: float = 0.0,
    s_tmin: float = 0.0,
    s_tmax: float = inf,
    s_noise: float = 1.0,
) -> Steps:
    """Heun's method with churn (Karras et al. 2022, Algorithm 2; Algorithm 1 where s_churn is 0).

    "edm" is the same with the paper's stochastic settings for ImageNet-64 (Tab. 5).
    """
    for s, s_next in pairwise(sigmas):
        x, s = churned(x, s, len(sigmas) - 1, noise, s_churn, s_tmin, s_tmax, s_noise)
        x, x0 = yield x, s
        d = (x - x0) / s
        x_next = x + (s_next - s) * d
        if s_next > 0:
            x_next, x0 = yield x_next, s_next
            x_next = x + (s_next - s) * (d + (x_next - x0) / s_next) / 2
        x = x_next
    return x


@sampler("dpm2", label="DPM2", order=2)
def dpm2(
    x: Tensor,
    sigmas: Sequence[float],
    noise: Noise,
    *,
    s_churn: float = 0.0,
    s_tmin: float = 0.0,
    s_tmax: float = inf,
    s_noise: float = 1.0,
) -> Steps:
    """The midpoint method with the midpoint taken in log(sigma) (k-diffusion; after DPM-Solver-2, Lu et al. 2022)."""
    for s, s_next in pairwise(sigmas):
        x, s = churned(x, s, len(sigmas) - 1, noise, s_churn, s_tmin, s_tmax, s_noise)
        x, x0 = yield x, s
        d = (x - x0) / s
        if s_next > 0:
            middle = sqrt(s * s_next)
            x_mid, x0 = yield x + (middle - s) * d, middle
            d = (x_mid - x0) / middle
        x = x + (s_next - s) * d
    return x


@sampler("dpm2_ancestral", label="DPM2 a", order=2, noise="fresh", quiet={"eta": 0.0})
def dpm2_ancestral(
    x: Tensor, sigmas: Sequence[float], noise: Noise, *, eta: float = 1.0, s_noise: float = 1.0
) -> Steps:
    """DPM2 down, fresh noise up (k-diffusion)."""
    for s, s_next in pairwise(sigmas):
        x, x0 = yield x, s
        down, up = ancestral_step(s, s_next, eta)
        d = (x - x0) / s
        if down > 0:
            middle = sqrt(s * down)
            x_mid, x0 = yield x + (middle - s) * d, middle
            d = (x_mid - x0) / middle
        x = x + (down - s) * d
        if up > 0:
            x = x + up * s_noise * noise(s, s_next)
    return x
