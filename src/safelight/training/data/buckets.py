"""Aspect buckets: training on wide and tall pictures without cutting off their ends."""

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

from safelight.errors import InputError
from safelight.training.data.framing import Size
from safelight.training.data.order import Order


@dataclass(frozen=True)
class Buckets:
    """Sizes of about equal area and different shape; each picture goes to the one that cuts least of it off.

    `size` is the side of the square among them; every side is a multiple of `step`, by default an eighth of the size,
    and no shape is longer than `max_aspect`. (The scheme of NovelAI's trainer, 2022.) With size 512: 512x512, 576x448,
    640x384, ...
    """

    size: int
    step: int = 0
    max_aspect: float = 2.0

    def __post_init__(self) -> None:
        if self.step == 0:
            object.__setattr__(self, "step", max(self.size // 8, 1))
        if self.step < 1 or self.size < self.step or self.size % self.step or self.max_aspect < 1:
            raise InputError(
                f"buckets of size {self.size} in steps of {self.step} up to aspect {self.max_aspect} cannot be made",
                remedy="the size must be a multiple of the step, and max_aspect at least 1",
            )

    @cached_property
    def sizes(self) -> tuple[Size, ...]:
        """Every bucket's (width, height), the square first, then by width."""
        area, sides = self.size**2, range(self.step, self.size * 8, self.step)
        pairs = {(width, area // width // self.step * self.step) for width in sides}
        wide = sorted({(w, h) for w, h in pairs if w > h >= self.step and w <= self.max_aspect * h})
        return ((self.size, self.size), *wide, *((h, w) for w, h in wide))

    def of(self, size: Size, among: Sequence[int] | None = None) -> int:
        """Give the number of the bucket (`among` those allowed) whose shape is nearest to a picture's `size`."""
        log_aspect = math.log(size[0] / size[1])
        sizes = self.sizes
        return min(
            range(len(sizes)) if among is None else among,
            key=lambda i: abs(math.log(sizes[i][0] / sizes[i][1]) - log_aspect),
        )


class BucketOrder:
    """Which entry is sample n, and at which size, when every batch has one shape.

    Each epoch deals the entries of every bucket anew into batches, and shuffles the batches of all buckets. Up to
    `batch_size` - 1 entries of a bucket sit an epoch out, others in each epoch; none comes twice in one. A bucket with
    too few entries for a batch gives them to the bucket nearest in shape that has enough.
    """

    def __init__(self, buckets: Buckets, sizes: Sequence[Size], batch_size: int) -> None:
        if not 0 < batch_size <= len(sizes):
            what = f"{len(sizes)} pictures in buckets do not fill a batch of {batch_size}"
            raise InputError(what, remedy="choose a smaller batch, or do without buckets")
        self.buckets, self.picture_sizes, self.batch_size = buckets, sizes, batch_size

    def __len__(self) -> int:
        return len(self._deals) * self.batch_size

    def index(self, seed: int, n: int) -> tuple[int, Size]:
        """Give (the entry, its width and height) of sample n."""
        epoch, position = divmod(n, len(self))
        row, column = divmod(position, self.batch_size)
        bucket, deal = self._deals[Order(seed, len(self._deals)).index(epoch, row)]
        members = self.members[bucket]
        place = Order(seed + 1 + bucket, len(members)).index(epoch, deal * self.batch_size + column)
        return members[place], self.buckets.sizes[bucket]

    @cached_property
    def members(self) -> dict[int, list[int]]:
        """The entries of each bucket."""
        nearest = [self.buckets.of(size) for size in self.picture_sizes]
        counts = Counter(nearest)
        full = [bucket for bucket, count in sorted(counts.items()) if count >= self.batch_size]
        full = full or [counts.most_common(1)[0][0]]
        members: dict[int, list[int]] = {bucket: [] for bucket in full}
        for i, size in enumerate(self.picture_sizes):
            members[self.buckets.of(size, full)].append(i)
        return members

    @cached_property
    def _deals(self) -> list[tuple[int, int]]:
        """Every batch of an epoch: (its bucket, its number among the bucket's)."""
        return [(b, k) for b, entries in self.members.items() for k in range(len(entries) // self.batch_size)]
