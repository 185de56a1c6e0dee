"""What each sampler step sees of a prompt: schedules, alternations and branches, resolved.

    text --grammar.parse--> tree --at each step--> text --marks--> passage

A `PromptPlan` holds the outcome for a number of steps. Nothing here needs a tokenizer or a model.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Literal, NamedTuple

from safelight.errors import InputError, MissingPartError, nearest
from safelight.text.grammar import (
    Alternating,
    Branch,
    Emphasis,
    Network,
    Node,
    PromptError,
    Scheduled,
    Text,
    check_text,
    networks,
    parse,
)
from safelight.text.marks import READERS, Passage, Written

Syntax = Literal["a1111", "comfyui", "compel", "plain"]
SYNTAXES: tuple[Syntax, ...] = ("a1111", "comfyui", "compel", "plain")
ExtraNetworks = Literal["error", "ignore"]


class Entry(NamedTuple):
    """What a branch says up to and with the step `last`, counted from 1."""

    last: int
    passage: Passage


@dataclass(frozen=True)
class Track:
    """One branch of a prompt: its weight in the composition, and its entries; the last one ends at the last step."""

    weight: float
    entries: tuple[Entry, ...]

    def at(self, step: int) -> Passage:
        """What a step, counted from 1, sees."""
        return next(passage for last, passage in self.entries if step <= last or last == self.entries[-1].last)


@dataclass(frozen=True)
class PromptPlan:
    """A prompt for `steps` steps. Several tracks are composed (see `diffusion.composition`).

    `notes` say in words what was read otherwise than it may have been meant, each with its position.
    """

    text: str
    steps: int
    tracks: tuple[Track, ...]
    networks: tuple[Network, ...] = ()
    notes: tuple[tuple[int, str], ...] = ()

    def at(self, step: int) -> tuple[tuple[float, Passage], ...]:
        """The weights and passages that a step, counted from 1, sees."""
        return tuple((track.weight, track.at(step)) for track in self.tracks)

    @property
    def changes(self) -> tuple[int, ...]:
        """The steps, counted from 1, at which the prompt begins to say something new; the first is 1."""
        return (1, *(b for a, b in pairwise(range(1, self.steps + 1)) if self.at(a) != self.at(b)))


def plan_prompt(
    text: str,
    steps: int = 1,
    *,
    syntax: Syntax = "a1111",
    composable: bool = True,
    extra_networks: ExtraNetworks = "error",
) -> PromptPlan:
    """Resolve a prompt for a number of steps.

    `syntax` says whose marks are read: "a1111" (see `grammar`), "comfyui", "compel" (see `marks`), "plain" none. A
    prompt without special characters means the same in all of them. `composable=False` makes AND a word, as in a
    negative prompt. `<lora:...>` asks for what models are given as they are loaded: "error" says so, "ignore" drops it.

    Raises PromptError with a position where the prompt cannot be read; MissingPartError for adapters.
    """
    if syntax not in SYNTAXES:
        raise InputError(f"prompt syntax {syntax!r} is unknown", remedy=nearest(str(syntax), SYNTAXES))
    if steps < 1:
        raise InputError(f"{steps} steps are none", remedy="give at least 1")
    check_text(text)
    if syntax != "a1111":
        passage = READERS[syntax](Written([(0, text)], text))
        return PromptPlan(text, steps, (Track(1.0, (Entry(steps, passage),)),))
    prompt = parse(text, composable=composable)
    wanted = tuple(network for branch in prompt.branches for network in networks(branch.parts))
    if wanted and extra_networks == "error":
        error = PromptError(f"{wanted[0]} asks for an adapter", text, wanted[0].start)
        remedy = 'give the file as the model is loaded, by --lora or loras=, and extra_networks="ignore" for such words'
        raise MissingPartError(error.what, remedy=remedy)
    tracks = tuple(_track(branch, text, steps) for branch in prompt.branches)
    return PromptPlan(text, steps, tracks, wanted, tuple(_notes(prompt.branches)))


def _track(branch: Branch, source: str, steps: int) -> Track:
    """A branch, read once for each different text that its schedules leave."""
    read: dict[tuple[int, ...], Passage] = {}
    entries = []
    changing = list(_changing(branch.parts))
    for last in _lasts(changing, steps):
        state = tuple(_choice(node, last, steps) for node in changing)
        if state not in read:
            read[state] = READERS["a1111"](Written(resolved(branch.parts, last, steps), source))
        entries.append(Entry(last, read[state]))
    return Track(branch.weight, tuple(entries))


def _changing(nodes: Sequence[Node]) -> Iterator[Scheduled | Alternating]:
    """All schedules and alternations, however deep."""
    for node in nodes:
        if isinstance(node, Scheduled | Alternating):
            yield node
        for part in _fields(node):
            yield from _changing(part)


def _fields(node: Node) -> Sequence[Sequence[Node]]:
    if isinstance(node, Emphasis):
        return node.parts, node.argument or ()
    if isinstance(node, Scheduled):
        return node.before or (), node.after
    return node.options if isinstance(node, Alternating) else ()


def _lasts(changing: Sequence[Scheduled | Alternating], steps: int) -> list[int]:
    """The last steps of the stretches in which nothing changes."""
    if any(isinstance(node, Alternating) for node in changing):
        return list(range(1, steps + 1))
    lasts = {node.last(steps) for node in changing if isinstance(node, Scheduled)}
    return sorted({steps, *lasts} - {0})


def _choice(node: Scheduled | Alternating, step: int, steps: int) -> int:
    """Which of its texts a node shows at a step."""
    if isinstance(node, Scheduled):
        return int(step > node.last(steps))
    return (step - 1) % len(node.options)


def resolved(nodes: Sequence[Node], step: int, steps: int) -> Iterator[tuple[int, str]]:
    """The text that a step, counted from 1, sees: pieces, each with its position in the prompt."""
    for node in nodes:
        if isinstance(node, Text):
            yield node.start, node.text
        elif isinstance(node, Emphasis):
            yield node.start, node.bracket
            yield from resolved(node.parts, step, steps)
            if node.argument is not None:
                yield node.start, ":"
                yield from resolved(node.argument, step, steps)
            yield node.start, ")" if node.bracket == "(" else "]"
        elif isinstance(node, Scheduled | Alternating):
            yield from resolved(_fields(node)[_choice(node, step, steps)], step, steps)


def _notes(branches: Sequence[Branch]) -> Iterator[tuple[int, str]]:
    for branch in branches:
        if branch.unscheduled is not None:
            yield branch.unscheduled, "because of this character the prompt has no schedules; put a backslash before it"
