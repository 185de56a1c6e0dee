"""Bytes -> named tensors that stay in their file until asked for.

`open_file` and `open_weights` read headers alone, check them against the rules of the format before any tensor is
touched (so that a broken file is refused in milliseconds), and return `Tensors`, a mapping whose values are
memory-mapped views.
"""

import ctypes
import json
import re
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from ctypes import c_size_t, c_void_p
from dataclasses import dataclass
from functools import partial
from math import prod
from mmap import PAGESIZE
from pathlib import Path
from typing import Any, TypeGuard

import torch
from safetensors import SafetensorError, safe_open

from safelight.checkpoint.errors import CorruptFile, WrongModel
from safelight.errors import CheckpointError, nearest

HEADER_LIMIT = 100_000_000  # bytes: safetensors' own limit
DTYPES = {
    "F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16,
    "I64": torch.int64, "I32": torch.int32, "I16": torch.int16, "I8": torch.int8, "U8": torch.uint8,
    "U16": torch.uint16, "U32": torch.uint32, "U64": torch.uint64, "BOOL": torch.bool, "C64": torch.complex64,
    "F8_E4M3": torch.float8_e4m3fn, "F8_E5M2": torch.float8_e5m2,
}  # fmt: skip
PICKLES = {".ckpt", ".pt", ".pth", ".bin"}
SUFFIXES = {".safetensors", *PICKLES}
STEMS = ("diffusion_pytorch_model", "model", "pytorch_model")  # diffusers' and transformers' file names
MADVISE = ctypes.CDLL(None).madvise if sys.platform == "linux" else None
MADV_DONTNEED = 4  # Linux's: pages of a private mapping are forgotten
_AGAIN = "download or copy the file again"


@dataclass(frozen=True, slots=True)
class Entry:
    """One tensor in a file: what it is, and how to get it (a view of mapped memory wherever that can be)."""

    dtype: torch.dtype
    shape: tuple[int, ...]
    path: Path
    read: Callable[[], torch.Tensor]


class Tensors(Mapping[str, torch.Tensor]):
    """Tensors by name, read when asked for. `entries` tells dtype, shape and file of each without reading it."""

    def __init__(self, path: Path, entries: Mapping[str, Entry], metadata: Mapping[str, str] | None = None) -> None:
        self.path, self.entries, self.metadata = path, dict(entries), dict(metadata or {})

    def __getitem__(self, key: str) -> torch.Tensor:
        return self.entries[key].read()

    def __iter__(self) -> Iterator[str]:
        return iter(self.entries)

    def __len__(self) -> int:
        return len(self.entries)

    def __contains__(self, key: object) -> bool:
        return key in self.entries

    def shape(self, key: str) -> tuple[int, ...]:
        """The shape of a tensor, from the header alone."""
        return self.entries[key].shape

    def renamed(self, names: Mapping[str, str]) -> "Tensors":
        """The tensors named by `names` (new name -> name here), under their new names."""
        return Tensors(self.path, {new: self.entries[old] for new, old in names.items()}, self.metadata)

    def under(self, prefix: str) -> "Tensors":
        """The tensors whose names start with `prefix`, without it."""
        return self.renamed({key[len(prefix) :]: key for key in self.entries if key.startswith(prefix)})


def open_file(path: Path) -> Tensors:
    """Open one file of weights: safetensors, or a pickle (described by a locked-up child process, see `unpickle`).

    The content decides, not the name. Raises CheckpointError where there is no such file, CorruptFile where a rule of
    the format is broken, UnsafePickle where a pickle asks for more than tensors, WrongModel for GGUF and the like.
    """
    start = _first_bytes(path)
    if start[:4] == b"PK\3\4" or (path.suffix in PICKLES and start[8:9] != b"{"):
        from safelight.checkpoint.pickles import open_pickle

        return open_pickle(path)
    return open_safetensors(path)


def _first_bytes(path: Path) -> bytes:
    try:
        with path.open("rb") as file:
            start = file.read(64)
    except FileNotFoundError:
        siblings = [p.name for p in path.parent.iterdir() if p.suffix in SUFFIXES] if path.parent.is_dir() else []
        raise CheckpointError("no such file", path=path, remedy=nearest(path.name, siblings)) from None
    except OSError as error:
        raise CheckpointError(
            f"cannot be read ({error.strerror})", path=path, remedy="check its permissions"
        ) from error
    if start.startswith(b"version https://git-lfs"):
        raise CorruptFile(
            "is a git-lfs pointer, not the file itself", path=path, remedy="run `git lfs pull` in its folder"
        )
    if start.startswith(b"GGUF"):
        raise WrongModel("is a GGUF file, whose quantised blocks Safelight does not read", path=path,
                         remedy="use the model's .safetensors file")  # fmt: skip
    if start.lstrip()[:1] == b"<":
        raise CorruptFile("is a web page, not a model: the download failed", path=path, remedy=_AGAIN)
    return start


