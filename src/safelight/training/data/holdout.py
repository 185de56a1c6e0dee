"""What is never trained on, so that it can be asked for afterwards.

>>> training_set = collection.where(trained_on)   # doctest: +SKIP
"""

import hashlib
from collections.abc import Callable
from pathlib import PurePosixPath

from safelight.training.data.collections import Entry


def is_held_out(hex: str, folder: str) -> bool:
    """Say whether a pair of concept (its code point) and style (its folder) is kept out of training: one in twenty.

    The concept is then known from its other styles, and a picture of the pair tests composition.
    """
    return int(hashlib.sha256(f"{hex}|{folder}".encode()).hexdigest(), 16) % 20 == 0


def trained_on(
    entry: Entry, splits: tuple[str, ...] = ("train",), hold_out: Callable[[str, str], bool] | None = is_held_out
) -> bool:
    """Say whether an entry may be shown in training: not of another split, and not held out.

    `hold_out(hex, folder)` is asked for entries with a `hex` in their table; `folder` is the first part of their name.
    Entries without split and hex are always trained on.
    """
    if entry.split is not None and entry.split not in splits:
        return False
    code = entry.meta.get("hex")
    return code is None or hold_out is None or not hold_out(str(code), PurePosixPath(entry.name).parts[0])
