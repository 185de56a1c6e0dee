"""The grids of diffusers' schedulers: which timesteps and which sigmas, for a scheduler's config and a number of steps.

Three families read the same keys differently. TABLE (DDPM, DDIM, PNDM): timesteps are rows of the schedule's table.
K (after k-diffusion: Euler, Heun, LMS, KDPM2): fractions of timesteps are kept. DPM (DPM-Solver, UniPC, DEIS): one
interval more is laid out, and its end left away.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from math import exp, log
from typing import Any

from safelight.diffusion.grids import Grid, Levels, beta, exponential, karras
from safelight.diffusion.schedule import NoiseSchedule
from safelight.errors import InputError, nearest

Config = Mapping[str, Any]
WARPS = ("use_karras_sigmas", "use_exponential_sigmas", "use_beta_sigmas", "use_lu_lambdas")


@dataclass(frozen=True)
class Family:
    """How a group of schedulers reads its config."""

    spacings: Mapping[str, Callable[[Config, int, int], list[float]]]  # name -> (config, steps, T) -> timesteps
    whole: bool  # timesteps are whole numbers
    own_range: bool = False  # karras and the like span the spacing's sigmas, not the schedule's
    rounds: bool = False  # karras's timesteps are rounded


def _line(start: float, end: float, n: int) -> list[float]:
    step = (end - start) / max(n - 1, 1)
    return [start + i * step for i in range(n)]


def _leading(config: Config, n: int, T: int) -> list[float]:
    return [i * (T // n) + config["steps_offset"] for i in reversed(range(n))]


def _trailing(config: Config, n: int, T: int) -> list[float]:
    return [round(T - i * (T / n)) - 1 for i in range(n)]


def _rounded_linspace(config: Config, n: int, T: int) -> list[float]:
    return [round(t) for t in reversed(_line(0, T - 1, n))]


def _linspace(config: Config, n: int, T: int) -> list[float]:
    return list(reversed(_line(0, T - 1, n)))


def _leading_and_one(config: Config, n: int, T: int) -> list[float]:
    return [i * (T // (n + 1)) + config.get("steps_offset", 0) for i in range(n, 0, -1)]


def _linspace_and_one(config: Config, n: int, T: int) -> list[float]:
    return [round(t) for t in reversed(_line(0, T - 1, n + 1)[1:])]


TABLE = Family({"leading": _leading, "linspace": _rounded_linspace, "trailing": _trailing}, whole=True)
K = Family({"leading": _leading, "linspace": _linspace, "trailing": _trailing}, whole=False, own_range=True)
K_ROUNDED = replace(K, rounds=True)
DPM = Family(
    {"leading": _leading_and_one, "linspace": _linspace_and_one, "trailing": _trailing}, whole=True, rounds=True
)


def make_grid(
    family: Family, config: Config, schedule: NoiseSchedule, steps: int, final: Callable[[float], float]
) -> Grid:
    """The grid of `steps` steps. `final`: the sigma where it ends, from the last sigma before.

    Raises InputError for an unknown timestep_spacing, or a number of steps that it cannot have.
    """
    levels = _levels_at(schedule, _spaced(family, config, schedule, steps))
    if config.get("interpolation_type") == "log_linear":
        return _log_linear(schedule, levels)
    levels = _warped(family, config, schedule, levels)
    if config.get("timestep_type") == "continuous" and config["prediction_type"] == "v_prediction":
        levels = [(s, log(s) / 4) for s, _ in levels]
    return closed(levels, final)


def closed(levels: Levels, final: Callable[[float], float]) -> Grid:
    """Levels and where they end, as a Grid."""
    return Grid((*(s for s, _ in levels), final(levels[-1][0])), tuple(t for _, t in levels))


def grid_at_timesteps(schedule: NoiseSchedule, timesteps: Sequence[float], final: Callable[[float], float]) -> Grid:
    """The grid of a caller's own timesteps, falling."""
    if len(timesteps) == 0:
        raise InputError("an empty list of timesteps", remedy="give at least one")
    return closed(_levels_at(schedule, timesteps), final)


def _spaced(family: Family, config: Config, schedule: NoiseSchedule, steps: int) -> list[float]:
    name = config.get("timestep_spacing", "linspace")
    if name not in family.spacings:
        raise InputError(f"timestep_spacing {name!r} is unknown", remedy=nearest(name, family.spacings))
    T = schedule.num_train_timesteps
    if not 1 <= steps <= T:
        raise InputError(f"num_inference_steps must lie in 1 to {T}, the timesteps of training; got {steps}")
    return family.spacings[name](config, steps, T - _clipped(config, schedule))


def _clipped(config: Config, schedule: NoiseSchedule) -> int:
    """How many of the noisiest timesteps `lambda_min_clipped` leaves out; lambda = log(alpha / sigma)."""
    lowest = config.get("lambda_min_clipped", float("-inf"))
    return sum(-log(s) < lowest for s in schedule.sigmas.tolist())


def _levels_at(schedule: NoiseSchedule, timesteps: Sequence[float]) -> Levels:
    """Between two timesteps sigma (not its logarithm) is interpolated, as diffusers does."""
    table, top = schedule.sigmas.tolist(), schedule.num_train_timesteps - 1
    levels = []
    for t in map(float, timesteps):
        if not 0 <= t <= top:
            raise InputError(f"timestep {t} is outside the schedule's 0 to {top}", remedy="ask for fewer steps")
        low = int(t)
        levels.append((table[low] + (t - low) * (table[min(low + 1, top)] - table[low]), t))
    return levels


def _log_linear(schedule: NoiseSchedule, levels: Levels) -> Grid:
    """Euler's interpolation_type "log_linear": n + 1 sigmas over the schedule, the last of which ends the grid."""
    sigmas = _line(log(schedule.sigma_max), log(schedule.sigma_min), len(levels) + 1)
    return Grid(tuple(map(exp, sigmas)), tuple(t for _, t in levels))


def _warped(family: Family, config: Config, schedule: NoiseSchedule, levels: Levels) -> Levels:
    chosen = [warp for warp in WARPS if config.get(warp)]
    if len(chosen) > 1:
        raise InputError(f"only one of {', '.join(chosen)} can be used", remedy="leave the others False")
    if not chosen or len(levels) == 1:
        return levels
    low, high = (levels[-1][0], levels[0][0]) if family.own_range else (schedule.sigma_min, schedule.sigma_max)
    low, high = config.get("sigma_min") or low, config.get("sigma_max") or high
    warp = {"use_karras_sigmas": karras, "use_beta_sigmas": beta}.get(chosen[0], exponential)
    warped = warp(schedule, len(levels), sigma_min=low, sigma_max=high)
    # exponential and lu are the same sigmas (diffusers has rho = 1); only the rounding of their timesteps differs
    if family.rounds and chosen[0] in ("use_karras_sigmas", "use_lu_lambdas"):
        cosine = config["beta_schedule"] == "squaredcos_cap_v2" and "use_lu_lambdas" in config
        return [(s, float(int(t) if cosine else round(t))) for s, t in warped]
    return [(s, float(int(t)) if family.whole else t) for s, t in warped]
