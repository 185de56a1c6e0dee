"""Drawing a picture again from what its file says."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from safelight.checkpoint.load import DEFAULT
from safelight.errors import InputError, MissingPartError
from safelight.models.text_pair import TextEncoderPair
from safelight.pipeline.bundle import LatentDiffusion
from safelight.pipeline.fields import parameters, validate
from safelight.pipeline.loading import load
from safelight.pipeline.pictures import Pictures
from safelight.pipeline.recipes.reading import not_drawn
from safelight.pipeline.recipes.recipe import INPUTS, ModelCard, Reading, fingerprint
from safelight.pipeline.recipes.weights import PARTS, find_model, part_of, remembered_as
from safelight.pipeline.tasks import TASKS

IN_MEMORY = ("random",)  # names that `load` makes a model of without a file


@dataclass(frozen=True)
class Redrawn:
    """A picture drawn again, and remarks on what may make it differ from the first."""

    pictures: Pictures
    remarks: tuple[str, ...]


def model_for(reading: Reading, **options: Any) -> LatentDiffusion:
    """Load the model that a recipe names, from this machine alone: by its hashes, as ours, or from the hub's cache.

    So with a VAE, a tiny decoder, LoRAs or learned words that were given beside it, where `options` give none.
    Raises MissingPartError, with name and hash, for what is not to be found.
    """
    said = reading.model
    options = {"dtype": said.get("dtype"), "int8": said.get("int8") is True} | {
        name: value for name, value in options.items() if value is not None
    }
    name, weights = str(said.get("name", "")), weights_of(reading)
    if "loras" not in options:
        options["loras"] = [(place, _amount(said, label)) for label, place in found(reading, "lora").items()]
    if "embeddings" not in options:
        words = {label.removeprefix("embedding: "): place for label, place in found(reading, "embedding").items()}
        options["embeddings"] = [(place, None if ", " in word else word) for word, place in words.items()]
    for part in PARTS:
        if weights_of(reading, part) and part not in options:
            options[part] = find_model(weights_of(reading, part))
            if options[part] is None:
                raise missing(reading, part)
    if name in IN_MEMORY and not weights:
        return load(name, **options)
    place = find_model(weights, short=str(said.get("hash", "")))
    if place is not None:
        return load(place, prediction_type=said.get("prediction_type"), **options)
    if name == DEFAULT:  # of this version of the package; `redraw` tells where its hashes are others
        return load(DEFAULT, prediction_type=said.get("prediction_type"), **options)
    if "/" in name and reading.recipe is not None and not Path(name).exists():
        revision = said.get("revision")
        try:
            return load(name, revision=revision, local_files_only=True, **options)
        except Exception as error:  # whatever is wrong with that copy, the next step is the same
            raise missing(reading) from error
    raise missing(reading)


def _amount(said: Mapping[str, Any], label: str) -> float:
    """By how much a LoRA was added, as a file tells it, in which anything may stand."""
    loras = said.get("loras")
    amount = loras.get(label) if isinstance(loras, Mapping) else None
    return float(amount) if isinstance(amount, int | float) else 1.0


def found(reading: Reading, part: str) -> dict[str, Path]:
    """Where the files of a kind lie that a recipe tells of. Raises MissingPartError for one that is not to be found."""
    places = {}
    for label, digest in weights_of(reading, part).items():
        if (place := find_model({remembered_as(label): digest})) is None:
            raise missing(reading, part)
        places[label] = place
    return places


def weights_of(reading: Reading, part: str = "") -> dict[str, str]:
    """The hashes that a file tells of its model, or of a part that was given beside it: name -> sha256."""
    weights = reading.model.get("weights")
    return {name: digest for name, digest in dict(weights or {}).items() if part_of(name) == part}


def missing(reading: Reading, part: str = "") -> MissingPartError:
    """The error for a model, or a part beside it, that is not here: its name and hash, and what to do."""
    said, option = reading.model, part or "model"
    hashes = [f"{file} sha256 {digest}" for file, digest in weights_of(reading, part).items()]
    known = "; ".join(hashes or [str(said.get("hash", "no hash known"))])
    name = "" if part else f" {said.get('name') or 'without a name'!r}"
    what = f"the {option}{name} is not known on this machine ({known})"
    return MissingPartError(what, remedy=f"give it with --{option}: a file, a folder or a hub id")


def redraw(
    reading: Reading, model: LatentDiffusion, *, seed: int | None = None, watch: Any = None, **inputs: Any
) -> Redrawn:
    """Draw what a picture's file says, with another seed if one is given. inputs: `image` and `mask` where it had some.

    A picture of ours that was drawn in a batch is drawn in such a batch again, since the last bits depend on that.

    Raises InputError for a picture to begin with that is not given, or for a keyword that no file can hold.
    """
    recipe = reading.recipe
    if recipe is not None and recipe.unrecorded:
        what = f"its recipe lacks {', '.join(recipe.unrecorded)}, which no file can hold"
        raise InputError(what, remedy="draw it with the script that drew it")
    given = required(reading, **inputs)
    request = dict(reading.request) | given
    count, place = recipe.batch if recipe is not None and seed is None else (1, 0)
    request |= {"seed": seed} if seed is not None else {}
    if recipe is None and request.get("clip_skip"):
        request["clip_skip"] = skipped(reading.program, request["clip_skip"], model)
    batch = _batch(request, count, place) if 0 <= place < count <= 1024 else None
    task = TASKS[reading.task]
    drawn = task(model, watch=watch, **(request if batch is None else request | batch))
    one = _single(drawn, 0 if batch is None else place)
    return Redrawn(one, _remarks(reading, model, given))


def skipped(program: str, clip_skip: int, model: LatentDiffusion) -> int:
    """The layers that a program's "clip skip" means for a model, of which it counted for Stable Diffusion 1.

    With Stable Diffusion XL A1111 passes it over, and in ComfyUI the penultimate layer, ours, is called -2.
    """
    if not isinstance(model.text_encoder, TextEncoderPair):
        return clip_skip
    return 0 if program.startswith("AUTOMATIC1111") else max(clip_skip - 1, 0)


def _batch(request: dict[str, Any], count: int, place: int) -> dict[str, Any] | None:
    """The keywords of a batch in which this picture has its place; None where its numbers cannot be counted back."""
    if request.get("noise") == "comfyui":
        counted = "batch_index"
    else:
        counted = "subseed" if request.get("subseed_strength") else "seed"
    first = (request.get(counted) or 0) - place
    return {counted: first, "count": count, "batch_size": count} if count > 1 and first >= 0 else None


def _single(drawn: Pictures, k: int) -> Pictures:
    row = slice(k, k + 1)
    return replace(
        drawn,
        images=drawn.images[row],
        seeds=drawn.seeds[row],
        latents=drawn.latents[row],
        prompts=drawn.prompts[row],
        negative_prompts=drawn.negative_prompts[row],
        origins=drawn.origins[row],
        batches=drawn.batches[row],
        recipes=drawn.recipes[row],
    )


def required(reading: Reading, **inputs: Any) -> dict[str, Any]:
    """Those of the pictures `INPUTS` that this one was drawn from.

    Raises InputError where one is missing, or one too many, and for a task, sampler or grid that is none here.
    """
    if reading.task not in TASKS:
        what, remedy = not_drawn(reading.task)
        raise InputError(what, remedy=remedy)
    given = {}
    for name in INPUTS:
        known, option = parameters(TASKS[reading.task]).get(name), name.replace("_", "-")
        said = reading.recipe.inputs.get(name, {}) if reading.recipe else {}
        wanted = known is not None and (known.default is known.empty or bool(said))
        if wanted and inputs.get(name) is None:
            pixels = f": {said.get('width')}x{said.get('height')} pixels of sha256 {said.get('sha256')}" if said else ""
            raise InputError(
                f"the picture was drawn from another, its {name}{pixels}", remedy=f"give it with --{option}"
            )
        if wanted:
            given[name] = inputs[name]
        elif inputs.get(name) is not None:
            what = f"{reading.task} takes no {name}" if known is None else f"it was drawn without a {name}"
            raise InputError(what, remedy=f"leave --{option} out")
    validate(TASKS[reading.task], {**reading.request, **given})
    return given


def _remarks(reading: Reading, model: LatentDiffusion, given: dict[str, Any]) -> tuple[str, ...]:
    """Where this is not what was drawn then."""
    recipe, remarks = reading.recipe, [*reading.remarks]
    if reading.kept:
        remarks.append(f"not understood, and left out: {', '.join(reading.kept)}")
    if recipe is None:
        ours = f"this is {reading.program}'s recipe in our words: expect a close picture, and no equal one"
        return (ours, *remarks)
    card = ModelCard.of(model).hashed()
    then, now = (one.weights if recipe.model.weights else {} for one in (recipe.model, card))
    for part in sorted({part_of(name) for name in {*then, *now} if then.get(name) != now.get(name)}):
        remarks.append(f"this is not the {part or 'model'} that drew it: the hashes of the weights differ")
    for label in sorted(then.keys() & now.keys() if card.loras else ()):
        if part_of(label) == "lora" and (before := _amount(reading.model, label)) != card.loras[label]:
            remarks.append(f"{label} was added by {before:g}, and now by {card.loras[label]:g}")
    for name, value in given.items():
        if fingerprint(value, name).get("sha256") != recipe.inputs.get(name, {}).get("sha256"):
            remarks.append(f"this {name} is not the one it was drawn from: the pixels differ")
    for what, was, here in (("dtype", recipe.model.dtype, card.dtype), ("device", recipe.model.device, card.device)):
        if was and was != here:
            remarks.append(f"it was drawn with {what} {was}, and now with {here}")
    if recipe.model.int8 != card.int8:
        was, here = ("with", "without") if recipe.model.int8 else ("without", "with")
        remarks.append(f"it was drawn {was} int8, and now {here}")
    return tuple(remarks)


def difference(path: Path, image: Image.Image) -> str:
    """How a picture that was drawn again differs from a file's: for people."""
    with Image.open(path, formats=("PNG", "JPEG", "WEBP")) as file:
        if file.size != image.size:
            return f"the file has {file.width}x{file.height} pixels, this picture {image.width}x{image.height}"
        then, now = np.asarray(file.convert("RGB"), np.int16), np.asarray(image.convert("RGB"), np.int16)
        lossy = "" if file.format == "PNG" else f"; a {file.format} is never more than near what was drawn"
    largest = np.abs(then - now).max(2)
    if not largest.any():
        return "the pixels are identical"
    return f"{(largest > 0).mean():.1%} of the pixels differ, by {largest.max()} of 255 at most{lossy}"
