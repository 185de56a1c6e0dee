"""The noise levels a sampler visits: pairs (sigma, timestep), falling, with a final sigma.

A pair, because peers do not agree on how to get from one to the other between training timesteps: what a grid was made
from is kept exactly, and only what lies off the grid is interpolated. Grids of the same name can differ between peers;
each function says whose numbers it gives.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from inspect import signature
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor

from safelight.diffusion import aliases
from safelight.diffusion.schedule import NoiseSchedule
from safelight.errors import InputError, nearest


@dataclass(frozen=True)
class Grid:
    """n steps: `sigmas` (n + 1, falling; sampling ends at the last) and the `timesteps` (n) of all but the last."""

    sigmas: tuple[float, ...]
    timesteps: tuple[float, ...]

    def __post_init__(self) -> None:
        if len(self.sigmas) != len(self.timesteps) + 1:
            raise InputError(f"{len(self.timesteps)} timesteps need one sigma more, got {len(self.sigmas)}")
        falling = all(a >= b for a, b in pairwise(self.sigmas))
        if not falling or self.sigmas[-1] < 0 or 0.0 in self.sigmas[:-1]:
            raise InputError(f"a grid's sigmas must fall, and stay above 0 until the last: got {self.sigmas}")

    def __len__(self) -> int:
        return len(self.timesteps)

    def last(self, strength: float) -> "Grid":
        """The last `strength` of the steps, for image to image: min(int(n * strength), n) of them, as diffusers counts.

        strength: in [0, 1]; 1 is the whole grid, 0 has no steps. Raises InputError outside.
        """
        if not 0 <= strength <= 1:
            raise InputError(f"strength must lie in [0, 1], got {strength}")
        start = len(self) - min(int(len(self) * strength), len(self))
        return Grid(self.sigmas[start:], self.timesteps[start:])

    def t(self, sigma: float) -> float | None:
        """The timestep that goes with exactly this sigma, or None off the grid."""
        return self._timestep_of.get(sigma)

    @cached_property
    def _timestep_of(self) -> dict[float, float]:
        return dict(zip(self.sigmas[:-1], self.timesteps, strict=True))


Levels = list[tuple[float, float]]  # (sigma, timestep), falling, without the final sigma


@dataclass(frozen=True)
class GridKind:
    """One row of the registry: `levels(schedule, steps, **options)`. `label` is A1111's name where it has one."""

    name: str
    label: str
    levels: Callable[..., Levels]

    @property
    def options(self) -> Mapping[str, Any]:
        """Its keyword options and their defaults."""
        return {p.name: p.default for p in signature(self.levels).parameters.values() if p.kind == p.KEYWORD_ONLY}


GRIDS: dict[str, GridKind] = {}


def grid(name: str, *, label: str) -> Callable[[Callable[..., Levels]], Callable[..., Levels]]:
    """Register a function `f(schedule, steps, *, option=default) -> Levels` under `name`."""

    def register(levels: Callable[..., Levels]) -> Callable[..., Levels]:
        if name in GRIDS:
            raise ValueError(f"two grids are called {name!r}")
        GRIDS[name] = GridKind(name, label, levels)
        return levels

    return register


def find(name: str) -> GridKind:
    """The grid of that name, ours or a peer's (see `aliases`); InputError names the nearest ones."""
    ours = aliases.grid(name, GRIDS)
    if ours is None:
        raise InputError(f"grid {name!r} is unknown", remedy=nearest(name.lower(), GRIDS))
    return GRIDS[ours]


def make_grid(
    schedule: NoiseSchedule,
    steps: int,
    name: str = "karras",
    *,
    final_sigma: str | float = "zero",
    discard_penultimate: bool = False,
    **options: Any,
) -> Grid:
    """The grid `name` with `steps` steps.

    Args:
        final_sigma: "zero"; "sigma_min", the schedule's; "last", the grid's own last level, to which then is a step
            less; or a number.
        discard_penultimate: lay a step more, and leave out the level before the final one: A1111, ComfyUI for DPM2.

    Raises InputError for an unknown name or option, or a number of steps the grid cannot have.
    """
    kind = find(name)
    for word in options:
        if word not in kind.options:
            remedy = nearest(word, kind.options) if kind.options else "it has no options"
            raise InputError(f"grid {name!r} has no option {word!r}", remedy=remedy)
    if steps < 1:
        raise InputError(f"a grid needs at least 1 step, got {steps}")
    laid = _closed(schedule, kind.levels(schedule, steps + discard_penultimate, **options), final_sigma)
    if discard_penultimate:
        laid = Grid((*laid.sigmas[:-2], laid.sigmas[-1]), laid.timesteps[:-1])
    if len(laid) == 0:
        raise InputError(f"of {steps} steps none is left before the last level", remedy="ask for more")
    return laid


