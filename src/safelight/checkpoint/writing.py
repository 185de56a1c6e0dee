"""Tensors -> bytes, whole or not at all: a temporary name beside the target, fsync, rename."""

import json
import os
import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any

import torch

from safelight.checkpoint.files import DTYPES
from safelight.errors import CheckpointError, InputError
from safelight.writing import replacing, sync_folder

NAMES = {dtype: name for name, dtype in DTYPES.items()}


@dataclass(frozen=True, slots=True)
class Outgoing:
    """A tensor to be written: dtype and shape are known at once, the numbers are made when their turn comes."""

    dtype: torch.dtype
    shape: tuple[int, ...]
    make: Callable[[], torch.Tensor]

    @property
    def nbytes(self) -> int:
        """Its length in the file."""
        return prod(self.shape) * self.dtype.itemsize


def outgoing(tensors: Mapping[str, torch.Tensor]) -> dict[str, Outgoing]:
    """Wrap tensors that are there already."""
    return {key: Outgoing(t.dtype, tuple(t.shape), lambda t=t: t) for key, t in tensors.items()}  # type: ignore[misc]


def write_safetensors(path: Path, tensors: Mapping[str, Outgoing], metadata: Mapping[str, str] | None = None) -> None:
    """Write a safetensors file, one tensor in memory at a time; the bytes are those that the library would write.

    Raises InputError for a dtype that the format does not know, CheckpointError where the disk refuses.
    """
    for key, tensor in tensors.items():
        if tensor.dtype not in NAMES:
            raise InputError(
                f"safetensors has no {tensor.dtype}, which {key!r} is", remedy="convert it to another dtype"
            )
    with replacing(path) as file:
        file.write(_header(tensors, metadata))
        for key in _order(tensors):
            made = tensors[key].make().detach().cpu().contiguous()
            if made.dtype != tensors[key].dtype or tuple(made.shape) != tensors[key].shape:
                raise AssertionError(f"{key} was announced as {tensors[key]}, and made as {made.dtype} {made.shape}")
            file.write(made.reshape(-1).view(torch.uint8).numpy().data)


def _order(tensors: Mapping[str, Outgoing]) -> list[str]:
    """Widest dtype first, so that every tensor lies at a multiple of its item's size; then by name."""
    return sorted(tensors, key=lambda key: (-_RANK[tensors[key].dtype], key))


# safetensors sorts by its own list of dtypes, widest last.
_ORDER = "BOOL U8 I8 F8_E5M2 F8_E4M3 I16 U16 F16 BF16 I32 U32 F32 C64 F64 I64 U64"
_RANK = {DTYPES[name]: rank for rank, name in enumerate(_ORDER.split())}


def _header(tensors: Mapping[str, Outgoing], metadata: Mapping[str, str] | None) -> bytes:
    entries: dict[str, Any] = {"__metadata__": dict(metadata)} if metadata else {}
    position = 0
    for key in _order(tensors):
        tensor = tensors[key]
        entries[key] = {"dtype": NAMES[tensor.dtype], "shape": list(tensor.shape),
                        "data_offsets": [position, position + tensor.nbytes]}  # fmt: skip
        position += tensor.nbytes
    text = json.dumps(entries, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text


def write_json(path: Path, value: Any) -> None:
    """Write JSON as diffusers does: two spaces, sorted keys, a final newline."""
    with replacing(path) as file:
        file.write((json.dumps(value, indent=2, sort_keys=True) + "\n").encode())


def write_weights(
    folder: Path,
    stem: str,
    tensors: Mapping[str, Outgoing],
    *,
    variant: str | None = None,
    max_shard_size: int | None = None,
) -> None:
    """Write one network's weights under diffusers' names: one file, or shards of at most `max_shard_size` bytes.

    Raises InputError for a network that was rounded to int8.
    """
    if any(tensor.dtype == torch.int8 for tensor in tensors.values()):
        raise InputError("a model rounded to 8 bits is not saved", remedy="load it without int8, and save that")
    tag, metadata = f".{variant}" if variant else "", {"format": "pt"}
    shards = list(_shards(tensors, max_shard_size))
    if len(shards) == 1:
        return write_safetensors(folder / f"{stem}{tag}.safetensors", tensors, metadata)
    weight_map: dict[str, str] = {}
    for number, keys in enumerate(shards, 1):
        name = f"{stem}{tag}-{number:05}-of-{len(shards):05}.safetensors"
        write_safetensors(folder / name, {key: tensors[key] for key in keys}, metadata)
        weight_map |= dict.fromkeys(keys, name)
    total = sum(tensor.nbytes for tensor in tensors.values())
    index = {"metadata": {"total_size": total}, "weight_map": weight_map}
    return write_json(folder / f"{stem}.safetensors.index{tag}.json", index)


def _shards(tensors: Mapping[str, Outgoing], limit: int | None) -> Iterable[list[str]]:
    if limit is not None and limit < 1:
        raise InputError(f"max_shard_size is {limit} bytes", remedy="give a positive number of bytes")
    keys: list[str] = []
    size = 0
    for key, tensor in tensors.items():
        if keys and limit is not None and size + tensor.nbytes > limit:
            yield keys
            keys, size = [], 0
        keys.append(key)
        size += tensor.nbytes
    yield keys


@contextmanager
def replacing_folder(path: Path, *, is_ours: Callable[[Path], bool]) -> Iterator[Path]:
    """Give a new folder to fill; it takes the place of `path` when the block ends well, else nothing changes.

    An existing folder is replaced only when it is empty or `is_ours` recognises it: nobody's pictures are deleted.
    """
    if path.exists() and not path.is_dir():
        raise CheckpointError("is a file, not a folder", path=path, remedy="name another folder")
    if path.is_dir() and any(path.iterdir()) and not is_ours(path):
        raise CheckpointError("holds other things than a model", path=path, remedy="name a new or an empty folder")
    temporary, old = (path.with_name(f".{path.name}.{os.getpid()}.{end}") for end in ("part", "old"))
    try:
        temporary.mkdir(parents=True)
        yield temporary
        for folder in [temporary, *(p for p in temporary.rglob("*") if p.is_dir())]:
            sync_folder(folder)
        if path.exists():
            path.rename(old)
        temporary.rename(path)
        sync_folder(path.parent)
    except OSError as error:
        raise CheckpointError(
            f"could not be written ({error.strerror})", path=path, remedy="check disk and permissions"
        ) from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
        if old.exists() and not path.exists():
            old.rename(path)
        shutil.rmtree(old, ignore_errors=True)
