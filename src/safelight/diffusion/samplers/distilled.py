"""Samplers for networks distilled to answer in few steps: LCM and TCD. On other networks they blur."""

from collections.abc import Sequence
from itertools import pairwise
from math import floor, sqrt

from torch import Tensor

from safelight.diffusion.samplers.driver import Noise, Steps, sampler
from safelight.diffusion.schedule import NoiseSchedule, noise_schedule


@sampler("lcm", label="LCM", noise="fresh")
def lcm(x: Tensor, sigmas: Sequence[float], noise: Noise) -> Steps:
    """Latent consistency models (Luo et al. 2023, Algorithm 3): jump to x0, noise it again to the next level.

    Their boundary scalings c_skip and c_out are left out: at diffusers' timestep_scaling of 10 they differ from 0 and 1
    by less than 1e-5 from timestep 19 on. The grid "lcm" has the timesteps such networks were distilled on.
    """
    for s, s_next in pairwise(sigmas):
        x, x0 = yield x, s
        x = x0 if s_next == 0 else x0 + s_next * noise(s, s_next)
    return x


@sampler("tcd", label="TCD", noise="fresh")
def tcd(
    x: Tensor, sigmas: Sequence[float], noise: Noise, *, eta: float = 0.3, schedule: NoiseSchedule | None = None
) -> Steps:
    """Trajectory consistency distillation (Zheng et al. 2024, arXiv 2402.19159, Algorithm 4, "strategic stochastic").

    Follow the ODE past t_next to (1 - eta) * t_next, then noise up to t_next. eta 0 is Euler, eta 1 is LCM's jump to
    timestep 0. It is measured in timesteps, hence `schedule`; None is Stable Diffusion's. No noise in the last step.
    """
    schedule = noise_schedule() if schedule is None else schedule
    for i, (s, s_next) in enumerate(pairwise(sigmas), start=1):
        x, x0 = yield x, s
        down = s_next
        if eta > 0 and s_next > 0 and i < len(sigmas) - 1:
            down = min(s_next, schedule.sigma(floor((1 - eta) * schedule.t(s_next))))
        x = x0 + (down / s) * (x - x0)
        if down < s_next:
            x = x + sqrt(s_next**2 - down**2) * noise(s, s_next)
    return x
