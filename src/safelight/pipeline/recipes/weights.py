"""sha256 of a model's files: taken once a file, then remembered in the user's cache with its size and time.

The memory also tells where on this machine a model with known hashes lies, for drawing a picture again; and so of what
was given beside the model, whose files' names begin with "vae: ", "decoder: ", "control: ", "lora: " or "embedding: ".
"""

import json
import os
from collections.abc import Mapping
from contextlib import suppress
from hashlib import file_digest
from pathlib import Path
from typing import Any

from safelight.errors import SafelightError
from safelight.writing import replacing

PARTS = ("vae", "decoder", "control")  # what may be given beside a model; keywords of `load`
FILES = ("lora", "embedding")  # and of what there may be several, each a file


def part_of(name: str) -> str:
    """What a file of this name is of: one of `PARTS` or `FILES`, or "" for the model itself."""
    return next((part for part in (*PARTS, *FILES) if name.startswith(f"{part}: ")), "")


def remembered_as(name: str) -> str:
    """What the memory calls a file of this name: one of `FILES` by its kind alone, since it may go by several names."""
    return f"{part}: " if (part := part_of(name)) in FILES else name


def memory_file() -> Path:
    """Where hashes are remembered: `safelight/weights.json` in $XDG_CACHE_HOME, by default ~/.cache."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "safelight" / "weights.json"


def hashes(weights: Mapping[str, Path], source: str = "") -> dict[str, str]:
    """sha256 of each file, by its name in the model. `source`: what the model was loaded from, to be found again.

    A file that is gone since has no hash: no picture is lost for that.
    """
    memory, found = _remembered(), {}
    for name, file in weights.items():
        with suppress(OSError):
            found[name] = _hash(file, memory)
    places: dict[str, dict[str, str]] = {}
    for name, digest in found.items():
        place = _place(weights[name], part_of(name)) if part_of(name) else Path(source)
        if (part_of(name) or source) and place.exists():
            places.setdefault(str(place.absolute()), {})[remembered_as(name)] = digest
    if places:
        memory["models"] = memory.get("models", {}) | places
        _remember(memory)
    return found


def _place(file: Path, part: str) -> Path:
    """What to load a part by, of which this is a file: its folder, or the file."""
    return file.parent if part in PARTS and (file.parent / "config.json").is_file() else file


def find_model(weights: Mapping[str, str] | None = None, short: str = "") -> Path | None:
    """A model on this machine that had exactly these hashes, or a file with A1111's short one, and is still the same.

    Or one of the other `PARTS`, by the hashes of its files.
    """
    memory = _remembered()
    for source, known in memory.get("models", {}).items():
        own = [digest for name, digest in known.items() if not part_of(name)]
        alike = known == dict(weights) if weights else any(digest.startswith(short) for digest in own)
        if (weights or len(short) >= 10) and alike and _unchanged(Path(source), known, memory):
            return Path(source)
    return None


def _unchanged(place: Path, known: Mapping[str, str], memory: dict[str, Any]) -> bool:
    """Whether all is still there that these hashes were taken of, and as it was then."""
    digests = set(known.values())
    taken = {
        Path(name): record
        for name, record in memory.get("files", {}).items()
        if digests & {str(one) for one in record[2:]}
    }
    own = {file: stamp for file, (*stamp, _) in taken.items() if file == place or place in file.parents}
    with suppress(OSError):
        return place.exists() and all(_stamp(file) == stamp for file, stamp in own.items())
    return False


def _hash(file: Path, memory: dict[str, Any]) -> str:
    stamp, files = _stamp(file), memory.setdefault("files", {})
    known = files.get(str(file.absolute()))
    if known is not None and known[:2] == stamp:
        return str(known[2])
    with file.open("rb") as opened:
        digest = file_digest(opened, "sha256").hexdigest()
    files[str(file.absolute())] = [*stamp, digest]
    return digest


def _stamp(file: Path) -> list[int]:
    """What changes when a file does: its size in bytes, and its time. Raises OSError."""
    state = file.stat()
    return [state.st_size, state.st_mtime_ns]


def _remembered() -> dict[str, Any]:
    """The memory; an empty one where there is none, or it is damaged: hashes can be taken again."""
    try:
        memory = json.loads(memory_file().read_text())
    except (OSError, ValueError, RecursionError):
        return {}
    good = isinstance(memory, dict) and all(isinstance(memory.get(key, {}), dict) for key in ("files", "models"))
    good = good and all(isinstance(known, dict) for known in memory.get("models", {}).values())
    return memory if good and all(isinstance(record, list) for record in memory.get("files", {}).values()) else {}


def _remember(memory: dict[str, Any]) -> None:
    """Write the memory, if it can be written: without it only time is lost."""
    with suppress(OSError, SafelightError):
        memory_file().parent.mkdir(parents=True, exist_ok=True)
        with replacing(memory_file()) as file:
            file.write(json.dumps(memory, indent=1).encode())
