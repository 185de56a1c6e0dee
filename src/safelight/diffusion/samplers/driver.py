"""What every sampler shares: the registry, the loop that runs one, and the dry run.

A sampler is a coroutine over a falling list of sigmas. It asks for the denoiser with `yield`,

    x, x0 = yield x, sigma      # "please denoise x, which has noise of standard deviation sigma"

and goes on with the x and the x0 it is sent (x may come back edited). It returns the last x. It knows of no network, no
guidance, no progress bar: `drive` owns those, once for all samplers.
"""

from collections.abc import Callable, Generator, Mapping, Sequence
from dataclasses import dataclass, field
from inspect import signature
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor

from safelight.diffusion import aliases
from safelight.errors import InputError, nearest

Denoise = Callable[[Tensor, float], Tensor]
Noise = Callable[[float, float], Tensor]
Steps = Generator[tuple[Tensor, float], tuple[Tensor, Tensor], Tensor]
Coroutine = Callable[..., Steps]


@dataclass(frozen=True)
class Sampler:
    """One row of the registry; call it to start the coroutine.

    `order` is the order of convergence on the probability-flow ODE with all noise switched off (`quiet` holds the
    options that do so), or None where the method does not solve that ODE. `noise` is the noise that belongs to it: ""
    none, "fresh" independent at each step, "brownian" one path for any number of steps. `adaptive` samplers choose
    their own sigmas between the first and the last of the grid, so they have no dry run.
    """

    name: str
    label: str  # as in A1111's menu
    coroutine: Coroutine
    order: int | None = None
    noise: str = ""
    adaptive: bool = False
    defaults: Mapping[str, Any] = field(default_factory=dict)
    quiet: Mapping[str, Any] = field(default_factory=dict)

    @property
    def options(self) -> dict[str, Any]:
        """Its keyword options and their defaults."""
        known = {p.name: p.default for p in signature(self.coroutine).parameters.values() if p.kind == p.KEYWORD_ONLY}
        return known | dict(self.defaults)

    def __call__(self, x: Tensor, sigmas: Sequence[float], noise: Noise, **options: Any) -> Steps:
        """Start the coroutine on x, which has noise of standard deviation sigmas[0]."""
        known = self.options
        for word in options:
            if word not in known:
                what = f"sampler {self.name!r} has no option {word!r}"
                raise InputError(what, remedy=nearest(word, known) if known else "it has no options at all")
        return self.coroutine(x, sigmas, noise, **(known | options)) if len(sigmas) > 1 else _stay(x)


def _stay(x: Tensor) -> Steps:
    """No steps at all."""
    yield from ()
    return x


SAMPLERS: dict[str, Sampler] = {}


def sampler(name: str, *, label: str, **row: Any) -> Callable[[Coroutine], Coroutine]:
    """Register a coroutine `f(x, sigmas, noise, *, option=default, ...)` under `name`; `row`: see `Sampler`.

    One coroutine may stand under several names, with other `defaults`.
    """

    def register(coroutine: Coroutine) -> Coroutine:
        if name in SAMPLERS:
            raise ValueError(f"two samplers are called {name!r}")
        SAMPLERS[name] = Sampler(name, label, coroutine, **row)
        return coroutine

    return register


def find(name: str) -> Sampler:
    """The sampler of that name, ours or a peer's (see `aliases`); InputError names the nearest ones."""
    ours = aliases.sampler(name, SAMPLERS)
    if ours is None:
        word = name.lower().replace("+", "p").replace(" ", "_")
        raise InputError(f"sampler {name!r} is unknown", remedy=nearest(word, SAMPLERS))
    return SAMPLERS[ours]


@dataclass(frozen=True, eq=False)
class Step:
    """What a watcher sees after each evaluation: x as the network saw it, and the x0 it predicts."""

    index: int  # 0 .. total - 1
    total: int | None  # None for adaptive samplers
    sigma: float
    x: Tensor
    x0: Tensor


Edit = Callable[[Tensor, float], Tensor]
Watch = Callable[[Step], None]


def drive(
    steps: Steps, denoise: Denoise, edit: Edit | None = None, watch: Watch | None = None, total: int | None = None
) -> Tensor:
    """Run a coroutine against a denoiser, and return what it returns."""
    try:
        x, sigma = next(steps)
        index = 0
        while True:
            x = x if edit is None else edit(x, sigma)
            x0 = denoise(x, sigma)
            if watch is not None:
                watch(Step(index, total, sigma, x, x0))
            x, sigma = steps.send((x, x0))
            index += 1
    except StopIteration as done:
        return done.value


def visited(sampler: str | Sampler, sigmas: Sequence[float], **options: Any) -> list[float]:
    """Every sigma the sampler will ask for, in order: a dry run on the number 0 in place of a picture."""
    kind = sampler if isinstance(sampler, Sampler) else find(sampler)
    if kind.adaptive:
        raise InputError(f"sampler {kind.name!r} chooses its sigmas as it goes", remedy="watch the steps instead")
    seen: list[float] = []

    def record(x: Any, sigma: float) -> Any:
        seen.append(sigma)
        return x

    zero: Any = 0.0
    drive(kind(zero, tuple(sigmas), lambda s, s_next: zero, **options), record)
    return seen


def sample(
    denoise: Denoise,
    x: Tensor,
    sigmas: Sequence[float],
    *,
    sampler: str = "dpmpp_2m",
    noise: Noise | None = None,
    edit: Edit | None = None,
    watch: Watch | None = None,
    **options: Any,
) -> Tensor:
    """Take x from noise level sigmas[0] down to sigmas[-1].

    denoise: (x, sigma) -> x0. x: (B, C, H, W) float32 = x0 + sigmas[0] * noise. sigmas: falling, as `Grid.sigmas`.
    noise: (sigma, sigma_next) -> unit-variance noise of x's shape, needed by stochastic samplers only.
    edit: (x, sigma) -> x before every evaluation, and once for the result, with sigmas[-1]. watch: sees each `Step`.
    Both may raise `Cancelled`. No gradients are recorded; a denoiser that needs them switches them on inside.

    Raises InputError for an unknown sampler or option, or where noise is needed and missing.
    """
    kind = find(sampler)
    sigmas = _checked(sigmas)
    total = None if kind.adaptive else len(visited(kind, sigmas, **options))
    with torch.no_grad():
        steps = kind(x, sigmas, _silence(kind) if noise is None else noise, **options)
        x = drive(steps, denoise, edit, watch, total)
        return x if edit is None else edit(x, sigmas[-1])


def _checked(sigmas: Sequence[float]) -> tuple[float, ...]:
    sigmas = tuple(float(s) for s in sigmas)
    falling = all(a >= b for a, b in pairwise(sigmas))
    if not sigmas or not falling or sigmas[-1] < 0 or any(s == 0 for s in sigmas[:-1]):
        what = f"sigmas must fall, and stay above 0 until the last: got {sigmas}"
        raise InputError(what, remedy="take them from a Grid")
    return sigmas


def _silence(kind: Sampler) -> Noise:
    def noise(sigma: float, sigma_next: float) -> Tensor:
        raise InputError(f"sampler {kind.name!r} needs noise", remedy="pass noise=SeededNoise(seeds, shape)")

    return noise
