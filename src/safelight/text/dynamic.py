"""Prompts with choices in them: `{red|green}`, wildcards from files, and the prompt matrix.

The marks are those of the sd-dynamic-prompts extension for AUTOMATIC1111:

    {a|b|c}             one of them
    {3::a|b}            a three times as often as b
    {2$$a|b|c}          two different ones, with a comma between them
    {1-2$$ and $$a|b|c} one or two, with " and " between them
    __colour__          a line of colour.txt in the folder of wildcards; __animals/cat__ of animals/cat.txt; its own
                        choices are made too. Empty lines and lines that begin with # do not count

A backslash before `{`, `}` or `__` makes them text. Which ones are drawn depends on the seed alone, so a picture can be
drawn again from its seed; `combinations` lists them all.
"""

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import islice, permutations, product
from pathlib import Path
from random import Random
from typing import NamedTuple

from safelight.errors import InputError, nearest
from safelight.text.grammar import MAX_CHARACTERS, MAX_DEPTH, PromptError, check_text

SIGN = re.compile(r"\\(?:[{}]|__)|[{}|]|__(?P<name>[^\W_](?:[\w./ -]{0,98}?[^\W_])?)__")
COUNT = re.compile(r"\s*(?P<low>[0-9]{1,4})?(?P<range>-)?(?P<high>[0-9]{1,4})?\s*\$\$(?:(?P<glue>[^$]*)\$\$)?")
SHARE = re.compile(r"\s*([0-9]*\.?[0-9]+)::")

MAX_CHOICES = 100


class Option(NamedTuple):
    """One of several texts, and how often it is to come."""

    share: float
    parts: "tuple[Part, ...]"


@dataclass(frozen=True)
class Choice:
    """`{...}`: from `low` to `high` of the options, joined by `glue`."""

    options: tuple[Option, ...]
    low: int = 1
    high: int = 1
    glue: str = ", "


@dataclass(frozen=True)
class Wildcard:
    """`__name__`, at a position of its text."""

    name: str
    source: str
    position: int


Part = str | Choice | Wildcard


@dataclass(frozen=True)
class Wildcards:
    """The files of a folder, each a list of texts. None: there is no folder."""

    folder: Path | None = None

    def lines(self, wildcard: Wildcard) -> list[str]:
        """The texts of a wildcard. Raises PromptError if there are none."""
        found = self._path(wildcard)
        try:
            text = found.read_text(encoding="utf-8-sig", errors="replace")
        except OSError as error:
            raise self._error(f"the wildcard {wildcard.name!r} cannot be read: {error.strerror}", wildcard) from None
        lines = [line.strip() for line in text.splitlines()]
        lines = [line for line in lines if line and not line.startswith("#")]
        if not lines:
            raise self._error(f"the wildcard {wildcard.name!r} has no lines", wildcard)
        return lines

    def names(self) -> list[str]:
        """All names of the folder."""
        if self.folder is None:
            return []
        return sorted(p.relative_to(self.folder).with_suffix("").as_posix() for p in self.folder.rglob("*.txt"))

    def _path(self, wildcard: Wildcard) -> Path:
        names = self.names()
        if self.folder is None or wildcard.name not in names:  # so no name leads out of the folder
            raise self._error(f"there is no wildcard {wildcard.name!r}", wildcard, nearest(wildcard.name, names))
        return self.folder / f"{wildcard.name}.txt"

    def _error(self, what: str, wildcard: Wildcard, remedy: str = "") -> PromptError:
        if self.folder is None:
            remedy = r"give a folder of wildcards, or write \__ for two underscores"
        return PromptError(what, wildcard.source, wildcard.position, remedy=remedy)


def expand(text: str, seed: int, wildcards: str | Path | None = None) -> str:
    """Make all choices of a prompt, by the seed: the same seed gives the same text, on every machine.

    `wildcards` is a folder of .txt files. Raises PromptError for a brace that is not closed, or a wildcard that is not
    there; InputError if wildcards within wildcards never come to an end.
    """
    files, random = _folder(wildcards), Random(seed)
    budget = [MAX_CHARACTERS]
    return "".join(_drawn(parse_choices(text), random, files, budget, 0))


def combinations(text: str, wildcards: str | Path | None = None, *, limit: int = 1000) -> list[str]:
    """The texts that a prompt with choices can become, in order; the first `limit` of them. Shares do not count here.

    Errors as of `expand`; InputError for a prompt of more than `MAX_CHOICES` choices.
    """
    parts = parse_choices(text)
    if sum(not isinstance(part, str) for part in parts) > MAX_CHOICES:
        raise InputError(f"more than {MAX_CHOICES} choices to combine", remedy="draw some with expand(text, seed)")
    return list(dict.fromkeys(islice(_all(parts, _folder(wildcards), 0), limit)))


