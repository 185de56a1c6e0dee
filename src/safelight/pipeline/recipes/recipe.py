"""`Recipe`: what draws one picture again. It holds no path, no user's name, and nothing of the pictures it began with
but their hashes."""

import json
import re
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field, replace
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from safelight import __version__
from safelight.errors import InputError
from safelight.pipeline.bundle import LatentDiffusion
from safelight.pipeline.controlling import size_like
from safelight.pipeline.fields import WORDING
from safelight.pipeline.pictures import Pictures, open_picture
from safelight.pipeline.recipes.weights import hashes

INPUTS = ("image", "mask", "class_map", "depth", "control_image")
HOOKS = ("edit", "wrap")  # functions of the caller's, which no file can hold
# What is no part of one picture's request: others' pictures, what has done its work, and what changes nothing
LEFT_OUT = {*INPUTS, *HOOKS, *WORDING, "fast", "watch", "count", "batch_size"}
HUB_CACHE = re.compile(r"models--([^/\\]+?)--([^/\\]+)[/\\]snapshots[/\\](\w+)(?:[/\\](.+))?$")


@dataclass(frozen=True)
class ModelCard:
    """Which model drew: enough to know it again, and to find it.

    `name` is a hub id, a file's or folder's own name, or that of a model made in memory. `weights` are the sha256 of
    its files; `files` and `source` say where these lie, stay in this process, and become `weights` in a file.
    """

    name: str = ""
    family: str = ""
    prediction_type: str = ""
    dtype: str = ""
    device: str = ""
    int8: bool = False
    revision: str = ""
    loras: Mapping[str, float] = field(default_factory=dict)
    weights: Mapping[str, str] = field(default_factory=dict)
    files: Mapping[str, Path] = field(default_factory=dict, repr=False, compare=False)
    source: str = field(default="", repr=False, compare=False)

    @classmethod
    def of(cls, model: LatentDiffusion) -> "ModelCard":
        """The card of a loaded model; its files are not read yet."""
        name, revision = public_name(model.name)
        return cls(
            name=name,
            family=model.family,
            prediction_type=model.prediction_type,
            dtype=str(model.dtype).removeprefix("torch."),
            device=model.device.type,
            int8=model.int8,
            revision=revision,
            loras=model.loras,
            files=model.weights,
            source=model.name,
        )

    def hashed(self) -> "ModelCard":
        """The same with the hashes of its files, which are read for it once."""
        return replace(self, weights=self.weights or hashes(self.files, self.source))

    def to_json(self) -> dict[str, Any]:
        """Its fields, but for those that are empty or name places."""
        return {name: value for name, value in asdict(self).items() if value and name not in ("files", "source")}


def public_name(source: str) -> tuple[str, str]:
    """A model's name and revision without any place on this machine: the hub's id, or the last part of a path."""
    if match := HUB_CACHE.search(source):
        owner, name, revision, file = match.groups()
        return "/".join(part for part in (owner, name, file) if part), revision
    is_place = re.search(r"^[./~\\]|^\w:|\\", source) or Path(source).exists()
    return (Path(source.replace("\\", "/")).name if is_place else source), ""


@dataclass(frozen=True)
class Recipe:
    """The request of one picture.

    Attributes:
        task: such as "text_to_image".
        request: keywords of the task, complete; the seed and the words are this picture's own.
        model: which model drew it.
        size: (width, height) in pixels.
        inputs: for `image` and `mask`, the hash of their pixels and their size.
        batch: with how many it was drawn together, and its place among them.
        unrecorded: keywords that a file cannot hold, such as a `wrap` or an encoded prompt.
        versions: of Safelight and of torch.
    """

    task: str
    request: Mapping[str, Any]
    model: ModelCard = ModelCard()
    size: tuple[int, int] = (0, 0)
    inputs: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    batch: tuple[int, int] = (1, 0)
    unrecorded: tuple[str, ...] = ()
    versions: Mapping[str, str] = field(default_factory=lambda: {"safelight": __version__, "torch": torch.__version__})

    def to_json(self) -> str:
        """JSON in ASCII, so that any string survives; it begins with the version of Safelight."""
        content: dict[str, Any] = dict(self.versions) | {
            "task": self.task,
            "request": self.request,
            "model": self.model.hashed().to_json(),
            "size": self.size,
            "inputs": self.inputs,
            "batch": self.batch,
            "unrecorded": self.unrecorded,
        }
        return json.dumps(content)

    @classmethod
    def from_json(cls, text: str) -> "Recipe":
        """Read what `to_json` wrote; whether the request can be drawn is left open. Raises InputError otherwise."""
        try:
            content = json.loads(text)
            known = ModelCard.__dataclass_fields__.keys() - {"files", "source"}
            width, height = (int(side) for side in content["size"])
            count, place = (int(number) for number in content["batch"])
            return cls(
                task=str(content["task"]),
                request={str(name): value for name, value in content["request"].items() if name not in LEFT_OUT},
                model=ModelCard(**{name: value for name, value in content["model"].items() if name in known}),
                size=(width, height),
                inputs={name: dict(content["inputs"][name]) for name in INPUTS if name in content["inputs"]},
                batch=(count, place),
                unrecorded=tuple(map(str, content["unrecorded"])),
                versions={name: str(content[name]) for name in ("safelight", "torch")},
            )
        except (ValueError, KeyError, TypeError, AttributeError, OverflowError, RecursionError) as error:
            what = f"the recipe is damaged ({type(error).__name__}: {str(error)[:80]})"
            raise InputError(what, remedy="copy the picture again from where it was made") from None

    def texts(self) -> tuple[str, str]:
        """AUTOMATIC1111's `parameters`, and our JSON."""
        from safelight.pipeline.recipes.infotext import write

        hashed = replace(self, model=self.model.hashed())
        return write(hashed), hashed.to_json()


