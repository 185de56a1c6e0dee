"""AUTOMATIC1111's `parameters`: the prompt, the negative prompt, and a line of "Name: value" separated by commas.

Written from a recipe, so that its web UI and whatever reads its pictures understand ours; and read, whoever wrote it.
"""

import json
import re
from collections.abc import Mapping
from contextlib import suppress
from typing import Any

from safelight.diffusion import aliases
from safelight.diffusion.grids import GRIDS
from safelight.diffusion.samplers import SAMPLERS
from safelight.pipeline.recipes.recipe import Reading, Recipe
from safelight.pipeline.recipes.second_pass import fields_of, read_second_pass
from safelight.pipeline.recipes.walks import BY_TIMESTEPS, of_a1111

NEGATIVE = "Negative prompt:"
SIZE = re.compile(r"(\d{1,6})x(\d{1,6})")
KEY = re.compile(r"\s*(\w[\w \-/]{0,60}):\s*")
RNG = {"cpu": "CPU", "cuda": "NV", "comfyui": "CPU"}
KINDS = {"CPU": "cpu", "NV": "cuda", "GPU": "cuda"}
EMPHASIS = {"Original": "original", "No norm": "no_norm", "None": "ignore", "Ignore": "ignore"}
NOT_A1111S = ("leading", "linspace", "trailing", "lcm")  # grids
# What "Automatic" means since version 1.9: each sampler's own; else, as where it is missing, "Uniform"
AUTOMATIC = {"dpmpp_2m": "karras", "dpmpp_sde": "karras", "dpmpp_2s_ancestral": "karras", "dpm2": "karras",
             "dpm2_ancestral": "karras", "restart": "karras", "dpmpp_2m_sde": "exponential",
             "dpmpp_2m_sde_heun": "exponential", "dpmpp_3m_sde": "exponential"}  # fmt: skip


def write(recipe: Recipe) -> str:
    """A recipe as `parameters`. What has no place there is in our JSON alone."""
    request, card = recipe.request, recipe.model
    mixed = request.get("subseed_strength")
    resized = [request.get("seed_resize_from_width"), request.get("seed_resize_from_height")]
    sampler, grid = SAMPLERS.get(request.get("sampler", "")), GRIDS.get(request.get("grid", ""))
    first = next(iter(card.weights.values()), "")
    unet = next((value for name, value in card.weights.items() if name.startswith("unet/")), first)
    second, drawn = fields_of(request), (request.get("width"), request.get("height"))
    size = drawn if second and all(drawn) else recipe.size
    fields = {
        "Steps": request.get("steps"),
        "Sampler": sampler.label if sampler else request.get("sampler"),
        "Schedule type": grid.label if grid and grid.name not in NOT_A1111S else None,
        "Grid": None if grid and grid.name not in NOT_A1111S else request.get("grid"),
        "CFG scale": request.get("guidance_scale"),
        "Seed": request.get("seed"),
        "Size": f"{size[0]}x{size[1]}",
        "Model hash": unet[:10] or None,
        "Model": re.sub(r"\.(safetensors|ckpt|pt|pth|bin)$", "", card.name) or None,
        "Variation seed": request.get("subseed") if mixed else None,
        "Variation seed strength": mixed or None,
        "Seed resize from": f"{resized[0]}x{resized[1]}" if all(resized) else None,
        "Denoising strength": request.get("strength"),
        **second,
        "Clip skip": request["clip_skip"] + 1 if request.get("clip_skip") else None,
        "ENSD": request.get("noise_seed_delta") or None,
        "Eta DDIM" if sampler and sampler.name == "ddim" else "Eta": request.get("eta"),
        "RNG": RNG.get(request.get("noise", "")),
        "Version": f"Safelight {recipe.versions.get('safelight', '')}",
    }
    line = ", ".join(f"{name}: {_quoted(value)}" for name, value in fields.items() if value is not None)
    negative = request.get("negative_prompt")
    return "\n".join([request.get("prompt") or "", *([f"{NEGATIVE} {negative}"] if negative else []), line])


def _quoted(value: Any) -> str:
    text = str(value)
    return json.dumps(text, ensure_ascii=False) if any(sign in text for sign in ",:\n") else text


def split(text: str) -> tuple[str, str, dict[str, str]]:
    """The prompt, the negative prompt, and the fields of the last line that has at least three."""
    lines = text.strip().split("\n")
    fields = _fields(lines[-1])
    if len(fields) < 3:
        fields = {}
    else:
        lines.pop()
    at = next((k for k, line in enumerate(lines) if line.strip().startswith(NEGATIVE)), len(lines))
    negative = "\n".join(lines[at:]).strip().removeprefix(NEGATIVE).strip()
    return "\n".join(lines[:at]).strip(), negative, fields


def _fields(line: str) -> dict[str, str]:
    """ "Name: value" pairs, in one pass. A value with commas stands in double quotes, as JSON has strings."""
    found: dict[str, str] = {}
    at = 0
    while match := KEY.match(line, at):
        value, end = _value(line, match.end())
        found[match[1]] = value
        comma = line.find(",", end)
        at = len(line) if comma < 0 else comma + 1
    return found