def _folder(wildcards: str | Path | None) -> Wildcards:
    if wildcards is not None and not Path(wildcards).is_dir():
        raise InputError(f"wildcards: there is no folder {wildcards}", remedy="give a folder of .txt files")
    return Wildcards(None if wildcards is None else Path(wildcards))


@dataclass
class _Open:
    """A brace that is being read: its options so far."""

    position: int
    options: list[list[Part]]


def parse_choices(text: str) -> tuple[Part, ...]:
    """Parse a text with choices, in one pass. Raises PromptError for a brace that does not pair."""
    check_text(text)
    stack = [_Open(0, [[]])]
    last = 0
    for match in SIGN.finditer(text):
        sign, position = match[0], match.start()
        stack[-1].options[-1].append(text[last:position])
        last = match.end()
        if sign == "{":
            if len(stack) > MAX_DEPTH:
                raise PromptError(f"braces nest deeper than {MAX_DEPTH}", text, position, remedy="use a wildcard file")
            stack.append(_Open(position, [[]]))
        elif sign == "}":
            if len(stack) == 1:
                raise PromptError("this brace closes none", text, position, remedy=r"write \} for a brace")
            stack[-2].options[-1].append(_choice(stack.pop(), text))
        elif sign == "|" and len(stack) > 1:
            stack[-1].options.append([])
        elif match["name"]:
            stack[-1].options[-1].append(Wildcard(match["name"], text, position))
        else:
            stack[-1].options[-1].append(sign.removeprefix("\\"))
    if len(stack) > 1:
        raise PromptError("this brace is never closed", text, stack[-1].position, remedy=r"write \{ for a brace")
    return (*stack[0].options[-1], text[last:])


def _choice(brace: _Open, text: str) -> Choice:
    first = brace.options[0][0] if brace.options[0] and isinstance(brace.options[0][0], str) else ""
    count = COUNT.match(first)
    low = high = 1
    if count:
        brace.options[0][0] = first[count.end() :]
        low = int(count["low"] or 0)
        high = int(count["high"] or len(brace.options)) if count["range"] else low
        if not low <= high <= len(brace.options):
            what = f"{count['low'] or ''}{'-' if count['range'] else ''}{count['high'] or ''} of {len(brace.options)}"
            raise PromptError(f"cannot draw {what}", text, brace.position, remedy="draw as many as there are, at most")
    glue = count["glue"] if count and count["glue"] is not None else ", "
    return Choice(tuple(_option(parts) for parts in brace.options), low, high, glue)


def _option(parts: list[Part]) -> Option:
    share = SHARE.match(parts[0]) if parts and isinstance(parts[0], str) else None
    if share is None:
        return Option(1.0, tuple(parts))
    return Option(float(share[1]), (parts[0][share.end() :], *parts[1:]))  # type: ignore[index]


def _drawn(parts: Sequence[Part], random: Random, files: Wildcards, budget: list[int], depth: int) -> Iterator[str]:
    """The pieces of one text."""
    for part in parts:
        if isinstance(part, str):
            budget[0] -= len(part) + 1
            if budget[0] < 0:
                raise InputError("the choices make a text without end", remedy="see whether a wildcard names itself")
            yield part
        elif isinstance(part, Wildcard):
            _check_depth(part, depth)
            line = random.choice(files.lines(part))
            yield from _drawn(parse_choices(line), random, files, budget, depth + 1)
        else:
            picked = _sample(part, random)
            texts = ("".join(_drawn(option.parts, random, files, budget, depth)) for option in picked)
            yield part.glue.join(texts)


def _check_depth(wildcard: Wildcard, depth: int) -> None:
    if depth >= 20:
        what = f"wildcards name each other without end, at last {wildcard.name!r}"
        raise PromptError(what, wildcard.source, wildcard.position, remedy="let no file name itself")


def _sample(choice: Choice, random: Random) -> list[Option]:
    """Draw different options one after another, each by its share of those that are left."""
    left, picked = list(choice.options), []
    for _ in range(random.randint(choice.low, choice.high) if choice.low < choice.high else choice.low):
        shares = [option.share for option in left]
        (index,) = random.choices(range(len(left)), shares if any(shares) else None)
        picked.append(left.pop(index))
    return picked


def _all(parts: Sequence[Part], files: Wildcards, depth: int) -> Iterator[str]:
    """Every text, the last choice changing fastest; made one by one, since there may be billions."""
    if not parts:
        yield ""
        return
    for head in _each(parts[0], files, depth):
        for tail in _all(parts[1:], files, depth):
            yield head + tail


def _each(part: Part, files: Wildcards, depth: int) -> Iterator[str]:
    if isinstance(part, str):
        yield part
    elif isinstance(part, Wildcard):
        _check_depth(part, depth)
        for line in files.lines(part):
            yield from _all(parse_choices(line), files, depth + 1)
    else:
        for count in range(part.low, part.high + 1):
            for picked in permutations(part.options, count):
                for texts in product(*(list(islice(_all(o.parts, files, depth), 10_000)) for o in picked)):
                    yield part.glue.join(texts)
