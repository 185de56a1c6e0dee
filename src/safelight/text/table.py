"""What a tokenizer makes of a prompt, for people to read."""

from collections.abc import Sequence
from itertools import pairwise
from typing import NamedTuple

from safelight.text.encoding import Chunk, FramedToken, frame_passage
from safelight.text.marks import Passage, Span
from safelight.text.prompt import COMMA_BACKTRACK
from safelight.text.schedule import PromptPlan
from safelight.text.tokenizer import Tokenizer


class TokenRow(NamedTuple):
    """One token: its row in the context (from 0), its id, its readable piece, its chunk (from 0), and its weight."""

    position: int
    id: int
    piece: str
    chunk: int
    weight: float = 1.0


class StepRow(NamedTuple):
    """What the steps from `first` to `last` see, both from 1: a branch (from 1), its weight, and its text."""

    first: int
    last: int
    branch: int
    weight: float
    text: str


def token_table(tokenizer: Tokenizer, text: str, *, comma_backtrack: int = COMMA_BACKTRACK) -> list[TokenRow]:
    """List the tokens that a text encoder reads for a text, begin and end of each chunk included, padding left out.

    >>> from safelight.text.tokenizer import Tokenizer
    >>> for row in token_table(Tokenizer.clip(), "a flooble"):
    ...     print(*row)
    0 49406 <|startoftext|> 0 1.0
    1 320 a</w> 0 1.0
    2 4062 floo 0 1.0
    3 1059 ble</w> 0 1.0
    4 49407 <|endoftext|> 0 1.0
    """
    return passage_table(tokenizer, ((Span(text),),), comma_backtrack=comma_backtrack)


def passage_table(tokenizer: Tokenizer, passage: Passage, *, comma_backtrack: int = COMMA_BACKTRACK) -> list[TokenRow]:
    """The same for a passage of weighed words, as `PromptPlan.at` gives for each branch at a step."""
    rows = []
    for number, chunk in enumerate(frame_passage(tokenizer, passage, comma_backtrack=comma_backtrack)):
        shown = _without_padding(tokenizer, chunk)
        start = number * tokenizer.max_length
        pieces = tokenizer.pieces([token.id for token in shown])
        for place, (token, piece) in enumerate(zip(shown, pieces, strict=True)):
            rows.append(TokenRow(start + place, token.id, piece, number, token.weight))
    return rows


def _without_padding(tokenizer: Tokenizer, chunk: Chunk) -> Sequence[FramedToken]:
    end = max((place for place, token in enumerate(chunk) if token.span >= 0), default=0) + 2
    return chunk[:end]


def step_table(plan: PromptPlan) -> list[StepRow]:
    """What the steps see: a row for each branch and each stretch of steps in which nothing changes."""
    starts = [*plan.changes, plan.steps + 1]
    return [
        StepRow(first, following - 1, branch, weight, written_passage(passage))
        for first, following in pairwise(starts)
        for branch, (weight, passage) in enumerate(plan.at(first), 1)
    ]


def written_passage(passage: Passage) -> str:
    """A passage as a prompt without schedules: weighed words as (words:1.2), sections divided by BREAK."""
    sections = (
        "".join(span.text if span.weight == 1 else f"({span.text}:{span.weight:.4g})" for span in section)
        for section in passage
    )
    return " BREAK ".join(section.strip() for section in sections)
