"""Seeded noise. Every picture has its own stream, so picture k of a batch is the picture of seed + k alone.

Noise is drawn on the CPU and then moved, hence it is the same on every device. Both providers here are called as
`noise(sigma, sigma_next)` and give independent unit-variance noise (B, C, H, W) for intervals that do not overlap.
"""

from collections.abc import Sequence
from math import log, sqrt

import numpy as np
import torch
from torch import Tensor

from safelight.errors import InputError


class SeededNoise:
    """Fresh noise at each call, from one `torch.Generator` per picture: the stream that diffusers draws on the CPU."""

    def __init__(
        self,
        seeds: Sequence[int],
        shape: Sequence[int],
        *,
        device: torch.device | str = "cpu",
        dtype: torch.dtype = torch.float32,
    ) -> None:
        """seeds: one for each picture. shape: of one picture, (C, H, W)."""
        self.shape, self.device, self.dtype = tuple(shape), device, dtype
        self.generators = [torch.Generator().manual_seed(seed) for seed in seeds]

    def draw(self) -> Tensor:
        """The next noise of each stream, (B, C, H, W)."""
        noise = [torch.randn(self.shape, generator=g, dtype=self.dtype) for g in self.generators]
        return torch.stack(noise).to(self.device)

    def initial(self) -> Tensor:
        """The noise that sampling starts from: the next draw, so ask for it before sampling, and once."""
        return self.draw()

    def __call__(self, sigma: float, sigma_next: float) -> Tensor:
        """The next draw, whatever the interval."""
        return self.draw()


class BrownianNoise:
    """Increments of one Brownian path per picture, in the time log(sigma): the same path for any number of steps.

    With it, stochastic samplers converge to one picture as steps are added. The path is a virtual tree (Li et al. 2020,
    arXiv 2001.01328, section 4): its value at the end of the time axis and, halving after halving, in the middle of
    each interval comes from a counter-based generator keyed by the seed and the place in the tree. Nothing needs to be
    stored, and questions in any order get the same answers. k-diffusion's BrownianTreeNoiseSampler is alike, but tied
    to the grid's ends; here the time axis is always the same, so that the grid's ends may move as well.
    """

    START, END = log(2.0**-14), log(2.0**18)  # the time axis, wider than any schedule
    DEPTH = 20  # halvings: down to 2e-5 in log(sigma), a hundredth of a step of a 1000-step grid; linear below

    def __init__(
        self,
        seeds: Sequence[int],
        shape: Sequence[int],
        *,
        device: torch.device | str = "cpu",
        dtype: torch.dtype = torch.float32,
    ) -> None:
        """seeds: one for each picture. shape: of one picture, (C, H, W)."""
        self.shape, self.device, self.dtype, self.seeds = tuple(shape), device, dtype, list(seeds)
        self._recent: dict[int, Tensor] = {}  # the nodes on the way to the last question, which the next one shares

    def initial(self) -> Tensor:
        """The noise that sampling starts from: `SeededNoise`'s, so that no sampler changes where a seed begins."""
        return SeededNoise(self.seeds, self.shape, device=self.device, dtype=self.dtype).initial()

    def __call__(self, sigma: float, sigma_next: float) -> Tensor:
        """(W(log sigma_next) - W(log sigma)) / sqrt(their distance). Both sigmas above 0, and different."""
        if not (sigma > 0 and sigma_next > 0 and sigma != sigma_next):
            raise InputError(f"a Brownian path has no increment from sigma {sigma} to {sigma_next}")
        t, t_next = log(sigma), log(sigma_next)
        increment = (self.path(t_next) - self.path(t)) / sqrt(abs(t_next - t))
        return increment.to(self.device, self.dtype)

    def path(self, t: float) -> Tensor:
        """W(t) (B, C, H, W) float32 on the CPU; W is 0 at START."""
        a, b = self.START, self.END
        if not a <= t <= b:
            raise InputError(f"sigma {np.exp(t):g} is outside the Brownian path's {np.exp(a):g} to {np.exp(b):g}")
        visited = {0: self._node(0)}
        w_a, w_b = torch.zeros_like(visited[0]), sqrt(b - a) * visited[0]
        node = 1
        for _ in range(self.DEPTH):
            visited[node] = self._node(node)
            middle = (a + b) / 2
            w_middle = (w_a + w_b) / 2 + sqrt(b - a) / 2 * visited[node]  # Brownian bridge
            if t < middle:
                node, b, w_b = 2 * node, middle, w_middle
            else:
                node, a, w_a = 2 * node + 1, middle, w_middle
        self._recent = visited
        return w_a + (t - a) / (b - a) * (w_b - w_a)

    def _node(self, node: int) -> Tensor:
        """Unit-variance noise (B, C, H, W) of one place in the tree."""
        return self._recent[node] if node in self._recent else torch.stack([self._noise(s, node) for s in self.seeds])

    def _noise(self, seed: int, node: int) -> Tensor:
        key = np.array([seed % 2**64, node], dtype=np.uint64)
        generator = np.random.Generator(np.random.Philox(key=key))
        return torch.from_numpy(generator.standard_normal(self.shape, dtype=np.float32))


def make_noise(
    kind: str, seeds: Sequence[int], shape: Sequence[int], *, device: torch.device | str = "cpu"
) -> SeededNoise | BrownianNoise:
    """The noise that belongs to a sampler: `make_noise(SAMPLERS[name].noise, seeds, shape)`."""
    return (BrownianNoise if kind == "brownian" else SeededNoise)(seeds, shape, device=device)
