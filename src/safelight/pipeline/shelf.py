"""A folder of pictures that are found again by what they were drawn for, so that work that was stopped can go on.

Beside the pictures stands `cells.jsonl`, a line of JSON for each: file, digest of its pixels, description. A picture is
found if some line describes it and the file still has those pixels; no name is trusted.
"""

import json
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from hashlib import blake2b
from pathlib import Path
from secrets import token_hex
from typing import Any

import numpy as np
from PIL import Image
from torch import Tensor

from safelight import __version__
from safelight.diffusion.condition import Condition
from safelight.errors import InputError
from safelight.pipeline.bundle import LatentDiffusion
from safelight.pipeline.fields import WORDING
from safelight.pipeline.pictures import Pictures, check_folder, save_picture
from safelight.pipeline.recipes.recipe import INPUTS
from safelight.pipeline.remembering import fingerprint
from safelight.pipeline.wording import worded

LIST = "cells.jsonl"
SILENT = (*WORDING, "watch", "count", "batch_size")  # no part of a recipe: they change no picture, or have done so

Description = dict[str, Any]  # of one picture: all that decides how it comes out, in JSON


def print_of(model: LatentDiffusion) -> str:
    """A fingerprint of all weights, and of how the model reads them."""
    parts = [model.unet, model.autoencoder, model.text_encoder]
    weights = [list(part.state_dict().values()) for part in parts if part is not None]
    return fingerprint((model.prediction_type, model.schedule.alphas_cumprod, weights)).hex()


def described(model: str, task: str, request: Mapping[str, Any]) -> Description:
    """What decides how the single picture of a complete request comes out. `model` is its `print_of`."""
    words = worded(request["prompt"], request, request["seed"])  # type: ignore[arg-type]
    (pair,) = words.pairs()
    told = {name: _told(value) for name, value in request.items() if name not in SILENT}
    told |= {name: _content(request[name], name) for name in INPUTS if request.get(name) is not None}
    return {"safelight": __version__, "model": model, "task": task, **told,
            "prompt": _told(pair[0]), "negative_prompt": _told(pair[1])}  # fmt: skip


@dataclass(frozen=True)
class Record:
    """A line of the list."""

    file: str
    pixels: str
    description: Description


class Shelf:
    """A folder with its list. Raises InputError where no pictures can be written."""

    def __init__(self, folder: Path | str) -> None:
        self.folder = Path(folder)
        check_folder(self.folder)
        self.records = {_key(record.description): record for record in _read(self.folder / LIST)}

    def find(self, wanted: Description) -> tuple[Path, Image.Image] | None:
        """The picture of a description, if it is there and whole."""
        record = self.records.get(_key(wanted))
        if record is None:
            return None
        path = self.folder / record.file
        try:
            image = Image.open(path, formats=("PNG",)).convert("RGB")
        except (OSError, SyntaxError, ValueError):
            return None
        return (path, image) if _pixels(image) == record.pixels else None

    def keep(self, drawn: Pictures, made_by: Description, name: str) -> Path:
        """Write a picture with its recipe, under a name or the next that is free, and put it on the list."""
        (image,), (recipe,) = drawn.images, drawn.recipes
        path = save_picture(image, self.folder / f"{name}.png", recipe)
        record = Record(path.name, _pixels(image), made_by)
        self.records[_key(made_by)] = record
        with (self.folder / LIST).open("ab") as file:
            file.write(b"\n" * (file.tell() > 0 and not _ends_well(self.folder / LIST)))
            file.write(json.dumps(vars(record)).encode() + b"\n")
            file.flush()
            os.fsync(file.fileno())
        return path

    def alike(self, wanted: Description, *open_fields: str) -> Iterator[Description]:
        """The descriptions on the list that differ from this one in some fields alone, the latest first."""
        fixed = _key(_without(wanted, open_fields))
        known = (record.description for record in reversed(self.records.values()))
        return (one for one in known if _key(_without(one, open_fields)) == fixed)


def _read(path: Path) -> Iterator[Record]:
    """The lines that can be read; one that was being written when the machine stopped is passed over."""
    for line in path.read_bytes().splitlines() if path.exists() else ():
        try:
            yield Record(**json.loads(line))
        except (ValueError, TypeError):
            continue


def _ends_well(path: Path) -> bool:
    with path.open("rb") as file:
        file.seek(-1, os.SEEK_END)
        return file.read() == b"\n"


def _key(made_by: Description) -> str:
    return json.dumps(made_by, sort_keys=True)


def _without(made_by: Description, names: tuple[str, ...]) -> Description:
    return {name: value for name, value in made_by.items() if name not in names}


def _pixels(image: Image.Image) -> str:
    return blake2b(f"{image.mode} {image.size}".encode() + image.tobytes(), digest_size=16).hexdigest()


def _content(picture: Any, name: str) -> str:
    """What a picture to start from shows, whatever file it comes in."""
    if isinstance(picture, str | Path):
        try:
            return f"file {blake2b(Path(picture).read_bytes(), digest_size=16).hexdigest()}"
        except OSError as error:
            raise InputError(f"{name}: cannot read {picture}: {error.strerror}", remedy="check the path") from None
    return str(_told(picture))


def _told(value: Any) -> Any:
    """A value in JSON; pictures and tensors by their content."""
    if isinstance(value, Image.Image):
        return f"pixels {_pixels(value)}"
    if isinstance(value, np.ndarray):
        return f"array {value.dtype} {value.shape} {blake2b(value.tobytes(), digest_size=16).hexdigest()}"
    if isinstance(value, Condition):
        return f"condition {fingerprint(sorted(value.present().items())).hex()}"
    if isinstance(value, Tensor):
        return f"tensor {fingerprint(value).hex()}"
    if isinstance(value, Mapping):
        return {str(name): _told(one) for name, one in value.items()}
    if isinstance(value, list | tuple):
        return [_told(one) for one in value]
    if value is None or isinstance(value, bool | int | float | str):
        return value
    return f"{type(value).__name__} {token_hex(16)}"  # a function, say: nothing tells whether it is the same again
