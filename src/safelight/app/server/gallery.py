"""The folder of pictures. It is all that outlives the server, and each file in it tells how it was made."""

import re
from dataclasses import asdict
from pathlib import Path
from typing import Any

from safelight.errors import InputError
from safelight.pipeline.pictures import ENDINGS

NAME = re.compile(r"\w[\w .()+-]{0,199}")  # no slash and no leading dot: it names a file of this folder, or nothing


class Gallery:
    """The pictures of one folder, not of those in it. It need not be there yet."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def names(self, before: str | None = None, most: int = 60) -> list[str]:
        """The names of at most so many pictures, the latest first; `before` names the one to go on from."""
        there = self.folder.iterdir() if self.folder.is_dir() else ()
        dated = sorted(((file.stat().st_mtime_ns, file.name) for file in there if self._is_one(file)), reverse=True)
        names = [name for _, name in dated]
        return names[names.index(before) + 1 if before in names else 0 :][:most]

    def path(self, name: str) -> Path:
        """Where a picture lies. Raises InputError unless it is one of the folder's own."""
        file = self.folder / name if NAME.fullmatch(name) else self.folder
        if not self._is_one(file):
            raise InputError(f"there is no picture {name[:80]!r}", remedy="it may have been moved or renamed")
        return file

    def recipe(self, name: str) -> dict[str, Any]:
        """What a picture's file says of how it was made. Raises InputError where it says nothing."""
        return reading_of(self.path(name))

    @staticmethod
    def _is_one(file: Path) -> bool:
        return file.suffix.lower() in ENDINGS and file.is_file() and not file.is_symlink()


def reading_of(path: Path) -> dict[str, Any]:
    """What a picture's file says: program, task, request, model, what was kept, remarks. Raises InputError."""
    from safelight.pipeline.recipes.reading import read_picture

    try:
        said = asdict(read_picture(path))
    except InputError as error:  # which names a place on this machine
        raise InputError(error.what.replace(str(path), path.name), remedy=error.remedy) from None
    return {name: said[name] for name in ("program", "task", "request", "model", "kept", "remarks")}


def infotext_of(path: Path) -> str:
    """The text that A1111 and we write into pictures; empty where there is none. Raises InputError for no picture."""
    from safelight.pipeline.recipes.texts import read_texts

    try:
        return read_texts(path).found.get("parameters", "")
    except InputError as error:  # which names a place on this machine
        raise InputError(error.what.replace(str(path), path.name), remedy=error.remedy) from None
