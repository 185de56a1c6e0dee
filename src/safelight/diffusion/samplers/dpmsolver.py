"""DPM-Solver and DPM-Solver++ (Lu et al. 2022a, 2022b), multistep and singlestep, as ODE and as SDE.

With lambda = -log(sigma), x / sigma^(0 or 1) obeys a linear ODE whose other term is the network's answer m: the noise
in x (DPM-Solver) or x0 (DPM-Solver++). The linear part is solved exactly; m is a polynomial in lambda through the
answers at hand. Every formula of both papers is then one line,

    x_next = ratio x - gain (phi D0 + a1 D1 + a2 D2),    phi = e^h - 1

where D0, D1, D2 are m and its scaled first and second derivative at the step's start, and `Interval` has the rest.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from math import expm1, log, sqrt

from torch import Tensor

from safelight.diffusion.samplers.driver import Noise, Steps, sampler
from safelight.diffusion.samplers.multistep import falling_orders
from safelight.errors import InputError, nearest

ALGORITHM_TYPES = ("dpmsolver", "dpmsolver++", "sde-dpmsolver", "sde-dpmsolver++")
SOLVER_TYPES = ("midpoint", "heun")


@dataclass(frozen=True)
class Interval:
    """A step from s to s_next > 0 in the exponential form above; `h` is signed: rising lambda against x0's decay."""

    ratio: float
    gain: float
    h: float
    up: float = 0.0  # standard deviation of the fresh noise

    @property
    def phi(self) -> float:
        """e^h - 1."""
        return expm1(self.h)

    def step(self, x: Tensor, D0: Tensor, D1: Tensor | float = 0.0, D2: Tensor | float = 0.0, *, mid: bool) -> Tensor:
        """x at the end. `mid` takes the simpler weight phi/2 for D1, where the other is the integral's own."""
        phi, h = self.phi, self.h
        a1 = phi / 2 if mid else phi / h - 1
        return self.ratio * x - self.gain * (phi * D0 + a1 * D1 + ((phi - h) / h**2 - 0.5) * D2)


def interval(s: float, s_next: float, *, predict_x0: bool = True, sde: bool = False) -> Interval:
    """The numbers of a step from s to s_next > 0, for m = x0 or m = noise, on the ODE or the SDE."""
    h, r = log(s / s_next), s_next / s
    if predict_x0:
        return Interval(r * r, 1.0, -2 * h, s_next * sqrt(-expm1(-2 * h))) if sde else Interval(r, 1.0, -h)
    return Interval(1.0, 2 * s_next, h, s_next * sqrt(expm1(2 * h))) if sde else Interval(1.0, s_next, h)


def _checked(algorithm_type: str, solver_type: str, order: int) -> dict[str, bool]:
    if algorithm_type not in ALGORITHM_TYPES:
        what = f"algorithm_type {algorithm_type!r} is unknown"
        raise InputError(what, remedy=nearest(algorithm_type, ALGORITHM_TYPES))
    if solver_type not in SOLVER_TYPES:
        raise InputError(f"solver_type {solver_type!r} is unknown", remedy=nearest(solver_type, SOLVER_TYPES))
    if order not in (1, 2, 3):
        raise InputError(f"DPM-Solver has orders 1, 2 and 3, not {order}")
    return {"predict_x0": algorithm_type.endswith("++"), "sde": algorithm_type.startswith("sde")}


@sampler("dpm_solver", label="DPM-Solver", order=2, noise="fresh")
def dpm_solver(
    x: Tensor,
    sigmas: Sequence[float],
    noise: Noise,
    *,
    order: int = 2,
    algorithm_type: str = "dpmsolver++",
    solver_type: str = "midpoint",
    lower_order_final: bool | None = None,
    euler_at_final: bool = False,
) -> Steps:
    """DPM-Solver multistep: "2M" and "3M" (Lu et al. 2022b, Algorithm 2). Order 2 with x0 and midpoint is `dpmpp_2m`.

    algorithm_type: "dpmsolver" (noise), "dpmsolver++" (x0), and "sde-" of either, which draw noise. solver_type
    "midpoint" or "heun" matters at order 2. lower_order_final: the last two steps fall to orders 2 and 1; None does so
    below 15 steps. euler_at_final: only the last one falls. A last step to sigma 0 lands on x0 whatever the order.

    At order 3 with "sde-" this is k-diffusion's 3M SDE; diffusers has a sign wrong there.
    """
    kind = _checked(algorithm_type, solver_type, order)
    orders = falling_orders(len(sigmas) - 1, order, lower_order_final)
    if euler_at_final:
        orders[-1:] = [1]
    past: list[tuple[float, Tensor]] = []  # (sigma, m), newest first
    for (s, s_next), wanted in zip(pairwise(sigmas), orders, strict=True):
        x, x0 = yield x, s
        past = [(s, x0 if kind["predict_x0"] else (x - x0) / s), *past[:2]]
        if s_next == 0:
            return x0
        if s_next < s:
            step, k = interval(s, s_next, **kind), min(wanted, len(past))
            D1, bend = differences(past[:k], s_next)
            # The original code gives the third order half of its D2, which is 2 * bend; kept, as every peer has
            x = step.step(x, past[0][1], D1, bend, mid=k == 2 and solver_type == "midpoint")
            if step.up > 0:
                x = x + step.up * noise(s, s_next)
    return x


