"""Bytes of a picture file -> RGB or RGBA pixels, whatever mode the file is in."""

from io import BytesIO
from math import prod

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from safelight.training.data.stores import BrokenFile

MAX_PIXELS = 100_000_000  # a larger picture is a mistake or an attack, and would not fit workers' memory
MAX_ASPECT = 32
_SMALLER = f"bring it below {MAX_PIXELS:,} pixels, and no side above {MAX_ASPECT} times the other"
_FAULTS = (UnidentifiedImageError, OSError, ValueError, SyntaxError, EOFError, IndexError, Image.DecompressionBombError)


def decode(data: bytes, name: str) -> Image.Image:
    """Decode a picture file of any mode to RGB, or RGBA where it can be transparent; the first frame, upright.

    16-bit samples keep their upper 8 bits, CMYK and palettes are converted. Raises BrokenFile naming `name`.
    """
    picture = _opened(data, name)
    try:
        picture.load()
        return _as_rgb(ImageOps.exif_transpose(picture))
    except _FAULTS as error:
        raise BrokenFile(f"{name} is a broken picture: {error}", remedy="fetch it again or remove it") from error


def header_size(data: bytes, name: str) -> tuple[int, int]:
    """Read (width, height) of an upright picture from its header alone. Raises BrokenFile."""
    picture = _opened(data, name)
    turned = picture.getexif().get(0x0112, 1) >= 5  # EXIF orientations 5 to 8 lie on their side
    return (picture.height, picture.width) if turned else picture.size


def _opened(data: bytes, name: str) -> Image.Image:
    if data.startswith(b"version https://git-lfs"):
        raise BrokenFile(f"{name} is a git-lfs pointer, not a picture", remedy="run `git lfs pull` in its folder")
    try:
        picture = Image.open(BytesIO(data))
    except Image.DecompressionBombError as error:
        raise BrokenFile(f"{name} is larger than any training picture: {error}", remedy=_SMALLER) from error
    except _FAULTS as error:
        raise BrokenFile(f"{name} is no picture that Pillow can read", remedy="convert or remove it") from error
    if prod(picture.size) > MAX_PIXELS or max(picture.size) > MAX_ASPECT * min(picture.size):
        what = f"{name} is {picture.width}x{picture.height} pixels, larger or longer than any training picture"
        raise BrokenFile(what, remedy=_SMALLER)
    return picture


def _as_rgb(picture: Image.Image) -> Image.Image:
    if picture.mode.startswith("I") or picture.mode == "F":  # 16-bit gray, which Pillow's own conversion clips to white
        samples = np.asarray(picture).astype(np.float64)
        picture = Image.fromarray((samples / 257 if samples.max() > 255 else samples).clip(0, 255).astype(np.uint8))
    transparent = picture.mode in ("LA", "La", "PA", "RGBA", "RGBa") or "transparency" in picture.info
    return picture.convert("RGBA" if transparent else "RGB")
