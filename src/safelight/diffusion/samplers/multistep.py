"""Samplers that remember earlier derivatives: PLMS and PNDM, LMS, DEIS.

All four advance x by a weighted sum of the last few derivatives d = (x - x0) / s, which is the noise the network sees
in x (DDPM's epsilon). They differ in the weights: fixed ones, or the integral of a polynomial through the derivatives.
They start at order 1 and rise as the memory fills; the start is what bounds the order of convergence.
"""

from collections.abc import Callable, Generator, Sequence
from itertools import pairwise
from math import exp, log, sqrt

from torch import Tensor

from safelight.diffusion.samplers.driver import Noise, Steps, sampler

Pass = Generator[tuple[Tensor, float], tuple[Tensor, Tensor], tuple[Tensor, Tensor]]  # one step: gives (x, d)

ADAMS_BASHFORTH = ((1.0,), (3 / 2, -1 / 2), (23 / 12, -16 / 12, 5 / 12), (55 / 24, -59 / 24, 37 / 24, -9 / 24))


@sampler("plms", label="PLMS", order=2)
def plms(x: Tensor, sigmas: Sequence[float], noise: Noise) -> Steps:
    """CompVis's PLMS: Adams-Bashforth of order 4 (Liu et al. 2022, eq. 12), begun by one improved Euler step.

    The weights are those for equal steps, though steps in sigma are not equal: of second order therefore. One
    evaluation more than steps: the second noise level is visited twice.
    """
    if len(sigmas) < 3:
        return (yield from adams_bashforth(x, sigmas, []))
    x, d = yield from improved_euler(x, sigmas[0], sigmas[1])
    return (yield from adams_bashforth(x, sigmas[1:], [d]))


@sampler("pndm", label="PNDM", order=2)
def pndm(x: Tensor, sigmas: Sequence[float], noise: Noise, *, middles: Sequence[float] = ()) -> Steps:
    """PNDM (Liu et al. 2022, Algorithm 2, "F-PNDM"): three pseudo Runge-Kutta steps, then Adams-Bashforth of order 4.

    middles: the noise levels halfway through the first three steps. The paper means halfway in timesteps; unless they
    are given they lie halfway in log(sigma). Four evaluations in each of the first three steps, then one.
    """
    past: list[Tensor] = []
    for i, (s, s_next) in enumerate(pairwise(sigmas[:4])):
        if s_next == 0:
            return (yield from adams_bashforth(x, sigmas[i:], past))
        middle = middles[i] if i < len(middles) else sqrt(s * s_next)
        x, d = yield from runge_kutta(x, s, middle, s_next)
        past = [d, *past]
    return (yield from adams_bashforth(x, sigmas[3:], past))


def improved_euler(x: Tensor, s: float, s_next: float) -> Pass:
    """One step by the mean of the derivatives at both its ends; gives x at s_next, and the derivative at s."""
    x, x0 = yield x, s
    d = (x - x0) / s
    x_end, x0 = yield x + (s_next - s) * d, s_next
    return x + (s_next - s) * (d + (x_end - x0) / s_next) / 2, d


def runge_kutta(x: Tensor, s: float, middle: float, s_next: float) -> Pass:
    """One step with the four stages of the classical Runge-Kutta method (Liu et al. 2022, eq. 13)."""
    x, x0 = yield x, s
    d1 = (x - x0) / s
    x2, x0 = yield x + (middle - s) * d1, middle
    d2 = (x2 - x0) / middle
    x3, x0 = yield x + (middle - s) * d2, middle
    d3 = (x3 - x0) / middle
    x4, x0 = yield x + (s_next - s) * d3, s_next
    d4 = (x4 - x0) / s_next
    return x + (s_next - s) * (d1 + 2 * d2 + 2 * d3 + d4) / 6, d1


def adams_bashforth(x: Tensor, sigmas: Sequence[float], past: Sequence[Tensor]) -> Steps:
    """Adams-Bashforth over `sigmas`, of order 4 at most; `past` are the derivatives before them, newest first."""
    for s, s_next in pairwise(sigmas):
        x, x0 = yield x, s
        past = [(x - x0) / s, *past[:3]]
        x = x + (s_next - s) * _weighted(ADAMS_BASHFORTH[len(past) - 1], past)
    return x


