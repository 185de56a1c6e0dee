"""Colour words, measured from pixels, and turns of hue.

A word is the nearest of a few anchors in OKLab (Ottosson 2020), where equal distances look about equally different.
"""

from collections.abc import Sequence
from functools import cache

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float32]

ANCHORS: dict[str, tuple[tuple[int, int, int], ...]] = {
    "red": ((225, 30, 45), (180, 25, 30), (240, 80, 70)),
    "orange": ((245, 140, 30), (255, 115, 40)),
    "yellow": ((252, 215, 60), (255, 235, 120), (240, 200, 20)),
    "green": ((60, 170, 70), (130, 200, 80), (25, 100, 45), (90, 220, 110), (60, 220, 145), (110, 130, 50)),
    "teal": ((20, 150, 150), (50, 190, 185), (10, 95, 95), (60, 215, 205)),
    "light blue": ((130, 205, 250), (85, 180, 245), (180, 225, 250), (70, 200, 245)),
    "blue": ((40, 95, 220), (30, 45, 145), (70, 120, 230), (0, 140, 215), (20, 110, 180), (85, 130, 190)),
    "purple": ((130, 60, 190), (175, 125, 230), (80, 35, 120)),
    "pink": ((250, 130, 180), (255, 180, 210), (235, 60, 145)),
    "brown": ((130, 80, 45), (90, 55, 35), (165, 110, 65)),
    "beige": ((235, 210, 175), (215, 185, 150)),
    "white": ((252, 252, 252),),
    "light gray": ((210, 210, 212), (185, 187, 190)),
    "gray": ((130, 130, 132), (95, 97, 100)),
    "black": ((22, 22, 24), (50, 50, 54)),
}
WORDS = tuple(ANCHORS)
VIVID = {"red", "orange", "yellow", "green", "teal", "light blue", "blue", "purple", "pink"}
WIDER = {"light blue": "blue", "light gray": "gray"}  # a thing half light blue and half blue is blue
CLEAR_SHARE = 0.6  # of a thing's area in one colour, for it to be called by that colour
HUES = 12  # turns of 30 degrees

_LAB1 = np.array([[0.4122214708, 0.5363325363, 0.0514459929],
                  [0.2119034982, 0.6806995451, 0.1073969566],
                  [0.0883024619, 0.2817188376, 0.6299787005]], np.float32)  # fmt: skip
_LAB2 = np.array([[0.2104542553, 0.7936177850, -0.0040720468],
                  [1.9779984951, -2.4285922050, 0.4505937099],
                  [0.0259040371, 0.7827717662, -0.8086757660]], np.float32)  # fmt: skip


def oklab(rgb: Floats) -> Floats:
    """sRGB (..., 3) in [0, 1] -> OKLab (..., 3): lightness in [0, 1], and two axes of colour."""
    linear = np.where(rgb > 0.04045, ((rgb + 0.055) / 1.055) ** 2.4, rgb / 12.92).astype(np.float32)
    return np.cbrt(linear @ _LAB1.T) @ _LAB2.T


@cache
def _anchors() -> tuple[Floats, NDArray[np.int64]]:
    owners = [i for i, word in enumerate(WORDS) for _ in ANCHORS[word]]
    colors = np.array([color for word in WORDS for color in ANCHORS[word]], np.float32)
    return oklab(colors / np.float32(255)), np.array(owners)


def nearest_words(rgb: Floats) -> NDArray[np.int64]:
    """Colours (..., 3) in [0, 1] -> the number of each one's word in `WORDS`, (...)."""
    anchors, owners = _anchors()
    lab = oklab(rgb)
    distance = (anchors**2).sum(1) - 2 * (lab @ anchors.T)  # and |lab|², the same for every anchor
    return owners[distance.argmin(-1)]


def word_of(color: Sequence[float]) -> str:
    """Name one colour (r, g, b) in [0, 1]."""
    return WORDS[int(nearest_words(np.array(color, np.float32)))]


def measured_words(pixels: Floats) -> list[str | None]:
    """Name the colour of each of n things, or None where no colour is clear.

    `pixels` (n, m, 4) hold premultiplied RGBA in [0, 1]. A thing is called by the colour of `CLEAR_SHARE` of its area.
    """
    alpha = pixels[..., 3]
    words = nearest_words(straight(pixels))
    shares = np.stack([np.where(words == i, alpha, 0).sum(-1) for i in range(len(WORDS))], -1)
    shares /= np.maximum(alpha.sum(-1), 1e-6)[..., None]
    best = shares.argmax(-1)
    clear = np.take_along_axis(shares, best[..., None], -1)[..., 0] >= CLEAR_SHARE
    found: list[str | None] = [WORDS[i] if sure else None for i, sure in zip(best, clear, strict=True)]
    for narrow, wide in WIDER.items():
        both = shares[:, WORDS.index(narrow)] + shares[:, WORDS.index(wide)] >= CLEAR_SHARE
        found = [wide if old is None and new else old for old, new in zip(found, both, strict=True)]
    return found


def straight(pixels: Floats) -> Floats:
    """Premultiplied RGBA (..., 4) in [0, 1] -> its colours (..., 3), not multiplied."""
    return np.divide(pixels[..., :3], np.maximum(pixels[..., 3:], 1e-3), dtype=np.float32)


@cache
def hue_matrix(turn: int) -> Floats:
    """Give the 3x3 matrix that turns RGB hues by `turn`·30 degrees and keeps luma (the filter feColorMatrix of SVG)."""
    angle = np.deg2rad(360 / HUES * turn)
    luma = np.tile(np.array([0.213, 0.715, 0.072]), (3, 1))
    quarter = np.array([[-0.213, -0.715, 0.928], [0.143, 0.140, -0.283], [-0.787, 0.715, 0.072]])
    turned = luma + np.cos(angle) * (np.eye(3) - luma) + np.sin(angle) * quarter
    return (np.eye(3) if turn == 0 else turned).astype(np.float32)


def turned(pixels: Floats, turn: int) -> Floats:
    """Turn the hue of premultiplied RGBA (..., 4) in [0, 1]; colours that leave the cube are clipped."""
    rgb = np.clip(pixels[..., :3] @ hue_matrix(turn).T, np.float32(0), pixels[..., 3:])
    return np.concatenate([rgb, pixels[..., 3:]], -1)
