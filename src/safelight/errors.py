"""What can go wrong, as types. Every message says what is wrong, where, and what to do next.

Imported by every room; imports nothing.
"""

from collections.abc import Iterable
from difflib import get_close_matches


class SafelightError(Exception):
    """The root of all errors that Safelight raises on purpose.

    `what` names the thing and its limit, `remedy` is the next thing to do.
    """

    def __init__(self, what: str, *, remedy: str = "") -> None:
        super().__init__(f"{what}\n  -> {remedy}" if remedy else what)
        self.what = what
        self.remedy = remedy


class InputError(SafelightError, ValueError):
    """An argument is outside what the function accepts."""


class MissingPartError(SafelightError, NotImplementedError):
    """The model, the machine or this version of Safelight lacks a part that the request needs."""


class NonFiniteError(SafelightError, ArithmeticError):
    """A computation gave NaN or infinity where a picture was expected."""


class Cancelled(SafelightError):  # noqa: N818  (an event, not a fault)
    """A callback asked to stop. Nothing was written."""


class CheckpointError(SafelightError):
    """A model file or folder cannot be used. `path` names the file, `key` the tensor or field, where there is one."""

    def __init__(self, what: str, *, path: object = None, key: str | None = None, remedy: str = "") -> None:
        super().__init__(f"{path}: {what}" if path is not None else what, remedy=remedy)
        self.path = path
        self.key = key


def nearest(word: str, known: Iterable[str], *, n: int = 3) -> str:
    """Name the known words most like `word`, for an error's remedy: 'did you mean a, b or c?'."""
    names = list(known)
    close = get_close_matches(word, names, n=n, cutoff=0.4)
    if not close:
        return f"known are: {', '.join(names) or 'none'}"
    return "did you mean " + " or ".join([", ".join(close[:-1]), close[-1]] if len(close) > 1 else close) + "?"