@sampler("dpm_solver_singlestep", label="DPM-Solver singlestep", order=2, noise="fresh")
def dpm_solver_singlestep(
    x: Tensor,
    sigmas: Sequence[float],
    noise: Noise,
    *,
    order: int = 2,
    algorithm_type: str = "dpmsolver++",
    solver_type: str = "midpoint",
    orders: Sequence[int] | None = None,
) -> Steps:
    """DPM-Solver singlestep (Lu et al. 2022a, "DPM-Solver-fast"): groups of 1, 2 .. `order` evaluations.

    The k-th evaluation of a group redoes the way from the group's start with a polynomial of order k, one grid interval
    further. orders: k at each evaluation; by default `singlestep_orders` for these sigmas.
    """
    kind = _checked(algorithm_type, solver_type, order)
    if orders is None:
        orders = singlestep_orders(len(sigmas) - 1, order, to_zero=sigmas[-1] == 0)
    past: list[tuple[float, Tensor]] = []  # (sigma, m), newest last
    start = x
    for (s, s_next), wanted in zip(pairwise(sigmas), orders, strict=True):
        x, x0 = yield x, s
        past = [*past[-2:], (s, x0 if kind["predict_x0"] else (x - x0) / s)]
        group = past[-min(wanted, len(past)) :]  # begun in mid-grid, the first group may be short of a member
        if len(group) == 1:
            start = x
        if s_next == 0:
            return x0
        if s_next < s:
            step = interval(group[0][0], s_next, **kind)
            x = _from_group(step, start, group, s_next, solver_type)
            if step.up > 0:
                x = x + step.up * noise(group[0][0], s_next)
    return x


def _from_group(
    step: Interval, x: Tensor, group: Sequence[tuple[float, Tensor]], s_next: float, solver_type: str
) -> Tensor:
    m = group[0][1]
    if solver_type == "midpoint" and len(group) == 3:  # the slope to the newest point alone
        return step.step(x, m, differences([group[0], group[2]], s_next)[0], mid=False)
    D1, bend = differences(group, s_next)
    return step.step(x, m, D1, 2 * bend, mid=solver_type == "midpoint")


def singlestep_orders(steps: int, order: int, *, lower_order_final: bool = True, to_zero: bool = True) -> list[int]:
    """The paper's pattern of orders for a number of steps (Lu et al. 2022a, App. D.3): 1, 2 .. `order`, 1, 2 ..

    lower_order_final: a last group that would be whole falls at its end instead. to_zero: the last step is of order 1,
    as a step to sigma 0 must be.
    """
    orders = ([*range(1, order + 1)] * steps)[:steps]
    if lower_order_final and order > 1 and steps % order == 0:
        orders[1 - order :] = range(order - 1, 0, -1)
    if to_zero:
        orders[-1:] = [1]
    return orders


def differences(points: Sequence[tuple[float, Tensor]], s_next: float) -> tuple[Tensor | float, Tensor | float]:
    """Slope and half the curvature at the first point of the polynomial in lambda through one to three (sigma, m).

    In units of the step from the first point to s_next, so that m(r) = m + slope r + bend r².
    """
    (s, m), *others = points
    h = log(s / s_next)
    ratios = [log(s / sigma) / h for sigma, _ in others]
    slopes = [(other - m) / r for r, (_, other) in zip(ratios, others, strict=True)]
    if len(slopes) < 2:
        return (slopes[0] if slopes else 0.0), 0.0
    bend = (slopes[0] - slopes[1]) / (ratios[0] - ratios[1])
    return slopes[0] - ratios[0] * bend, bend
