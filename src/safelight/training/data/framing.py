"""Pictures of any shape -> arrays of the shape that is trained: resized, cropped, flipped, set on a background."""

from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from safelight.errors import InputError
from safelight.training.data.order import Draws

Pixels = NDArray[np.uint8]
Size = tuple[int, int]  # width, height
Crop = Literal["center", "random"]
Background = tuple[int, int, int] | Literal["white", "random"]


def fitted(
    picture: Image.Image, size: Size, *, across: float = 0.5, down: float = 0.5, share: float = 1.0
) -> Image.Image:
    """Cut the largest part of the shape of `size` out of a picture, and resize it (Lanczos) to `size`.

    `across` and `down` in [0, 1] say where it lies: 0 left and above, 0.5 in the middle, 1 right and below. With
    `share` below 1 the part is that much shorter and narrower than the largest.
    """
    scale = max(size[0] / picture.width, size[1] / picture.height) / share
    width, height = size[0] / scale, size[1] / scale
    left, top = across * (picture.width - width), down * (picture.height - height)
    box = (left, top, min(left + width, picture.width), min(top + height, picture.height))
    if share == 1 and picture.size == size:
        return picture
    return picture.resize(size, Image.Resampling.LANCZOS, box=box)


def on_background(picture: Image.Image, background: Background, draws: Draws) -> Image.Image:
    """Give the picture as RGB. Where it is transparent, `background` shows: a colour (0 to 255), "white", or "random".

    Draws even where it is not needed, so that a picture's transparency moves no later choice.
    """
    drawn = (draws.below(256), draws.below(256), draws.below(256))
    if picture.mode != "RGBA":
        return picture.convert("RGB")
    color = drawn if background == "random" else (255, 255, 255) if background == "white" else tuple(background)
    canvas = Image.new("RGBA", picture.size, (*color, 255))
    canvas.alpha_composite(picture)
    return canvas.convert("RGB")


def as_array(picture: Image.Image, *, flip: bool = False) -> Pixels:
    """RGB picture -> (H, W, 3) uint8, mirrored if asked for."""
    pixels = np.asarray(picture)
    return np.ascontiguousarray(pixels[:, ::-1]) if flip else pixels


def as_size(size: int | Size | Any) -> Size:
    """Read a side or a (width, height). Raises InputError for less than 1 pixel."""
    pair = (size, size) if isinstance(size, int) else tuple(size)
    if len(pair) != 2 or not all(isinstance(side, int) and side > 0 for side in pair):
        raise InputError(f"size={size!r} is no size of a picture", remedy="give a side, or (width, height), in pixels")
    return pair
