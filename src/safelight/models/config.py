"""What the configs of all networks need in order to be read from files that anybody may have written."""

from collections.abc import Collection, Sequence
from types import UnionType
from typing import Any, get_args, get_type_hints

from safelight.errors import InputError, nearest

__all__ = ["check_choice", "check_types", "frozen"]


def frozen(value: Any) -> Any:
    """JSON's lists as tuples, at any depth."""
    return tuple(frozen(item) for item in value) if isinstance(value, list | tuple) else value


def check_choice(field: str, value: Any, choices: Sequence[Any]) -> None:
    """Raise InputError, naming what is nearest, unless `value` is among the choices."""
    if value not in choices:
        raise InputError(f"{field} cannot be {value!r}.", remedy=nearest(str(value), [str(c) for c in choices]))


def check_types(config: Any, *, may_be_zero: Collection[str] = ()) -> None:
    """Raise InputError unless every field of a dataclass has the type it is annotated with.

    Whole numbers, the sizes and counts of a network, are to be 1 or more, except in the fields that `may_be_zero`.
    Knows int, float, bool, str, None, tuples of these, and unions.
    """
    for field, hint in get_type_hints(type(config)).items():
        value = getattr(config, field)
        if not (_fits(value, hint) and _large_enough(value, 0 if field in may_be_zero else 1)):
            kind = hint.__name__ if isinstance(hint, type) else hint
            raise InputError(f"{field} cannot be {value!r}.", remedy=f"it is {kind}, and whole numbers start at 1")


def _fits(value: Any, hint: Any) -> bool:
    if isinstance(hint, UnionType):
        return any(_fits(value, option) for option in get_args(hint))
    if options := get_args(hint):  # tuple[int, ...] has any length but 0, tuple[int, int] its own
        if not isinstance(value, tuple) or not value or (options[-1] is not ... and len(value) != len(options)):
            return False
        return all(_fits(item, options[0]) for item in value)
    if isinstance(value, bool):
        return hint is bool
    return isinstance(value, int | float if hint is float else hint)


def _large_enough(value: Any, least: int) -> bool:
    values = value if isinstance(value, tuple) else (value,)
    return all(item >= least for item in values if isinstance(item, int) and not isinstance(item, bool))
