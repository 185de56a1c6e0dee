"""Files that appear whole or not at all, and never over one that is there."""

import os
import re
import tempfile
from collections.abc import Callable
from itertools import count
from pathlib import Path
from typing import BinaryIO


def write_new(path: Path, write: Callable[[BinaryIO], object]) -> Path:
    """Let `write` fill a file, and give it the first free name of path, path-2, path-3, …; the name is returned.

    The folder is made if need be. Where `write` fails, or the machine does, no file of these names appears.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    descriptor, temporary = tempfile.mkstemp(suffix=path.suffix, dir=path.parent)
    try:
        with os.fdopen(descriptor, "w+b") as file:
            write(file)
            file.flush()
            os.fsync(file.fileno())
        return _named(Path(temporary), path)
    finally:
        Path(temporary).unlink(missing_ok=True)


def file_stem(words: str) -> str:
    """Words as the beginning of a file's name."""
    return re.sub(r"\W+", "-", words.lower()).strip("-")[:48].strip("-") or "picture"


def _named(temporary: Path, path: Path) -> Path:
    """Claim the name before the file takes it, so that no two writers share one."""
    temporary.chmod(0o644)
    for number in count(1):
        name = path if number == 1 else path.with_stem(f"{path.stem}-{number}")
        try:
            name.touch(exist_ok=False)
        except FileExistsError:
            continue
        return temporary.replace(name)
    raise AssertionError("unreachable")
