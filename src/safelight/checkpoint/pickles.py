"""`.ckpt`, `.pt`, `.pth` and `.bin` files: described by a child process, mapped here. This process never unpickles.

The child (`unpickle.py`) says where in the file each tensor lies. Its answer is checked like any other input, and the
file is then mapped as a safetensors file is: no second copy on disk, none in memory. torch pads its zip records so that
they can be mapped; the tensors of the format before torch 1.6 lie at odd addresses and are copied when read.
"""

import json
import mmap
import os
import subprocess
import sys
from functools import partial
from math import prod
from pathlib import Path
from typing import Any, BinaryIO

import torch

from safelight.checkpoint.errors import CorruptFile, UnsafePickle
from safelight.checkpoint.files import DTYPES, Entry, Tensors

CHILD = Path(__file__).with_name("unpickle.py")
PATIENCE = 120  # seconds of wall time for the child
_TRUST = "use the .safetensors file of this model instead; if you trust this one, have its author convert it"


def open_pickle(path: Path) -> Tensors:
    """Open a file written by torch.save, zip or legacy format; `metadata` holds its scalars ("global_step", "epoch").

    Raises UnsafePickle (`key` names the global) where it asks for anything but tensors and plain containers,
    CorruptFile where it is cut short or malformed.
    """
    with path.open("rb") as file:
        answer = describe(file, path)
        if not path.stat().st_size:
            raise CorruptFile("is empty", path=path, remedy="download or copy the file again")
        mapped = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_COPY)
    entries = {key: _entry(key, value, mapped, path) for key, value in answer["tensors"].items()}
    if not entries:
        raise CorruptFile("holds no tensors", path=path, remedy="this is not a model's file")
    return Tensors(path, entries, {key: str(value) for key, value in answer["scalars"].items()})


def describe(file: BinaryIO, path: Path) -> dict[str, Any]:
    """Have the child describe an open file: {"tensors": {name: {dtype, shape, strides, start}}, "scalars": {...}}."""
    environment = {
        name: os.environ[name] for name in ("SYSTEMROOT",) if name in os.environ
    }  # Windows cannot do without
    command = [sys.executable, "-I", "-S", str(CHILD)]
    try:
        done = subprocess.run(command, stdin=file, capture_output=True, timeout=PATIENCE, env=environment, check=False)
    except subprocess.TimeoutExpired:
        raise UnsafePickle(f"could not be described within {PATIENCE} s", path=path, remedy=_TRUST) from None
    try:
        answer = json.loads(done.stdout)
    except ValueError:
        what = f"stopped the process that read it (exit status {done.returncode})"
        raise UnsafePickle(what, path=path, remedy=_TRUST) from None
    if refused := answer.get("refused"):
        kind = UnsafePickle if refused == "unsafe" else CorruptFile
        remedy = _TRUST if refused == "unsafe" else "download the file again, or use the model's .safetensors file"
        raise kind(answer["message"], path=path, key=answer["name"] or None, remedy=remedy)
    return dict(answer)


def _entry(key: str, value: dict[str, Any], mapped: mmap.mmap, path: Path) -> Entry:
    dtype, shape, strides, start = (
        DTYPES[value["dtype"]],
        tuple(value["shape"]),
        tuple(value["strides"]),
        value["start"],
    )
    reach = 1 + sum((size - 1) * stride for size, stride in zip(shape, strides, strict=True)) if prod(shape) else 0
    numbers = [*shape, *strides, start]
    if not all(type(n) is int and n >= 0 for n in numbers) or start + reach * dtype.itemsize > len(mapped):
        raise CorruptFile(f"tensor {key!r} lies outside the file", path=path, key=key, remedy="download the file again")
    return Entry(dtype, shape, path, partial(_view, mapped, dtype, shape, strides, start, reach))


def _view(
    mapped: mmap.mmap, dtype: torch.dtype, shape: tuple[int, ...], strides: tuple[int, ...], start: int, reach: int
) -> torch.Tensor:
    """The tensor as a view of the mapped file; as a copy where its address suits no machine word."""
    if not reach:
        return torch.empty(shape, dtype=dtype)
    if start % dtype.itemsize:
        copy = bytearray(mapped[start : start + reach * dtype.itemsize])
        return torch.frombuffer(copy, dtype=dtype).as_strided(shape, strides)
    return torch.frombuffer(mapped, dtype=dtype, count=reach, offset=start).as_strided(shape, strides)
