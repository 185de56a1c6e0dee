"""Reading emphasis: which words weigh what, in the ways of AUTOMATIC1111, ComfyUI and compel.

Each reader takes a text without schedules to a `Passage`: sections, divided by BREAK, of spans of equal weight. What a
weight does to a context is another matter: see `weights`.
"""

import re
from bisect import bisect_right
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from itertools import groupby, pairwise
from math import isfinite
from operator import attrgetter
from typing import NamedTuple

from safelight.errors import MissingPartError
from safelight.text.grammar import MAX_DEPTH, PromptError, too_deep

MAX_WEIGHT = 1e6  # what is heavier says nothing any more, and overflows a float16
STRONGER, WEAKER = 1.1, 1 / 1.1


class Span(NamedTuple):
    """Words that are split into tokens together, their weight, and where they start in the prompt."""

    text: str
    weight: float = 1.0
    start: int = 0


Passage = tuple[tuple[Span, ...], ...]  # section by section; there is at least one


class Written:
    """A text made of pieces of a prompt, which knows where in the prompt each of its characters stands."""

    def __init__(self, pieces: Iterable[tuple[int, str]], source: str) -> None:
        self.source = source
        self.origins: list[int] = []  # where each piece stands in the prompt,
        self.places: list[int] = []  # and in this text
        texts: list[str] = []
        length = 0
        for origin, text in pieces:
            self.origins.append(origin)
            self.places.append(length)
            texts.append(text)
            length += len(text)
        self.text = "".join(texts)

    def origin(self, place: int) -> int:
        """The position in the prompt of the character at `place`."""
        piece = bisect_right(self.places, place) - 1
        return self.origins[piece] + place - self.places[piece] if piece >= 0 else 0

    def error(self, what: str, place: int, remedy: str) -> PromptError:
        """An error that points into the prompt."""
        return PromptError(what, self.source, self.origin(place), remedy=remedy)

    def number(self, text: str, place: int) -> float:
        """Read a weight. Raises PromptError if it is none."""
        try:
            weight = float(text)
        except ValueError:
            raise self.error(f"{text!r} is not a number", place, r"write one like 1.2, or \( for a bracket") from None
        if not isfinite(weight):
            raise self.error(f"{text!r} is no weight", place, "write a number like 1.2")
        return weight

    def spans(self, items: "Iterable[_Item]") -> tuple[Span, ...]:
        """The finished spans, without the empty ones. Raises PromptError for weights beyond all bounds."""
        spans = []
        for item in items:
            if not abs(item.weight) <= MAX_WEIGHT:
                what = f"the weight of these words is {item.weight:.3g}"
                raise self.error(what, item.place, "weights from 0.5 to 1.5 are usual")
            if item.text:
                spans.append(Span(item.text, item.weight, self.origin(item.place)))
        return tuple(spans)


def read_plain(written: Written) -> Passage:
    """Every character is itself."""
    return (written.spans([_Item(written.text, 0)]),)


ATTENTION = re.compile(r"\\(?:[\\()\[\]]|(?:AND|BREAK)\b)?|[(\[]|:\s*([+-]?[.\d]+)\s*\)|[)\]]|[^\\()\[\]:]+|:")
BREAK = re.compile(r"\bBREAK\b\s*")


def read_a1111(written: Written) -> Passage:
    r"""AUTOMATIC1111's marks (1.10, `parse_prompt_attention`).

    `(words)` multiplies their weight by 1.1, `(words:1.3)` by 1.3, `[words]` by 1/1.1. Round and square brackets are
    counted apart; those that are never closed act to the end; what closes none is text. BREAK begins a new chunk. A
    backslash takes the meaning from `( ) [ ] \`, AND and BREAK, and is dropped before anything else.

    (Within brackets A1111 itself takes BREAK for a word, of negative weight. Here it is a BREAK.)
    """
    row: list[_Item | None] = []  # None is a BREAK
    opened: dict[str, list[int]] = {"(": [], "[": []}

    def close(bracket: str, multiplier: float) -> None:
        for item in row[opened[bracket].pop() :]:
            if item is not None:
                item.weight *= multiplier

    for match in ATTENTION.finditer(written.text):
        sign, number, place = match[0], match[1], match.start()
        if sign[0] == "\\":
            row.append(_Item(sign[1:], place))
        elif sign in opened:
            if len(opened["("]) + len(opened["["]) >= MAX_DEPTH:
                raise too_deep(written.source, written.origin(place))
            opened[sign].append(len(row))
        elif number is not None and opened["("]:
            close("(", written.number(number, match.start(1)))
        elif sign == ")" and opened["("]:
            close("(", STRONGER)
        elif sign == "]" and opened["["]:
            close("[", WEAKER)
        else:
            row += _broken(sign, place)
    for bracket, multiplier in (("(", STRONGER), ("[", WEAKER)):
        while opened[bracket]:
            close(bracket, multiplier)
    breaks = [-1, *(i for i, item in enumerate(row) if item is None), len(row)]
    return tuple(written.spans(_merged(row[a + 1 : b])) for a, b in pairwise(breaks))


@dataclass
class _Item:
    """A span whose weight is still being found."""

    text: str
    place: int
    weight: float = 1.0


def _broken(text: str, place: int) -> list[_Item | None]:
    """Words around BREAKs, without the blanks next to these."""
    items: list[_Item | None] = []
    last = 0
    for cut in BREAK.finditer(text):
        items += [_Item(text[last : cut.start()].rstrip(), place + last), None]
        last = cut.end()
    return [*items, _Item(text[last:], place + last)]


