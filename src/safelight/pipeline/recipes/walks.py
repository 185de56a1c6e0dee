"""The steps that other programs make, in our words: how many, on which grid, with which options, and from where.

What a name means differs from program to program. The rules here are those of A1111's sd_samplers_*.py and
sd_schedulers.py, and of ComfyUI's samplers.py and uni_pc.py.
"""

from collections.abc import Callable, Mapping
from contextlib import suppress
from math import isfinite, nextafter
from typing import Any

from safelight.diffusion.grids import GRIDS
from safelight.diffusion.samplers import SAMPLERS

Words = dict[str, Any]

BY_TIMESTEPS = ("ddim", "plms", "unipc")  # in A1111
DPM2 = ("dpm2", "dpm2_ancestral")
MOST_STEPS = 1000  # that a request may have


def _size(text: str) -> float:
    """A number from 0 on. Raises ValueError for others."""
    value = float(text)
    if not (isfinite(value) and value >= 0):
        raise ValueError(text)
    return value


def _positive(text: str) -> float:
    """An exponent that overflows nothing. Raises ValueError for others."""
    if not 0.01 <= float(text) <= 1000:
        raise ValueError(text)
    return float(text)


def _true(text: str) -> bool:
    return {"True": True, "False": False}[text]


# A1111's fields -> options of a sampler, and of a grid
SAMPLER_FIELDS: dict[str, tuple[str, Callable[[str], Any]]] = {
    "Sigma churn": ("s_churn", _size),
    "Sigma tmin": ("s_tmin", _size),
    "Sigma tmax": ("s_tmax", _size),
    "Sigma noise": ("s_noise", _size),
    "UniPC order": ("order", int),
    "UniPC variant": ("solver_type", {"bh1": "bh1", "bh2": "bh2"}.__getitem__),
    "UniPC lower order final": ("lower_order_final", _true),
}
GRID_FIELDS: dict[str, tuple[str, Callable[[str], Any]]] = {
    "Schedule rho": ("rho", _positive),
    "Schedule min sigma": ("sigma_min", _positive),
    "Schedule max sigma": ("sigma_max", _positive),
    "Beta schedule alpha": ("alpha", _positive),
    "Beta schedule beta": ("beta", _positive),
    "Discard penultimate sigma": ("discard_penultimate", _true),
}


