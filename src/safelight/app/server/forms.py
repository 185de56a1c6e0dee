"""A request in JSON -> the keywords of a task, and back: what a page must know to ask for one.

Both come from the task's own annotations (pipeline/fields.py): whatever is an option of the command line is a field
here, but for paths. Nobody names a file of this machine: pictures come as their bytes, or by a name in the gallery, and
folders of words are the server's.
"""

import base64
import binascii
import io
from collections.abc import Callable, Mapping
from functools import cache
from pathlib import Path
from typing import Any, get_args

from pydantic import BaseModel, ConfigDict, create_model

from safelight.app.server.gallery import Gallery
from safelight.errors import InputError, nearest
from safelight.pipeline.fields import parameters, validate
from safelight.pipeline.pictures import ENDINGS, FORMATS
from safelight.pipeline.recipes.recipe import INPUTS
from safelight.pipeline.tasks import TASKS

TEXTS = ("prompt", "negative_prompt", "label", "boxes")  # fields of words, which Python's annotations leave open
MOST_PIXELS = 8192 * 8192
MOST_WORDS = 8192  # characters of a text


@cache
def fields(task: str) -> tuple[str, ...]:
    """The names of what a task can be asked over the network."""
    return tuple(name for name, p in parameters(_function(task)).items() if not _is_ours(p.annotation))


def _is_ours(annotation: Any) -> bool:
    """Whether a field is for Python callers, or a path."""
    kind, about = get_args(annotation)[:2]
    return bool(about.exclude) or Path in (kind, *get_args(kind))


def request_of(
    task: str, body: Mapping[str, Any], gallery: Gallery, fixed: Mapping[str, Any]
) -> tuple[dict[str, Any], dict[str, Any]]:
    """The keywords of a task that a body asks for, checked, with its pictures opened; and the same as a page shows it.

    `fixed` are the server's own, such as a folder of wildcards. Raises InputError, naming field, limit and remedy.
    """
    known = fields(task)
    for name, value in body.items():
        if name not in known:
            raise InputError(f"unknown field {name!r} of {task}", remedy=nearest(name, known))
        if name in TEXTS:
            _check_text(name, value)
    asked = {name: value for name, value in body.items() if name not in INPUTS}
    opened = {name: picture(body[name], name, gallery) for name in INPUTS if body.get(name) is not None}
    request = {**_given(fixed, known, asked), **asked, **opened}
    validate(_function(task), request)
    return request, asked


def _given(fixed: Mapping[str, Any], known: tuple[str, ...], asked: Mapping[str, Any]) -> dict[str, Any]:
    """The server's own keywords; a folder of wildcards would switch dynamic prompts on where nobody asked for them."""
    return {name: value for name, value in fixed.items() if name != "wildcards" or asked.get("dynamic_prompts")}


def _check_text(name: str, value: Any) -> None:
    texts = value if isinstance(value, list) else [value]
    if not all(isinstance(text, str) or (text is None and name != "prompt") for text in texts):
        if name == "label" and isinstance(value, int):
            return
        raise InputError(f"{name} is not text", remedy=f"{name}: give a string, or for a prompt a list of them")
    if sum(len(text or "") for text in texts) > MOST_WORDS:
        raise InputError(f"{name} has more than {MOST_WORDS} characters", remedy="say it in fewer")


def decoded(text: str, name: str) -> bytes:
    """The bytes of a base64 text or of a data URL. Raises InputError, in which they are called `name`."""
    try:
        return base64.b64decode(text.partition(",")[2] if text.startswith("data:") else text, validate=True)
    except (binascii.Error, ValueError):
        raise InputError(f"{name} is no picture in base64", remedy="send the bytes of its file in base64") from None


def picture(value: Any, name: str, gallery: Gallery) -> Any:
    """A picture from its bytes, as base64 or as a data URL, or from a name in the gallery."""
    from PIL import Image

    remedy = "give the bytes of a PNG, JPEG or WebP in base64, or the name of a picture in the gallery"
    if not isinstance(value, str):
        raise InputError(f"{name} is not text", remedy=remedy)
    if Path(value).suffix.lower() in ENDINGS and len(value) <= 200:
        source: Any = gallery.path(value)
    else:
        source = io.BytesIO(decoded(value, name))
    try:
        image = Image.open(source, formats=FORMATS)
        if image.width * image.height > MOST_PIXELS:
            raise InputError(f"{name}: it has {image.width}x{image.height} pixels", remedy=f"{MOST_PIXELS} at most")
        image.load()
    except InputError:
        raise
    except Exception:  # whatever a stranger's bytes do; what the library says of them is not for strangers
        raise InputError(f"{name}: this is no whole PNG, JPEG or WebP", remedy=remedy) from None
    return image


@cache
def schema(task: str) -> dict[str, Any]:
    """The JSON schema of a task's body: types, bounds, defaults, descriptions; pictures are told by their format."""
    known = parameters(_function(task))
    shown: dict[str, Any] = {}
    for name in fields(task):
        parameter = known[name]
        empty = parameter.default is parameter.empty
        shown[name] = (parameter.annotation, ... if empty else parameter.default)
    model: type[BaseModel] = create_model(task, __config__=ConfigDict(arbitrary_types_allowed=True), **shown)
    described = model.model_json_schema()
    for name, about in described["properties"].items():
        if name in INPUTS:
            about |= {"type": "string", "format": "picture"}
        elif name in TEXTS:
            about |= {"type": "string"}
        if choices := _choices(name):
            about["choices"] = choices
    return described | {"description": (_function(task).__doc__ or "").split("\n")[0]}


def _choices(name: str) -> list[dict[str, str]]:
    """The samplers or grids to choose from, by the names that A1111's menus have."""
    from safelight.diffusion.grids import GRIDS
    from safelight.diffusion.samplers import SAMPLERS

    tables: dict[str, Mapping[str, Any]] = {"sampler": SAMPLERS, "grid": GRIDS}
    return [{"value": one.name, "label": one.label} for one in tables.get(name, {}).values()]


def _function(task: str) -> Callable[..., Any]:
    if task not in TASKS:
        raise InputError(f"unknown task {task[:40]!r}", remedy=nearest(task, TASKS))
    return TASKS[task]
