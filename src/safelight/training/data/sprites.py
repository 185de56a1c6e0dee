"""A collection's pictures made ready to be pasted: sprites at many sizes, and plates to stand behind them.

All pixels are kept as uint8 tensors, so that a training device can hold them. Sprites are premultiplied (RGB multiplied
by alpha): resizing and blending such pixels leaves no dark or bright rim around a shape (Porter & Duff 1984).

What is read of a collection's table, where it is there: `kind` (sprite, texture, background, photo), `name`, `style`,
`keywords`, `synonyms` (a list of other names), `group` and `subgroup`, `skin`, `hex`, `split`, and `w` and `h` of pixel
art.
"""

import os
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from safelight.training.data.collections import Collection, Entry
from safelight.training.data.colors import HUES, VIVID, Floats, measured_words, turned
from safelight.training.data.framing import Pixels, fitted
from safelight.training.data.names import general_names, names_a_color
from safelight.training.data.stores import BrokenFile, CollectionError

Kind = Literal["smooth", "pixel"]
KINDS: tuple[Kind, ...] = ("smooth", "pixel")
STEP = 2**0.5  # between the sizes of a pyramid: a sprite is drawn at 0.7 to 1 of a size that is kept
SMALLEST = 8
# Filters without negative lobes: others overshoot at edges, which premultiplied pixels show as a rim.
SHRINKING, ENLARGING = Image.Resampling.HAMMING, Image.Resampling.BILINEAR
SUMMARY = 16  # side of the small copy that colours are measured on
LARGEST_PIXEL_ART = 64  # of larger sprites the pixels are too small to be kept square
MARGIN = 1.15  # plates are this much larger than scenes, which show a part of them
WINDOWS = (0.0, 0.5, 1.0)  # left, middle and right part of a background that is wider than high
EMPTY = 8  # alpha below is not seen
HOLES = 0.02  # a texture with more than this share of empty pixels cannot fill a scene
_KINDS_OF_PICTURES = "it needs sprites (pictures with transparent parts), backgrounds, textures or photographs"
NEVER_TURNED = {"people-body", "flags", "symbols", "smileys-emotion", "skin"}
NEVER_FLIPPED = {"flags", "symbols", "time", "alphanum", "arrow", "keycap"}
SIDED = ("left", "right", "clockwise", "east", "west")


@dataclass(frozen=True, eq=False)
class Sprite:
    """What is known of a sprite.

    `row` is its place in the pyramid of its kind; `box` is x0, y0, x1, y1 of what is not empty in its square tile, as
    shares of the tile; `native` the longer side of that in the pixels of its file. `words` holds the colour it can be
    called by at each turn of hue, or None, and `turns` the turns that give it another.
    """

    entry: Entry
    kind: Kind
    row: int
    box: tuple[float, float, float, float]
    native: int
    words: tuple[str | None, ...] = (None,) * HUES
    turns: tuple[int, ...] = ()
    general: tuple[str, ...] = ()
    can_flip: bool = True
    label: int = -1


@dataclass(frozen=True, eq=False)
class Plate:
    """A picture that fills a scene. `row` is its place among the plates."""

    entry: Entry
    row: int


@dataclass(frozen=True, eq=False)
class Bank:
    """All that scenes of one `size` are made of.

    `pyramids` hold premultiplied sprites (n, 4, s, s) uint8, largest s first; `plates` (m, 3, p, p) uint8; `summaries`
    (sprites, 256, 4) float32 in [0, 1] are small copies to measure colours on. `side` is the side in pixels of every
    piece of pixel art, which is drawn at whole multiples of it.
    """

    size: int
    sprites: tuple[Sprite, ...]
    photos: tuple[Plate, ...]
    backgrounds: tuple[Plate, ...]
    pyramids: dict[Kind, tuple[Tensor, ...]]
    plates: Tensor
    summaries: Tensor
    side: int

    def to(self, device: torch.device | str) -> "Bank":
        """Hold the pixels on a device."""
        pyramids = {kind: tuple(level.to(device) for level in levels) for kind, levels in self.pyramids.items()}
        return replace(self, pyramids=pyramids, plates=self.plates.to(device))

    @property
    def nbytes(self) -> int:
        """Bytes of pixels held."""
        return self.plates.nbytes + sum(level.nbytes for levels in self.pyramids.values() for level in levels)


