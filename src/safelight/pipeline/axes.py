"""The axes along which pictures are compared: a field of the request and its values, words, or parts of a prompt.

guidance_scale=1,4,7.5,12       any field, its values as on the command line; those with commas "in quotes"
seed=1..4  steps=10..50..20     from, to, and by how much: 1,2,3,4 and 10,30,50
strength=0.2..0.8[4]            four values, evenly spaced
seed=1-4  steps=10-50(+20)      the same as AUTOMATIC1111 writes it
eta=none,0,1                    the default where a field may be left open
styles=none,ink,ink+dark        several styles in one value
prompt=a fox,a hat              whole prompts
replace=red,blue,"sky blue"     the first words are sought in prompt and negative prompt, the others put there
"""

import csv
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from decimal import Decimal
from pathlib import Path
from typing import Any, get_args, get_origin

from pydantic.fields import FieldInfo

from safelight.errors import InputError, nearest
from safelight.pipeline.fields import PEERS_WORDS, SEEDS, request_model, validate

REPLACE, PARTS = "replace", "parts"
MAX_VALUES = 2000
NUMBER = r"[+-]?\d{1,18}(?:\.\d{1,18})?"
RANGE = re.compile(
    rf"\s*({NUMBER})\s*(?:\.\.|-)\s*({NUMBER})\s*"
    rf"(?:\.\.\s*(?P<step>{NUMBER})|\(\s*(?P<by>{NUMBER})\s*\)|\[\s*(?P<count>\d{{1,4}})\s*\])?\s*"
)

Request = Mapping[str, Any]


@dataclass(frozen=True)
class Axis:
    """A field of a request and the values it takes; or `REPLACE`, words; or `PARTS`, what to add to the prompt."""

    name: str
    values: tuple[Any, ...]

    def __len__(self) -> int:
        return len(self.values)

    def applied(self, request: Request, k: int) -> dict[str, Any]:
        """The request at the k-th place of the axis."""
        value = self.values[k]
        if self.name == REPLACE:
            return {**request, **{n: request[n].replace(self.values[0], value) for n in worded(request)}}
        if self.name == PARTS:
            return {**request, "prompt": ", ".join([request["prompt"], *value])}
        return {**request, self.name: value}

    @property
    def labels(self) -> tuple[str, ...]:
        """What to write at each place."""
        return tuple(label(value) or f"no. {k + 1}" for k, value in enumerate(self.values))

    @property
    def names(self) -> tuple[str, ...]:
        """The same with the field's name, where it is not plain from the words."""
        plain = self.name in (REPLACE, PARTS, "prompt")
        return self.labels if plain else tuple(f"{self.name} {text}" for text in self.labels)


def name_of(given: Axis | str | tuple[str, Sequence[Any]]) -> str:
    """The name of an axis that is still to be read."""
    if isinstance(given, str):
        return given.partition("=")[0].strip().removeprefix("--").replace("-", "_")
    return given.name if isinstance(given, Axis) else given[0]


def label(value: Any) -> str:
    """A value in few words; "" for what has none, such as a picture."""
    if isinstance(value, tuple | list) and all(isinstance(one, str) for one in value):
        return " + ".join(value) or "none"
    if value is None or value == "":
        return "none"
    if isinstance(value, Path):
        return value.name
    return f"{value:g}" if isinstance(value, float) else str(value) if isinstance(value, str | int) else ""


def worded(request: Request) -> list[str]:
    """The fields in which words can be replaced."""
    return [name for name in ("prompt", "negative_prompt") if isinstance(request.get(name), str)]


def parse_axis(text: str, task: Callable[..., Any]) -> Axis:
    """Read `name=value,value,…` (see the module) for a task's request.

    Raises InputError for a name that is none, with the nearest, and for a list or a range that cannot be read; the
    values themselves are checked by `checked`.
    """
    name, (_, equals, rest) = name_of(text), text.partition("=")
    if not equals:
        raise InputError(f"axis {text!r}: it has no values", remedy="write it as guidance_scale=1,4,7.5")
    written = _listed(rest)
    if name == REPLACE:
        return Axis(name, tuple(written))
    field = field_of(name, task)
    return Axis(name, tuple(value for one in written for value in _values(name, one, field)))