def _merged(row: Iterable[_Item | None]) -> Iterable[_Item]:
    """Neighbours of one weight as one, since "(un)(do)" is one word."""
    items = (item for item in row if item is not None)
    for _, neighbours in groupby(items, key=attrgetter("weight")):
        run = list(neighbours)
        yield _Item("".join(item.text for item in run), run[0].place, run[0].weight)


def read_comfyui(written: Written) -> Passage:
    r"""ComfyUI's marks (comfy/sd1_clip.py).

    `(words)` multiplies their weight by 1.1; `(words:1.3)` sets it to 1.3, whatever brackets stand around it. `\(` and
    `\)` are brackets without meaning. Square brackets, AND and BREAK are text, and so are brackets that do not pair.
    `embedding:name` is the word `name`.
    """
    return (written.spans(_comfyui_items(written, 0, len(written.text), 1.0, 0)),)


def _comfyui_items(written: Written, start: int, end: int, weight: float, depth: int) -> list[_Item]:
    if depth > MAX_DEPTH:
        raise too_deep(written.source, written.origin(start))
    items = []
    for first, last in _comfyui_groups(written.text, start, end):
        if last - first < 2 or written.text[first] != "(" or not _closes(written.text, last):
            text = EMBEDDING.sub("", written.text[first:last]).replace(r"\(", "(").replace(r"\)", ")")
            items.append(_Item(text, first, weight))
            continue
        inner, colon = weight * STRONGER, written.text.rfind(":", first + 1, last - 1)
        stop = last - 1
        if colon > first + 1:
            try:
                float(written.text[colon + 1 : stop])
            except ValueError:
                pass  # a colon like any other
            else:
                inner, stop = written.number(written.text[colon + 1 : stop], colon + 1), colon
        items += _comfyui_items(written, first + 1, stop, inner, depth + 1)
    return items


def _closes(text: str, end: int) -> bool:
    return text[end - 1] == ")" and text[end - 2] != "\\"


def _comfyui_groups(text: str, start: int, end: int) -> Iterable[tuple[int, int]]:
    """Cut a text at its outermost brackets: [start, end) of each group, and of what stands between them."""
    depth = 0
    for match in ROUND.finditer(text, start, end):
        if match[0] == "(":
            if depth == 0 and match.start() > start:
                yield start, match.start()
                start = match.start()
            depth += 1
        elif match[0] == ")":
            depth -= 1
            if depth == 0:
                yield start, match.end()
                start = match.end()
    if start < end:
        yield start, end


EMBEDDING = re.compile(r"(?<!\S)embedding:(?=\S)")
ROUND = re.compile(r"\\[()]|[()]")
COMPEL = re.compile(
    r"""\\(?P<escaped>[()"+\-.,=\\])
      | \) \s{0,9} \. (?P<function>blend|and|add|swap) \s{0,9} \(
      | (?P<open>\()
      | (?P<close>\)) (?P<operator>\++|-+|[0-9]+\.?[0-9]*|\.[0-9]+)?
      | (?<=[^\s()"+\-.,=\\]) (?P<signs>\++|-+) (?=[\s()".,=]|$)
    """,
    re.VERBOSE,
)
PLUS, MINUS = 1.1, 0.9
WORD_ENDS = frozenset('()".,=\\')


def read_compel(written: Written) -> Passage:
    r"""compel's marks (compel 2, doc/syntax.md).

    `word+`, `word++`, `(some words)+` multiply a weight by 1.1 for each plus, `-` by 0.9 for each minus, `(words)1.3`
    by 1.3; brackets nest. A backslash takes the meaning from `( ) " + - . , = \`. Quotation marks are text.

    Raises MissingPartError for `.blend()`, `.and()` and `.swap()`: functions of `mixing` do their work.
    """
    row: list[_Item] = []
    opened: list[int] = []
    last = 0

    def weigh(start: int, operator: str) -> None:
        for item in row[start:]:
            item.weight *= _compel_weight(operator)

    for match in COMPEL.finditer(written.text):
        row.append(_Item(written.text[last : match.start()], last))
        last = match.end()
        if match["function"]:
            error = written.error(f".{match['function']}() is not read here", match.start(), "")
            raise MissingPartError(error.what, remedy="mix encoded prompts with safelight.text.mixing")
        if match["escaped"]:
            row.append(_Item(match["escaped"], match.start()))
        elif match["open"]:
            if len(opened) >= MAX_DEPTH:
                raise too_deep(written.source, written.origin(match.start()))
            opened.append(len(row))
            row.append(_Item("(", match.start()))  # text, until it is closed
        elif match["signs"]:
            word = row.pop()
            cut = _last_word(word.text)
            row += [_Item(word.text[:cut], word.place), _Item(word.text[cut:], word.place + cut)]
            weigh(len(row) - 1, match["signs"])
        elif opened:
            start = opened.pop()
            row[start].text = ""
            weigh(start, match["operator"] or "1")
        else:
            row.append(_Item(match[0], match.start()))
    row.append(_Item(written.text[last:], last))
    return (written.spans(_merged(item for item in row if item.text)),)


def _compel_weight(operator: str) -> float:
    if operator[0] in "+-":
        return float((PLUS if operator[0] == "+" else MINUS) ** min(len(operator), 1000))
    return float(operator)


def _last_word(text: str) -> int:
    """Where the last word of a text begins."""
    start = len(text)
    while start and text[start - 1] not in WORD_ENDS and not text[start - 1].isspace():
        start -= 1
    return start


READERS: dict[str, Callable[[Written], Passage]] = {
    "a1111": read_a1111,
    "comfyui": read_comfyui,
    "compel": read_compel,
    "plain": read_plain,
}
