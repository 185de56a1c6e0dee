"""A picture's file -> what is understood of how it was made. What fails a field's check is kept aside."""

from collections.abc import Mapping
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, ValidationError, create_model

from safelight import __version__
from safelight.errors import InputError
from safelight.pipeline.fields import SEEDS, parameters
from safelight.pipeline.recipes import comfyui, infotext, peers
from safelight.pipeline.recipes.recipe import LEFT_OUT, Reading, Recipe
from safelight.pipeline.recipes.texts import SOURCE_TYPE, XMP_KEY, read_texts
from safelight.pipeline.tasks import TASKS

CONFIG = ConfigDict(arbitrary_types_allowed=True, allow_inf_nan=False)
OURS = ("parameters", "safelight", XMP_KEY)


def read_picture(path: str | Path) -> Reading:
    """What a PNG, JPEG or WebP says of how it was made: ours, A1111's, ComfyUI's, InvokeAI's, SwarmUI's, …

    Raises InputError where the file is missing or broken, or says nothing.
    """
    texts = read_texts(Path(path))
    reading, used = _read(texts.found)
    if reading is None:
        found = f"; it carries {', '.join(map(repr, texts.found))}" if texts.found else ""
        remedy = "; ".join(texts.remarks) or "chats and photo editors remove it: take the file as it was first saved"
        raise InputError(f"{path} says nothing of how it was made{found}", remedy=remedy)
    rest: dict[str, Any] = {name: text for name, text in texts.found.items() if name not in used}
    if SOURCE_TYPE in rest.get(XMP_KEY, ""):
        del rest[XMP_KEY]
    reading = replace(reading, kept={**reading.kept, **rest}, remarks=(*texts.remarks, *reading.remarks))
    return checked(reading)


def _read(found: Mapping[str, str]) -> tuple[Reading | None, tuple[str, ...]]:
    """The reading, and the keywords of the texts that it came from."""
    remarks: tuple[str, ...] = ()
    if "safelight" in found:
        try:
            return _ours(Recipe.from_json(found["safelight"])), OURS
        except InputError as error:
            remarks = (error.what,)
    if (reading := peers.read_invokeai(found)) is not None:
        return replace(reading, remarks=remarks), ("invokeai_metadata", "sd-metadata", "invokeai_graph", "Dream")
    if (reading := peers.read_swarmui(found) or peers.read_fooocus(found)) is not None:
        return replace(reading, remarks=remarks), ("parameters", "fooocus_scheme")
    if (reading := comfyui.read(found.get("prompt"), found.get("workflow"))) is not None:
        return replace(reading, remarks=reading.remarks + remarks), ("prompt", "workflow")
    if (reading := peers.read_diffusers(found)) is not None:
        return replace(reading, remarks=remarks), tuple(found)
    if "parameters" in found:
        return replace(infotext.read(found["parameters"]), remarks=remarks), ("parameters",)
    return None, ()


def _ours(recipe: Recipe) -> Reading:
    return Reading("Safelight", recipe.task, recipe.request, recipe.model.to_json(), recipe=recipe)


def checked(reading: Reading) -> Reading:
    """The same with every field in its bounds; those that are not, or are unknown here, go to what is kept."""
    task = reading.task if reading.task in TASKS else "text_to_image"
    if reading.recipe is not None and task != reading.task:
        return replace(reading, remarks=(*reading.remarks, not_drawn(reading.task)[0]))
    request, kept = {}, dict(reading.kept)
    known = parameters(TASKS[task])
    for name, value in reading.request.items():
        if name in known and name not in LEFT_OUT and _fits(task, name, value):
            request[name] = value
        else:
            kept[name] = value
    return replace(reading, task=task, request=request, kept=kept)


def not_drawn(task: str) -> tuple[str, str]:
    """Why a picture of a task that is none here cannot be drawn again, and the remedy."""
    if task == "morph":
        return "it is a frame of a way between two pictures", "draw the whole way: `safelight morph`"
    return f"this version has no task {task!r}", f"draw it with the version that drew it; this is {__version__}"


def _fits(task: str, name: str, value: Any) -> bool:
    if name in ("prompt", "negative_prompt"):
        return isinstance(value, str)
    if name in SEEDS and value == -1:  # it names no picture
        return False
    try:
        _alone(task, name)(**{name: value})
    except ValidationError:
        return False
    return True


@cache
def _alone(task: str, name: str) -> type[BaseModel]:
    """The model of a request for one field."""
    fields: dict[str, Any] = {name: (parameters(TASKS[task])[name].annotation, ...)}
    return create_model(name, __config__=CONFIG, **fields)
