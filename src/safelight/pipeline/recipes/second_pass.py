"""A1111's hires fix in its `parameters`: the fields of the second pass, written and read."""

from collections.abc import Callable, Mapping
from contextlib import suppress
from math import isfinite
from typing import Any

from safelight.diffusion.grids import GRIDS
from safelight.diffusion.samplers import SAMPLERS
from safelight.pipeline.recipes.walks import MOST_STEPS, Words, share

# Its names of the ways to enlarge, the first of them each one's own
UPSCALERS = {
    "Lanczos": "lanczos", "Nearest": "nearest", "None": "lanczos",
    "Latent": "latent", "Latent (antialiased)": "latent_antialiased", "Latent (bicubic)": "latent_bicubic",
    "Latent (bicubic antialiased)": "latent_bicubic_antialiased", "Latent (nearest)": "latent_nearest",
    "Latent (nearest-exact)": "latent_nearest_exact",
}  # fmt: skip
FIELDS = ("Hires upscale", "Hires resize", "Denoising strength", "Hires steps")
NAMES = {"Hires sampler": "Sampler", "Hires schedule type": "Schedule type"}
SAME = "Use same"  # sampler or scheduler: that of the first pass
ENOUGH = 0.999  # the most of a strength that counts


def _guidance(text: str) -> float:
    """A scale of guidance that a task takes. Raises ValueError for others."""
    if not 0 <= float(text) <= 100:
        raise ValueError(text)
    return float(text)


OPTIONS: tuple[tuple[str, str, Callable[[str], Any]], ...] = (
    ("Hires prompt", "prompt", str), ("Hires negative prompt", "negative_prompt", str),
    ("Hires CFG Scale", "guidance_scale", _guidance),
)  # fmt: skip


def fields_of(request: Mapping[str, Any]) -> dict[str, Any]:
    """The fields that tell of a request's second pass; none where it has none, or one without a step."""
    steps, strength = request.get("hires_steps") or request.get("steps") or 0, request.get("hires_strength") or 0.0
    if request.get("hires") is None or not int(steps * strength):
        return {}
    label = next((name for name, ours in UPSCALERS.items() if ours == request.get("hires_upscaler")), "Lanczos")
    own = request.get("hires_options") or {}
    sampler, grid = SAMPLERS.get(own.get("sampler", "")), GRIDS.get(own.get("grid", ""))
    return {
        "Denoising strength": strength, "Hires upscale": request["hires"], "Hires steps": int(steps * strength),
        "Hires upscaler": label, "Hires sampler": sampler.label if sampler else None,
        "Hires schedule type": grid.label if grid else None, **{field: own.get(word) for field, word, _ in OPTIONS},
    }  # fmt: skip


def read_second_pass(
    request: Words, kept: dict[str, Any], walk: Callable[[dict[str, str], Words, int], Words]
) -> Words:
    """What the fields say of a second pass, in our words; those understood are taken out of `kept`.

    request: the first pass. walk: of a sampler's and schedule's fields, the steps and strength, and the step begun with
    gives what A1111 walks. A second pass has as many steps as are asked for, the last of a grid of more.
    """
    scale = _scale(request, kept)
    strength = _number(kept.get("Denoising strength"))
    asked = _number(kept.get("Hires steps", "0"))
    if scale is None or strength is None or asked is None or "steps" not in request:
        return {}
    steps = int(asked) or int(request["steps"])
    if not (0 < strength <= 1 and 1 <= steps <= MOST_STEPS * min(strength, ENOUGH)):
        return {}
    laid = int(steps / min(strength, ENOUGH))
    last = {"steps": laid, "strength": strength}
    told = {ours: str(kept.get(theirs, SAME)) for theirs, ours in NAMES.items()}
    names = {name: value for name, value in told.items() if not value.startswith(SAME)}
    second, understood = walk(names, last, steps - 1), (*FIELDS, *NAMES)
    if not ("sampler" in second and second.get("grid")):  # names that are none here: the first pass's count
        second, understood = walk({}, last, steps - 1), FIELDS
    if second.get("steps", laid) > MOST_STEPS:
        return {}
    for name in understood:
        kept.pop(name, None)
    options = {name: second[name] for name in ("sampler", "grid") if second.get(name) not in (None, request.get(name))}
    for kind in ("sampler", "grid"):
        name = f"{kind}_options"
        inherited = None if kind in options else request.get(name)  # others begin with none
        if second.get(name) != inherited:
            options[name] = second.get(name)
    for field, word, change in OPTIONS:
        if field in kept:
            with suppress(ValueError):
                options[word] = change(kept[field])
                del kept[field]
    found = {"hires": scale, "hires_steps": second.get("steps", laid)}
    found |= {"hires_strength": second.get("strength", share(steps, laid))}
    found |= {"hires_options": options} if options else {}
    if kept.get("Hires upscaler", "Latent") in UPSCALERS:
        found["hires_upscaler"] = UPSCALERS[kept.pop("Hires upscaler", "Latent")]
    return found


def _scale(request: Words, kept: Mapping[str, Any]) -> float | None:
    """How many times as large; None where that is not said, or where the picture would be cut to another shape."""
    width, height = request.get("width"), request.get("height")
    resize = str(kept.get("Hires resize", "")).partition("x")
    if "Hires resize" not in kept:
        scale = _number(kept.get("Hires upscale"))
    elif not (width and height):
        return None
    else:
        wide, high = (_number(side) or 0 for side in resize[::2])
        wide, high = wide or high * width / height, high or wide * height / width
        scale = wide / width if abs(wide * height - high * width) < 8 * max(width, height) else None
    return scale if scale is not None and 1 <= scale <= 8 else None


def _number(text: Any) -> float | None:
    """A number, if the text is one and has an end."""
    try:
        number = float(text)
    except (TypeError, ValueError):
        return None
    return number if isfinite(number) else None
