"""A film of a picture developing: x_t, as the network sees it, beside the x0 it foresees, at every step."""

from collections.abc import Sequence
from dataclasses import dataclass
from math import ceil, hypot
from pathlib import Path
from typing import Unpack

from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from safelight.diffusion.samplers import Step
from safelight.errors import InputError
from safelight.pipeline.animation import check_animation, save_animation
from safelight.pipeline.bundle import LatentDiffusion
from safelight.pipeline.developing import decode
from safelight.pipeline.fields import Settings
from safelight.pipeline.files import write_new
from safelight.pipeline.pictures import Pictures, check_folder, to_pil
from safelight.pipeline.seeing.watching import Record, together
from safelight.pipeline.tasks import text_to_image

DARK, PALE, DIM, RED = "#120b0b", "#f3e9e4", "#9c8b85", "#d8412b"  # a darkroom under its safelight
SMALLEST = 256  # pixels: smaller pictures are enlarged, each pixel to a square
HOLD = 1.0  # seconds for which the last frame stays


@dataclass(frozen=True, eq=False)
class View:
    """One step: its noise level, and both pictures."""

    number: int  # from 1
    total: int | None  # None for adaptive samplers
    sigma: float
    t: float  # the timestep of that sigma in the training schedule
    noisy: Image.Image  # x_t, brought to unit variance and decoded
    foreseen: Image.Image  # x0, decoded


@dataclass(frozen=True, eq=False)
class Film:
    """The views of a picture's development, and the picture that came out."""

    views: tuple[View, ...]
    pictures: Pictures

    def frames(self) -> tuple[Image.Image, ...]:
        """One frame a view, with sigma and t written on it; all of the last one's size, the picture's own."""
        size = self.views[-1].noisy.size
        return tuple(_frame(view, size) for view in self.views)

    def strip(self, columns: int = 10) -> Image.Image:
        """Up to `columns` views beside each other, the first and the last among them; x_t above, x0 below."""
        _check_columns(columns)
        return _strip(_spread(self.views, columns))


def film(
    model: LatentDiffusion,
    prompt: str = "",
    *,
    width: int | None = None,
    height: int | None = None,
    **settings: Unpack[Settings],
) -> Film:
    """Draw one picture from words, as `text_to_image` does, and keep every step of it.

    Decoding both pictures of every step comes on top: for large pictures it can take longer than the drawing.
    Raises InputError for a `count` other than 1.
    """
    if settings.get("count", 1) != 1:
        raise InputError(f"count={settings['count']}: a film shows one picture", remedy="leave count out")
    record = Record()
    settings["watch"] = together(record, settings.get("watch"))
    pictures = text_to_image(model, prompt, width=width, height=height, **settings)
    return Film(tuple(views(model, record.steps, settings.get("tile", "auto"))), pictures)


def views(model: LatentDiffusion, steps: Sequence[Step], tile: str = "auto") -> list[View]:
    """Decode the steps that a `Record` has kept; of any task, so that image to image has its film, too."""

    def picture(latent: Tensor) -> Image.Image:
        return to_pil(decode(model, latent, tile)[0])

    return [
        View(
            number=step.index + 1,
            total=step.total,
            sigma=step.sigma,
            t=model.schedule.t(step.sigma),
            noisy=picture(step.x / hypot(1, step.sigma)),
            foreseen=picture(step.x0),
        )
        for step in steps
    ]


def check_film(path: Path, fps: float = 8.0, columns: int = 10) -> None:
    """Raise where no film can be written to `path`: a .png becomes a strip, other suffixes are `save_animation`'s."""
    if path.suffix.lower() == ".png":
        _check_columns(columns)
        check_folder(path.parent)
    else:
        check_animation(path, fps)


def _check_columns(columns: int) -> None:
    if columns < 2:
        raise InputError(f"columns={columns}: a strip has two or more", remedy="take the picture itself for one")


def save_film(shot: Film, path: Path | str, *, fps: float = 8.0, columns: int = 10) -> Path:
    """Write a film by the suffix of `path`: .png is a strip of up to `columns` views, .gif, .webp and .mp4 move.

    Whole or not at all, and never over another file. Returns the path that was written.
    """
    path = Path(path)
    check_film(path, fps, columns)
    if path.suffix.lower() == ".png":
        return write_new(path, lambda file: shot.strip(columns).save(file, format="PNG"))
    frames = shot.frames()
    return save_animation([*frames, *frames[-1:] * ceil(HOLD * fps)], path, fps=fps)