@dataclass(frozen=True)
class Reading:
    """What is understood of a picture's file.

    Attributes:
        program: that wrote it, as far as its texts tell.
        task: ours that comes nearest.
        request: keywords of the task, in our words.
        model: what is said of the model: name, hash, weights, family.
        kept: what was found and is not understood, as it stands.
        remarks: what could not be read, and what a reader may take wrongly.
        recipe: the whole, where the file is ours.
    """

    program: str
    task: str
    request: Mapping[str, Any]
    model: Mapping[str, Any] = field(default_factory=dict)
    kept: Mapping[str, Any] = field(default_factory=dict)
    remarks: tuple[str, ...] = ()
    recipe: Recipe | None = None


def recorded(drawn: Pictures, task: Callable[..., Any], values: Mapping[str, Any], model: LatentDiffusion) -> Pictures:
    """The pictures that `task` drew for complete `values`, each with the recipe of itself alone."""
    request = {name: _listed(value) for name, value in values.items() if name not in LEFT_OUT}
    lost = [name for name in HOOKS if values.get(name) is not None]
    lost += [name for name, value in request.items() if not _writable(value)]
    inputs = {name: fingerprint(values[name], name) for name in INPUTS if values.get(name) is not None}
    card = ModelCard.of(model)
    if task.__name__ == "text_to_image":  # of the first pass, where there are two
        latent = size_like(model, values["width"], values["height"], values["control_image"])
        height, width = (model.autoencoder.config.factor * n for n in latent)
    recipes = []
    for k, image in enumerate(drawn.images):
        own = request | _own(drawn, k)
        if task.__name__ == "text_to_image":
            own |= {"width": width, "height": height}
        gone = [name for name in lost if not isinstance(own.get(name), str)]  # of several prompts, one is its own
        kept = {name: value for name, value in own.items() if name not in gone}
        batch = drawn.batches[k] if drawn.batches else (1, 0)
        recipes.append(Recipe(task.__name__, kept, card, image.size, inputs, batch, tuple(gone)))
    return replace(drawn, recipes=tuple(recipes))


def _own(drawn: Pictures, k: int) -> dict[str, Any]:
    """What differs between the pictures of one request."""
    origin = drawn.origins[k]
    own = {"seed": origin.seed, "subseed": origin.subseed, "batch_index": origin.batch_index}
    words = {"prompt": drawn.prompts[k], "negative_prompt": drawn.negative_prompts[k]}
    return own | {name: text for name, text in words.items() if text is not None}  # of a class there is no text


def _listed(value: Any) -> Any:
    """Tuples as the lists that JSON makes of them."""
    return [_listed(one) for one in value] if isinstance(value, list | tuple) else value


def _writable(value: Any) -> bool:
    try:
        return bool(json.loads(json.dumps(value)) == value)
    except (TypeError, ValueError, RecursionError):
        return False


def fingerprint(picture: Any, name: str) -> dict[str, Any]:
    """The sha256 of a picture's pixels, whatever file they came in, and its size."""
    if isinstance(picture, Tensor):
        array = picture.detach().cpu().float().numpy()
        height, width = array.shape[-2:]
    else:
        numbers = isinstance(picture, np.ndarray) and picture.dtype != np.uint8  # of a map
        array = picture if numbers else np.asarray(open_picture(picture, name))
        height, width = array.shape[:2]
    digest = sha256(f"{array.dtype} {width}x{height} ".encode() + np.ascontiguousarray(array).tobytes()).hexdigest()
    return {"sha256": digest, "width": width, "height": height}


def opened(values: Mapping[str, Any]) -> dict[str, Any]:
    """The values of a call with its picture files opened, once for drawing and for the recipe."""
    files = {name: values[name] for name in INPUTS if isinstance(values.get(name), str | Path)}
    return dict(values) | {name: open_picture(file, name) for name, file in files.items()}