@sampler("lms", label="LMS", order=2)
def lms(x: Tensor, sigmas: Sequence[float], noise: Noise, *, order: int = 4) -> Steps:
    """Linear multistep (k-diffusion): the integral of the polynomial in sigma through the last derivatives."""
    weights = polynomial_weights
    return (yield from _linear_multistep(x, sigmas, weights, [order] * (len(sigmas) - 1)))


@sampler("deis", label="DEIS", order=2)
def deis(
    x: Tensor, sigmas: Sequence[float], noise: Noise, *, order: int = 3, lower_order_final: bool | None = None
) -> Steps:
    """DEIS, log-rho (Zhang and Chen 2023, "rhoAB"): `lms` with the polynomial in log(sigma) in place of sigma.

    lower_order_final: end with steps of orders 2 and 1; None does so below 15 steps, as diffusers.
    """
    orders = falling_orders(len(sigmas) - 1, order, lower_order_final)
    if sigmas[-1] == 0:
        orders[-1:] = [1]  # log(0): the last step is Euler's, and lands on x0
    return (yield from _linear_multistep(x, sigmas, log_polynomial_weights, orders))


def falling_orders(steps: int, order: int, lower_order_final: bool | None) -> list[int]:
    """The order wanted at each step: `order`, or falling to 1 at the end (None: where there are under 15 steps)."""
    lower = steps < 15 if lower_order_final is None else lower_order_final
    return [min(order, steps - i) if lower else order for i in range(steps)]


def _linear_multistep(
    x: Tensor, sigmas: Sequence[float], weights: Callable[[Sequence[float], float], list[float]], orders: Sequence[int]
) -> Steps:
    past: list[Tensor] = []  # derivatives, newest first
    for i, (s, s_next) in enumerate(pairwise(sigmas)):
        x, x0 = yield x, s
        past = [(x - x0) / s, *past][: max(orders)]
        k = min(orders[i], len(past))
        x = x + _weighted(weights([sigmas[i - j] for j in range(k)], s_next), past)
    return x


def _weighted(weights: Sequence[float], tensors: Sequence[Tensor]) -> Tensor:
    first, *rest = (w * t for w, t in zip(weights, tensors, strict=False))
    return sum(rest, first)


# The integral from s to s_next of each polynomial that is 1 at one node and 0 at the others. nodes[0] is s.


def polynomial_weights(nodes: Sequence[float], s_next: float) -> list[float]:
    """Polynomials in sigma; exact."""
    s = nodes[0]
    around = [node - s for node in nodes]
    return [_integral(_basis(around, j), s_next - s) for j in range(len(nodes))]


def log_polynomial_weights(nodes: Sequence[float], s_next: float) -> list[float]:
    """Polynomials p in v = log(sigma / s): the integral of p(v) s e^v dv; exact."""
    s = nodes[0]
    if s_next == 0:
        return [-s]
    around = [log(node / s) for node in nodes]
    return [s * _exponential_integral(_basis(around, j), log(s_next / s)) for j in range(len(nodes))]


def _basis(nodes: Sequence[float], j: int) -> list[float]:
    """Coefficients, lowest power first, of Lagrange's polynomial: 1 at nodes[j], 0 at the others."""
    poly = [1.0]
    for k, node in enumerate(nodes):
        if k != j:
            terms = zip([0.0, *poly], [*poly, 0.0], strict=True)
            poly = [(shifted - node * c) / (nodes[j] - node) for shifted, c in terms]
    return poly


def _integral(poly: Sequence[float], end: float) -> float:
    return sum(c * end ** (k + 1) / (k + 1) for k, c in enumerate(poly))


def _exponential_integral(poly: Sequence[float], end: float) -> float:
    """The integral from 0 to `end` of p(v) e^v: e^v (p - p' + p'' - ...), by parts."""
    total, sign = 0.0, 1
    while poly:
        total += sign * (exp(end) * sum(c * end**k for k, c in enumerate(poly)) - poly[0])
        poly, sign = [k * c for k, c in enumerate(poly)][1:], -sign
    return total