def as_axis(given: Axis | str | tuple[str, Sequence[Any]], task: Callable[..., Any]) -> Axis:
    """An axis as people give it: as text (see the module), or as a name and its values. Errors as of `parse_axis`."""
    if isinstance(given, str):
        return parse_axis(given, task)
    axis = given if isinstance(given, Axis) else Axis(given[0], tuple(given[1]))
    if axis.name == REPLACE and not all(isinstance(word, str) for word in axis.values):
        raise InputError("replace: its values are words", remedy='give text, such as ("replace", ["red", "blue"])')
    if axis.name not in (REPLACE, PARTS):
        field_of(axis.name, task)
    if not axis.values:
        raise InputError(f"axis {axis.name!r} has no values", remedy="give one at least")
    return axis


def field_of(name: str, task: Callable[..., Any]) -> FieldInfo:
    """The field of a task's request. Raises InputError with the nearest names where there is none."""
    fields = request_model(task).model_fields
    if name not in fields:
        word = PEERS_WORDS.get(name)
        open_to_all = [n for n, field in fields.items() if not field.exclude and n not in ("count", "batch_size")]
        remedy = f"here it is called {word}" if word else nearest(name, [*open_to_all, REPLACE])
        raise InputError(f"there is no axis {name!r}", remedy=remedy)
    return fields[name]


def checked(axis: Axis, request: Request, task: Callable[..., Any]) -> Axis:
    """The axis with its values as the request's schema gives them.

    Raises InputError naming the field, its limit and the value.
    """
    if axis.name in (REPLACE, PARTS):
        return axis
    found = Axis(axis.name, tuple(validate(task, {**request, axis.name: v})[axis.name] for v in axis.values))
    if axis.name in SEEDS and None in found.values:
        raise InputError(f"the axis {axis.name} has a fresh seed", remedy="name each, as seed=1..4 does")
    return found


def matrix_axes(prompt: str) -> tuple[str, list[Axis]]:
    """AUTOMATIC1111's prompt matrix, `start|one|two|three`: the start, and axes of what is added to it.

    Every choice of the other parts is drawn; the first half of them, rounded up, varies from column to column, the rest
    from row to row. Raises InputError for a prompt without parts or of more than 10.
    """
    start, *parts = (part.strip().strip(",") for part in prompt.split("|"))
    if not 1 <= len(parts) <= 10:
        what = f"a prompt matrix of {len(parts)} parts"
        raise InputError(what, remedy="write 1 to 10 parts behind the start: a city|at night|in rain")
    half = (len(parts) + 1) // 2
    return start, [Axis(PARTS, tuple(_subsets(some))) for some in (parts[:half], parts[half:]) if some]


def _subsets(parts: Sequence[str]) -> Iterator[tuple[str, ...]]:
    for number in range(2 ** len(parts)):
        yield tuple(part for i, part in enumerate(parts) if number >> i & 1)


def _listed(text: str) -> list[str]:
    try:
        (values,) = csv.reader([text], skipinitialspace=True, strict=True) if text else ([""],)
    except (csv.Error, ValueError) as error:
        raise InputError(f"the values {text!r} cannot be read: {error}", remedy='quote as in "a, b","c"') from None
    return values


def _values(name: str, written: str, field: FieldInfo) -> list[Any]:
    """What one entry of a list stands for: a range of numbers, nothing, several styles, or itself."""
    kinds = {get_origin(kind) or kind for kind in (get_args(field.annotation) or (field.annotation,))}
    if type(None) in kinds and written.strip().lower() in ("none", ""):
        return [None]
    if list in kinds:
        return [written.split("+")]
    found = RANGE.fullmatch(written) if kinds & {int, float} else None
    return list(_range(name, found)) if found else [written]


def _range(name: str, found: re.Match[str]) -> Iterator[float]:
    """The numbers of a range, counted in decimals, so that 0.1..0.3..0.1 has 0.3."""
    low, high = Decimal(found[1]), Decimal(found[2])
    by = found["step"] or found["by"]
    if found["count"]:
        count = int(found["count"])
        step = (high - low) / max(count - 1, 1)
    else:
        step = abs(Decimal(by or 1)) * (1 if high >= low else -1)
        count = int((high - low) / step) + 1 if step else 0
    if not 1 <= count <= MAX_VALUES:
        what = f"{name}={found[0].strip()}: {count} values"
        raise InputError(what, remedy=f"give a range of 1 to {MAX_VALUES}, such as 1..4 or 10..50..20")
    for k in range(count):
        number = low + k * step
        yield int(number) if number == int(number) else float(number)
