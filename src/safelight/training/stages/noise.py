"""The random numbers of training: each sample has its own, whatever batch, machine or process it is in.

Sample n of a run gets the same noise and the same timestep in one process with a batch of 8, in two with 4 each, in
eight passes of 1, and again after a resume, because its numbers depend on (seed, n) and on nothing before. The noise
itself is drawn on the training device (a graphics card draws other numbers than the CPU).
"""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from safelight.training.data.order import Draws

FIRST_STREAM = 1 << 16  # the streams below are the data's


class BatchNoise:
    """Random numbers for the samples `numbers` of step `step`. Every call gives new ones, in the order of the calls."""

    def __init__(
        self,
        seed: int,
        numbers: Sequence[int],
        *,
        step: int = 0,
        places: Sequence[int] | None = None,
        total: int | None = None,
        device: torch.device | str = "cpu",
    ) -> None:
        """numbers: of the B samples, counted through the run. places: of each in the step's global batch of `total`."""
        self.seed, self.numbers, self.step, self.device = seed, list(numbers), step, torch.device(device)
        self.places = list(range(len(self.numbers))) if places is None else list(places)
        self.total = len(self.numbers) if total is None else total
        self._stream = FIRST_STREAM
        self._generator = torch.Generator(self.device)

    def normal(self, *shape: int) -> Tensor:
        """Standard normal noise (B, *shape), float32, on the device."""
        noise = torch.empty(len(self.numbers), *shape, device=self.device)
        stream = self._next()
        for row, number in zip(noise, self.numbers, strict=True):
            words = np.random.SeedSequence([self.seed, number, stream]).generate_state(1, np.uint64)
            self._generator.manual_seed(int(words[0] >> 1))  # no device is asked: a seed is the host's affair
            row.normal_(generator=self._generator)
        return noise

    def uniform(self) -> Tensor:
        """Numbers from [0, 1), (B,), float64, on the CPU."""
        stream = self._next()
        return torch.tensor([Draws(self.seed, n, stream).unit() for n in self.numbers], dtype=torch.float64)

    def stratified(self) -> Tensor:
        """Like `uniform`, but one from each of the `total` equal parts of [0, 1) over the whole global batch.

        Which sample has which part is its place in the batch: the data's order is random already.
        """
        return (self.uniform() + torch.tensor(self.places, dtype=torch.float64)) / self.total

    def _next(self) -> int:
        self._stream += 1
        return self._stream - 1
