"""What people would write under a scene. Every word is true of it: colours are measured, places are where things are.

a 3D render of a red apple at the left and a flat emoji of a dog at the right, on a blue background
pixel art of an owl, in front of a wispy sunset sky
an emoji of a small green bottle in the top left corner
"""

from collections.abc import Sequence
from dataclasses import dataclass

from safelight.errors import InputError
from safelight.training.data.collections import Entry
from safelight.training.data.names import PROPER, article, listed, names_a_color, noun_phrase, plain_name
from safelight.training.data.order import Draws
from safelight.training.data.planning import RAMPS, Backdrop, Placed, Plan, style_of
from safelight.training.data.synonyms import synonyms


@dataclass(frozen=True)
class Style:
    """How a style is said: of one thing, most usual first; of several ("3D renders of …"); behind a description."""

    one: tuple[str, ...]
    several: str
    behind: str


STYLES = {
    "fluent 3D render": Style(("a 3D render of {}", "a 3D emoji of {}", "a glossy 3D render of {}"),
                              "3D renders of {}", "3D render style"),
    "fluent flat": Style(("a flat emoji of {}", "a flat vector icon of {}", "a flat design icon of {}"),
                         "flat emoji of {}", "flat emoji style"),
    "noto gradient": Style(("a gradient emoji of {}", "a noto style emoji of {}", "a gradient vector emoji of {}"),
                           "gradient emoji of {}", "gradient emoji style"),
    "twemoji flat": Style(("a twemoji style emoji of {}", "a twemoji of {}", "a bold, simple twemoji of {}"),
                          "twemoji of {}", "twemoji style"),
    "fxemoji cartoon": Style(("a cartoon emoji of {}", "a cartoon sticker of {}", "a cartoon of {}"),
                             "cartoon emoji of {}", "cartoon emoji style"),
    "pixel art 32px": Style(("pixel art of {}", "a pixel art sprite of {}", "an 8-bit pixel art tile of {}"),
                            "pixel art sprites of {}", "pixel art style"),
    "flat vector game art": Style(("flat vector game art of {}", "a flat vector drawing of {}", "game art of {}"),
                                  "flat vector drawings of {}", "flat vector game art"),
    "photo": Style(("a photograph of {}", "a photo of {}", "a realistic photo of {}"),
                   "photographs of {}", "realistic photograph"),
    "digital painting": Style(("a digital painting of {}", "a painting of {}"), "digital paintings of {}", "painting"),
    "pixel art scene": Style(("a pixel art scene of {}", "a pixel art landscape of {}", "a pixel art background of {}"),
                             "pixel art scenes of {}", "pixel art"),
    "painted game scene": Style(("a painted game scene of {}", "a painted game background of {}"),
                                "painted game scenes of {}", "painted game art"),
}  # fmt: skip

LARGE, SMALL = 0.72, 0.3  # longer side as a share of the scene's, from and up to which a thing may be called so
OFF = 0.11  # how far from the middle, as a share, a thing must be to be at a side
CORNER = 0.2  # and to be in a corner
APART = 0.2  # and from another, to be beside or above it


@dataclass(frozen=True, slots=True)
class Wording:
    """How often captions say what, as probabilities."""

    style: float = 0.88
    background: float = 0.8
    color: float = 0.5  # where it is known and was not turned; a turned hue is always said
    place: float = 0.85  # of several objects
    lone_place: float = 0.7  # of a single one
    size: float = 0.3
    general: float = 0.1  # "a fruit" for a watermelon
    synonym: float = 0.3  # "a car" for an automobile, where one is known
    plural: float = 0.5  # "3D renders of a dog and a cat"
    dropout: float = 0.0
    null: str = ""

    def __post_init__(self) -> None:
        for name in self.__slots__:
            value = getattr(self, name)
            if name != "null" and not 0 <= value <= 1:
                raise InputError(f"{name} is {value} in the wording of captions", remedy="give a number from 0 to 1")


