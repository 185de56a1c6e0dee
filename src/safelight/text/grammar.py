"""The grammar of AUTOMATIC1111's prompts: text -> a small tree with positions, and back.

    a (red:1.3) [fox|wolf] in [rain:snow:0.5] AND [a moon:10] :0.7 <lora:ink:0.8>

    prompt      = branch, { "AND", branch } ;
    branch      = { item }, [ ":", number ] ;                  (* the weight, where there are several branches *)
    item        = text | emphasis | scheduled | alternating | network ;
    emphasis    = "(", items, ")" | "(", items, ":", items, ")" | "[", items, "]" ;
    scheduled   = "[", [ items, ":" ], items, ":", number, "]" ;
    alternating = "[", items, "|", items, { "|", items }, "]" ;
    network     = "<", word, ":", arguments, ">" ;

No text is wrong: brackets that do not pair, or hold what these rules do not know, are text, as they are to
AUTOMATIC1111 (1.10, modules/prompt_parser.py). So is a whole branch with a "|" outside of an alternation, or a
backslash at a line's end: it has no schedules. A backslash takes the meaning from the character behind it, and from
AND and BREAK.

What the emphasis weighs is read later (see `marks`), since the text that a schedule leaves decides it: in
`(fox:[1.1:1.4:5])` it is the weight that changes. Parsing takes time proportional to the text's length.
"""

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from itertools import groupby

from safelight.errors import InputError

MAX_CHARACTERS = 1_000_000
MAX_DEPTH = 100  # brackets within brackets; 1.1 ** 100 is 13,780

NUMBER = re.compile(r"\s*([+-]?(?:[0-9]+(?:\.[0-9]*)?|\.[0-9]+)(?:[eE][+-]?[0-9]+)?)\s*")
BRANCH_NUMBER = re.compile(r"[+-]?(?:[0-9]+\.?|[0-9]*\.[0-9]+)")
SPECIAL = re.compile(r"(?P<escape>\\(?:.|$)?)|(?P<tag><(?P<kind>\w+):[^<>]+>)|(?P<and>\bAND\b)|(?P<mark>[][():|])")
CLOSERS = {")": "(", "]": "["}


class PromptError(InputError):
    """A prompt says what cannot be done: at the character `position`, from 0, of `text`. The message points at it."""

    def __init__(self, what: str, text: str, position: int, *, remedy: str = "") -> None:
        super().__init__(f"{what}\n{pointer(text, position)}", remedy=remedy)
        self.text = text
        self.position = position


