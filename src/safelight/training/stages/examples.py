"""The sheet of a second stage that is not asked in words alone: what it sees of some samples, beside what it draws.

Small pictures are shown enlarged, the part that is to be painted is grey, each class of a map has a colour, and layouts
are drawn as boxes with the names of their classes.
"""

from colorsys import hsv_to_rgb
from dataclasses import replace
from math import ceil
from typing import TYPE_CHECKING, Any

import torch
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor
from torch.nn import functional as F

from safelight.diffusion.condition import Condition
from safelight.pipeline.conditions import told
from safelight.pipeline.developing import develop
from safelight.pipeline.fields import validate
from safelight.pipeline.tasks import text_to_image
from safelight.training.data.batches import Batch
from safelight.training.loop.sheets import SMALLEST, contact_sheet
from safelight.training.stages.noise import BatchNoise
from safelight.training.stages.reconstructions import as_image

if TYPE_CHECKING:
    from safelight.training.stages.diffusion import DiffusionStage

GOLDEN = 0.618034  # of the circle of hues: neighbours in number are far apart in colour
COLUMNS = 8


def example_sheet(stage: "DiffusionStage", batch: Batch) -> Image.Image:
    """Draw each sample of the batch, with seeds 0, 1, 2, …: a column of two tiles, what is seen and what is drawn."""
    size = tuple(side // stage.model.autoencoder.config.factor for side in batch.pictures.shape[-2:])
    noise = BatchNoise(0, range(len(batch)), device=batch.pictures.device)
    seen = stage.condition(batch, noise, size, dropout=0.0)
    for network in stage.modules.values():
        network.eval()
    try:
        drawn = _drawn(stage, batch, seen, (size[0], size[1]))
    finally:
        for network in stage.modules.values():
            network.train()
    tiles = [tile for pair in zip(_inputs(stage, batch, seen), drawn, strict=True) for tile in pair]
    words = batch.captions if stage.config.conditioning == "text" else [""] * len(batch)
    labels = [label for text in words for label in ("", text)]
    return contact_sheet(tiles, labels, columns=COLUMNS, title=f"{_kind(stage)}, and what is drawn for it")


def _kind(stage: "DiffusionStage") -> str:
    shown = {"low_resolution": "small picture", "mask": "picture with a hole", "class_map": "map of classes"}
    return shown.get(stage.config.concat, "layout")


def _drawn(stage: "DiffusionStage", batch: Batch, seen: Condition, size: tuple[int, int]) -> list[Image.Image]:
    """One picture for each row of what is seen."""
    config = stage.config
    guided = config.conditioning != "none" and config.condition_dropout > 0
    asked: dict[str, Any] = {"prompt": batch.captions if config.conditioning == "text" else [""] * len(batch)}
    if config.conditioning in ("class", "layout"):
        nothing = stage.condition(batch, BatchNoise(0, range(len(batch)), device=stage.model.device), size, dropout=1.0)
        asked = {"prompt": _steering(seen), "negative_prompt": _steering(nothing)}
    settings = validate(text_to_image, {
        **asked, "steps": config.sheet_steps, "guidance_scale": config.sheet_guidance if guided else 1.0,
        "sampler": "ddim", "grid": "trailing", "seed": 0, "batch_size": 16,
    })  # fmt: skip
    beside = None
    if seen.concat is not None:
        concat = seen.concat.float()
        beside = lambda pair, seed: told(pair, Condition(concat=concat[seed : seed + 1]))  # noqa: E731
    return list(develop(stage.model, settings["prompt"], settings, size=size, beside=beside))  # type: ignore[arg-type]


def _steering(condition: Condition) -> Condition:
    """A condition without what is seen beside the latent."""
    return replace(condition, concat=None)


def _inputs(stage: "DiffusionStage", batch: Batch, seen: Condition) -> list[Image.Image]:
    """What the network sees of each sample, as pictures of the sample's size."""
    if stage.config.concat == "class_map":
        assert batch.class_maps is not None
        return [as_image(colored(one)) for one in batch.class_maps.cpu()]
    if stage.config.concat == "low_resolution":
        assert seen.concat is not None
        return [as_image(one) for one in F.interpolate(seen.concat.float(), batch.pictures.shape[-2:])]
    if stage.config.concat == "mask":
        assert seen.concat is not None
        hole = F.interpolate(seen.concat[:, :1].float(), batch.pictures.shape[-2:])
        return [as_image(one) for one in batch.pictures * (hole < 0.5)]
    assert batch.boxes is not None and batch.box_labels is not None
    side = batch.pictures.shape[-1]
    return [layout_image(*one, stage.classes, side) for one in zip(batch.boxes, batch.box_labels, strict=True)]


def colored(class_map: Tensor) -> Tensor:
    """A map of classes (H, W) as a picture (3, H, W) in [-1, 1]: white for 0, and a colour for each class."""
    table = torch.ones(int(class_map.max()) + 1, 3)
    for number in range(1, len(table)):
        table[number] = color_of(number)
    return table[class_map].movedim(-1, 0) * 2 - 1


def color_of(number: int) -> Tensor:
    """The colour (3,) of a class, in [0, 1]."""
    return torch.tensor(hsv_to_rgb(number * GOLDEN % 1, 0.65, 0.85))


def layout_image(boxes: Tensor, labels: Tensor, names: tuple[str, ...], side: int) -> Image.Image:
    """A layout, (K, 4) and (K,), on white: each object's box in its class's colour, with its name."""
    large = side * ceil(SMALLEST / side)  # that names can be read; a sheet enlarges the other pictures alike
    picture = Image.new("RGB", (large, large), "white")
    pen, font = ImageDraw.Draw(picture), ImageFont.load_default(10)
    pen.rectangle((0, 0, large - 1, large - 1), outline="lightgrey")
    for box, label in zip(boxes.tolist(), labels.tolist(), strict=True):
        if label < 0:
            continue
        x0, y0, x1, y1 = (round(share * (large - 1)) for share in box)
        color = tuple(round(255 * part) for part in color_of(label + 1).tolist())
        pen.rectangle((x0, y0, x1, y1), outline=color, width=2)
        pen.text((x0 + 3, y0 + 1), names[label], fill=color, font=font)
    return picture
