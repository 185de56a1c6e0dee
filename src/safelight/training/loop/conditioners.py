"""What a second stage needs beside a text encoder: embedders of layouts and maps, and samples for its sheets."""

from collections.abc import Sequence
from typing import Any

import torch

from safelight.errors import InputError
from safelight.models.conditioners import Conditioner, LayoutEmbedder, MapEmbedder
from safelight.training.data.batches import Batch, Data, PictureData
from safelight.training.data.latents import LatentData
from safelight.training.data.scenes import SceneData
from safelight.training.loop.recipes import DiffusionRecipe

HEAD = 64  # channels of a head of a layout's embedder
EXAMPLES = 8  # samples on a sheet
BACKGROUND = "background"


def needs_scenes(recipe: DiffusionRecipe) -> bool:
    """Whether a recipe asks for what only scenes have: boxes, or maps of classes."""
    return recipe.conditioning == "layout" or recipe.concat == "class_map"


def class_names(recipe: DiffusionRecipe, data: Data[Any]) -> tuple[str, ...]:
    """The names of the classes that the model is to know, by their numbers: none where it is told of no classes."""
    if recipe.conditioning not in ("class", "layout"):
        return (BACKGROUND, *known_classes(data)) if recipe.concat == "class_map" else ()
    names = known_classes(data)
    if not names and recipe.conditioning == "class":
        what = "no picture of the data has a class"
        raise InputError(what, remedy="put pictures into a folder for each class, or give them a column `label`")
    return names


def known_classes(data: Data[Any]) -> tuple[str, ...]:
    """The names of the classes of a data set; numbers where only those are known."""
    if isinstance(data, LatentData):
        labels = [shard["labels"] for shard in data.shards if "labels" in shard]
        return tuple(map(str, range(int(torch.cat(labels).max()) + 1))) if labels else ()
    if isinstance(data, SceneData):
        return tuple(data.class_names)
    return data.collection.labels if isinstance(data, PictureData) else ()


def new_conditioner(recipe: DiffusionRecipe, data: Data[Any]) -> Conditioner | None:
    """The embedder that a new model needs, if it needs one. Raises InputError for data without boxes and classes."""
    if not needs_scenes(recipe):
        return None
    wanted = "layout" if recipe.conditioning == "layout" else "class_map"
    if recipe.conditioning == "layout" and recipe.concat == "class_map":
        raise InputError("a model is told of a layout or of a map of classes", remedy="leave one of them out")
    if not isinstance(data, SceneData) or not data.class_names:
        what = f"the data has no classes of objects, which {wanted} needs"
        raise InputError(what, remedy="train on sprites with --scenes, and name the column of their classes: --classes")
    if wanted == "class_map":
        return MapEmbedder(MapEmbedder.Config(num_classes=len(data.class_names) + 1))
    if recipe.layout_width % HEAD:
        raise InputError(f"layout_width={recipe.layout_width} is no multiple of {HEAD}", remedy=f"give {HEAD} or 256")
    return LayoutEmbedder(
        LayoutEmbedder.Config(
            num_classes=len(data.class_names),
            embed_dim=recipe.layout_width,
            max_objects=len(data.mix.counts),
            num_layers=recipe.layout_layers,
            num_heads=recipe.layout_width // HEAD,
        )
    )


def examples(recipe: DiffusionRecipe, data: Data[Any], device: torch.device) -> Batch | None:
    """Samples of the data to draw on every sheet; None for models that are asked in words or classes alone."""
    if (recipe.conditioning != "layout" and recipe.concat == "none") or isinstance(data, LatentData):
        return None
    numbers: Sequence[int] = range(EXAMPLES)
    if recipe.buckets:  # a batch has one shape
        numbers = range(min(EXAMPLES, recipe.batch_size // recipe.accumulate))
    return data.batch(recipe.seed, numbers, device)