def pointer(text: str, position: int, width: int = 72) -> str:
    """Two lines: the text around a position, and a caret below it. Characters without a shape are shown as "·"."""
    start = max(0, position - width // 2)
    shown = "".join(c if c.isprintable() else "·" for c in text[start : start + width])
    before, after = "…" * (start > 0), "…" * (start + width < len(text))
    return f"  {before}{shown}{after}\n  {' ' * (len(before) + position - start)}^"


@dataclass(frozen=True)
class Text:
    """Words as they were written, escapes and brackets that are no structure included."""

    text: str
    start: int = field(default=0, compare=False)  # of the first character, in the whole prompt

    def __str__(self) -> str:
        return self.text


@dataclass(frozen=True)
class Emphasis:
    """`(parts)`, `[parts]` or `(parts:argument)`; the argument is a weight, or else it is text."""

    bracket: str  # "(" or "["
    parts: "tuple[Node, ...]"
    argument: "tuple[Node, ...] | None" = None
    start: int = field(default=0, compare=False)

    def __str__(self) -> str:
        argument = "" if self.argument is None else ":" + written(self.argument)
        return self.bracket + written(self.parts) + argument + (")" if self.bracket == "(" else "]")


@dataclass(frozen=True)
class Scheduled:
    """`[before:after:when]`, or `[after:when]` with nothing before: another text after some of the steps."""

    before: "tuple[Node, ...] | None"
    after: "tuple[Node, ...]"
    when: str  # as it was written, blanks included
    start: int = field(default=0, compare=False)

    def __str__(self) -> str:
        before = "" if self.before is None else written(self.before) + ":"
        return f"[{before}{written(self.after)}:{self.when}]"

    def last(self, steps: int) -> int:
        """The last of `steps` steps, from 1, that sees `before`: a number written with a point is a share of them."""
        number = float(self.when) * (steps if "." in self.when else 1)
        return int(min(max(number, 0), steps))


@dataclass(frozen=True)
class Alternating:
    """`[a|b|c]`: another text at each step, over and over."""

    options: "tuple[tuple[Node, ...], ...]"
    start: int = field(default=0, compare=False)

    def __str__(self) -> str:
        return "[" + "|".join(map(written, self.options)) + "]"


@dataclass(frozen=True)
class Network:
    """`<lora:name:0.8>`: asks for an adapter, and is no words."""

    kind: str
    arguments: tuple[str, ...]
    start: int = field(default=0, compare=False)

    def __str__(self) -> str:
        return f"<{self.kind}:{':'.join(self.arguments)}>"


@dataclass(frozen=True)
class Weight:
    """`:0.7` at the end of a branch."""

    text: str  # as it was written, colon and blanks included
    start: int = field(default=0, compare=False)

    def __str__(self) -> str:
        return self.text

    @property
    def value(self) -> float:
        """The number."""
        return float(self.text.strip().removeprefix(":"))


Node = Text | Emphasis | Scheduled | Alternating | Network | Weight


@dataclass(frozen=True)
class Branch:
    """What stands between two ANDs. `unscheduled` is where the character stands that made it plain text, if one did."""

    parts: tuple[Node, ...]
    start: int = field(default=0, compare=False)
    unscheduled: int | None = field(default=None, compare=False)

    def __str__(self) -> str:
        return written(self.parts)

    @property
    def weight(self) -> float:
        """Its share in the composition: 1 where none was written."""
        return next((node.value for node in self.parts if isinstance(node, Weight)), 1.0)


@dataclass(frozen=True)
class Prompt:
    """A parsed prompt. `str` gives its text back, character by character."""

    branches: tuple[Branch, ...]

    def __str__(self) -> str:
        return "AND".join(map(str, self.branches))


def written(nodes: Iterable[Node]) -> str:
    """The text of some nodes."""
    return "".join(map(str, nodes))


def check_text(text: str) -> None:
    """Raise InputError for what is no string, or too long a one."""
    if not isinstance(text, str):
        raise InputError(f"a prompt must be a string, not {type(text).__name__}", remedy="give one string")
    if len(text) > MAX_CHARACTERS:
        what = f"the prompt has {len(text):,} characters; the most is {MAX_CHARACTERS:,}"
        raise InputError(what, remedy="a prompt of a few hundred words says all that a model can hear")


def parse(text: str, *, composable: bool = True) -> Prompt:
    """Parse a prompt; `str(parse(text)) == text` for every text.

    With `composable=False`, as for a negative prompt, AND is a word like others. Raises InputError if the text is
    longer than `MAX_CHARACTERS`, PromptError if brackets nest deeper than `MAX_DEPTH`.
    """
    check_text(text)
    reader = _Reader(text)
    position = 0
    for match in SPECIAL.finditer(text):
        if match["and"] and not composable:
            continue
        reader.text(position, text[position : match.start()])
        position = match.end()
        if match["and"]:
            reader.end_branch(position)
        elif match["tag"]:
            reader.node(_network(match))
        elif match["escape"]:
            reader.escape(match.start(), match["escape"])
        else:
            reader.mark(match.start(), match["mark"])
    reader.text(position, text[position:])
    reader.end_branch(len(text))
    if len(reader.branches) == 1:
        return Prompt(tuple(reader.branches))
    return Prompt(tuple(_weighed(branch) for branch in reader.branches))


Item = tuple[int, str] | Node  # text that may yet be joined to its neighbours has its start beside it


class _Frame:
    """An opened bracket: the items between its separators."""

    def __init__(self, start: int, bracket: str) -> None:
        self.start, self.bracket = start, bracket
        self.fields: list[list[Item]] = [[]]
        self.separators: list[tuple[int, str]] = []

    def flat(self) -> list[Item]:
        """The same as text, where it turned out that the bracket is no structure."""
        items: list[Item] = [(self.start, self.bracket)] if self.bracket else []
        for separator, part in zip([None, *self.separators], self.fields, strict=True):
            items += [separator, *part] if separator else part
        return items

    def node(self) -> Node | None:
        """What the closed bracket means; None if nothing."""
        signs = "".join(sign for _, sign in self.separators)
        parts = [joined(part) for part in self.fields]
        if self.bracket == "(":
            argument = parts[1] if signs == ":" else None
            return Emphasis("(", parts[0], argument, self.start) if signs in ("", ":") else None
        if not signs:
            return Emphasis("[", parts[0], None, self.start)
        if set(signs) == {"|"}:
            return Alternating(tuple(parts), self.start)
        when = written(parts[-1]) if all(isinstance(node, Text) for node in parts[-1]) else ""
        if signs in (":", "::") and NUMBER.fullmatch(when):
            return Scheduled(parts[0] if signs == "::" else None, parts[-2], when, self.start)
        return None


class _Reader:
    """Builds the branches of a prompt from left to right, with a stack of open brackets."""

    def __init__(self, source: str) -> None:
        self.source = source
        self.branches: list[Branch] = []
        self.last_closer = max(source.rfind(")"), source.rfind("]"))
        self.begin_branch(0)

    def begin_branch(self, start: int) -> None:
        self.start = start
        self.stack = [_Frame(start, "")]
        self.stray: int | None = None

    def end_branch(self, end: int) -> None:
        self.flatten()
        parts = joined(self.stack[0].fields[0])
        if self.stray is not None:
            parts = _plain(written(parts), self.start)
        self.branches.append(Branch(parts, self.start, self.stray))
        self.begin_branch(end)

    def node(self, node: Item) -> None:
        self.stack[-1].fields[-1].append(node)

    def text(self, start: int, text: str) -> None:
        if text:
            self.node((start, text))

    def escape(self, start: int, text: str) -> None:
        if len(text) == 1:  # a backslash with nothing to take the meaning from
            self.stray = start if self.stray is None else self.stray
        self.text(start, text)

    def mark(self, start: int, sign: str) -> None:
        """Take in a bracket, which opens or closes a frame, or a separator within one."""
        frame = self.stack[-1]
        if sign in "([":
            if start > self.last_closer:  # nothing will close it, or any that is open
                self.flatten()
                return self.loose(start, sign)
            if len(self.stack) > MAX_DEPTH:
                raise too_deep(self.source, start)
            self.stack.append(_Frame(start, sign))
        elif sign in CLOSERS:
            node = frame.node() if frame.bracket == CLOSERS[sign] else None
            if node is None:
                self.flatten()
                self.text(start, sign)
            else:
                self.stack.pop()
                self.node(node)
        elif frame.bracket:
            frame.separators.append((start, sign))
            frame.fields.append([])
        else:
            self.loose(start, sign)

    def flatten(self) -> None:
        """Turn all open brackets into text: what closes none of them, or means nothing, may stand in no bracket."""
        opened, self.stack = self.stack[1:], self.stack[:1]
        for frame in opened:
            for item in frame.flat():
                if isinstance(item, tuple):
                    self.loose(*item)
                else:
                    self.node(item)

    def loose(self, start: int, text: str) -> None:
        """Text outside of all brackets, where a bar turns the schedules off."""
        if text == "|" and self.stray is None:
            self.stray = start
        self.text(start, text)


def too_deep(source: str, position: int) -> PromptError:
    """The error of brackets within brackets within brackets."""
    what = f"brackets nest deeper than {MAX_DEPTH}"
    return PromptError(
        what, source, position, remedy=r"write a weight, as in (word:1.5); \( is a bracket without meaning"
    )


def joined(items: Iterable[Item]) -> tuple[Node, ...]:
    """Items as nodes, with neighbouring texts in one."""
    nodes: list[Node] = []
    for is_text, run in groupby(items, key=lambda item: isinstance(item, tuple)):
        if is_text:
            starts, texts = zip(*run, strict=True)
            nodes += [Text("".join(texts), starts[0])] if any(texts) else []
        else:
            nodes += (item for item in run if not isinstance(item, tuple))
    return tuple(nodes)


def _plain(text: str, start: int) -> tuple[Node, ...]:
    """A branch without structure: its words, and the networks among them."""
    items: list[Item] = []
    position = 0
    for match in SPECIAL.finditer(text):
        if match["tag"]:
            items += [(start + position, text[position : match.start()]), _network(match, start)]
            position = match.end()
    return joined([*items, (start + position, text[position:])])


def _network(match: re.Match[str], start: int = 0) -> Network:
    arguments = match["tag"][len(match["kind"]) + 2 : -1].split(":")
    return Network(match["kind"], tuple(arguments), start + match.start())


def _weighed(branch: Branch) -> Branch:
    """Cut the weight from the end of a branch: its last words, whatever networks stand behind them."""
    for number, node in reversed(list(enumerate(branch.parts))):
        if isinstance(node, Text) and node.text.strip():
            split = _weight_start(node.text)
            if split is None:
                break
            body = (Text(node.text[:split], node.start),) if split else ()
            weight = Weight(node.text[split:], node.start + split)
            parts = (*branch.parts[:number], *body, weight, *branch.parts[number + 1 :])
            return Branch(parts, branch.start, branch.unscheduled)
        if not isinstance(node, Text | Network):
            break
    return branch


def _weight_start(text: str) -> int | None:
    head, colon, tail = text.rpartition(":")
    if not colon or head.endswith("\\") or not BRANCH_NUMBER.fullmatch(tail.strip()):
        return None
    return len(head.rstrip())


def networks(nodes: Sequence[Node]) -> list[Network]:
    """All networks that some nodes ask for, however deep they stand."""
    found: list[Network] = []
    for node in nodes:
        if isinstance(node, Network):
            found.append(node)
        elif isinstance(node, Emphasis):
            found += networks([*node.parts, *(node.argument or ())])
        elif isinstance(node, Scheduled):
            found += networks([*(node.before or ()), *node.after])
        elif isinstance(node, Alternating):
            found += [network for option in node.options for network in networks(option)]
    return found