def open_safetensors(path: Path) -> Tensors:
    """Open a safetensors file once its header has passed every rule. Raises CorruptFile naming tensor and rule."""
    header, metadata = read_header(path)
    try:
        handle = safe_open(path, framework="pt")
    except (SafetensorError, OSError) as error:
        raise CorruptFile(f"the safetensors library refuses it: {error}", path=path, remedy=_AGAIN) from error
    entries = {
        key: Entry(DTYPES[dtype], shape, path, partial(handle.get_tensor, key))
        for key, (dtype, shape) in header.items()
    }
    return Tensors(path, entries, metadata)


def let_go(tensor: torch.Tensor) -> None:
    """Drop a tensor of a mapped file from this process's memory. Whoever reads it again gets it from the file."""
    if MADVISE is None or not tensor.is_contiguous():
        return
    start = tensor.data_ptr()
    first, last = -(-start // PAGESIZE) * PAGESIZE, (start + tensor.nbytes) // PAGESIZE * PAGESIZE
    if last > first:
        MADVISE(c_void_p(first), c_size_t(last - first), MADV_DONTNEED)


Header = dict[str, tuple[str, tuple[int, ...]]]


def read_header(path: Path) -> tuple[Header, dict[str, str]]:
    """Read and check a safetensors header: {key: (dtype, shape)} and the metadata.

    The rules are the format's own: the header's length fits the file and 100 MB, it is one JSON object without
    duplicate keys, shape x dtype is each tensor's length, and the tensors fill the data without overlap, hole or
    remainder.
    """
    size = path.stat().st_size
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        if size < 8 or length > min(HEADER_LIMIT, size - 8):
            what = f"cut short, or not safetensors: {size} bytes cannot hold a header of {length} bytes"
            raise CorruptFile(what, path=path, remedy=_AGAIN)
        text = file.read(length)
    header = _parse(text, path)
    metadata = header.pop("__metadata__", {})
    if not isinstance(metadata, dict) or not all(isinstance(value, str) for value in metadata.values()):
        raise CorruptFile("__metadata__ must map strings to strings", path=path, key="__metadata__", remedy=_AGAIN)
    spans = {key: _span(key, value, path) for key, value in header.items()}
    _check_tiling(spans, size - 8 - length, path)
    return {key: (value["dtype"], tuple(value["shape"])) for key, value in header.items()}, metadata


def _parse(text: bytes, path: Path) -> dict[str, Any]:
    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        table = dict(pairs)
        if len(table) != len(pairs):
            raise ValueError("a key stands twice")
        return table

    try:
        if text[:1] != b"{":
            raise ValueError("it does not begin with {")
        header = json.loads(text.decode(), object_pairs_hook=unique)
    except (ValueError, RecursionError) as error:
        raise CorruptFile(
            f"its header is not the JSON that safetensors asks for: {error}", path=path, remedy=_AGAIN
        ) from error
    return dict(header)


def _span(key: str, value: Any, path: Path) -> tuple[int, int]:
    """Where a tensor's bytes lie, once dtype, shape and length agree."""
    fields = ("dtype", "shape", "data_offsets")
    dtype, shape, offsets = (value.get(name) if isinstance(value, dict) else None for name in fields)
    if not _whole_numbers(shape) or not _whole_numbers(offsets) or len(offsets) != 2:
        raise CorruptFile(f"tensor {key!r} lacks a proper shape or data_offsets", path=path, key=key, remedy=_AGAIN)
    if dtype not in DTYPES:
        what = f"tensor {key!r} has dtype {dtype!r}; {nearest(str(dtype), DTYPES)}"
        raise CorruptFile(what, path=path, key=key, remedy="update Safelight, or convert the tensor")
    begin, end = offsets
    if end - begin != prod(shape) * DTYPES[dtype].itemsize:
        what = f"tensor {key!r}: {end - begin} bytes are not shape {shape} of {dtype}"
        raise CorruptFile(what, path=path, key=key, remedy=_AGAIN)
    return begin, end


def _whole_numbers(value: Any) -> TypeGuard[list[int]]:
    return isinstance(value, list) and all(type(n) is int and n >= 0 for n in value)


def _check_tiling(spans: dict[str, tuple[int, int]], length: int, path: Path) -> None:
    position = 0
    for key, (begin, end) in sorted(spans.items(), key=lambda item: item[1]):
        if begin != position:
            what = f"tensor {key!r} {'overlaps' if begin < position else 'leaves a hole after'} the one before it"
            raise CorruptFile(what, path=path, key=key, remedy=_AGAIN)
        if end > length:
            what = f"cut short: tensor {key!r} ends at byte {end} of {length} bytes of data"
            raise CorruptFile(what, path=path, key=key, remedy=_AGAIN)
        position = end
    if position != length:
        raise CorruptFile(f"{length - position} bytes follow the last tensor", path=path, remedy=_AGAIN)


def in_folder(path: Path, usual: Sequence[str]) -> Path:
    """The file that is meant by a path: of a folder the first of the `usual` names that it has, or its only one."""
    if not path.is_dir():
        return path
    there = [path / name for name in usual if (path / name).is_file()]
    others = [file for file in sorted(path.iterdir()) if file.suffix in SUFFIXES]
    return next(iter(there or (others if len(others) == 1 else [])), path / usual[0])


def open_weights(folder: Path, variant: str | None = None) -> Tensors:
    """Open the weights in one folder of a diffusers model: one file, or shards with their index; safetensors first.

    `variant` is the tag in the file names (`diffusion_pytorch_model.fp16.safetensors` has "fp16").
    """
    tag = f".{variant}" if variant else ""
    for kind in ("safetensors", "bin"):
        for stem in STEMS:
            if (file := folder / f"{stem}{tag}.{kind}").exists():
                return open_file(file)
            if (index := folder / f"{stem}.{kind}.index{tag}.json").exists():
                return open_shards(index)
    raise _no_weights(folder, variant)


def _no_weights(folder: Path, variant: str | None) -> CheckpointError:
    names = [file.name for file in folder.iterdir()] if folder.is_dir() else []
    pattern = re.compile(rf"(?:{'|'.join(STEMS)})(?:\.(\w+?))?(?:-\d+-of-\d+)?\.(?:safetensors|bin)")
    found = sorted({match[1] or "" for name in names if (match := pattern.fullmatch(name))})
    what = f"holds no weights of variant {variant!r}" if variant else "holds no weights"
    choices = [f"variant={name!r}" if name else "no variant" for name in found]
    remedy = (
        f"ask for {' or '.join(choices)}"
        if found
        else "expected are diffusion_pytorch_model.safetensors or model.safetensors"
    )
    return CheckpointError(what, path=folder, remedy=remedy)


def open_shards(index: Path) -> Tensors:
    """Open the shards that a `*.index.json` lists; each tensor must be where the index says, and nowhere else."""
    weight_map = read_json(index).get("weight_map")
    names = weight_map.values() if isinstance(weight_map, dict) else [None]
    if not isinstance(weight_map, dict) or not all(
        isinstance(n, str) and Path(n).name == n and n not in ("", "..") for n in names
    ):
        raise CorruptFile("its weight_map must map tensor names to names of files beside it", path=index, remedy=_AGAIN)
    entries: dict[str, Entry] = {}
    for name in sorted(set(weight_map.values())):
        shard = open_file(index.parent / name)
        for key in shard:
            if weight_map.get(key) != name:
                what = f"shard {name} holds {key!r}, which the index places in {weight_map.get(key)}"
                raise CorruptFile(what, path=index, key=key, remedy=_AGAIN)
        entries |= shard.entries
    for key in weight_map:
        if key not in entries:
            raise CorruptFile(f"shard {weight_map[key]} lacks {key!r}", path=index, key=key, remedy=_AGAIN)
    return Tensors(index, entries)


def read_json(path: Path, limit: int = 8 << 20) -> dict[str, Any]:
    """Read a small JSON object (a config, an index). Raises CheckpointError naming the file."""
    try:
        text = path.read_bytes() if path.stat().st_size <= limit else b"too large"
        value = json.loads(text)
    except FileNotFoundError:
        raise CheckpointError("no such file", path=path, remedy="the folder is incomplete; download it again") from None
    except (OSError, ValueError, RecursionError) as error:
        raise CorruptFile(f"is not readable JSON ({error})", path=path, remedy=_AGAIN) from error
    if not isinstance(value, dict):
        raise CorruptFile(f"holds a JSON {type(value).__name__}, not an object", path=path, remedy=_AGAIN)
    return value
