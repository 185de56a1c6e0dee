"""What is asked for other than in words, as what steers a U-Net: classes, layouts, maps, pictures.

A model is steered by one of words, a class, a layout or nothing (`LatentDiffusion.steered_by`); beside these it may see
further channels (`LatentDiffusion.sees`): a mask and what it leaves of a picture, a small picture, a map of classes or
depths, or the picture that is edited.
"""

import re
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from safelight.diffusion.condition import Condition
from safelight.errors import InputError, nearest
from safelight.models.conditioners import NO_OBJECT, ClassEmbedder, LayoutEmbedder, MapEmbedder
from safelight.pipeline.bundle import LatentDiffusion, wrong_task
from safelight.pipeline.fields import Settings
from safelight.pipeline.pictures import open_picture, opened
from safelight.pipeline.steering import Pair, Steering

Box = tuple[float, float, float, float]
Beside = Callable[[Pair, int], Pair]  # of a picture's encoded prompts and its seed, what it is drawn with
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


def told(pair: Pair, more: Condition) -> Pair:
    """A prompt and its negative prompt, with what steers the picture whatever the words are."""
    positive, negative = pair
    return positive.told(more), None if negative is None else negative.told(more)


def small_picture(model: LatentDiffusion, picture: Tensor, noise_level: int | None) -> Beside:
    """What steers an upscaler: the picture (1, 3, h, w) beside the latent.

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
        return lambda pair, seed: told(pair, Condition(concat=picture))
    level = NOISE_LEVEL if noise_level is None else noise_level
    sigma = float(schedule.sigmas_at(torch.tensor([level], dtype=torch.float64)))

    def beside(pair: Pair, seed: int) -> Pair:
        generator = torch.Generator().manual_seed((seed + PICTURE_NOISE) % 2**64)
        noise = torch.randn(picture.shape, generator=generator).to(picture)
        noisy = (picture + sigma * noise) / (1 + sigma**2) ** 0.5
        return told(pair, Condition(concat=noisy, class_labels=torch.tensor([level], device=model.device)))

    return beside


def edited(model: LatentDiffusion, latent: Tensor, settings: Settings, image_scale: float) -> Beside:
    """What steers a model that edits: the words c and the picture i, whose latent (1, C, h, w) it sees unscaled.

    Each has a guidance of its own (Brooks et al. 2023, arXiv 2211.09800, eq. 3): e(0, 0) + image_scale * (e(i, 0) -
    e(0, 0)) + scale * (e(i, c) - e(i, 0)). That is guidance from e(i, 0) to e(i, c), and to e(0, 0) by the weight of
    (1 - image_scale) / scale; outside of guidance's interval, where `scale` is 1, that weight stays as it is.
    """
    if model.sees != "original":
        raise wrong_task(model)
    scale = cast(float, settings["guidance_scale"])
    if scale == 0:
        what = "guidance_scale=0 leaves the words out, and the picture's guidance counts beside theirs"
        raise InputError(what, remedy="give more than 0")
    seen = Condition(concat=model.autoencoder.scale.undo(latent))
    unseen, weight = Condition(concat=torch.zeros_like(latent)), (1 - image_scale) / scale

    @cache
    def both(pair: Pair) -> Pair:
        positive, negative = told((pair[0].on(model), pair[1] and pair[1].on(model)), seen)
        if negative is None or not weight:
            return positive, negative
        nothing, rows = negative.told(unseen), positive.condition.batch
        if nothing.condition.shapes != positive.condition.shapes:
            what = "the prompt and the negative prompt are encoded to other lengths"
            raise InputError(what, remedy="encode both together, or set image_guidance_scale to 1")
        away = tuple(replace(course.moved(rows), weight=weight) for course in nothing.prompts[0])
        condition = Condition.cat([positive.condition, nothing.condition])
        return Steering(condition, tuple(courses + away for courses in positive.prompts)), negative

    return lambda pair, seed: both(pair)


def load_depth(depth: Any) -> Tensor:
    """Read a map of depths as a float32 tensor (1, 1, H, W), in whatever unit: the nearer, the larger.

    `depth` is a path or PIL image (8 or 16 bits, or floats; of colours, how light they are), an array (H, W), or a
    tensor of that shape, or with ones before it.
    """
    if not isinstance(depth, Tensor | np.ndarray):
        image = open_picture(depth, "depth")
        depth = np.array(image if image.mode in ("I", "F") or image.mode.startswith("I;16") else image.convert("L"))
    if isinstance(depth, np.ndarray):
        depth = torch.from_numpy(depth.astype(np.float32)) if depth.ndim == 2 and depth.dtype.kind in "iuf" else depth
    shape = tuple(depth.shape)
    if not isinstance(depth, Tensor) or len(shape) < 2 or not 0 < depth.numel() == shape[-2] * shape[-1]:
        raise InputError(f"depth: {shape} of {depth.dtype} is no map", remedy="give numbers of shape (H, W)")
    return depth.detach().cpu().float().reshape(1, 1, *shape[-2:])


def depth_channel(model: LatentDiffusion, depth: Tensor, picture: Tensor) -> Tensor:
    """What the U-Net sees of a map of depths beside the latent of a picture: (1, 1, h, w) from -1, far, to 1, near.

    The map may be of another size; it is shrunk, and then spread, as Stability's own script and diffusers do it.
    Raises InputError where it is of another shape than the picture, or tells nothing.
    """
    if model.sees != "depth":
        raise wrong_task(model)
    (high, wide), (height, width) = depth.shape[-2:], picture.shape[-2:]
    if abs(high * width / (wide * height) - 1) > 0.05:
        what = f"depth: it is {wide}x{high}, and the image {width}x{height}"
        raise InputError(what, remedy="give a map of the picture's shape")
    factor = model.autoencoder.config.factor
    below, right = (round(n * (-side % factor) / side) for n, side in ((high, height), (wide, width)))
    padded = F.pad(depth, (0, right, 0, below), mode="replicate")
    small = F.interpolate(padded, [-(-side // factor) for side in (height, width)], mode="bicubic")
    low, top = small.amin(), small.amax()
    if not (top > low and (top - low).isfinite()):
        raise InputError("depth: all is equally near, or not finite", remedy="give a map of how near things are")
    return 2 * (small - low) / (top - low) - 1