def build_bank(collection: Collection, size: int, *, class_of: Callable[[Entry], str | None]) -> tuple[Bank, list[str]]:
    """Read every picture of a collection once, for scenes of `size` pixels; give the bank and the names of its classes.

    What a picture is, says its `kind` in the table: sprite, texture, background, photo. Without one, pictures with
    transparent parts are sprites, others photos. Pictures of sprites that are empty, and textures with holes, are left
    out. Takes about 3 ms a sprite and core. Raises CollectionError if nothing is left.
    """
    side = max((_pixel_side(entry) for entry in collection), default=0) or 32
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        parts = list(pool.map(lambda i: _prepare(collection, i, size, side), range(len(collection))))
    tiles = [part for part in parts if isinstance(part, _Tile)]
    covers = [(part, pixels) for part in parts if isinstance(part, _Cover) for pixels in part.windows]
    if not tiles and not covers:
        raise CollectionError(f"{collection.path} holds nothing to make scenes of", remedy=_KINDS_OF_PICTURES)
    classes = sorted({name for tile in tiles if (name := class_of(tile.entry)) is not None})
    labels = [-1 if (name := class_of(tile.entry)) is None else classes.index(name) for tile in tiles]
    plates = [(Plate(cover.entry, row), cover.use) for row, (cover, _) in enumerate(covers)]
    summaries = np.array([tile.summary for tile in tiles], np.float32).reshape(len(tiles), SUMMARY**2, 4)
    bank = Bank(
        size=size,
        sprites=tuple(_described(tiles, summaries, labels)),
        photos=tuple(plate for plate, use in plates if use == "photo"),
        backgrounds=tuple(plate for plate, use in plates if use != "photo"),
        pyramids={kind: _stacked([tile.levels for tile in tiles if tile.kind == kind]) for kind in KINDS},
        plates=_channels_first([pixels for _, pixels in covers], (plate_side(size), plate_side(size), 3)),
        summaries=torch.from_numpy(summaries),
        side=side,
    )
    return bank, classes


@dataclass(frozen=True, eq=False)
class _Tile:
    entry: Entry
    kind: Kind
    box: tuple[float, float, float, float]
    native: int
    levels: tuple[Pixels, ...]
    summary: Floats


@dataclass(frozen=True, eq=False)
class _Cover:
    entry: Entry
    use: str
    windows: tuple[Pixels, ...]


def plate_side(size: int) -> int:
    """Give the side of the plates for scenes of `size`."""
    return round(size * MARGIN)


def level_sizes(size: int) -> tuple[int, ...]:
    """Give the sides of a pyramid's levels, largest first."""
    count = 1 + int(np.floor(np.log(size / SMALLEST) / np.log(STEP) + 1e-9))
    return tuple(round(size * STEP**-k) for k in range(max(count, 1)))


def _prepare(collection: Collection, i: int, size: int, side: int) -> _Tile | _Cover | None:
    entry = collection[i]
    try:
        picture = collection.picture(i)
    except BrokenFile as error:
        collection.faults.add(entry.name, error.what, len(collection))
        return None
    kind = entry.meta.get("kind") or ("sprite" if _is_transparent(picture) else "photo")
    if kind == "sprite":
        return _tile(entry, picture.convert("RGBA"), size, side)
    return _cover(entry, picture, kind, size)


def _is_transparent(picture: Image.Image) -> bool:
    return picture.mode == "RGBA" and picture.getchannel("A").getextrema() != (255, 255)