def of_a1111(
    sampler: str, grid: str, request: Words, fields: Mapping[str, str], *, old: bool, begun: int | None = None
) -> tuple[Words, set[str]]:
    """What A1111 walks for this sampler and grid, ours by name, and the fields that were understood.

    request: with the steps and the strength, where they are known. old: before version 1.6, which had CompVis's DDIM.
    begun: the step that is walked first, counted from the last, where the strength does not say it.
    """
    steps, strength = request.get("steps", 0), request.get("strength")
    if not 1 <= steps <= MOST_STEPS:
        return {"sampler": sampler} | ({"grid": grid} if grid else {}), set()
    by_timesteps = sampler in BY_TIMESTEPS
    walk = _by_timesteps(sampler, steps, old) if by_timesteps else _by_sigmas(sampler, grid, steps, strength is None)
    laid = GRIDS[walk["grid"]].options.keys() | ({"discard_penultimate"} if not by_timesteps else set())
    options, used = _options(fields, SAMPLER_FIELDS, SAMPLERS[sampler].options.keys())
    grid_options, grid_used = _options(fields, GRID_FIELDS, laid)
    walk["sampler_options"] = walk.get("sampler_options", {}) | options
    walk["grid_options"] = walk.get("grid_options", {}) | grid_options
    if strength is not None and 0 <= strength <= 1:
        begun = int(min(strength, 0.999) * steps) if begun is None else begun  # its t_enc
        walked, whole = begun + 1, steps
        if sampler == "unipc":
            walked, whole = begun, walk["steps"]
        elif by_timesteps:
            walked, whole = begun - (not old), len(range(0, 1000, 1000 // steps)) - (not old)
        walk["strength"] = share(max(walked, 0), whole)
    return {name: value for name, value in walk.items() if value != {}}, used | grid_used


def _by_timesteps(sampler: str, steps: int, old: bool) -> Words:
    """DDIM, PLMS and UniPC, whatever the schedule: from noise of unit variance, to the lowest timestep they know."""
    if sampler == "unipc":  # as many steps as the others have timesteps, but laid by itself
        steps = steps if old else len(range(0, 1000, 1000 // steps))
        options = {"order": 3, "solver_type": "bh1"}
        walk = {"grid": "sgm_uniform", "steps": steps, "sampler_options": options}
    else:
        walk = {"grid": "ddim_uniform"}
    if sampler == "unipc" or old:
        walk["grid_options"] = {"final_sigma": "sigma_min"}
    else:
        walk["grid_options"] = {"clipped": True, "final_sigma": "last"}
    return {"sampler": sampler, "initial_noise": "unit_variance", **walk}


def _by_sigmas(sampler: str, grid: str, steps: int, whole: bool) -> Words:
    """k-diffusion's samplers, and Restart. whole: from noise alone."""
    walk: Words = {"sampler": sampler, "grid": grid, "grid_options": {}, "sampler_options": {}}
    if grid == "kl_optimal":  # an interval more, and no step to 0
        walk |= {"steps": steps + 1, "grid_options": {"final_sigma": "last"}}
    elif grid == "align_your_steps":
        walk["grid_options"] = {"whole": True}
    if sampler in DPM2:
        walk["grid_options"] |= {"discard_penultimate": True}
    if sampler in ("dpm_fast", "dpm_adaptive") and whole:
        walk |= _to_the_last_level(steps)
    if sampler == "restart":  # the steps up and down again are some of those asked for
        times, again = (0, 0) if steps < 20 else (1, 9) if steps < 36 else (2, steps // 4)
        walk["sampler_options"] = {"restart_times": times} | ({"restart_steps": again} if times else {})
        if times and whole:
            walk |= {"grid": "karras", "grid_options": {}, "steps": steps - times * again}
    return walk


def _to_the_last_level(steps: int) -> Words:
    """k-diffusion's DPM fast and adaptive stop where the grid has its last level above 0."""
    return {"steps": steps + 1, "grid_options": {"final_sigma": "last"}}


def of_comfyui(theirs: str, request: Words, denoise: float | None, *, ksampler: bool) -> Words:
    """What ComfyUI walks, beside what the request has already. theirs: its name of the sampler.

    denoise: of a latent that is no empty one, in [0, 1]; else None. ksampler: whether KSampler lays the steps, or a
    node of its own, which leaves out no level.
    """
    walk: Words = {"grid_options": {}, "sampler_options": {}}
    if request.get("grid") == "beta":
        walk["grid_options"] = {"space": "timestep"}
    steps = request.get("steps", 0)
    if not 1 <= steps <= MOST_STEPS:
        return {} if denoise is None else {"strength": float(denoise)}
    if ksampler and theirs in ("dpm_2", "dpm_2_ancestral", "uni_pc", "uni_pc_bh2"):
        walk["grid_options"] |= {"discard_penultimate": True}
    if theirs in ("uni_pc", "uni_pc_bh2"):
        walk["grid_options"] |= {"final_sigma": 0.001}
        kind = "bh2" if theirs == "uni_pc_bh2" else "bh1"
        walk["sampler_options"] = {"order": max(min(3, steps - 1), 1), "solver_type": kind}
    if theirs in ("dpm_fast", "dpm_adaptive") and denoise is None:
        walk |= _to_the_last_level(steps)
    if denoise is not None:
        walk["strength"] = float(denoise)
        if steps / MOST_STEPS <= denoise <= 0.9999:  # it lays more steps, and walks the last of them
            laid = int(steps / denoise)
            walk |= {"steps": laid, "strength": share(steps, laid)}
    return {name: value for name, value in walk.items() if value != {}}


def share(walked: int, steps: int) -> float:
    """The strength at which `Grid.last` keeps so many of these steps."""
    strength = min(walked / max(steps, 1), 1.0)
    return strength if int(steps * strength) == walked else nextafter(strength, 1.0)


def _options(
    fields: Mapping[str, str], table: Mapping[str, tuple[str, Callable[[str], Any]]], known: Any
) -> tuple[Words, set[str]]:
    """The fields of a table that are options here, and their names."""
    options, used = {}, set()
    for name, (word, read) in table.items():
        if name in fields and word in known:
            with suppress(ValueError, KeyError):
                options[word] = read(fields[name])
                used.add(name)
    return options, used
