"""Pictures that move: GIF, WebP and MP4 files."""

from collections.abc import Sequence
from fractions import Fraction
from importlib.util import find_spec
from itertools import pairwise
from pathlib import Path
from typing import BinaryIO

import numpy as np
from PIL import Image

from safelight.errors import InputError, MissingPartError
from safelight.pipeline.files import write_new
from safelight.pipeline.pictures import check_folder

ANIMATIONS = (".gif", ".webp", ".mp4")
FASTEST = {".gif": 50.0, ".webp": 100.0, ".mp4": 240.0}  # frames a second; viewers slow down faster GIFs to 10


def check_animation(path: Path, fps: float = 8.0) -> None:
    """Raise where no animation can be written to `path`, before its frames are drawn.

    InputError for a suffix, speed or folder that will not do, MissingPartError for an MP4 without PyAV.
    """
    suffix = path.suffix.lower()
    if suffix not in ANIMATIONS:
        raise InputError(f"{path} is no animation", remedy=f"end its name in {', '.join(ANIMATIONS)}")
    if not 0 < fps <= FASTEST[suffix]:
        most = f"a {suffix} takes more than 0 and up to {FASTEST[suffix]:g} frames a second"
        raise InputError(f"fps={fps:g}: {most}", remedy="give fps in these bounds; 8 is usual")
    found = find_spec("av") if suffix == ".mp4" else None
    if suffix == ".mp4" and (found is None or found.origin is None):  # a folder called av is no PyAV
        raise MissingPartError("MP4 files need PyAV", remedy="pip install av, or end the name in .webp or .gif")
    check_folder(path.parent)


def save_animation(frames: Sequence[Image.Image], path: Path | str, *, fps: float = 8.0) -> Path:
    """Write frames of one size as a GIF, WebP or MP4, by the suffix of `path`; the first two repeat for ever.

    The file appears whole or not at all, and never over another: a number is added to the name instead. A GIF has 256
    colours a frame; an MP4 is H.264 in yuv420p, which any player shows, a line or column added to an odd size.

    Args:
        frames: RGB pictures; other modes are converted.
        path: ends in .gif, .webp or .mp4.
        fps: frames a second, above 0 and up to `FASTEST`; GIF counts in 1/100 s and WebP in 1/1000 s, without drift.

    Returns:
        The path that was written.

    Raises:
        InputError: no frames, frames of several sizes, or a path or speed that will not do.
        MissingPartError: for an MP4 where PyAV is not installed.
    """
    path = Path(path)
    check_animation(path, fps)
    if not frames:
        raise InputError("an animation needs frames", remedy="give at least one picture")
    odd = next((k for k, frame in enumerate(frames) if frame.size != frames[0].size), None)
    if odd is not None:
        sizes = " and ".join("{}x{}".format(*frames[k].size) for k in (0, odd))
        raise InputError(f"frames 0 and {odd} are {sizes}", remedy="bring all frames to one size")
    images = [frame.convert("RGB") for frame in frames]
    suffix = path.suffix.lower()
    if suffix == ".mp4":
        return write_new(path, lambda file: _write_mp4(file, images, fps))
    return write_new(path, lambda file: _write_pages(file, images, fps, suffix))


def _write_pages(file: BinaryIO, images: list[Image.Image], fps: float, suffix: str) -> None:
    tick = 10 if suffix == ".gif" else 1  # milliseconds
    ends = [round(k * 1000 / fps / tick) * tick for k in range(len(images) + 1)]
    durations = [b - a for a, b in pairwise(ends)]
    options = {} if suffix == ".gif" else {"quality": 95, "method": 4}
    images[0].save(
        file, format=suffix[1:], save_all=True, append_images=images[1:], duration=durations, loop=0, **options
    )


def _write_mp4(file: BinaryIO, images: list[Image.Image], fps: float) -> None:
    import av  # type: ignore[import-not-found,unused-ignore]

    width, height = images[0].size
    extra = ((0, height % 2), (0, width % 2), (0, 0))  # yuv420p halves the colours' resolution
    with av.open(file, "w", format="mp4") as container:
        stream = container.add_stream("libx264", rate=Fraction(fps).limit_denominator(1000), options={"crf": "16"})
        stream.width, stream.height, stream.pix_fmt = width + width % 2, height + height % 2, "yuv420p"
        for image in images:
            pixels = np.pad(np.asarray(image), extra, mode="edge")
            container.mux(stream.encode(av.VideoFrame.from_ndarray(pixels, format="rgb24")))
        container.mux(stream.encode())
