"""Large results written where those lay that nobody reads any more, so that the system need not clear memory for each.

The C library hands blocks above 32 MB (glibc's DEFAULT_MMAP_THRESHOLD_MAX) back to the system as soon as they are
free, and asks for them anew: every page of a new one costs a fault and is filled with zeros first. In a decoder of
512x512 pixels, where a map takes 134 MB, that is a fifth of the time. Within `reused()` such memory is kept instead. It
is free once a tensor and all views of it are gone, and grows, its pages being kept, when more is wanted. At the end
some of it waits for the next `reused()`; if the system runs short of pages meanwhile, it takes these.
"""

import mmap as pages
import sys
import weakref
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from math import prod
from mmap import mmap
from threading import Lock
from typing import Any

import numpy as np
import torch
from torch import Tensor

LARGE = 32 * 2**20  # bytes, from which on the memory of a result is kept
IDLE = 512 * 2**20  # bytes at most that wait for the next `reused`
GROWS = sys.platform in ("linux", "win32")
_one_at_a_time = Lock()
_idle: list[mmap] = []


@dataclass
class Block:
    """Memory, and who reads it: `reader()` is None when no tensor does."""

    memory: mmap
    reader: Callable[[], Any]


_kept: ContextVar[list[Block] | None] = ContextVar("kept", default=None)


@contextmanager
def reused() -> Iterator[None]:
    """Keep the memory of large results within, for later ones; at the end all goes that no tensor needs, or waits.

    It holds for one thread (or task). Within another `reused` this does nothing.
    """
    if _kept.get() is not None:
        yield
        return
    with _one_at_a_time:
        blocks = [Block(memory, lambda: None) for memory in _idle]
        _idle.clear()
    token = _kept.set(blocks)
    try:
        yield
    finally:
        _kept.reset(token)
        _rest(blocks)


def release() -> None:
    """Give back the memory that waits for the next `reused`."""
    with _one_at_a_time:
        _idle.clear()


def _rest(blocks: list[Block]) -> None:
    """Let the memory that nobody reads wait, as much of it as may. Its contents are lost from now on."""
    free = [block.memory for block in blocks if block.reader() is None]
    blocks.clear()
    with _one_at_a_time:
        for memory in free:
            if hasattr(pages, "MADV_FREE") and len(memory) + sum(map(len, _idle)) <= IDLE:
                memory.madvise(pages.MADV_FREE)
                _idle.append(memory)


def empty(shape: Sequence[int], dtype: torch.dtype) -> Tensor:
    """As torch.empty, on the CPU: within `reused` in memory that is free, if it is large and there is some."""
    size, blocks = prod(shape) * dtype.itemsize, _kept.get()
    if blocks is None or size < LARGE:
        return torch.empty(shape, dtype=dtype)
    memory = _free(blocks, size)
    reader = np.frombuffer(memory, np.uint8, size)
    blocks.append(Block(memory, weakref.ref(reader)))
    return torch.from_numpy(reader).view(dtype).view(shape)


def _free(blocks: list[Block], size: int) -> mmap:
    """Take the smallest free memory that is large enough; or else enlarge the largest; or else get some."""
    free = sorted((block for block in blocks if block.reader() is None), key=lambda block: len(block.memory))
    fitting = [block for block in free if len(block.memory) >= size]
    if not free or not (fitting or GROWS):
        return private(size)
    block = fitting[0] if fitting else free[-1]
    blocks.remove(block)
    if not fitting:
        block.memory.resize(size)
    return block.memory


def private(size: int) -> mmap:
    """Memory of this process alone: what it may grow by is no other's."""
    if sys.platform == "win32":
        return mmap(-1, size)
    return mmap(-1, size, flags=pages.MAP_PRIVATE | pages.MAP_ANONYMOUS)
