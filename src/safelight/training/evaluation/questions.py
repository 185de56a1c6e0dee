"""What a model is asked to draw, and whether the picture shows it: concept, style, colour, place.

A question is made from a scene of one thing: its caption is the prompt, and what is in it is the right answer. So the
scene itself, a real picture, can be put to the same judge. How it scores is the judge's ceiling.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from safelight.models.classifier import Seen
from safelight.training.data.captions import OFF
from safelight.training.data.colors import WIDER, WORDS, nearest_words
from safelight.training.data.planning import Placed
from safelight.training.data.scenes import Scene, SceneData, Wording
from safelight.training.evaluation.classifier import Labels

__all__ = ["ASKING", "Question", "Score", "Share", "questions", "score", "seen_colors", "seen_places"]

# Says everything that is judged, as often as it is known, and nothing else.
ASKING = Wording(style=1.0, background=0.7, color=1.0, lone_place=1.0, size=0.0, general=0.0, synonym=0.0)
EDGE = 0.02  # of the mask's sum that may lie beyond a side of the thing's box: a mask has stray pixels


@dataclass(frozen=True)
class Question:
    """A prompt and what it asks for. `concept` and `style` are numbers of `Labels`.

    `color` is a word of `colors.WORDS`, None where none is asked for; `places` holds "left" or "right", "top" or
    "bottom", as far as they are asked for.
    """

    prompt: str
    concept: int
    style: int
    color: str | None
    places: tuple[str, ...]


def questions(scenes: SceneData, labels: Labels, seed: int, count: int) -> list[Question]:
    """Make questions of the first `count` scenes, which must be of one thing each and captioned as `ASKING`."""
    return [_question(scenes.sample(seed, n), labels, scenes.bank.size) for n in range(count)]


def _question(scene: Scene, labels: Labels, size: int) -> Question:
    (placed,) = scene.plan.objects
    concept, style = labels.of_entry(placed.sprite.entry)
    color = placed.sprite.words[placed.turn]
    thing = scene.caption.split(" background")[0]
    asked = color if color is not None and f" {color} " in f" {thing} " else None
    return Question(scene.caption, concept, style, asked, tuple(p for p in _places(placed, size) if p in scene.caption))


def _places(placed: Placed, size: int) -> list[str]:
    x0, y0, x1, y1 = placed.box
    sides = (((x0 + x1) / 2 / size, "left", "right"), ((y0 + y1) / 2 / size, "top", "bottom"))
    return [low if at < 0.5 else high for at, low, high in sides if abs(at - 0.5) > OFF]


@dataclass(frozen=True)
class Share:
    """How many of `asked` were `right`."""

    right: int
    asked: int

    @classmethod
    def of(cls, answers: Sequence[bool]) -> "Share":
        """Count answers."""
        return cls(sum(answers), len(answers))

    @property
    def value(self) -> float | None:
        """From 0 to 1, or None where nothing was asked."""
        return self.right / self.asked if self.asked else None


@dataclass(frozen=True)
class Score:
    """Shares of questions answered right, each of those that ask for it.

    `places` counts every asked side; chance is a half. `correct` says of each question whether its concept was found.
    """

    top1: Share
    top5: Share
    style: Share
    color: Share
    places: Share
    correct: tuple[bool, ...]


def score(asked: Sequence[Question], pictures: Tensor, seen: Seen) -> Score:
    """Judge pictures (B, 3, H, W) in [-1, 1], one a question, by what a classifier saw in them."""
    ranks = seen.concepts.argsort(dim=1, descending=True)
    found = [[int(i) for i in row[:5]] for row in ranks]
    styles = seen.styles.argmax(dim=1).tolist()
    colors = seen_colors(pictures, seen.masks)
    places = seen_places(seen.masks)
    known = [(q, row) for q, row in zip(asked, found, strict=True) if q.concept >= 0]
    return Score(
        top1=Share.of([q.concept == row[0] for q, row in known]),
        top5=Share.of([q.concept in row for q, row in known]),
        style=Share.of([q.style == style for q, style in zip(asked, styles, strict=True) if q.style >= 0]),
        color=Share.of([q.color in words for q, words in zip(asked, colors, strict=True) if q.color]),
        places=Share.of([side in place for q, place in zip(asked, places, strict=True) for side in q.places]),
        correct=tuple(q.concept == row[0] for q, row in zip(asked, found, strict=True)),
    )


def seen_colors(pictures: Tensor, masks: Tensor) -> list[tuple[str, ...]]:
    """The word for the colour of most of each masked thing, and its wider or narrower kin ("light blue", "blue").

    pictures (B, 3, H, W) in [-1, 1]; masks (B, h, w), logits. A pixel counts as far as the mask says it is the thing's.
    """
    weights = F.interpolate(masks[:, None].sigmoid(), pictures.shape[2:], mode="bilinear")[:, 0]
    sure = torch.where(weights > 0.5, weights, 0).flatten(1).double().numpy()
    words = nearest_words(((pictures + 1) / 2).clamp(0, 1).movedim(1, -1).flatten(1, 2).cpu().float().numpy())
    shares = np.stack([np.where(words == i, sure, 0).sum(1) for i in range(len(WORDS))], axis=1)
    best = [WORDS[i] for i in shares.argmax(axis=1)]
    return [(word, *_kin(word)) for word in best]


def _kin(word: str) -> list[str]:
    return [other for pair in WIDER.items() if word in pair for other in pair if other != word]


def seen_places(masks: Tensor) -> list[tuple[str, str]]:
    """On which side of the middle each masked thing is: ("left" or "right", "top" or "bottom").

    As captions have it, by the middle of its box: the box that holds all but `EDGE` of the mask at each of its sides.
    """
    weights = masks.sigmoid()
    weights = torch.where(weights > 0.5, weights, 1e-6)
    x, y = (_middle(weights.sum(dim=axis)) for axis in (1, 2))
    return [("left" if a < 0.5 else "right", "top" if b < 0.5 else "bottom") for a, b in zip(x, y, strict=True)]


def _middle(along: Tensor) -> list[float]:
    """Sums along one axis (B, n) -> the middle of what is there, from 0 to 1."""
    sums = along.cumsum(dim=1) / along.sum(dim=1, keepdim=True)
    first = (sums < EDGE).sum(dim=1)
    last = (sums < 1 - EDGE).sum(dim=1)
    return ((first + last + 1) / 2 / along.shape[1]).tolist()
