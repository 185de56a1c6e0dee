"""UniPC (Zhao et al. 2023): a predictor of any order, and a corrector that costs no evaluation of its own."""

from collections.abc import Collection, Sequence
from itertools import pairwise
from math import expm1, log

import torch
from torch import Tensor

from safelight.diffusion.samplers.dpmsolver import Interval, interval
from safelight.diffusion.samplers.driver import Noise, Steps, sampler
from safelight.errors import InputError, nearest

SOLVER_TYPES = ("bh1", "bh2")


@sampler("unipc", label="UniPC", order=2)
def unipc(
    x: Tensor,
    sigmas: Sequence[float],
    noise: Noise,
    *,
    order: int = 2,
    solver_type: str = "bh2",
    predict_x0: bool = True,
    lower_order_final: bool = True,
    disable_corrector: Collection[int] = (),
) -> Steps:
    """UniPC (Zhao et al. 2023, Algorithms 1 and 2, with x0 5 and 6).

    The defaults are diffusers'; A1111, and ComfyUI's "uni_pc", take order 3 and "bh1".

    Each evaluation first corrects the step that led to it, then predicts the next. solver_type "bh1" has B(h) = h,
    "bh2" e^h - 1. lower_order_final: the order falls to 1 at the end. disable_corrector: indices of the steps to leave
    uncorrected. A change made to x between the steps is carried through the corrector (diffusers drops it there).
    """
    if solver_type not in SOLVER_TYPES:
        raise InputError(f"solver_type {solver_type!r} is unknown", remedy=nearest(solver_type, SOLVER_TYPES))
    if order < 1:
        raise InputError(f"UniPC needs an order of at least 1, not {order}")
    past: list[tuple[float, Tensor]] = []  # (sigma, m), newest first
    start, k = x, 0  # where the last step began, and its order
    for i, (s, s_next) in enumerate(pairwise(sigmas)):
        predicted = x
        x, x0 = yield x, s
        now = (s, x0 if predict_x0 else (x - x0) / s)
        if i > 0 and i - 1 not in disable_corrector and s < past[0][0]:
            step = interval(past[0][0], s, predict_x0=predict_x0)
            x = _correct(step, start, past[:k], now, solver_type) + (x - predicted)
        past = [now, *past][:order]
        if s_next == 0:
            return x0 if predict_x0 else x - s * now[1]
        start, k = x, min(order, len(past), len(sigmas) - 1 - i if lower_order_final else order)
        if s_next < s:
            x = _predict(interval(s, s_next, predict_x0=predict_x0), x, past[:k], s_next, solver_type)
    return x


def _predict(step: Interval, x: Tensor, past: Sequence[tuple[float, Tensor]], s_next: float, kind: str) -> Tensor:
    """UniP-p: x at s_next, from m at the last p noise levels."""
    ratios, slopes = _slopes(past, s_next)
    weights = [0.5] if len(slopes) == 1 else _weights(step.h, ratios, kind)
    return _advance(step, x, past[0][1], weights, slopes, kind)


def _correct(
    step: Interval, x: Tensor, past: Sequence[tuple[float, Tensor]], now: tuple[float, Tensor], kind: str
) -> Tensor:
    """UniC-p: x at now's sigma again, from m at the last p noise levels and at this one."""
    ratios, slopes = _slopes(past, now[0])
    slopes = [*slopes, now[1] - past[0][1]]
    weights = [0.5] if len(slopes) == 1 else _weights(step.h, [*ratios, 1.0], kind)
    return _advance(step, x, past[0][1], weights, slopes, kind)


def _slopes(past: Sequence[tuple[float, Tensor]], s_next: float) -> tuple[list[float], list[Tensor]]:
    """For each earlier point: how far back it lies, in steps, and the slope of m from there."""
    (s, m), *others = past
    ratios = [log(s / sigma) / log(s / s_next) for sigma, _ in others]
    return ratios, [(other - m) / r for r, (_, other) in zip(ratios, others, strict=True)]


def _advance(
    step: Interval, x: Tensor, m: Tensor, weights: Sequence[float], slopes: Sequence[Tensor], kind: str
) -> Tensor:
    bent = [w * slope for w, slope in zip(weights, slopes, strict=True)]
    x = step.step(x, m, mid=True)
    return x - step.gain * _scale(step.h, kind) * sum(bent[1:], bent[0]) if bent else x


def _scale(h: float, kind: str) -> float:
    """B(h)."""
    return h if kind == "bh1" else expm1(h)


def _weights(h: float, ratios: Sequence[float], kind: str) -> list[float]:
    """The rho that meet the order conditions: sum over k of rho_k r_k^(n-1) = n! phi_{n+1}(h) h^... / B(h) (eq. 9)."""
    if not ratios:
        return []
    r = torch.tensor(ratios, dtype=torch.float64)
    powers = torch.stack([r**n for n in range(len(ratios))])
    wanted, factorial = [], 1.0
    phi = expm1(h) / h - 1
    for n in range(1, len(ratios) + 1):
        wanted.append(phi * factorial / _scale(h, kind))
        factorial *= n + 1
        phi = phi / h - 1 / factorial
    return torch.linalg.solve(powers, torch.tensor(wanted, dtype=torch.float64)).tolist()