# Where captions of a mix (see `planning.MIXES`) say other than usual. What is aside in `placed` is always said to be:
# what is asked for without a place is then still drawn large, and in the middle.
WORDINGS = {"placed": Wording(lone_place=1.0)}


def caption(plan: Plan, size: int, wording: Wording, draws: Draws) -> str:
    """Describe a scene of `size` pixels. A pure function of the draws."""
    if draws.chance(wording.dropout):
        return wording.null
    if not plan.objects:
        assert plan.backdrop.plate is not None
        return describe(plan.backdrop.plate.entry, draws)
    text = _objects(plan.objects, size, wording, draws)
    if draws.chance(wording.background):
        text += (", " if len(plan.objects) > 1 else " ") + _background(plan.backdrop, draws)
    return text


def describe(entry: Entry, draws: Draws | None = None) -> str:
    """Describe an entry that fills the picture, in its style; without draws always in the most usual words.

    An entry without a `name` in its table keeps its own caption.
    """
    if not entry.meta.get("name"):
        return draws.choice(entry.captions or ("",)) if draws else (entry.captions or ("",))[0]
    phrase, keywords = noun_phrase(str(entry.meta["name"])), entry.meta.get("keywords") or ()
    forms = style_words(str(entry.meta.get("style", ""))).one
    if entry.meta.get("kind") == "texture":
        forms, phrase = ("pixel art of {}", "a pixel art texture of {}"), plain_name(str(entry.meta["name"]))
    place = " in a grocery store" if "grocery store" in keywords and draws and draws.chance(0.5) else ""
    return (draws.choice(forms) if draws else forms[0]).format(phrase) + place


def style_words(style: str) -> Style:
    """Look up how a style is said; of one unknown here, "a STYLE of …"."""
    if not style:
        return Style(("{}",), "{}", "")
    return STYLES.get(style) or Style((f"{article(style)} {style} of {{}}",), f"{style}s of {{}}", f"{style} style")


def _objects(objects: Sequence[Placed], size: int, wording: Wording, draws: Draws) -> str:
    names = [_thing(placed, size, wording, draws) for placed in objects]
    order = sorted(range(len(objects)), key=lambda i: _center(objects[i], size)[0])
    styles = [style_words(style_of(placed.sprite)) for placed in objects]
    said, together, before = draws.chance(wording.style), draws.chance(wording.plural), draws.chance(0.7)
    alike = len(objects) > 1 and len({style.several for style in styles}) == 1
    if said and not (alike and together):
        names = [draws.choice(style.one).format(name) for style, name in zip(styles, names, strict=True)]
    text = _arranged([names[i] for i in order], [objects[i] for i in order], size, wording, draws)
    if not (said and alike and together):
        return text
    return styles[0].several.format(text) if before or not styles[0].behind else f"{text}, {styles[0].behind}"


def _thing(placed: Placed, size: int, wording: Wording, draws: Draws) -> str:
    """Name an object: "a small red apple"."""
    sprite = placed.sprite
    name = str(sprite.entry.meta.get("name") or (sprite.entry.captions or ("thing",))[0])
    other = synonyms(name, sprite.entry.meta)
    called = draws.choice(other) if draws.chance(wording.synonym) and other else name
    called = draws.choice(sprite.general) if draws.chance(wording.general) and sprite.general else called
    color, adjectives = sprite.words[placed.turn], []
    x0, y0, x1, y1 = placed.box
    side = max(x1 - x0, y1 - y0) / size
    if draws.chance(wording.size):
        adjectives += [draws.choice(("large", "big"))] if side >= LARGE else ["small"] if side <= SMALL else []
    wanted = draws.chance(wording.color) or placed.turn
    if color and wanted and not (placed.turn == 0 and (PROPER.match(name) or names_a_color(called))):
        adjectives.append(color)
    return noun_phrase(called, *adjectives)


