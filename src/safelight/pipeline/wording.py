"""The words that pictures are drawn for: styles written around the prompts, and their choices made by each seed."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from safelight.diffusion.condition import Condition
from safelight.errors import InputError
from safelight.pipeline.fields import Settings
from safelight.text.dynamic import expand
from safelight.text.styles import apply_styles, read_styles

Words = str | Sequence[str] | Condition
NEGATIVE = 2**63  # added to a picture's seed, so that its negative prompt makes choices of its own; no seed reaches it


@dataclass(frozen=True, eq=False)
class Wording:
    """What some pictures are drawn for: prompts, as many negative prompts, and for each picture which of them."""

    prompts: list[str] | Condition
    negatives: list[str] | Condition
    rows: tuple[int, ...]

    def pairs(self) -> Iterator[tuple[str | Condition, str | Condition]]:
        """Each prompt with its negative prompt."""
        return zip(_singly(self.prompts), _singly(self.negatives), strict=True)

    def each(self, words: list[str] | Condition) -> tuple[str | None, ...]:
        """The text of each picture; None for those of an encoded condition."""
        return tuple(None if isinstance(words, Condition) else words[row] for row in self.rows)


def _singly(words: list[str] | Condition) -> Sequence[str | Condition]:
    return [words.select(slice(k, k + 1)) for k in range(words.batch)] if isinstance(words, Condition) else words


def worded(prompt: Words, settings: Settings, seed: int) -> Wording:
    """Settle what each picture is drawn for; picture k has the seed `seed` + k.

    Raises InputError for what is no text, or another number of negative prompts, or a style that is not there;
    PromptError for choices that cannot be read.
    """
    prompts = _texts("prompt", prompt)
    number, count = prompts.batch if isinstance(prompts, Condition) else len(prompts), settings["count"]
    negatives = _negatives(settings["negative_prompt"], number)
    rows = tuple(k // count for k in range(number * count))
    choices = settings["dynamic_prompts"] or settings["wildcards"] is not None
    if not (settings["styles"] or choices):
        return Wording(prompts, negatives, rows)
    if isinstance(prompts, Condition) or isinstance(negatives, Condition):
        what = "styles and dynamic prompts are made of words, and a Condition has none left"
        raise InputError(what, remedy="give the prompt and the negative prompt as text")
    pairs = _styled(list(zip(prompts, negatives, strict=True)), settings)
    if choices:
        folder = settings["wildcards"]
        drawn = [
            (expand(pairs[row][0], seed + k, folder), expand(pairs[row][1], seed + k + NEGATIVE, folder))
            for k, row in enumerate(rows)
        ]
        numbers = {pair: number for number, pair in enumerate(dict.fromkeys(drawn))}
        pairs, rows = list(numbers), tuple(numbers[pair] for pair in drawn)
    return Wording([pair[0] for pair in pairs], [pair[1] for pair in pairs], rows)


def _styled(pairs: list[tuple[str, str]], settings: Settings) -> list[tuple[str, str]]:
    if not settings["styles"]:
        return pairs
    styles = read_styles(settings["styles_file"])
    return [apply_styles(prompt, negative, settings["styles"], styles) for prompt, negative in pairs]


def _texts(name: str, words: Any) -> list[str] | Condition:
    if isinstance(words, Condition):
        return words
    texts = [words] if isinstance(words, str) else words
    if not isinstance(texts, Sequence) or not texts or not all(isinstance(text, str) for text in texts):
        raise InputError(f"{name}: {words!r} is not text", remedy="give a string, several strings, or a Condition")
    return list(texts)


def _negatives(words: Any, number: int) -> list[str] | Condition:
    negatives = _texts("negative_prompt", words)
    if isinstance(negatives, Condition):
        return negatives.expand(number)
    if isinstance(words, str):
        return negatives * number
    if len(negatives) != number:
        what = f"{len(negatives)} negative prompts for {number} prompts"
        raise InputError(what, remedy="give one, or one for each prompt")
    return negatives
