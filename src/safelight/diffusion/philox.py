"""What `torch.randn(..., device="cuda")` draws, in NumPy: Philox4x32-10 and the Box-Muller transform.

A counter-based generator (Salmon et al. 2011, "Parallel random numbers: as easy as 1, 2, 3"): a block of four words is
a function of a counter of four words and a key of two, the seed. torch gives each GPU thread its own counter: word 2 is
the thread, word 0 counts the blocks that were used up before. A thread makes four normal numbers of a block; of a
tensor with at most as many numbers as the GPU has threads, each takes the first of its four and drops the rest.

The arithmetic is AUTOMATIC1111's for its random source "NV": the words are exact and the transform is taken in float64,
then rounded. A GPU takes it in float32, with a fast sine of its own, so its numbers differ by about 1e-6.
"""

from collections.abc import Sequence
from math import prod

import numpy as np
from numpy.typing import NDArray

Words = NDArray[np.uint32]

MULTIPLIERS = (np.uint64(0xD2511F53), np.uint64(0xCD9E8D57))
WEYL = (0x9E3779B9, 0xBB67AE85)  # the golden ratio and sqrt(3) - 1
ROUNDS = 10
BLOCK = 256  # threads in a block of torch's kernel: the grid is as many whole ones as the numbers need
TWO_POW32_INV = np.float64(np.float32(2.3283064e-10))  # curand's constants, 2^-32 and 2π 2^-32, as it rounds them
TWO_POW32_INV_2PI = np.float64(np.float32(2.3283064e-10 * 6.2831855))


def philox4x32(counter: Words, key: int) -> Words:
    """Turn counters (4, N) into as many blocks of random words (4, N). `key`: 64 bits, of which the low word is first.

    >>> [f"{int(word):08x}" for word in philox4x32(np.zeros((4, 1), np.uint32), 0)[:, 0]]  # Random123's known answer
    ['6627e8d5', 'e169c58d', 'bc57ac4c', '9b00dbd8']
    """
    a, b, c, d = counter.astype(np.uint64)
    low, high = key & 0xFFFFFFFF, key >> 32 & 0xFFFFFFFF
    word, half = np.uint64(0xFFFFFFFF), np.uint64(32)
    for _ in range(ROUNDS):
        p, q = a * MULTIPLIERS[0], c * MULTIPLIERS[1]
        a, b, c, d = q >> half ^ b ^ np.uint64(low), q & word, p >> half ^ d ^ np.uint64(high), p & word
        low, high = low + WEYL[0] & 0xFFFFFFFF, high + WEYL[1] & 0xFFFFFFFF
    return np.stack([a, b, c, d]).astype(np.uint32)


def box_muller(x: Words, y: Words, *, cosine: bool | NDArray[np.bool_] = False) -> NDArray[np.float32]:
    """Two words to one normal number: the pair's sine, or its cosine (Box & Muller 1958, as curand has it)."""
    u = x * TWO_POW32_INV + TWO_POW32_INV / 2
    v = y * TWO_POW32_INV_2PI + TWO_POW32_INV_2PI / 2
    return (np.sqrt(-2.0 * np.log(u)) * np.where(cosine, np.cos(v), np.sin(v))).astype(np.float32)


class CudaGenerator:
    """The stream of a CUDA `torch.Generator` with one seed. `randn` gives what successive calls of `torch.randn` do.

    threads: how many threads the GPU's kernel starts at most, its multiprocessors times the threads each can hold
    (RTX 4090: 196,608). It matters for tensors of more numbers than that alone; None knows no end of threads.
    """

    def __init__(self, seed: int, threads: int | None = None) -> None:
        self.key, self.threads, self.used = seed % 2**64, threads, 0

    def randn(self, shape: Sequence[int], *, start: int = 0) -> NDArray[np.float32]:
        """Standard normal numbers, float32, of a shape; `start` is the place of the first in a larger tensor."""
        n = prod(shape)
        place = np.arange(start, start + n, dtype=np.uint64)
        grid = (start + n + BLOCK - 1) // BLOCK * BLOCK
        threads = np.uint64(max(min(grid, self.threads or grid), 1))
        thread, turn = place % threads, place // threads  # a thread's first four numbers come from one block
        blocks = self.used + turn // np.uint64(4)
        counter = np.stack([blocks & np.uint64(0xFFFFFFFF), blocks >> np.uint64(32), thread, np.zeros_like(thread)])
        words = philox4x32(counter.astype(np.uint32), self.key)
        second = turn % np.uint64(4) >= 2
        x, y = np.where(second, words[2], words[0]), np.where(second, words[3], words[1])
        self.used += (max(start + n, 1) - 1) // (int(threads) * 4) + 1
        return box_muller(x, y, cosine=turn % np.uint64(2) == 1).reshape(shape)