def _tile(entry: Entry, picture: Image.Image, size: int, side: int) -> _Tile | None:
    box = picture.getchannel("A").point(lambda alpha: 255 * (alpha >= EMPTY)).getbbox()
    if box is None:
        return None
    pixel = _pixel_side(entry) > 0
    tile = _square(picture, side) if pixel else _square(picture.crop(box))
    seen = tile.getchannel("A").point(lambda alpha: 255 * (alpha >= EMPTY)).getbbox() or box
    tile = tile.convert("RGBa")
    if pixel:
        levels = [tile, *(tile.resize((side // k, side // k), Image.Resampling.BOX) for k in (2, 4))]
    else:
        levels = [tile.resize((s, s), SHRINKING if s < tile.width else ENLARGING) for s in level_sizes(size)]
    summary = np.asarray(tile.resize((SUMMARY, SUMMARY), Image.Resampling.BOX), np.float32).reshape(-1, 4) / np.float32(
        255
    )
    x0, y0, x1, y1 = (edge / tile.width for edge in seen)
    native = max(box[2] - box[0], box[3] - box[1])
    return _Tile(
        entry, "pixel" if pixel else "smooth", (x0, y0, x1, y1), native, tuple(map(np.asarray, levels)), summary
    )


def _square(picture: Image.Image, side: int = 0) -> Image.Image:
    """Put a picture in the middle of an empty square, as small as it may be, or of a given side."""
    side = side or max(picture.size)
    tile = Image.new("RGBA", (side, side))
    tile.paste(picture, ((side - picture.width) // 2, (side - picture.height) // 2))
    return tile


def _cover(entry: Entry, picture: Image.Image, kind: str, size: int) -> _Cover | None:
    p = plate_side(size)
    if kind == "texture":
        alpha = np.asarray(picture.convert("RGBA"))[..., 3]
        if (alpha < 128).mean() > HOLES:
            return None
        return _Cover(entry, kind, (_tiled(np.asarray(picture.convert("RGB")), max(1, round(size / 64)), p),))
    picture = picture.convert("RGB")
    if is_pixel_art(entry):
        times = -(-p // min(picture.size))
        picture = picture.resize((picture.width * times, picture.height * times), Image.Resampling.NEAREST)
        left, top = picture.width - p, (picture.height - p) // 2
        windows = [picture.crop((round(x * left), top, round(x * left) + p, top + p)) for x in WINDOWS]
    else:
        wide = kind == "background" and picture.width > MARGIN * picture.height
        windows = [fitted(picture, (p, p), across=x) for x in (WINDOWS if wide else (0.5,))]
    return _Cover(entry, kind, tuple(map(np.asarray, windows)))


def _tiled(pixels: Pixels, times: int, p: int) -> Pixels:
    """Repeat a texture, each pixel enlarged to `times` pixels, over a plate."""
    large = pixels.repeat(times, 0).repeat(times, 1)
    return np.tile(large, (-(-p // large.shape[0]), -(-p // large.shape[1]), 1))[:p, :p]


def is_pixel_art(entry: Entry) -> bool:
    """Say whether an entry's style is pixel art, whose pixels must stay square and sharp."""
    return "pixel" in f"{entry.meta.get('style', '')}"


def _pixel_side(entry: Entry) -> int:
    """Give the side of the square that a pixel-art sprite fits in; 0 for other entries, and too large ones."""
    sides = [side for key in ("w", "h") if isinstance(side := entry.meta.get(key), int)]
    known = is_pixel_art(entry) and entry.meta.get("kind") == "sprite" and sides
    return max(sides) if known and max(sides) <= LARGEST_PIXEL_ART else 0


def _described(tiles: Sequence[_Tile], summaries: Floats, labels: Sequence[int]) -> Iterable[Sprite]:
    """Sprites with the words that are true of them."""
    metas = [tile.entry.meta for tile in tiles]
    words = list(zip(*(measured_words(turned(summaries, turn)) for turn in range(HUES)), strict=True)) or []
    names = [
        (str(m.get("name", "")), str(m.get("subgroup", "")), [str(w) for w in m.get("keywords") or ()]) for m in metas
    ]
    rows: dict[Kind, int] = {"smooth": 0, "pixel": 0}
    for tile, meta, called, general, label in zip(tiles, metas, words, general_names(names), labels, strict=True):
        groups = {str(meta.get("group", "")), str(meta.get("subgroup", "")), "skin" if meta.get("skin") else ""}
        name = str(meta.get("name", ""))
        own_color = names_a_color(name)
        vivid = set() if own_color or groups & NEVER_TURNED else VIVID - {called[0]}
        yield Sprite(
            entry=tile.entry,
            kind=tile.kind,
            row=rows[tile.kind],
            box=tile.box,
            native=tile.native,
            words=(None,) * HUES if own_color or "people-body" in groups else called,
            turns=tuple(turn for turn in range(1, HUES) if called[turn] in vivid),
            general=() if groups & {"people-body", "symbols"} else general,
            can_flip=not groups & NEVER_FLIPPED and not any(side in name.lower() for side in SIDED),
            label=label,
        )
        rows[tile.kind] += 1


def _stacked(pyramids: Sequence[tuple[Pixels, ...]]) -> tuple[Tensor, ...]:
    """Pyramids of single sprites -> one tensor (n, 4, s, s) for each size."""
    return tuple(_channels_first(level, level[0].shape) for level in zip(*pyramids, strict=True))


def _channels_first(pictures: Sequence[Pixels], shape: tuple[int, ...]) -> Tensor:
    """n arrays of one shape (H, W, C) -> (n, C, H, W)."""
    height, width, channels = shape
    stacked = np.empty((len(pictures), channels, height, width), np.uint8)
    for row, picture in zip(stacked, pictures, strict=True):
        row[:] = picture.transpose(2, 0, 1)
    return torch.from_numpy(stacked)
