"""Seeded noise. Every picture has its own stream, so picture k of a batch is the picture of seed + k alone.

Noise is drawn on the CPU and then moved, hence it is the same on every device. Both providers here are called as
`noise(sigma, sigma_next)` and give independent unit-variance noise (B, C, H, W) for intervals that do not overlap.

Programs draw a seed's numbers in three ways, which `NoiseSource.kind` names (see docs/reproducibility.md):

cpu      one CPU generator a picture: diffusers with a list of generators, A1111 with "CPU" as its random source
cuda     one CUDA generator a picture, in NumPy (see `philox`): A1111 on NVIDIA, that is its sources "GPU" and "NV"
comfyui  one generator for a whole batch: the first noise on the CPU, that of the steps as on NVIDIA
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from math import log, prod, sqrt
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from safelight.diffusion.philox import CudaGenerator
from safelight.errors import InputError

Kind = Literal["cpu", "cuda", "comfyui"]
Stream = Callable[[Sequence[int]], Tensor]  # the next numbers of a seed, in a shape, on the CPU


@dataclass(frozen=True)
class Origin:
    """What one picture's noise grows from: its seed, the sub-seed mixed into it, and its place in a ComfyUI batch."""

    seed: int
    subseed: int | None = None
    batch_index: int = 0


@dataclass(frozen=True)
class NoiseSource:
    """How a seed's numbers are drawn. All but `kind` is as A1111 has it.

    seed_delta (ENSD): the steps' noise, but not the first, is that of seed + seed_delta; 0 goes on with the seed's own.
    subseed_strength: how far the first noise turns to the sub-seed's, in [0, 1]; 0 leaves the sub-seed out.
    resize_from: (h, w) of the latent in whose middle the seed was first drawn; the new latent keeps that middle.
    """

    kind: Kind = "cpu"
    seed_delta: int = 0
    subseed_strength: float = 0.0
    resize_from: tuple[int, int] | None = None


def origins(
    seed: int, count: int, *, subseed: int | None = None, batch_index: int = 0, source: NoiseSource = NoiseSource()
) -> list[Origin]:
    """What the pictures k = batch_index, batch_index + 1, … of a batch grow from.

    It is seed + k; or subseed + k where sub-seeds have a part, as in A1111; or place k in the batch, in ComfyUI.
    """
    numbers = range(batch_index, batch_index + count)
    if source.kind == "comfyui":
        return [Origin(seed, subseed, k) for k in numbers]
    if source.subseed_strength and subseed is not None:
        return [Origin(seed, subseed + k) for k in numbers]
    return [Origin(seed + k) for k in numbers]


def cpu_stream(seed: int, dtype: torch.dtype = torch.float32) -> Stream:
    """The numbers of a CPU `torch.Generator`."""
    generator = torch.Generator().manual_seed(seed % 2**64)
    return lambda shape: torch.randn(tuple(shape), generator=generator, dtype=dtype)


def cuda_stream(seed: int, batch_index: int = 0) -> Stream:
    """The numbers of a CUDA `torch.Generator`, for picture `batch_index` of a batch that is drawn at once."""
    generator = CudaGenerator(seed)
    return lambda shape: torch.from_numpy(generator.randn(shape, start=batch_index * prod(shape)))


def first_noise(origin: Origin, shape: Sequence[int], source: NoiseSource, dtype: torch.dtype) -> tuple[Tensor, Stream]:
    """A picture's first noise (C, H, W), and the stream that goes on from there."""
    stream = _stream(source.kind, origin.seed, origin.batch_index, dtype)
    inner = (shape[0], *source.resize_from) if source.resize_from else tuple(shape)
    noise = stream(shape)
    drawn = noise if inner == tuple(shape) else _stream(source.kind, origin.seed, origin.batch_index, dtype)(inner)
    if source.subseed_strength and origin.subseed is not None:
        other = _stream(source.kind, origin.subseed, origin.batch_index, dtype)(inner)
        drawn = slerp(drawn, other, source.subseed_strength)
    return drawn if drawn.shape == noise.shape else inlaid(drawn, noise), stream


def _stream(kind: Kind, seed: int, batch_index: int, dtype: torch.dtype) -> Stream:
    if kind == "cuda":
        return cuda_stream(seed)
    stream = cpu_stream(seed, dtype)
    if kind == "comfyui":  # LatentFromBatch draws the pictures before it, and drops them
        return lambda shape: [stream(shape) for _ in range(batch_index + 1)][-1]
    return stream


def slerp(a: Tensor, b: Tensor, t: float) -> Tensor:
    """From a to b (C, H, W) by the share t, along the sphere (Shoemake 1985): each column of a channel for itself.

    Columns, and no further turn where the two are almost one, as A1111 has it.
    """
    unit_a, unit_b = (x / torch.linalg.vector_norm(x, dim=1, keepdim=True) for x in (a, b))
    cosine = (unit_a * unit_b).sum(1, keepdim=True)
    if cosine.mean() > 0.9995:
        return a * t + b * (1 - t)
    angle = torch.acos(cosine)
    return torch.sin((1 - t) * angle) / torch.sin(angle) * a + torch.sin(t * angle) / torch.sin(angle) * b


