"""AdamW, the learning rate's course, and steps that skip themselves, all without waiting for the device."""

import math
from collections.abc import Callable, Iterable
from itertools import chain

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from safelight.errors import InputError, nearest


def adamw(
    modules: Iterable[nn.Module],
    *,
    learning_rate: float,
    betas: tuple[float, float] = (0.9, 0.999),
    weight_decay: float = 0.01,
    eps: float = 1e-8,
) -> torch.optim.AdamW:
    """AdamW (Loshchilov and Hutter 2019) over the parameters that want gradients, as one fused kernel.

    The fused kernel also reads `found_inf`: where that is 1 it leaves parameters and moments as they are. The defaults
    are torch's, which trained Stable Diffusion. weight_decay 0 makes it Adam.
    """
    parameters = [p for p in chain.from_iterable(m.parameters() for m in modules) if p.requires_grad]
    return torch.optim.AdamW(parameters, lr=learning_rate, betas=betas, weight_decay=weight_decay, eps=eps, fused=True)


def _constant(progress: float) -> float:
    return 1.0


def _cosine(progress: float) -> float:
    return (1 + math.cos(math.pi * progress)) / 2


def _linear(progress: float) -> float:
    return 1 - progress


# name -> factor of the learning rate at a share in [0, 1] of the way from the end of the warm-up to the last step
COURSES: dict[str, Callable[[float], float]] = {"constant": _constant, "cosine": _cosine, "linear": _linear}


def rate_factor(step: int, *, steps: int, warmup: int = 0, course: str = "constant") -> float:
    """The factor on the learning rate for step number `step` (from 0) of `steps`.

    It rises linearly, reaching 1 after `warmup` steps, and then follows its course; cosine and linear end at 0. Raises
    InputError for an unknown course.
    """
    if course not in COURSES:
        raise InputError(f"learning-rate course {course!r} is unknown", remedy=nearest(course, COURSES))
    if step < warmup:
        return (step + 1) / (warmup + 1)
    return COURSES[course](min((step - warmup) / max(steps - warmup, 1), 1.0))


def gradient_norm(optimizer: torch.optim.Optimizer) -> Tensor:
    """The Euclidean norm of all gradients together, a scalar on the device; the whole norm of sharded ones."""
    gradients = [p.grad for p in parameters_of(optimizer) if p.grad is not None]
    norm = torch.nn.utils.get_total_norm(gradients)
    return norm.full_tensor() if isinstance(norm, DTensor) else norm


def guarded_step(optimizer: torch.optim.Optimizer, *, factor: float, clip: float) -> tuple[Tensor, Tensor]:
    """Step with the learning rate times `factor` and gradients of norm `clip` at most (0: any); clear the gradients.

    Where the norm of the gradients is not finite, parameters and moments stay as they are. Returns (the norm before
    clipping, 1.0 if the step was skipped, else 0.0), scalars on the device.
    """
    norm = gradient_norm(optimizer)
    if clip:
        torch.nn.utils.clip_grads_with_norm_(parameters_of(optimizer), clip, norm)
    skipped = (~norm.isfinite()).to(torch.float32)
    rates = [group["lr"] for group in optimizer.param_groups]
    for group in optimizer.param_groups:
        group["lr"] *= factor
    optimizer.found_inf = skipped  # type: ignore[attr-defined]  # how torch's GradScaler tells fused optimizers
    if skipped.device.type != "mps" or not skipped:  # where they do not listen
        optimizer.step()
    for group, rate in zip(optimizer.param_groups, rates, strict=True):
        group["lr"] = rate
    optimizer.zero_grad()
    return norm, skipped


def parameters_of(optimizer: torch.optim.Optimizer) -> list[nn.Parameter]:
    """All parameters of an optimizer, in its order."""
    return [p for group in optimizer.param_groups for p in group["params"]]