def _frame(view: View, whole: tuple[int, int]) -> Image.Image:
    """Both pictures above two lines of text, and a red line as long as the way that lies behind."""
    pair = (one.resize(whole, Image.Resampling.NEAREST) for one in (view.noisy, view.foreseen))  # of a smaller pass
    noisy, foreseen = (_enlarged(one, SMALLEST) for one in pair)
    width, height = noisy.size
    size = max(14, width // 22)
    edge, line = size, round(1.5 * size)
    frame = Image.new("RGB", (2 * width + 3 * edge, height + 2 * edge + 3 * line), DARK)
    pen = ImageDraw.Draw(frame)
    left, right, top = edge, width + 2 * edge, height + round(1.6 * edge)
    frame.paste(noisy, (left, edge))
    frame.paste(foreseen, (right, edge))
    _indexed(pen, (left, top), "x", "t", " as the network sees it", size)
    _indexed(pen, (right, top), "x", "0", " as it foresees it", size)
    count = f"step {view.number}" + (f" of {view.total}" if view.total else "")
    _text(pen, (left, top + line), f"sigma {view.sigma:.3g}   t {view.t:.0f}", size, DIM)
    _text(pen, (right + width, top + line), count, size, DIM, "ra")
    if view.total:
        end = left + (2 * width + edge) * view.number // view.total
        pen.rectangle((left, frame.height - edge, end, frame.height - edge + max(2, size // 7)), fill=RED)
    return frame


def _strip(chosen: Sequence[View]) -> Image.Image:
    """The chosen views as columns, a margin with x_t and x0 on their left, and sigma and t above each."""
    pairs = [[_fitted(one, 128) for one in (view.noisy, view.foreseen)] for view in chosen]
    width, height = pairs[0][0].size
    gap, size = 6, 14
    left, top = 40, 52
    strip = Image.new("RGB", (left + len(chosen) * (width + gap) + gap, top + 2 * (height + gap) + gap), DARK)
    pen = ImageDraw.Draw(strip)
    for row, sign in enumerate("t0"):
        _indexed(pen, (12, top + row * (height + gap) + height // 2 - size), "x", sign, "", size + 4)
    for column, (view, pair) in enumerate(zip(chosen, pairs, strict=True)):
        x = left + column * (width + gap)
        _text(pen, (x, 9), f"sigma {view.sigma:.3g}", size, PALE)
        _text(pen, (x, 28), f"t {view.t:.0f}", size, DIM)
        for row, image in enumerate(pair):
            strip.paste(image, (x, top + row * (height + gap)))
    return strip


def _spread(views: Sequence[View], count: int) -> list[View]:
    if len(views) <= count:
        return list(views)
    return [views[round(k * (len(views) - 1) / (count - 1))] for k in range(count)]


def _enlarged(image: Image.Image, smallest: int) -> Image.Image:
    factor = max(1, -(-smallest // min(image.size)))
    return image.resize((image.width * factor, image.height * factor), Image.Resampling.NEAREST)


def _fitted(image: Image.Image, height: int) -> Image.Image:
    resampling = Image.Resampling.LANCZOS if image.height > height else Image.Resampling.NEAREST
    return image.resize((max(1, round(image.width * height / image.height)), height), resampling)


def _text(
    pen: ImageDraw.ImageDraw, place: tuple[float, float], text: str, size: int, fill: str = PALE, anchor: str = "la"
) -> float:
    """Write, and return where the text ends."""
    font = ImageFont.load_default(size)
    pen.text(place, text, font=font, fill=fill, anchor=anchor)
    return place[0] + pen.textlength(text, font=font)


def _indexed(pen: ImageDraw.ImageDraw, place: tuple[float, float], sign: str, index: str, rest: str, size: int) -> None:
    """Write a symbol with its index, and words behind it. (The font that comes with Pillow has no indices.)"""
    x = _text(pen, place, sign, size)
    x = _text(pen, (x + 1, place[1] + size * 0.42), index, round(size * 0.7))
    _text(pen, (x, place[1]), rest, size)
