"""Restart sampling (Xu et al. 2023, arXiv 2306.14878)."""

from collections.abc import Sequence
from math import sqrt

from torch import Tensor

from safelight.diffusion.samplers.driver import Noise, Steps, sampler
from safelight.diffusion.samplers.onestep import heun


@sampler("restart", label="Restart", order=2, noise="fresh", quiet={"restart_times": 0})
def restart(
    x: Tensor,
    sigmas: Sequence[float],
    noise: Noise,
    *,
    restart_times: int = 1,
    restart_steps: int = 9,
    restart_min: float = 0.1,
    restart_max: float = 2.0,
    s_noise: float = 1.0,
) -> Steps:
    """Heun down the grid; once near `restart_min`, go up to `restart_max` by fresh noise and down again (Algorithm 1).

    Up and down happen `restart_times` times, in `restart_steps` Heun steps, even in sigma^(1/7), between the sigmas of
    the grid that lie nearest to the two. They come on top of the grid's own steps. A1111 takes them out of the steps it
    is given, and always on a Karras grid: its 30 steps are 21 here, on "karras", with the defaults.
    """
    low, high = (min(range(len(sigmas)), key=lambda i: abs(sigmas[i] - s)) for s in (restart_min, restart_max))
    if high >= low or sigmas[low] == 0:
        restart_times = 0
    if restart_times == 0:
        return (yield from heun(x, sigmas, noise))
    x = yield from heun(x, sigmas[: low + 1], noise)
    for _ in range(restart_times):
        x = x + sqrt(sigmas[high] ** 2 - sigmas[low] ** 2) * s_noise * noise(sigmas[high], sigmas[low])
        x = yield from heun(x, _between(sigmas[high], sigmas[low], restart_steps), noise)
    return (yield from heun(x, sigmas[low:], noise))


def _between(high: float, low: float, steps: int) -> list[float]:
    """From high to low in `steps` steps, even in sigma^(1/7), as Karras et al. 2022 space a whole grid."""
    a, b = high ** (1 / 7), low ** (1 / 7)
    return [high, *((a + i / steps * (b - a)) ** 7 for i in range(1, steps)), low]