def _value(line: str, start: int) -> tuple[str, int]:
    """The value that begins there, and where it ends."""
    if line.startswith('"', start):
        try:
            value, end = json.JSONDecoder().raw_decode(line, start)
            return str(value), end
        except ValueError:
            pass
    end = line.find(",", start)
    end = len(line) if end < 0 else end
    return line[start:end].strip(), end


def read(text: str) -> Reading:
    """What a `parameters` text says. For AUTOMATIC1111's own, with what it does otherwise than we do by default."""
    prompt, negative, fields = split(text)
    return of_fields(prompt, negative, fields, fields.pop("Version", ""))


def of_fields(prompt: str, negative: str, fields: Mapping[str, str], version: str) -> Reading:
    """The same of its parts: both prompts, the last line's fields, and who wrote it."""
    ours = version.startswith("Safelight")
    request: dict[str, Any] = {"prompt": prompt, "negative_prompt": negative}
    kept: dict[str, Any] = dict(fields)
    hires = any(name.startswith("Hires ") for name in fields)  # then the strength is that of a second pass
    for name, word, change in PLAIN:
        if name in kept and not (hires and word == "strength"):
            with suppress(KeyError, ValueError):
                request[word] = change(kept[name])
                del kept[name]
    for name, word in (("Size", ""), ("Seed resize from", "seed_resize_from_")):
        if match := SIZE.fullmatch(kept.get(name, "")):
            request |= {f"{word}width": int(match[1]), f"{word}height": int(match[2])}
            del kept[name]
    if fields and not ours:
        unit = kept.pop("SGM noise multiplier", "") == "True"
        own = {"initial_noise": "unit_variance" if unit else "sigma", "prompt_delay": 1, "noise": "cuda"}
        request = own | request
    walk, used = _walk(request, kept, version, ours=ours)
    request |= walk
    if hires:

        def again(names: dict[str, str], asked: dict[str, Any], begun: int) -> dict[str, Any]:
            left = {name: text for name, text in fields.items() if not (name == "Grid" and "Schedule type" in names)}
            return _walk({**request, **asked}, {**left, **names}, version, ours=ours, begun=begun)[0]

        request |= read_second_pass(request, kept, again)
    kept = {name: value for name, value in kept.items() if name not in used}
    model = {word: kept.pop(name) for name, word in (("Model", "name"), ("Model hash", "hash")) if name in kept}
    task = "image_to_image" if "strength" in request else "text_to_image"
    program = "Safelight" if ours else f"AUTOMATIC1111 {version}".strip()
    return Reading(program, task, request, model, kept)


PLAIN: list[tuple[str, str, Any]] = [
    ("Steps", "steps", int),
    ("CFG scale", "guidance_scale", float),
    ("Seed", "seed", int),
    ("Variation seed", "subseed", int),
    ("Variation seed strength", "subseed_strength", float),
    ("Denoising strength", "strength", float),
    ("ENSD", "noise_seed_delta", int),
    ("Eta", "eta", float),
    ("Eta DDIM", "eta", float),
    ("Clip skip", "clip_skip", lambda text: max(int(text) - 1, 0)),
    ("RNG", "noise", KINDS.__getitem__),
    ("Emphasis", "emphasis", EMPHASIS.__getitem__),
]


def _named(fields: dict[str, str], *, ours: bool) -> tuple[str, str | None] | None:
    """Our names of the sampler and of its grid, None where that is unknown; or None where the sampler is.

    Up to version 1.8 the schedule's label stood behind the sampler's; since then it has a field of its own.
    """
    found = aliases.split(fields.get("Sampler", ""), SAMPLERS, GRIDS)
    if found is None:
        return None
    sampler, laid = found
    schedule = fields.get("Schedule type")
    if ours:
        return sampler, aliases.grid(fields.get("Grid") or schedule or "", GRIDS)
    if schedule == "Automatic":
        return sampler, laid or AUTOMATIC.get(sampler, "uniform")
    return sampler, laid or "uniform" if schedule is None else aliases.grid(schedule, GRIDS)


def _walk(
    request: dict[str, Any], kept: dict[str, str], version: str, *, ours: bool, begun: int | None = None
) -> tuple[dict[str, Any], set[str]]:
    """What the fields say of sampler and schedule, in our words, and which of the fields those are."""
    named = _named(kept, ours=ours)
    if named is None:
        return {}, set()
    sampler, laid = named
    if laid is None and sampler not in BY_TIMESTEPS:
        return {"sampler": sampler}, {"Sampler"}
    used = {"Sampler", "Schedule type", "Grid"}
    if ours:
        return {"sampler": sampler, "grid": laid}, used
    walk, more = of_a1111(sampler, laid or "", request, kept, old=_before_1_6(version), begun=begun)
    return walk, used | more


def _before_1_6(version: str) -> bool:
    """Whether this is an A1111 whose DDIM and PLMS were CompVis's. Forks of later ones have numbers of their own."""
    number = re.match(r"v?(\d{1,3})\.(\d{1,3})", version)
    return not version or (number is not None and (int(number[1]), int(number[2])) < (1, 6))
