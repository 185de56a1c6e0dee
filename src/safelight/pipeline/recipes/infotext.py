"""AUTOMATIC1111's `parameters`: the prompt, the negative prompt, and a line of "Name: value" separated by commas.

Written from a recipe, so that its web UI and whatever reads its pictures understand ours; and read, whoever wrote it.
"""

import json
import re
from contextlib import suppress
from typing import Any

from safelight.diffusion.grids import GRIDS
from safelight.diffusion.samplers import SAMPLERS
from safelight.pipeline.recipes.recipe import Reading, Recipe

NEGATIVE = "Negative prompt:"
SIZE = re.compile(r"(\d{1,6})x(\d{1,6})")
KEY = re.compile(r"\s*(\w[\w \-/]{0,60}):\s*")
RNG = {"cpu": "CPU", "cuda": "NV", "comfyui": "CPU"}
KINDS = {"CPU": "cpu", "NV": "cuda", "GPU": "cuda"}
EMPHASIS = {"Original": "original", "No norm": "no_norm", "None": "ignore", "Ignore": "ignore"}
LABELS = {kind.label: name for name, kind in SAMPLERS.items()}
GRID_LABELS = {kind.label: name for name, kind in GRIDS.items()}
# What "Automatic" means, and a missing schedule before version 1.9: each sampler's own; else "Uniform"
AUTOMATIC = {"DPM++ 2M": "karras", "DPM++ SDE": "karras", "DPM++ 2S a": "karras", "DPM2": "karras", "DPM2 a": "karras",
             "Restart": "karras", "DPM++ 2M SDE": "exponential", "DPM++ 2M SDE Heun": "exponential",
             "DPM++ 3M SDE": "exponential"}  # fmt: skip


def write(recipe: Recipe) -> str:
    """A recipe as `parameters`. What has no place there is in our JSON alone."""
    request, card = recipe.request, recipe.model
    mixed = request.get("subseed_strength")
    resized = [request.get("seed_resize_from_width"), request.get("seed_resize_from_height")]
    sampler, grid = SAMPLERS.get(request.get("sampler", "")), GRIDS.get(request.get("grid", ""))
    first = next(iter(card.weights.values()), "")
    unet = next((value for name, value in card.weights.items() if name.startswith("unet/")), first)
    fields = {
        "Steps": request.get("steps"),
        "Sampler": sampler.label if sampler else request.get("sampler"),
        "Schedule type": grid.label if grid else request.get("grid"),
        "CFG scale": request.get("guidance_scale"),
        "Seed": request.get("seed"),
        "Size": f"{recipe.size[0]}x{recipe.size[1]}",
        "Model hash": unet[:10] or None,
        "Model": re.sub(r"\.(safetensors|ckpt|pt|pth|bin)$", "", card.name) or None,
        "Variation seed": request.get("subseed") if mixed else None,
        "Variation seed strength": mixed or None,
        "Seed resize from": f"{resized[0]}x{resized[1]}" if all(resized) else None,
        "Denoising strength": request.get("strength"),
        "Clip skip": request["clip_skip"] + 1 if request.get("clip_skip") else None,
        "ENSD": request.get("noise_seed_delta") or None,
        "Eta": request.get("eta"),
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
    version = fields.pop("Version", "")
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
    _sampler(request, kept)
    if fields and not ours:
        request = {"initial_noise": "sigma", "prompt_delay": 1, "noise": "cuda"} | request
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
    ("Clip skip", "clip_skip", lambda text: max(int(text) - 1, 0)),
    ("RNG", "noise", KINDS.__getitem__),
    ("Emphasis", "emphasis", EMPHASIS.__getitem__),
]


def _sampler(request: dict[str, Any], kept: dict[str, str]) -> None:
    """The sampler's label: up to version 1.8 with the schedule's behind it; from 1.9 on that has a field of its own."""
    label, schedule = kept.get("Sampler", ""), kept.get("Schedule type")
    if label not in LABELS and " " in label and label.rsplit(" ", 1)[1] in GRID_LABELS:
        label, schedule = label.rsplit(" ", 1)
    if label not in LABELS:
        return
    request["sampler"] = LABELS[label]
    del kept["Sampler"]
    if schedule in GRID_LABELS:
        request["grid"] = GRID_LABELS[schedule]
    elif schedule in (None, "Automatic"):
        request["grid"] = AUTOMATIC.get(label, "uniform") if schedule else "uniform"
    else:
        return
    kept.pop("Schedule type", None)
