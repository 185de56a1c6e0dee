"""A run's checkpoints: directories written whole or not at all, checked by hash when read, without pickle.

    checkpoints/step-00001000/
        modules.safetensors  ema-….safetensors  optimizer-….safetensors  stage.safetensors  rng.safetensors
        state.json           step, seconds, counters, and what it was made with
        manifest.json        size and SHA-256 of every other file; written last

A checkpoint is written under a temporary name, every file synced to the disk, and renamed when it is whole: a process
killed at any moment leaves the older ones. The newest two are kept. One that is damaged is passed over, and said so.
"""

import hashlib
import json
import shutil
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors.torch import load_file
from torch import Tensor

from safelight.checkpoint.writing import outgoing, replacing_folder, write_json, write_safetensors
from safelight.errors import CheckpointError

KEPT = 2
MANIFEST, FACTS = "manifest.json", "state.json"
FORMAT = 1

Tensors = Mapping[str, Mapping[str, Tensor]]  # file stem -> tensors


class DamagedCheckpointWarning(UserWarning):
    """A checkpoint is not what was written; an older one is used."""


@dataclass(frozen=True, eq=False)
class State:
    """All that a run needs to go on as if it had never stopped."""

    step: int  # steps done
    facts: Mapping[str, Any]
    tensors: Tensors


def save_state(folder: Path, state: State, *, keep: int = KEPT) -> Path:
    """Write `state` as folder/step-…, whole or not at all, then drop all but the newest `keep`. Returns its path.

    Raises CheckpointError where the disk refuses; then what was there is there still.
    """
    path = folder / step_name(state.step)
    with replacing_folder(path, is_ours=_is_checkpoint) as temporary:
        for stem, tensors in state.tensors.items():
            write_safetensors(temporary / f"{stem}.safetensors", outgoing(tensors))
        write_json(temporary / FACTS, {"format": FORMAT, "step": state.step, **state.facts})
        files = sorted(file for file in temporary.iterdir())
        entries = {file.name: {"size": file.stat().st_size, "sha256": _sha256(file)} for file in files}
        write_json(temporary / MANIFEST, entries)
    for old in found(folder)[keep:]:
        shutil.rmtree(old, ignore_errors=True)
    return path


def step_name(step: int) -> str:
    """The name of what belongs to a step; names sort as steps do."""
    return f"step-{step:08d}"


def _is_checkpoint(path: Path) -> bool:
    return (path / MANIFEST).is_file() or (path / FACTS).is_file()


def found(folder: Path) -> list[Path]:
    """The checkpoints in a folder, newest first; half-written ones are not among them."""
    return sorted((p for p in folder.glob("step-*") if p.is_dir()), key=lambda p: p.name, reverse=True)


def sweep(folder: Path) -> None:
    """Remove what a killed process left half written. For the one process that writes there."""
    for leftover in (*folder.glob(".step-*.part"), *folder.glob(".step-*.old")):
        shutil.rmtree(leftover, ignore_errors=True)


def newest(folder: Path) -> Path | None:
    """The newest checkpoint whose files are what was written; None where there is none yet.

    Warns (DamagedCheckpointWarning) of each that it passes over. Raises CheckpointError if there are some, all damaged.
    """
    candidates = found(folder)
    for path in candidates:
        fault = damage(path)
        if fault is None:
            return path
        warnings.warn(f"CHECKPOINT PASSED OVER: {path} {fault}", DamagedCheckpointWarning, stacklevel=2)
    if candidates:
        what = f"all {len(candidates)} checkpoints are damaged"
        raise CheckpointError(what, path=folder, remedy="check the disk; start anew in another folder, or with --init")
    return None


def damage(path: Path) -> str | None:
    """What is wrong with a checkpoint's files, or None."""
    try:
        entries = json.loads((path / MANIFEST).read_bytes())
        for name, entry in entries.items():
            file = path / Path(name).name
            if not file.is_file():
                return f"lacks {name}"
            if file.stat().st_size != entry["size"]:
                return f"has {file.stat().st_size} of {entry['size']} bytes in {name}"
            if _sha256(file) != entry["sha256"]:
                return f"has changed bytes in {name}"
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        return f"has no readable manifest ({error})"
    return None if FACTS in entries else f"lacks {FACTS}"


def load_state(path: Path) -> State:
    """Read a checkpoint that `newest` has named. Raises CheckpointError where it is of another format."""
    facts = json.loads((path / FACTS).read_bytes())
    if facts.get("format") != FORMAT:
        what = f"is of format {facts.get('format')}, this version of Safelight reads {FORMAT}"
        raise CheckpointError(what, path=path, remedy="go on with the version that wrote it")
    tensors = {file.stem: load_file(file) for file in path.glob("*.safetensors")}
    return State(facts["step"], facts, tensors)


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