def grid_of_timesteps(
    schedule: NoiseSchedule,
    timesteps: Sequence[float],
    *,
    final_sigma: str | float = "zero",
    interpolation: str = "log",
) -> Grid:
    """A grid of your own timesteps, falling, in [0, T-1]. `interpolation`: see `linspace`."""
    return _closed(schedule, _at_timesteps(schedule, timesteps, interpolation), final_sigma)


def grid_of_sigmas(schedule: NoiseSchedule, sigmas: Sequence[float]) -> Grid:
    """A grid of your own sigmas, falling; the last one is where sampling ends, usually 0."""
    if len(sigmas) < 1:
        raise InputError("a grid needs at least its final sigma")
    return Grid(tuple(map(float, sigmas)), tuple(t for _, t in _at_sigmas(schedule, sigmas[:-1])))


def _closed(schedule: NoiseSchedule, levels: Levels, final_sigma: str | float) -> Grid:
    finals = {"zero": 0.0, "sigma_min": schedule.sigma_min, "last": levels[-1][0]}
    if isinstance(final_sigma, str) and final_sigma not in finals:
        raise InputError(f"final_sigma {final_sigma!r} is unknown", remedy=nearest(final_sigma, finals))
    last = finals[final_sigma] if isinstance(final_sigma, str) else float(final_sigma)
    levels = levels[:-1] if final_sigma == "last" else levels
    return Grid((*(s for s, _ in levels), last), tuple(t for _, t in levels))


def _at_sigmas(schedule: NoiseSchedule, sigmas: Sequence[float]) -> Levels:
    s = torch.tensor(sigmas, dtype=torch.float64)
    return list(zip(s.tolist(), schedule.timesteps_at(s).tolist(), strict=True))


def _at_timesteps(schedule: NoiseSchedule, timesteps: Sequence[float], interpolation: str = "log") -> Levels:
    top = schedule.num_train_timesteps - 1
    for t in timesteps:
        if not 0 <= t <= top:
            raise InputError(f"timestep {t} is outside the schedule's 0 to {top}", remedy="ask for fewer, or others")
    if interpolation not in ("log", "linear"):
        raise InputError(f"interpolation {interpolation!r} is unknown", remedy="choose 'log' or 'linear'")
    at = torch.tensor(timesteps, dtype=torch.float64)
    low = at.long().clamp(max=top - 1)
    linear = torch.lerp(schedule.sigmas[low], schedule.sigmas[low + 1], at - low)
    sigmas = schedule.sigmas_at(at) if interpolation == "log" else linear
    return list(zip(sigmas.tolist(), at.tolist(), strict=True))


def _line(start: float, end: float, n: int) -> list[float]:
    """n numbers from start to end, both included; n = 1 gives start, as torch and NumPy do."""
    return torch.linspace(start, end, n, dtype=torch.float64).tolist()


# By timestep. "leading", "linspace" and "trailing" are named in Lin et al. 2023, Tab. 2, and are diffusers' numbers.


@grid("leading", label="Leading")
def leading(schedule: NoiseSchedule, steps: int, *, steps_offset: int = 1) -> Levels:
    """Every (T // steps)-th timestep from 0, plus an offset: diffusers for Stable Diffusion. Never reaches T - 1."""
    _at_most(schedule, steps)
    ratio = schedule.num_train_timesteps // steps
    return _at_timesteps(schedule, [i * ratio + steps_offset for i in reversed(range(steps))])


@grid("linspace", label="Linspace")
def linspace(schedule: NoiseSchedule, steps: int, *, interpolation: str = "linear") -> Levels:
    """Evenly from T - 1 to 0, both included, fractions kept.

    interpolation: "linear" takes sigma between two timesteps as diffusers does, "log" as k-diffusion does.
    """
    return _at_timesteps(schedule, _line(schedule.num_train_timesteps - 1, 0, steps), interpolation)


@grid("trailing", label="Trailing")
def trailing(schedule: NoiseSchedule, steps: int) -> Levels:
    """Every (T / steps)-th timestep down from T - 1, rounded: the one that uses the last timestep and not the first.

    diffusers' numbers, without the extra one that its floating-point range makes for some step counts.
    """
    _at_most(schedule, steps)
    T = schedule.num_train_timesteps
    stride = T - (T - T / steps)  # T / steps as NumPy's arange rounds it, which decides the ties
    return _at_timesteps(schedule, [round(T - i * stride) - 1 for i in range(steps)])


@grid("uniform", label="Uniform")
def uniform(schedule: NoiseSchedule, steps: int) -> Levels:
    """`linspace` with log-interpolated sigmas: k-diffusion's get_sigmas, A1111's "Uniform" and ComfyUI's "normal"."""
    return linspace(schedule, steps, interpolation="log")


