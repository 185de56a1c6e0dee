"""A bank of sprites kept in a file, so that it is made once: reading 12,000 pictures takes a minute, mapping none.

One safetensors file holds all pixels; its metadata tells what they are. It is named by a hash of all that it was made
from, so that a changed collection, another size or another version of Safelight makes another file.
"""

import hashlib
import json
from collections.abc import Callable
from dataclasses import fields
from pathlib import Path
from typing import Any

from safelight.checkpoint.files import open_safetensors
from safelight.checkpoint.writing import outgoing, write_safetensors
from safelight.training.data.collections import Collection, Entry
from safelight.training.data.sprites import KINDS, Bank, Plate, Sprite, build_bank

VERSION = 1  # of what `build_bank` makes


def cached_bank(collection: Collection, size: int, classes: str, cache: Path | None) -> tuple[Bank, list[str]]:
    """Give the bank of a collection, out of the folder `cache` if it is there, and put there if not.

    Classes are named by the column `classes` of the table. Raises CollectionError if there is nothing to make a bank
    of, CheckpointError if the folder cannot be written.
    """
    if cache is None:
        return build_bank(collection, size, class_of=_column(classes))
    cache.mkdir(parents=True, exist_ok=True)
    file = cache / f"sprites-{size}-{_fingerprint(collection, size, classes)}.safetensors"
    if not file.exists():
        save_bank(file, *build_bank(collection, size, class_of=_column(classes)))
    return load_bank(file, collection)


def save_bank(file: Path, bank: Bank, class_names: list[str]) -> None:
    """Write a bank to one file, whole or not at all."""
    tensors = {"plates": bank.plates, "summaries": bank.summaries}
    tensors |= {f"{kind}.{i}": level for kind, levels in bank.pyramids.items() for i, level in enumerate(levels)}
    known = {
        "size": bank.size,
        "side": bank.side,
        "classes": class_names,
        "sprites": [_row(sprite) for sprite in bank.sprites],
        "photos": [_row(plate) for plate in bank.photos],
        "backgrounds": [_row(plate) for plate in bank.backgrounds],
    }
    write_safetensors(file, outgoing(tensors), {"bank": json.dumps(known)})


def load_bank(file: Path, collection: Collection) -> tuple[Bank, list[str]]:
    """Map a bank of the entries of `collection`."""
    tensors = open_safetensors(file)
    known = json.loads(tensors.metadata["bank"])
    entries = {entry.name: entry for entry in collection}
    counts = {kind: sum(key.startswith(f"{kind}.") for key in tensors) for kind in KINDS}
    bank = Bank(
        size=known["size"],
        side=known["side"],
        sprites=tuple(_restored(Sprite, row, entries) for row in known["sprites"]),
        photos=tuple(_restored(Plate, row, entries) for row in known["photos"]),
        backgrounds=tuple(_restored(Plate, row, entries) for row in known["backgrounds"]),
        pyramids={kind: tuple(tensors[f"{kind}.{i}"] for i in range(n)) for kind, n in counts.items()},
        plates=tensors["plates"],
        summaries=tensors["summaries"],
    )
    return bank, known["classes"]


def _column(name: str) -> Callable[[Entry], str | None]:
    return lambda entry: None if entry.meta.get(name) is None else str(entry.meta[name])


def _row(thing: Sprite | Plate) -> dict[str, Any]:
    return {f.name: getattr(thing, f.name) for f in fields(thing)} | {"entry": thing.entry.name}


def _restored(kind: Any, row: dict[str, Any], entries: dict[str, Entry]) -> Any:
    plain = {key: tuple(value) if isinstance(value, list) else value for key, value in row.items()}
    return kind(**plain | {"entry": entries[row["entry"]]})


def _fingerprint(collection: Collection, size: int, classes: str) -> str:
    made_from = [VERSION, size, classes, collection.store.fingerprint()]
    made_from += [(entry.name, dict(entry.meta)) for entry in collection]
    return hashlib.sha256(json.dumps(made_from, sort_keys=True, default=str).encode()).hexdigest()[:16]