def inlaid(inner: Tensor, outer: Tensor) -> Tensor:
    """Lay the middle of `inner` (C, h, w) into the middle of `outer` (C, H, W), half a pixel up and left if need be."""
    result = outer.clone()
    spans = []
    for small, large in zip(inner.shape[1:], outer.shape[1:], strict=True):
        shift = (large - small) // 2
        length = small if shift >= 0 else small + 2 * shift
        spans.append((slice(max(shift, 0), max(shift, 0) + length), slice(max(-shift, 0), max(-shift, 0) + length)))
    (to_y, from_y), (to_x, from_x) = spans
    result[:, to_y, to_x] = inner[:, from_y, from_x]
    return result


class SeededNoise:
    """Fresh noise at each call, from a stream of numbers per picture; by default that of a CPU `torch.Generator`."""

    def __init__(
        self,
        seeds: Sequence[int | Origin],
        shape: Sequence[int],
        *,
        source: NoiseSource = NoiseSource(),
        device: torch.device | str = "cpu",
        dtype: torch.dtype = torch.float32,
    ) -> None:
        """seeds: one for each picture, or its `Origin`. shape: of one picture, (C, H, W)."""
        self.shape, self.source, self.device, self.dtype = tuple(shape), source, device, dtype
        self.origins = [one if isinstance(one, Origin) else Origin(one) for one in seeds]
        self._streams: list[Stream] = []

    def draw(self) -> Tensor:
        """The next noise of each stream, (B, C, H, W)."""
        if self._streams:
            noise = [stream(self.shape) for stream in self._streams]
        else:
            noise, self._streams = self._first()
        return sent(torch.stack(noise).to(self.dtype), self.device)

    def _first(self) -> tuple[list[Tensor], list[Stream]]:
        begun = [first_noise(origin, self.shape, self.source, self.dtype) for origin in self.origins]
        return [noise for noise, _ in begun], [
            self._further(origin, stream) for origin, (_, stream) in zip(self.origins, begun, strict=True)
        ]

    def _further(self, origin: Origin, stream: Stream) -> Stream:
        """Where the noise of the steps comes from."""
        seed = origin.seed + self.source.seed_delta
        if self.source.kind == "comfyui":
            return cuda_stream(seed, origin.batch_index)
        if self.source.seed_delta:
            return _stream(self.source.kind, seed, 0, self.dtype)
        return stream

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
        seeds: Sequence[int | Origin],
        shape: Sequence[int],
        *,
        source: NoiseSource = NoiseSource(),
        device: torch.device | str = "cpu",
        dtype: torch.dtype = torch.float32,
    ) -> None:
        """seeds: one for each picture, or its `Origin`. shape: of one picture, (C, H, W). `source`: of the first noise.

        Pictures of one ComfyUI batch have paths of their own. A sub-seed changes the first noise, not the path.
        """
        self.shape, self.source, self.device, self.dtype = tuple(shape), source, device, dtype
        self.origins = [one if isinstance(one, Origin) else Origin(one) for one in seeds]
        self._recent: dict[int, Tensor] = {}  # the nodes on the way to the last question, which the next one shares

    def initial(self) -> Tensor:
        """The noise that sampling starts from: `SeededNoise`'s, so that no sampler changes where a seed begins."""
        return SeededNoise(self.origins, self.shape, source=self.source, device=self.device, dtype=self.dtype).initial()

    def __call__(self, sigma: float, sigma_next: float) -> Tensor:
        """(W(log sigma_next) - W(log sigma)) / sqrt(their distance). Both sigmas above 0, and different."""
        if not (sigma > 0 and sigma_next > 0 and sigma != sigma_next):
            raise InputError(f"a Brownian path has no increment from sigma {sigma} to {sigma_next}")
        t, t_next = log(sigma), log(sigma_next)
        increment = (self.path(t_next) - self.path(t)) / sqrt(abs(t_next - t))
        return sent(increment.to(self.dtype), self.device)

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
        if node in self._recent:
            return self._recent[node]
        return torch.stack([self._noise(origin, node) for origin in self.origins])

    def _noise(self, origin: Origin, node: int) -> Tensor:
        words = [origin.seed % 2**64, node | origin.batch_index << 32]
        generator = np.random.Generator(np.random.Philox(key=np.array(words, dtype=np.uint64)))
        return torch.from_numpy(generator.standard_normal(self.shape, dtype=np.float32))


def sent(tensor: Tensor, device: torch.device | str) -> Tensor:
    """Numbers on another device; where they come from the CPU, a CUDA device need not finish its work first.

    Elsewhere this waits: MPS may else read memory that has been used for something else since.
    """
    to_cuda = torch.device(device).type == "cuda" and tensor.device.type == "cpu"
    return tensor.pin_memory().to(device, non_blocking=True) if to_cuda else tensor.to(device)


def make_noise(
    kind: str,
    seeds: Sequence[int | Origin],
    shape: Sequence[int],
    *,
    source: NoiseSource = NoiseSource(),
    device: torch.device | str = "cpu",
) -> SeededNoise | BrownianNoise:
    """The noise that belongs to a sampler: `make_noise(SAMPLERS[name].noise, seeds, shape)`."""
    return (BrownianNoise if kind == "brownian" else SeededNoise)(seeds, shape, source=source, device=device)
