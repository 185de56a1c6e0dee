"""DPM-Solver (Lu et al. 2022, arXiv 2206.00927) in k-diffusion's forms: "fast", with fixed steps, and "adaptive".

Both take no more from the grid than its first and its last sigma above 0 (and "fast" the number of steps), and lay
their own steps between these, even in log(sigma). If the grid ends at 0, one last evaluation denoises what is left.
k-diffusion omits that: give the grid without its 0 for the very same result.

d = (x - x0) / s is the predicted noise, h = log(s / s_next).
"""

from collections.abc import Generator, Sequence
from dataclasses import dataclass, field
from math import atan, exp, expm1, log, sqrt

import torch
from torch import Tensor

from safelight.diffusion.samplers.driver import Noise, Steps, sampler
from safelight.diffusion.samplers.onestep import ancestral_step
from safelight.errors import InputError

Ask = Generator[tuple[Tensor, float], tuple[Tensor, Tensor], list[Tensor]]


def _euler(x: Tensor, d: Tensor, s: float, s_next: float) -> Tensor:
    """DPM-Solver-1, equation 3.7."""
    return x + (s_next - s) * d


def _second_order(x: Tensor, d: Tensor, d1: Tensor, s: float, s_next: float, r1: float) -> Tensor:
    """DPM-Solver-2, the last line of Algorithm 1 for any r1: d1 was found at the fraction r1 of the step."""
    return _euler(x, d + (d1 - d) / (2 * r1), s, s_next)


def _third_order(x: Tensor, d: Tensor, d_r: Tensor, s: float, s_next: float, r: float, r_d: float) -> Tensor:
    """The last lines of DPM-Solver-3, Algorithm 2: by the fraction r of the step, with the slope (d_r - d) / r_d."""
    h = log(s / s_next)
    return _euler(x, d, s, s_next) - s_next * (r / r_d) * (expm1(h) / h - 1) * (d_r - d)


def _stages(x: Tensor, d: Tensor, s: float, s_next: float, order: int, r1: float) -> Ask:
    """Evaluate inside the step, order - 1 times: at the fractions r1 and (for order 3) 2/3 of it in log(sigma)."""
    found: list[Tensor] = []
    if order >= 2:
        s1 = s ** (1 - r1) * s_next**r1
        u, x0 = yield _euler(x, d, s, s1), s1
        found.append((u - x0) / s1)
    if order == 3:
        s2 = s ** (1 / 3) * s_next ** (2 / 3)
        u, x0 = yield _third_order(x, d, found[0], s, s2, 2 / 3, r1), s2
        found.append((u - x0) / s2)
    return found


def _step(x: Tensor, d: Tensor, found: list[Tensor], s: float, s_next: float, r1: float) -> Tensor:
    """The solver's step, of the order that the number of evaluations inside it allows."""
    if not found:
        return _euler(x, d, s, s_next)
    if len(found) == 1:
        return _second_order(x, d, found[0], s, s_next, r1)
    return _third_order(x, d, found[1], s, s_next, 1.0, 2 / 3)


def _split(s: float, s_next: float, eta: float, floor: float) -> tuple[float, float]:
    """`ancestral_step` that does not go below the last level."""
    down = max(floor, ancestral_step(s, s_next, eta)[0])
    return down, sqrt(max(0.0, s_next**2 - down**2))


@sampler("dpm_fast", label="DPM fast", noise="fresh", quiet={"eta": 0.0})
def dpm_fast(x: Tensor, sigmas: Sequence[float], noise: Noise, *, eta: float = 0.0, s_noise: float = 1.0) -> Steps:
    """DPM-Solver-fast (section 3.4): third-order steps, with lower ones last, so that n steps cost n evaluations."""
    positive = [s for s in sigmas if s > 0]
    budget, end = len(positive) - 1, positive[-1]
    n = budget // 3 + 1
    orders = [3] * (n - 2) + [2, 1] if budget % 3 == 0 else [3] * (n - 1) + [budget % 3]
    levels = [positive[0] ** (1 - i / n) * end ** (i / n) for i in range(n)] + [end]
    for order, s, s_next in zip(orders, levels, levels[1:], strict=False) if budget else []:
        x, x0 = yield x, s
        down, up = _split(s, s_next, eta, end)
        d, r1 = (x - x0) / s, 1 / 2 if order == 2 else 1 / 3
        found = yield from _stages(x, d, s, down, order, r1)
        x = _step(x, d, found, s, down, r1)
        if up > 0:
            x = x + up * s_noise * noise(s, s_next)
    if sigmas[-1] == 0:
        _, x = yield x, end
    return x


@dataclass
class StepSizeController:
    """A PID controller of the step h (Söderlind 2003): h shrinks or grows by a smooth factor of three errors."""

    h: float
    order: float
    pcoeff: float
    icoeff: float
    dcoeff: float
    accept_safety: float
    inverse_errors: list[float] = field(default_factory=list)  # of this proposal and of the two accepted before

    def accepts(self, error: float) -> bool:
        """Judge a step by its error relative to the tolerance, and set the next h."""
        now = 1 / (error + 1e-8)
        one, two = self.inverse_errors or (now, now)
        p, i, d = self.pcoeff / self.order, self.icoeff / self.order, self.dcoeff / self.order
        factor = 1 + atan(now ** (p + i + d) * one ** -(p + 2 * d) * two**d - 1)
        accepted = factor >= self.accept_safety
        self.inverse_errors = [now, one] if accepted else [one, two]
        self.h *= factor
        return accepted


@sampler("dpm_adaptive", label="DPM adaptive", order=3, noise="fresh", quiet={"eta": 0.0}, adaptive=True)
def dpm_adaptive(
    x: Tensor,
    sigmas: Sequence[float],
    noise: Noise,
    *,
    order: int = 3,
    rtol: float = 0.05,
    atol: float = 0.0078,
    h_init: float = 0.05,
    pcoeff: float = 0.0,
    icoeff: float = 1.0,
    dcoeff: float = 0.0,
    accept_safety: float = 0.81,
    eta: float = 0.0,
    s_noise: float = 1.0,
) -> Steps:
    """DPM-Solver-12 and -23 (appendix C): two orders from the same evaluations, and steps as long as these agree.

    The error is measured over the whole batch, so here, and here alone, pictures of one batch do depend on each other:
    for pictures that equal their single runs, sample one at a time.
    """
    if order not in (2, 3):
        raise InputError(f"dpm_adaptive is of order 2 or 3, got {order}")
    end = min(s for s in sigmas if s > 0)
    size = StepSizeController(h_init, 1.5 if eta else order, pcoeff, icoeff, dcoeff, accept_safety)
    s, x_before, r1 = sigmas[0], x, 1 / 2 if order == 2 else 1 / 3
    while log(s / end) > 1e-5:
        s_next = max(end, s * exp(-size.h))
        down, up = _split(s, s_next, eta, end)
        x, x0 = yield x, s
        d = (x - x0) / s
        found = yield from _stages(x, d, s, down, order, r1)
        x_low, x_high = _step(x, d, found[:-1], s, down, r1), _step(x, d, found, s, down, r1)
        tolerance = (rtol * torch.maximum(x_low.abs(), x_before.abs())).clamp(min=atol)
        error = float(((x_low - x_high) / tolerance).square().mean().sqrt())
        if size.accepts(error):
            x_before, x, s = x_low, x_high, s_next
            if up > 0:
                x = x + up * s_noise * noise(s, s_next)
    if sigmas[-1] == 0:
        _, x = yield x, end
    return x
