"""Which entry comes when, and with which random choices: pure functions, with nothing to save or restore.

A run that is resumed at sample n reads what the uninterrupted run would have read from n on, on any number of machines
and worker processes, because neither the order nor the choices depend on what was asked for before.
"""

from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate
from math import nextafter
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from safelight.errors import InputError

T = TypeVar("T")
Indices = NDArray[np.uint64]

ROUNDS = 6  # four make a strong pseudo-random permutation (Luby & Rackoff 1988); two more, as the halves are narrow
WORD = (1 << 64) - 1


@dataclass(frozen=True)
class Order:
    """A new random permutation of `length` entries in every epoch, computed place by place.

    A Feistel network permutes the numbers below the next power of four, and is walked in cycles until it lands below
    `length` (Black & Rogaway 2002): no table is kept, whatever the length. Raises InputError for a length below 1.
    """

    seed: int
    length: int

    def __post_init__(self) -> None:
        if self.length < 1:
            raise InputError("an order needs at least one entry", remedy="is the collection empty?")

    def index(self, epoch: int, position: int) -> int:
        """Give the entry at `position` (0 to length-1) of an epoch (0 or more)."""
        if not 0 <= position < self.length:
            raise InputError(f"position {position} is outside an epoch of {self.length} entries", remedy="use `at`")
        return int(self.indices(epoch, np.array([position]))[0])

    def at(self, n: int) -> int:
        """Give the entry of the n-th sample of all, counted through the epochs."""
        return self.index(*divmod(n, self.length))

    def many(self, numbers: Sequence[int]) -> list[int]:
        """Like `at`, of many samples at once."""
        found = np.empty(len(numbers), np.int64)
        epochs, positions = np.divmod(np.asarray(numbers, np.int64), self.length)
        for epoch in set(epochs.tolist()):
            found[epochs == epoch] = self.indices(epoch, positions[epochs == epoch])
        return found.tolist()

    def indices(self, epoch: int, positions: NDArray[np.integer]) -> NDArray[np.int64]:
        """Like `index`, of many positions at once."""
        half = max((self.length - 1).bit_length() + 1, 2) // 2
        keys = _mix(np.arange(ROUNDS, dtype=np.uint64) ^ _mix(_word(self.seed + int(_mix(_word(epoch))))))
        found = _feistel(positions.astype(np.uint64), keys, half)
        while (outside := found >= self.length).any():
            found[outside] = _feistel(found[outside], keys, half)
        return found.astype(np.int64)


def _feistel(x: Indices, keys: Indices, half: int) -> Indices:
    mask = _word((1 << half) - 1)
    left, right = x >> _word(half), x & mask
    for key in keys:
        left, right = right, left ^ (_mix(right ^ key) & mask)
    return (left << _word(half)) | right


def _word(x: int) -> np.uint64:
    return np.uint64(x & WORD)


def _mix(x: Indices | np.uint64) -> Indices:
    """Scramble 64-bit words: the finaliser of SplitMix64 (Steele et al. 2014)."""
    with np.errstate(over="ignore"):
        x = np.asarray(x + np.uint64(0x9E3779B97F4A7C15))
        x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))


class Draws:
    """The random choices of one sample: a stream that belongs to (seed, number), the same on every machine.

    It reads the raw output of Philox, which NumPy keeps the same through its versions (`Generator`'s methods it may
    change). `stream` tells apart choices that must not move each other, such as a picture's and its caption's.
    """

    BLOCK = 64

    def __init__(self, seed: int, number: int, stream: int = 0) -> None:
        key = np.array([seed & WORD, number & WORD], np.uint64)
        self._bits = np.random.Philox(key=key, counter=np.array([0, 0, 0, stream], np.uint64))
        self._units: list[float] = []

    def unit(self) -> float:
        """Draw from [0, 1)."""
        if not self._units:
            words = self._bits.random_raw(self.BLOCK)
            self._units = ((words >> np.uint64(11)) * 2.0**-53).tolist()[::-1]
        return self._units.pop()

    def between(self, low: float, high: float) -> float:
        """Draw from [low, high)."""
        return low + (high - low) * self.unit()

    def below(self, n: int) -> int:
        """Draw a whole number from 0 to n-1."""
        return int(self.unit() * n)

    def chance(self, probability: float) -> bool:
        """Say yes with this probability. Draws even when it is 0 or 1, so that options do not move later choices."""
        return self.unit() < probability

    def choice(self, options: Sequence[T]) -> T:
        """Draw one of the options."""
        return options[self.below(len(options))]

    def weighted(self, options: Sequence[T], weights: Sequence[float]) -> T:
        """Draw one of the options, each in proportion to its weight (0 or more, not all 0)."""
        sums = list(accumulate(weights))
        return options[bisect_right(sums, min(self.unit() * sums[-1], nextafter(sums[-1], 0)))]
