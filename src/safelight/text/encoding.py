"""From planned prompts to contexts: every distinct chunk of tokens is encoded once, then weighed for each text.

PromptPlan --frame--> ids and weights (k, 77) --text encoder--> z (k, 77, D) --emphasis--> a row of the contexts
"""

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from safelight.errors import InputError, nearest
from safelight.models.clip import TextEncoder
from safelight.models.text_pair import TextEncoderPair
from safelight.text.marks import Passage
from safelight.text.prompt import COMMA_BACKTRACK, LongPrompts, encode_ids, read_ids, split_tokens
from safelight.text.schedule import Entry, PromptPlan
from safelight.text.tokenizer import Tokenizer
from safelight.text.weights import EMPHASES, Emphasis, Encoded, emphasize

BATCH = 64  # chunks that go through the text encoder together


class FramedToken(NamedTuple):
    """A token of a chunk: its id, its weight, and the span of its passage that it came from (-1: none, a frame)."""

    id: int
    weight: float = 1.0
    span: int = -1


Chunk = tuple[FramedToken, ...]  # `max_length` tokens, begin and end of text and padding included


@dataclass(frozen=True)
class Course:
    """One track, encoded: its weight, and up to and with which step, from 1, which row of the contexts acts."""

    weight: float
    rows: tuple[tuple[int, int], ...]

    def row(self, step: int) -> int:
        """The row of the contexts that acts at a step, counted from 1."""
        return next((row for last, row in self.rows if step <= last), self.rows[-1][1])

    def moved(self, places: int) -> "Course":
        """The same course where its contexts stand some places further down."""
        return Course(self.weight, tuple((last, row + places) for last, row in self.rows))


@dataclass(frozen=True, eq=False)
class EncodedPlans:
    """All contexts (N, 77·k, D) that some plans need, and for each plan its courses through them.

    `pooled` (N, P) is what the first chunk of each says as a whole, where the text encoder has that.
    """

    contexts: Tensor
    courses: tuple[tuple[Course, ...], ...]
    pooled: Tensor | None = None


def frame_passage(
    tokenizer: Tokenizer,
    passage: Passage,
    *,
    long_prompts: LongPrompts = "chunk",
    comma_backtrack: int = COMMA_BACKTRACK,
) -> list[Chunk]:
    """Split a passage into framed chunks, one at least; each section (what BREAK divides) begins a new one.

    Each span is split into tokens by itself, as AUTOMATIC1111 and ComfyUI do it. Options as in `encode_prompt`.
    """
    chunks: list[Chunk] = []
    number = 0
    for index, section in enumerate(passage):
        tokens: list[FramedToken] = []
        for span in section:
            tokens += [FramedToken(id, span.weight, number) for id in tokenizer.encode(span.text)]
            number += 1
        if not tokens and chunks and index == len(passage) - 1:
            break  # nothing follows the last BREAK
        split = split_tokens(
            tokenizer, [t.id for t in tokens], long_prompts=long_prompts, comma_backtrack=comma_backtrack
        )
        start = 0
        for ids in split:
            chunks.append(_framed(tokenizer, tokens[start : start + len(ids)]))
            start += len(ids)
    return chunks


def _framed(tokenizer: Tokenizer, tokens: Sequence[FramedToken]) -> Chunk:
    ids = tokenizer.frame([token.id for token in tokens])
    return FramedToken(ids[0]), *tokens, *(FramedToken(id) for id in ids[len(tokens) + 1 :])


