"""What is asked for other than in words, as what steers a U-Net: classes, layouts, maps of classes, small pictures.

A model is steered by one of words, a class, a layout or nothing (`LatentDiffusion.steered_by`); beside these it may see
further channels (`LatentDiffusion.sees`): a mask and what it leaves of a picture, a small picture, or a map of classes.
"""

import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from safelight.diffusion.condition import Condition
from safelight.errors import InputError, nearest
from safelight.models.conditioners import NO_OBJECT, ClassEmbedder, LayoutEmbedder, MapEmbedder
from safelight.pipeline.bundle import LatentDiffusion, wrong_task
from safelight.pipeline.pictures import opened

Box = tuple[float, float, float, float]
PICTURE_NOISE = 2**62  # added to a seed: the noise on a small picture is another than the one that sampling starts from
NOISE_LEVEL = 20  # of the x4 upscaler, where nobody says another


def class_condition(model: LatentDiffusion, label: Any) -> Condition:
    """A class, by name or number. Raises InputError where there is no such class, or none at all."""
    if model.steered_by != "class":
        raise wrong_task(model)
    return _of_class(model, class_number(model, label))


def null_class(model: LatentDiffusion) -> Condition | None:
    """No class in particular; None where the model has learned no such thing."""
    return None if model.null_class is None else _of_class(model, model.null_class)


def _of_class(model: LatentDiffusion, number: int) -> Condition:
    labels = torch.tensor([number], device=model.device)
    if isinstance(model.conditioner, ClassEmbedder):
        with torch.no_grad():
            return Condition(context=model.conditioner(labels))
    return Condition(class_labels=labels)


def class_number(model: LatentDiffusion, label: Any) -> int:
    """The number of a class that is given by its name or its number."""
    if label in model.classes:
        return model.classes.index(label)
    number = int(label) if isinstance(label, int) or str(label).strip().isdecimal() else -1
    if isinstance(label, bool) or not 0 <= number < model.class_count:
        numbers = f"a number from 0 to {model.class_count - 1}"
        remedy = f"{nearest(str(label), model.classes)} Or give {numbers}" if model.classes else f"give {numbers}"
        raise InputError(f"this model has no class {label!r}", remedy=remedy)
    return number


def layout_condition(model: LatentDiffusion, boxes: Any) -> Condition:
    """A layout: (class, x0, y0, x1, y1) for each object, or the same as a text: "apple 0.1 0.2 0.5 0.6, pear …"."""
    if not isinstance(model.conditioner, LayoutEmbedder):
        raise wrong_task(model)
    objects = [_object(model, one) for one in _listed(boxes)]
    most = model.conditioner.config.max_objects
    if len(objects) > most:
        raise InputError(f"a layout of {len(objects)} objects", remedy=f"this model takes up to {most}")
    return _of_objects(model, model.conditioner, objects)


def null_layout(model: LatentDiffusion) -> Condition:
    """A layout that says nothing."""
    assert isinstance(model.conditioner, LayoutEmbedder)
    return _of_objects(model, model.conditioner, [])


def _of_objects(model: LatentDiffusion, embedder: LayoutEmbedder, objects: Sequence[tuple[int, Box]]) -> Condition:
    empty = embedder.config.max_objects - len(objects)
    boxes = torch.tensor([[*(box for _, box in objects), *[(0.0,) * 4] * empty]], device=model.device)
    labels = torch.tensor([[*(number for number, _ in objects), *[NO_OBJECT] * empty]], device=model.device)
    with torch.no_grad():
        return Condition(context=embedder(boxes, labels))


def _listed(boxes: Any) -> list[Any]:
    """The objects of a layout; those of a text with the numbers cut from the names."""
    if not isinstance(boxes, str):
        return list(boxes)
    return [part.strip().rsplit(maxsplit=4) for part in re.split(r"[,;\n]", boxes) if part.strip()]


