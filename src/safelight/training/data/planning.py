"""What is in a scene, and where: decided on the CPU from (seed, number) alone, the same for every device.

Lengths are in pixels of the scene; x goes right, y down, and (0, 0) is the upper left corner of the upper left pixel.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from safelight.errors import InputError
from safelight.training.data.colors import ANCHORS, oklab, straight, turned, word_of
from safelight.training.data.order import Draws
from safelight.training.data.sprites import Bank, Plate, Sprite

RGB = tuple[float, float, float]
Box = tuple[float, float, float, float]

# Longer side of an object as shares of the scene's, from and to, by how many objects there are.
SIDES = {1: (0.4, 0.94), 2: (0.3, 0.54), 3: (0.26, 0.44), 4: (0.22, 0.4)}
TRIES, ROUNDS, SHRINK = 12, 5, 0.85
OVERLAP = 0.08  # of the smaller box, at most
ENLARGED = 1.5  # a sprite is drawn at most this much larger than its file, so that it stays crisp
LIKE = 0.1  # an OKLab distance that is hard to see
HIDDEN = 0.5  # of an object's area like the background: too much


@dataclass(frozen=True, slots=True)
class Mix:
    """How often scenes are what, as probabilities (or weights, where there are several).

    `counts` weighs scenes of 1, 2, 3 and 4 objects; `plain`, `gradient` and `plate` what is behind them. `photos` and
    `backgrounds` are the shares of whole photographs and of backgrounds alone, where the collection has any.
    """

    photos: float = 0.12
    backgrounds: float = 0.03
    counts: tuple[float, ...] = (0.5, 0.28, 0.13, 0.09)
    plain: float = 0.55
    gradient: float = 0.2
    plate: float = 0.25
    white: float = 0.3  # of the plain ones
    same_style: float = 0.6
    hue: float = 0.15
    flip: float = 0.3
    centered: float = 0.5  # of single objects
    side: tuple[float, float] = SIDES[1]  # of single objects, the longer one, as a share of the scene's
    aside: tuple[float, float] = SIDES[1]  # the same of those not in the middle

    def __post_init__(self) -> None:
        numbers = [getattr(self, name) for name in self.__slots__ if name not in ("counts", "side", "aside")]
        bad = [value for value in (*numbers, *self.counts, *self.side, *self.aside) if not 0 <= value <= 1]
        if bad or not 1 <= len(self.counts) <= len(SIDES) or not any(self.counts):
            raise InputError(
                f"a mix of scenes cannot have {bad[0] if bad else self.counts}",
                remedy=f"give numbers from 0 to 1, and up to {len(SIDES)} counts that are not all 0",
            )


# `simple` is for what little compute can learn: mostly one thing in the middle, always about as large, never turned or
# dyed, on a plain ground. Then a shape is the same shape whenever it comes. `placed` goes on from there: many of these
# things are smaller, and at a side or in a corner (see `captions.WORDINGS`).
MIXES = {
    "varied": Mix(),
    "simple": Mix(
        photos=0.04, backgrounds=0.0, counts=(0.85, 0.1, 0.03, 0.02), plain=0.86, gradient=0.1, plate=0.04, white=0.5,
        hue=0.0, flip=0.0, centered=0.92, side=(0.8, 0.92), aside=(0.8, 0.92),
    ),
    "placed": Mix(
        photos=0.04, backgrounds=0.0, counts=(0.82, 0.13, 0.03, 0.02), plain=0.72, gradient=0.13, plate=0.15,
        white=0.45, hue=0.06, flip=0.0, centered=0.55, side=(0.75, 0.92), aside=(0.42, 0.72),
    ),
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class Placed:
    """A sprite in a scene: its square tile has its upper left corner at (x, y) and sides of `side` pixels."""

    number: int
    sprite: Sprite
    x: float
    y: float
    side: float
    flip: bool = False
    turn: int = 0

    @property
    def box(self) -> Box:
        """x0, y0, x1, y1 of what is seen of it."""
        x0, y0, x1, y1 = self.sprite.box
        if self.flip:
            x0, x1 = 1 - x1, 1 - x0
        return (self.x + x0 * self.side, self.y + y0 * self.side, self.x + x1 * self.side, self.y + y1 * self.side)


@dataclass(frozen=True, slots=True)
class Backdrop:
    """What stands behind: a plate, shown from (x, y) on; or `colors[0]` blending into `colors[1]` along `ramp`.

    `ramp` (a, b, r, c) gives the share of the second colour, a·X + b·Y + r·sqrt(X² + Y²) + c, clipped to [0, 1], with X
    and Y from -1 to 1 over the scene. `words` are the colours' names.
    """

    colors: tuple[RGB, RGB] = ((1.0, 1.0, 1.0), (1.0, 1.0, 1.0))
    words: tuple[str, ...] = ()
    ramp: tuple[float, float, float, float] = (0.0, 0.0, 0.0, 0.0)
    plate: Plate | None = None
    x: int = 0
    y: int = 0
    flip: bool = False


@dataclass(frozen=True, slots=True)
class Plan:
    """A scene: objects, the first behind the later ones, before a backdrop."""

    objects: tuple[Placed, ...]
    backdrop: Backdrop


RAMPS = {
    "top to bottom": (0.0, 0.5, 0.0, 0.5), "left to right": (0.5, 0.0, 0.0, 0.5),
    "corner to corner": (0.35, 0.35, 0.0, 0.5), "middle to edges": (0.0, 0.0, 0.8, 0.0),
}  # fmt: skip


class Planner:
    """Draws plans of scenes from a bank. `plan` is a pure function of the draws."""

    def __init__(self, bank: Bank, mix: Mix) -> None:
        self.bank, self.mix, self.size = bank, mix, bank.size
        self.styles: dict[str, list[int]] = {}
        for number, sprite in enumerate(bank.sprites):
            self.styles.setdefault(style_of(sprite), []).append(number)
        self.shares = [
            mix.photos if bank.photos else 0.0,
            mix.backgrounds if bank.backgrounds else 0.0,
            1 - mix.photos - mix.backgrounds if bank.sprites else 0.0,
        ]
        if max(self.shares) <= 0:
            raise InputError("this mix asks for nothing that the collection has", remedy="raise a share above 0")

    def plan(self, draws: Draws) -> Plan:
        """Draw a scene."""
        kind = draws.weighted(("photo", "background", "objects"), self.shares)
        if kind != "objects":
            return Plan((), self._plate(self.bank.photos if kind == "photo" else self.bank.backgrounds, draws))
        objects = self._objects(draws)
        return Plan(objects, self._backdrop(objects, draws))

    def _objects(self, draws: Draws) -> tuple[Placed, ...]:
        count = draws.weighted(range(1, len(self.mix.counts) + 1), self.mix.counts)
        first = draws.below(len(self.bank.sprites))
        alike = draws.chance(self.mix.same_style)
        among = self.styles[style_of(self.bank.sprites[first])] if alike else range(len(self.bank.sprites))
        placed: list[Placed] = []
        for number in (first, *(draws.choice(among) for _ in range(count - 1))):
            if (found := self._placed(number, count, placed, draws)) is not None:
                placed.append(found)
        return tuple(placed)

    def _placed(self, number: int, count: int, others: Sequence[Placed], draws: Draws) -> Placed | None:
        """Find a place for a sprite that is free of the others, shrinking it if there is none; None if that fails."""
        sprite, mix = self.bank.sprites[number], self.mix
        flip = draws.chance(mix.flip) and sprite.can_flip
        turn = draws.choice(sprite.turns) if draws.chance(mix.hue) and sprite.turns else 0
        share, middle = draws.unit(), count == 1 and draws.chance(mix.centered)
        low, high = (mix.side if middle else mix.aside) if count == 1 else SIDES[count]
        side = (low + (high - low) * share) * self.size
        for _ in range(ROUNDS):
            real = self._drawable(sprite, side, high * self.size)
            trial = Placed(number, sprite, 0, 0, real, flip, turn)
            for _ in range(1 if middle else TRIES):
                found = self._moved(trial, draws, middle)
                if all(overlap(found.box, other.box) <= OVERLAP for other in others):
                    return found
            side *= SHRINK
        return None

    def _drawable(self, sprite: Sprite, side: float, most: float) -> float:
        """Give the side of the tile so that what is seen of it is about `side` long; whole multiples for pixel art."""
        x0, y0, x1, y1 = sprite.box
        if sprite.kind == "smooth":
            return min(side, sprite.native * ENLARGED) / max(x1 - x0, y1 - y0)
        own = self.bank.side
        fits = max(int(max(most, own) / own), 1)
        if own * fits <= self.size:
            return own * min(max(round(side / own), 1), fits)
        return float(own * 2.0 ** -np.ceil(np.log2(own / self.size)))

    def _moved(self, trial: Placed, draws: Draws, middle: bool) -> Placed:
        """Put it anywhere, or about the middle, with all that is seen of it inside; pixel art on whole pixels."""
        x0, y0, x1, y1 = trial.box
        free_x, free_y = self.size - (x1 - x0), self.size - (y1 - y0)
        across, down = (draws.between(0.4, 0.6), draws.between(0.4, 0.6)) if middle else (draws.unit(), draws.unit())
        x, y = across * max(free_x, 0) - x0, down * max(free_y, 0) - y0
        if trial.sprite.kind == "pixel":
            x, y = float(round(x)), float(round(y))
        return replace(trial, x=x, y=y)

    def _backdrop(self, objects: Sequence[Placed], draws: Draws) -> Backdrop:
        mix = self.mix
        plates = mix.plate if self.bank.backgrounds else 0.0
        kind = draws.weighted(("plain", "gradient", "plate"), (mix.plain, mix.gradient, plates))
        if kind == "plate":
            return self._plate(self.bank.backgrounds, draws)
        for _ in range(8):
            first = (1.0, 1.0, 1.0) if kind == "plain" and draws.chance(mix.white) else drawn_color(draws)
            second = drawn_color(draws)
            words = (word_of(first), word_of(second)) if kind == "gradient" else (word_of(first),)
            colors = (first, second) if kind == "gradient" else (first, first)
            if len(set(words)) == len(words) and all(self._visible(placed, colors) for placed in objects):
                break
        ramp = RAMPS[draws.choice(tuple(RAMPS))] if kind == "gradient" else (0.0,) * 4
        return Backdrop(colors=colors, words=words, ramp=ramp)

    def _visible(self, placed: Placed, colors: tuple[RGB, RGB]) -> bool:
        """Say whether enough of an object differs from the colours behind it."""
        pixels = turned(self.bank.summaries[placed.number].numpy(), placed.turn)
        alpha = pixels[:, 3]
        lab = oklab(straight(pixels))
        behind = np.array([*colors, np.mean(colors, 0)], np.float32)  # a gradient's middle is between its ends
        gaps = np.sqrt(((lab - oklab(behind)[:, None]) ** 2).sum(-1))
        return all(float((alpha * (gap < LIKE)).sum()) <= HIDDEN * float(alpha.sum()) for gap in gaps)

    def _plate(self, plates: Sequence[Plate], draws: Draws) -> Backdrop:
        spare = self.bank.plates.shape[-1] - self.size + 1
        plate = draws.choice(plates)
        flip = draws.chance(self.mix.flip)
        return Backdrop(plate=plate, x=draws.below(spare), y=draws.below(spare), flip=flip)


def drawn_color(draws: Draws) -> RGB:
    """Draw a colour near one of the anchors: every word is as likely, and its shade varies."""
    anchor, lighter = draws.choice(draws.choice(tuple(ANCHORS.values()))), draws.between(-16, 16)
    parts = (part + lighter + draws.between(-4, 4) for part in anchor)
    red, green, blue = (min(max(part, 0), 255) / 255 for part in parts)
    return red, green, blue


def overlap(a: Box, b: Box) -> float:
    """Give the share of the smaller of two boxes that the other covers."""
    width, height = min(a[2], b[2]) - max(a[0], b[0]), min(a[3], b[3]) - max(a[1], b[1])
    smaller = min((x1 - x0) * (y1 - y0) for x0, y0, x1, y1 in (a, b))
    return max(width, 0) * max(height, 0) / smaller


def style_of(sprite: Sprite) -> str:
    """Give the style that a sprite is in, "" if its table says none."""
    return str(sprite.entry.meta.get("style", ""))