@grid("sgm_uniform", label="SGM Uniform")
def sgm_uniform(schedule: NoiseSchedule, steps: int) -> Levels:
    """One step more than `uniform`, without its last: A1111's and ComfyUI's "sgm_uniform" (after Stability's SGM)."""
    return _at_timesteps(schedule, _line(schedule.num_train_timesteps - 1, 0, steps + 1)[:-1])


@grid("simple", label="Simple")
def simple(schedule: NoiseSchedule, steps: int) -> Levels:
    """Every (T / steps)-th timestep down from T - 1, cut to whole numbers: A1111's and ComfyUI's "simple"."""
    _at_most(schedule, steps)
    T = schedule.num_train_timesteps
    return _at_timesteps(schedule, [T - 1 - int(i * (T / steps)) for i in range(steps)])


@grid("ddim_uniform", label="DDIM")
def ddim_uniform(schedule: NoiseSchedule, steps: int, *, clipped: bool = False) -> Levels:
    """CompVis's "uniform" DDIM timesteps, every (T // steps)-th from 1; A1111's "DDIM", ComfyUI's "ddim_uniform".

    It gives another number of steps than was asked for where T is not a multiple (30 gives 31 at T = 1000); `leading`
    is the same without that. Where CompVis runs past the end of its table (3 steps), this stops before; `clipped` takes
    T - 1 for what lies past it, as A1111's samplers DDIM and PLMS do. These end at the last level ("last"), not at 0.
    """
    _at_most(schedule, steps)
    T = schedule.num_train_timesteps
    return _at_timesteps(schedule, [min(t, T - 1) for t in reversed(range(1, T + clipped, T // steps))])


@grid("beta", label="Beta")
def beta(
    schedule: NoiseSchedule,
    steps: int,
    *,
    alpha: float = 0.6,
    beta: float = 0.6,
    space: str = "sigma",
    sigma_min: float | None = None,
    sigma_max: float | None = None,
) -> Levels:
    """Quantiles of a beta distribution (Lee et al. 2024, arXiv 2407.12173).

    space "sigma": between sigma_max and sigma_min, which A1111 and diffusers compute. "timestep": between T - 1 and 0
    without the last, rounded, repetitions left out, which is the paper's and ComfyUI's.
    """
    if space == "sigma":
        low, high = _span(schedule, sigma_min, sigma_max)
        return _at_sigmas(schedule, [low + q * (high - low) for q in _beta_quantiles(_line(1, 0, steps), alpha, beta)])
    if space != "timestep":
        raise InputError(f"space {space!r} is unknown", remedy="choose 'sigma' or 'timestep'")
    quantiles = _beta_quantiles(_line(1, 0, steps + 1)[:-1], alpha, beta)
    timesteps = [round(q * (schedule.num_train_timesteps - 1)) for q in quantiles]
    return _at_timesteps(schedule, list(dict.fromkeys(timesteps)))


@grid("lcm", label="LCM")
def lcm(schedule: NoiseSchedule, steps: int, *, original_inference_steps: int = 50) -> Levels:
    """Some of the timesteps that a latent consistency model was distilled on (Luo et al. 2023): diffusers' numbers."""
    if not steps <= original_inference_steps <= schedule.num_train_timesteps:
        raise InputError(f"the grid 'lcm' has at most original_inference_steps = {original_inference_steps} steps")
    stride, n = schedule.num_train_timesteps // original_inference_steps, original_inference_steps
    return _at_timesteps(schedule, [(n - i * n // steps) * stride - 1 for i in range(steps)])


# By sigma.


@grid("karras", label="Karras")
def karras(
    schedule: NoiseSchedule,
    steps: int,
    *,
    rho: float = 7.0,
    sigma_min: float | None = None,
    sigma_max: float | None = None,
) -> Levels:
    """Evenly in sigma^(1/rho) (Karras et al. 2022, eq. 5): k-diffusion, A1111, ComfyUI.

    Over the whole schedule unless told otherwise. diffusers takes sigma_min and sigma_max from the ends of its timestep
    spacing instead, which comes to the same for "linspace".
    """
    low, high = _span(schedule, sigma_min, sigma_max)
    return _at_sigmas(schedule, [u**rho for u in _line(high ** (1 / rho), low ** (1 / rho), steps)])


@grid("exponential", label="Exponential")
def exponential(
    schedule: NoiseSchedule, steps: int, *, sigma_min: float | None = None, sigma_max: float | None = None
) -> Levels:
    """Evenly in log(sigma): k-diffusion, A1111, ComfyUI, diffusers."""
    return polyexponential(schedule, steps, rho=1.0, sigma_min=sigma_min, sigma_max=sigma_max)


@grid("polyexponential", label="Polyexponential")
def polyexponential(
    schedule: NoiseSchedule,
    steps: int,
    *,
    rho: float = 1.0,
    sigma_min: float | None = None,
    sigma_max: float | None = None,
) -> Levels:
    """log(sigma) falls as the rho-th power of a line: k-diffusion, A1111."""
    low, high = map(math.log, _span(schedule, sigma_min, sigma_max))
    return _at_sigmas(schedule, [math.exp(low + u**rho * (high - low)) for u in _line(1, 0, steps)])


@grid("kl_optimal", label="KL Optimal")
def kl_optimal(
    schedule: NoiseSchedule, steps: int, *, sigma_min: float | None = None, sigma_max: float | None = None
) -> Levels:
    """Evenly in arctan(sigma), best for Gaussian data (Sabour et al. 2024, "Align Your Steps"): ComfyUI's numbers.

    A1111 has one interval more and ends at sigma_min instead of 0: steps + 1 of these with final_sigma "last".
    """
    low, high = map(math.atan, _span(schedule, sigma_min, sigma_max))
    return _at_sigmas(schedule, [math.tan(u) for u in _line(high, low, steps)])


# The 10-step table of Sabour et al. 2024 for Stable Diffusion 1.5, as timesteps; the 0 is where the 10th step ends.
ALIGN_YOUR_STEPS_SD1 = (999, 850, 736, 645, 545, 455, 343, 233, 124, 24, 0)


@grid("align_your_steps", label="Align Your Steps")
def align_your_steps(schedule: NoiseSchedule, steps: int, *, whole: bool = False) -> Levels:
    """The table of Sabour et al. 2024; other step counts by interpolating log(sigma) over it, as they advise.

    ComfyUI's sigmas and diffusers' timesteps; diffusers' and A1111's lists of sigmas are up to 0.4 % off these. `whole`
    spreads `steps` levels over all of the table, as A1111 does; else its last is where sampling ends.
    """
    table = [math.log(s) for s, _ in _at_timesteps(schedule, ALIGN_YOUR_STEPS_SD1)]
    places = _line(0, len(table) - 1, steps + (not whole))[:steps]
    return _at_sigmas(schedule, [math.exp(_interpolate(table, place)) for place in places])


def _interpolate(table: Sequence[float], place: float) -> float:
    low = min(int(place), len(table) - 2)
    return table[low] + (place - low) * (table[low + 1] - table[low])


def _span(schedule: NoiseSchedule, sigma_min: float | None, sigma_max: float | None) -> tuple[float, float]:
    low = schedule.sigma_min if sigma_min is None else sigma_min
    high = schedule.sigma_max if sigma_max is None else sigma_max
    if not 0 < low < high:
        raise InputError(f"sigmas must rise from above 0: got sigma_min {low}, sigma_max {high}")
    return low, high


def _at_most(schedule: NoiseSchedule, steps: int) -> None:
    if steps > schedule.num_train_timesteps:
        what = f"{steps} steps are more than the schedule's {schedule.num_train_timesteps} timesteps"
        raise InputError(what, remedy="ask for fewer, or take a grid of sigmas such as 'karras'")


def _beta_quantiles(probabilities: Sequence[float], a: float, b: float) -> list[float]:
    """The inverse of the beta distribution's I_x(a, b) at each probability, by bisection in x."""
    p = torch.tensor(probabilities, dtype=torch.float64)
    low, high = torch.zeros_like(p), torch.ones_like(p)
    for _ in range(64):
        middle = (low + high) / 2
        below = _beta_distribution(middle, a, b) < p
        low, high = torch.where(below, middle, low), torch.where(below, high, middle)
    return torch.where(p <= 0, 0.0, torch.where(p >= 1, 1.0, (low + high) / 2)).tolist()


def _beta_distribution(x: Tensor, a: float, b: float) -> Tensor:
    """I_x(a, b) for x (n,) in [0, 1], by its power series on the half where that converges fast (DLMF 8.17.7)."""
    left = x <= 0.5
    series = torch.where(left, _beta_series(x, a, b), _beta_series(1 - x, b, a))
    total = math.exp(math.lgamma(a) + math.lgamma(b) - math.lgamma(a + b))
    return torch.where(left, series / total, 1 - series / total)


def _beta_series(x: Tensor, a: float, b: float, terms: int = 64) -> Tensor:
    """B_x(a, b) = x^a * sum over n of (1 - b)_n / n! * x^n / (a + n)."""
    n = torch.arange(terms, dtype=torch.float64)
    factors = torch.cat([n.new_ones(1), ((n[1:] - b) / n[1:]).cumprod(0)])
    return x**a * (x[:, None] ** n * (factors / (a + n))).sum(1)