def _object(model: LatentDiffusion, given: Any) -> tuple[int, Box]:
    try:
        label, x0, y0, x1, y1 = given
        box = (float(x0), float(y0), float(x1), float(y1))
    except (TypeError, ValueError):
        what = f"boxes: {given!r} is not a class and four numbers"
        raise InputError(what, remedy='such as "apple 0.1 0.2 0.5 0.6": x0 y0 x1 y1') from None
    if not (0 <= box[0] < box[2] <= 1 and 0 <= box[1] < box[3] <= 1):
        what = f"boxes: {label!r} has the box {box}"
        raise InputError(what, remedy="give shares of width and height, 0 <= x0 < x1 <= 1 and 0 <= y0 < y1 <= 1")
    return class_number(model, label), box


def null_condition(model: LatentDiffusion, size: Sequence[int] | None = None) -> Condition:
    """What says nothing to a model, whatever it is steered by, of a picture of the latent's (h, w)."""
    if model.steered_by == "layout":
        return null_layout(model)
    if model.steered_by == "class":
        nothing = null_class(model)
        if nothing is None:
            raise InputError("this model has learned no picture without a class", remedy="use `class_to_image`")
        return nothing
    return model.condition([""], size=size)


def load_map(class_map: Any) -> Tensor:
    """Read a map of classes as whole numbers (1, H, W).

    `class_map` is a path or PIL image, grey or with a palette, whose values are the classes; or an array or tensor of
    whole numbers (H, W).
    """
    if isinstance(class_map, str | Path):
        class_map = opened(class_map, "class_map")
    if isinstance(class_map, Image.Image):
        if class_map.mode not in ("1", "L", "P", "I", "I;16"):
            what = f"class_map: a picture in {class_map.mode} tells no classes"
            raise InputError(what, remedy="give a grey or indexed PNG whose values are the numbers of classes")
        class_map = np.array(class_map)
    numbers = torch.as_tensor(class_map)
    if numbers.is_floating_point() or numbers.is_complex() or numbers.ndim != 2 or not numbers.numel():
        what = f"class_map: {tuple(numbers.shape)} of {str(numbers.dtype).removeprefix('torch.')} is no map"
        raise InputError(what, remedy="give whole numbers of shape (H, W)")
    return numbers.long()[None].cpu()


def map_channels(model: LatentDiffusion, class_map: Tensor, size: tuple[int, int]) -> Tensor:
    """What the U-Net sees of a map (1, H, W) beside a latent of this (h, w): (1, C', h, w)."""
    if not isinstance(model.conditioner, MapEmbedder):
        raise wrong_task(model)
    low, high, rows = int(class_map.min()), int(class_map.max()), model.conditioner.config.num_classes
    if low < 0 or high >= rows:
        what = f"class_map: classes from {low} to {high}"
        raise InputError(what, remedy=f"this model knows 0 to {rows - 1}")
    with torch.no_grad():
        return model.conditioner(class_map.to(model.device), size).float()


def small_picture(model: LatentDiffusion, picture: Tensor, noise_level: int | None) -> Callable[[int], Condition]:
    """What steers an upscaler: the picture (1, 3, h, w) beside the latent. The result gives it for a picture's seed.

    A model that was told of noise on its small pictures gets some, `noise_level` of its schedule's steps, each picture
    its own (Stable Diffusion's x4 upscaler; cascaded models, Ho et al. 2021, arXiv 2106.15282, section 4.2).
    """
    if model.sees != "picture":
        raise wrong_task(model)
    picture = picture.to(model.device)
    schedule = model.low_res_schedule
    if schedule is None:
        if noise_level:
            raise InputError("this model knows of no noise on pictures", remedy="leave noise_level out")
        return lambda seed: Condition(concat=picture)
    level = NOISE_LEVEL if noise_level is None else noise_level
    sigma = float(schedule.sigmas_at(torch.tensor([level], dtype=torch.float64)))

    def beside(seed: int) -> Condition:
        generator = torch.Generator().manual_seed((seed + PICTURE_NOISE) % 2**64)
        noise = torch.randn(picture.shape, generator=generator).to(picture)
        noisy = (picture + sigma * noise) / (1 + sigma**2) ** 0.5
        return Condition(concat=noisy, class_labels=torch.tensor([level], device=model.device))

    return beside
