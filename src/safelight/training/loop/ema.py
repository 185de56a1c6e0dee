"""Moving averages of weights: the usual exponential one, and power functions whose length can be chosen afterwards.

Exponential: average <- d·average + (1 - d)·weights, with d = min(decay, (1 + n)/(10 + n)) at update n (LDM's LitEma).

Power function (Karras et al. 2024, arXiv 2312.02696, section 3): d = (1 - 1/n)^(γ+1), an average whose width is a
constant share sigma_rel of the training so far. Two of them, stored now and then as snapshots, span all the widths
between: `combination` finds the weights with which snapshots add up to the average of any other width (section 3.2).
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from safelight.errors import InputError
from safelight.training.loop.distributed import local


@dataclass(frozen=True)
class Exponential:
    """The usual average, with LDM's warm-up."""

    decay: float = 0.9999

    @property
    def name(self) -> str:
        """Its name in files."""
        return f"exponential-{self.decay:g}"

    def at(self, n: int) -> float:
        """The decay of update n, from 1."""
        return min(self.decay, (1 + n) / (10 + n))


@dataclass(frozen=True)
class Power:
    """An average whose standard deviation, as a profile over the steps, is `sigma_rel` of the training so far."""

    sigma_rel: float = 0.1

    def __post_init__(self) -> None:
        exponent(self.sigma_rel)

    @property
    def name(self) -> str:
        """Its name in files."""
        return f"power-{self.sigma_rel:g}"

    def at(self, n: int) -> float:
        """The decay of update n, from 1."""
        return (1 - 1 / n) ** (exponent(self.sigma_rel) + 1)


Profile = Exponential | Power


def profiles(decay: float, lengths: Sequence[float]) -> list[Profile]:
    """The averages that a run keeps; the first is the one it draws with."""
    return [*([Exponential(decay)] if decay else []), *(Power(length) for length in lengths)]


def exponent(sigma_rel: float) -> float:
    """γ of the power function t^γ whose standard deviation is `sigma_rel` (Karras et al. 2024, algorithm 2).

    sigma_rel² = (γ + 1) / ((γ + 2)² (γ + 3)). Raises InputError outside (0, 0.2887): at γ = 0 all steps weigh the same.
    """
    if not 0 < sigma_rel < 12**-0.5:
        raise InputError(
            f"sigma_rel is {sigma_rel}", remedy="give a number above 0 and below 0.288; 0.05 to 0.15 are usual"
        )
    t = sigma_rel**-2
    roots = np.roots([1, 7, 16 - t, 12 - t])
    return float(roots.real.max())


class Averages:
    """Averages of some modules' parameters, one set for each profile, in the parameters' own place and dtype."""

    def __init__(self, modules: Mapping[str, nn.Module], profiles: Sequence[Profile]) -> None:
        self.modules, self.profiles, self.updates = dict(modules), tuple(profiles), 0
        self.sets = {
            profile.name: {name: [p.detach().clone() for p in m.parameters()] for name, m in self.modules.items()}
            for profile in self.profiles
        }

    @torch.no_grad()
    def update(self) -> None:
        """Take in the present weights."""
        self.updates += 1
        for profile in self.profiles:
            for name, module in self.modules.items():
                averages = [local(average) for average in self.sets[profile.name][name]]
                weights = [local(p) for p in module.parameters()]
                torch._foreach_lerp_(averages, weights, 1 - profile.at(self.updates))

    def tensors(self, profile: str) -> dict[str, Tensor]:
        """One set: {"module.parameter": tensor}."""
        return {
            f"{name}.{key}": average
            for name, module in self.modules.items()
            for (key, _), average in zip(module.named_parameters(), self.sets[profile][name], strict=True)
        }

    @contextmanager
    @torch.no_grad()
    def applied(self, profile: str | None = None) -> Iterator[None]:
        """Within the block the modules hold averaged weights, of the first profile or a named one."""
        if not self.profiles:
            yield
            return
        chosen = self.sets[profile or self.profiles[0].name]
        kept = {name: [p.detach().clone() for p in m.parameters()] for name, m in self.modules.items()}
        self._fill(chosen)
        try:
            yield
        finally:
            self._fill(kept)

    def _fill(self, source: Mapping[str, Sequence[Tensor]]) -> None:
        for name, module in self.modules.items():
            torch._foreach_copy_([local(p) for p in module.parameters()], [local(t) for t in source[name]])


def inner_product(t_a: float, gamma_a: float, t_b: float, gamma_b: float) -> float:
    """The dot product of two averages' profiles, that ended at steps t_a and t_b (Karras et al. 2024)."""
    if t_a > t_b:
        t_a, gamma_a, t_b, gamma_b = t_b, gamma_b, t_a, gamma_a
    both = math.log(gamma_a + 1) + math.log(gamma_b + 1) - math.log(gamma_a + gamma_b + 1)
    return math.exp(both + gamma_b * math.log(t_a / t_b) - math.log(t_b))


def combination(snapshots: Sequence[tuple[int, float]], step: int, sigma_rel: float) -> NDArray[np.float64]:
    """How much of each snapshot (its step, its sigma_rel) makes the average of `sigma_rel` at `step`.

    The least-squares solution of Karras et al. 2024, algorithm 3. Raises InputError if no snapshot reaches `step`.
    """
    if not snapshots or max(t for t, _ in snapshots) < step:
        what = f"{len(snapshots)} snapshots do not reach step {step}"
        raise InputError(what, remedy="name a step up to the newest snapshot's; `ema_snapshot_every` stores them")
    known = [(float(t), exponent(s)) for t, s in snapshots]
    wanted = (float(step), exponent(sigma_rel))
    gram = np.array([[inner_product(*a, *b) for b in known] for a in known])
    right = np.array([inner_product(*a, *wanted) for a in known])
    return np.linalg.lstsq(gram, right, rcond=None)[0]