def encode_plans(
    tokenizer: Tokenizer,
    text_encoder: TextEncoder | TextEncoderPair,
    plans: Sequence[PromptPlan],
    *,
    emphasis: Emphasis = "original",
    clip_skip: int | None = 0,
    long_prompts: LongPrompts = "chunk",
    comma_backtrack: int = COMMA_BACKTRACK,
) -> EncodedPlans:
    """Encode all that some prompts say at any step. All contexts get the length of the longest, by empty chunks.

    `emphasis` says what weights do (see `weights`); other options as in `encode_prompt`. Encode a prompt together with
    its negative prompt. Raises InputError for an unknown emphasis.
    """
    if emphasis not in EMPHASES:
        raise InputError(f"emphasis {emphasis!r} is unknown", remedy=nearest(str(emphasis), EMPHASES))
    tracks = [track for plan in plans for track in plan.tracks]
    passages = dict.fromkeys(entry.passage for track in tracks for entry in track.entries)
    framed = {
        passage: frame_passage(tokenizer, passage, long_prompts=long_prompts, comma_backtrack=comma_backtrack)
        for passage in passages
    }
    empty, count = _framed(tokenizer, []), max(map(len, framed.values()))
    padded = {passage: (*chunks, *[empty] * (count - len(chunks))) for passage, chunks in framed.items()}
    encoder = _Encoder(text_encoder, clip_skip, emphasis)
    encoder.encode([*(chunk for chunks in padded.values() for chunk in chunks)])
    contexts: list[Tensor] = []
    firsts: list[Chunk] = []
    known: dict[tuple[Entry, ...], tuple[tuple[int, int], ...]] = {}
    for track in tracks:
        if track.entries not in known:
            counts = Counter(entry.passage for entry in track.entries)
            rows = {passage: len(contexts) + i for i, passage in enumerate(counts)}
            contexts += encoder.weighed([padded[passage] for passage in counts], list(counts.values()), empty)
            firsts += [padded[passage][0] for passage in counts]
            known[track.entries] = tuple((last, rows[passage]) for last, passage in track.entries)
    courses = (tuple(Course(track.weight, known[track.entries]) for track in plan.tracks) for plan in plans)
    return EncodedPlans(torch.stack(contexts), tuple(courses), encoder.pooled(firsts))


class _Encoder:
    """A text encoder that remembers the chunks it has encoded."""

    def __init__(self, text_encoder: TextEncoder | TextEncoderPair, clip_skip: int | None, emphasis: Emphasis) -> None:
        self.text_encoder, self.clip_skip, self.emphasis = text_encoder, clip_skip, emphasis
        self.known: dict[tuple[int, ...], Tensor] = {}  # ids -> (L, D)
        self.wholes: dict[tuple[int, ...], Tensor] = {}  # ids -> (P,)

    def encode(self, chunks: Iterable[Chunk]) -> None:
        """Encode the chunks that are new."""
        new = [ids for ids in dict.fromkeys(map(_ids, chunks)) if ids not in self.known]
        for start in range(0, len(new), BATCH):
            part = new[start : start + BATCH]
            z, pooled = read_ids(self.text_encoder, torch.tensor(part)[:, None], clip_skip=self.clip_skip)
            self.known.update(zip(part, z, strict=True))
            if pooled is not None:
                self.wholes.update(zip(part, pooled, strict=True))

    def pooled(self, chunks: Sequence[Chunk]) -> Tensor | None:
        """What these chunks say as a whole (n, P), whatever their weights; None where the text encoder has no such."""
        return torch.stack([self.wholes[_ids(chunk)] for chunk in chunks]) if self.wholes else None

    def weighed(self, texts: Sequence[Sequence[Chunk]], counts: list[int], empty: Chunk) -> list[Tensor]:
        """The contexts (77·k, D) of the texts of one schedule."""
        z = torch.stack([torch.stack([self.known[_ids(chunk)] for chunk in text]) for text in texts])
        weights = torch.tensor([[[token.weight for token in chunk] for chunk in text] for text in texts])
        if bool((weights == 1).all()) or self.emphasis == "ignore":
            return list(z.flatten(1, 2))
        self.encode([empty])
        without = [self._without(text) for text in texts] if self.emphasis == "compel" else ()
        encoded = Encoded(
            z, weights.to(z.device), torch.tensor(counts, device=z.device), self.known[_ids(empty)], without
        )
        return list(emphasize(encoded, self.emphasis).flatten(1, 2))

    def _without(self, text: Sequence[Chunk]) -> list[tuple[float, Tensor]]:
        """For each weakened span its weight, and the text (k, L, D) in which no token looks at it."""
        ids = torch.tensor([_ids(chunk) for chunk in text])
        spans = torch.tensor([[token.span for token in chunk] for chunk in text])
        weak = {token.span: token.weight for chunk in text for token in chunk if token.weight < 1}
        hidden = []
        for span, weight in weak.items():
            z = encode_ids(self.text_encoder, ids[None], clip_skip=self.clip_skip, mask=(spans != span)[None])
            hidden.append((weight, z[0].unflatten(0, ids.shape)))
        return hidden


def _ids(chunk: Chunk) -> tuple[int, ...]:
    return tuple(token.id for token in chunk)