def _arranged(names: Sequence[str], objects: Sequence[Placed], size: int, wording: Wording, draws: Draws) -> str:
    """Say where the objects are, from left to right: by the scene's sides, or of two by each other."""
    if len(objects) == 1:
        return f"{names[0]}{_lone_place(objects[0], size, wording, draws)}"
    placed, relative = draws.chance(wording.place), draws.chance(0.35)
    if not placed:
        return listed(list(names))
    if relative and len(objects) == 2 and (text := _relation(names, objects, size)):
        return text
    places = [_place(p, size) for p in objects]
    if len(set(places)) < len(places):
        return listed(list(names))  # two at one place: the words would not tell them apart
    return listed([f"{name} {place}" for name, place in zip(names, places, strict=True)])


def _relation(names: Sequence[str], objects: Sequence[Placed], size: int) -> str | None:
    (ax, ay), (bx, by) = (_center(placed, size) for placed in objects)
    if bx - ax >= APART and bx - ax > 1.3 * abs(by - ay):
        return f"{names[0]} to the left of {names[1]}"
    if abs(by - ay) >= APART and abs(by - ay) > 1.3 * (bx - ax):
        return f"{names[0]} above {names[1]}" if ay < by else f"{names[0]} below {names[1]}"
    return None


def _place(placed: Placed, size: int) -> str:
    """Say where in the scene an object is: at the left, at the top right, in the middle ..."""
    x, y = _center(placed, size)
    across = "left" if x < 0.5 - OFF else "right" if x > 0.5 + OFF else ""
    down = "top" if y < 0.5 - OFF else "bottom" if y > 0.5 + OFF else ""
    return f"at the {down} {across}".replace("  ", " ").rstrip() if across or down else "in the middle"


def _lone_place(placed: Placed, size: int, wording: Wording, draws: Draws) -> str:
    said, middle, corner = draws.chance(wording.lone_place), draws.chance(0.15), draws.chance(0.5)
    place = _place(placed, size)
    if place == "in the middle":
        return f" {place}" if said and middle else ""
    if corner and all(abs(part - 0.5) >= CORNER for part in _center(placed, size)):
        place = f"in the {place.removeprefix('at the ')} corner"
    return f" {place}" if said else ""


def _center(placed: Placed, size: int) -> tuple[float, float]:
    x0, y0, x1, y1 = placed.box
    return (x0 + x1) / 2 / size, (y0 + y1) / 2 / size


def _background(backdrop: Backdrop, draws: Draws) -> str:
    if backdrop.plate is None:
        return _gradient(backdrop, draws) if len(backdrop.words) > 1 else _plain(backdrop.words[0], draws)
    entry = backdrop.plate.entry
    name = str(entry.meta.get("name", "")) or (entry.captions or ("a background",))[0]
    if entry.meta.get("kind") == "texture":
        return draws.choice(("on a pixel art texture of {}", "on a background of pixel art {}")).format(
            plain_name(name)
        )
    style = str(entry.meta.get("style", ""))
    shown = "pixel art background" if "pixel" in style else "painted background"
    return draws.choice(("in front of {}", "in front of {}", f"on a {shown} of {{}}")).format(noun_phrase(name))


def _plain(word: str, draws: Draws) -> str:
    colored = f"{article(word)} {word}"
    forms = (f"on {colored} background", f"on {colored} background", f"on a plain {word} background",
             f"against {colored} background", f"with {colored} background")  # fmt: skip
    return draws.choice((*forms, f"on {word}") if word == "white" else forms)


def _gradient(backdrop: Backdrop, draws: Draws) -> str:
    first, second = backdrop.words
    direction = next((name for name, ramp in RAMPS.items() if ramp == backdrop.ramp), "")
    ends = {"top to bottom": f"{first} at the top to {second} at the bottom",
            "left to right": f"{first} at the left to {second} at the right",
            "middle to edges": f"{first} in the middle to {second} at the edges"}  # fmt: skip
    full = f"on a gradient background from {ends.get(direction, f'{first} to {second}')}"
    return draws.choice((f"on {article(first)} {first} and {second} gradient background",
                         f"on a gradient background from {first} to {second}", full))  # fmt: skip
