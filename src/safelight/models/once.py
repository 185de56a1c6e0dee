"""What many parts of a network read, and what each of them makes of it: computed once, not at every step.

In a run of many steps the context stays as it is, and the timesteps are known ahead. So the keys and values of every
cross-attention, and what every residual block adds for the time, can be computed before the steps.
"""

from collections.abc import Callable
from typing import TypeVar

import torch
from torch import Tensor

__all__ = ["Once", "fan_out", "read"]

T = TypeVar("T")


class Once:
    """A tensor, and what parts of a network have made of it. `of(part)` is part(tensor), computed at the first call.

    It may stand wherever a network takes a context or an embedding of time. It must not outlive a change of the
    weights or of the tensor. With gradients enabled everything is computed anew, since a graph can be walked once.
    """

    def __init__(self, tensor: Tensor, known: dict[Callable[..., object], object] | None = None) -> None:
        self.tensor = tensor
        self.known = {} if known is None else known

    def __len__(self) -> int:
        return len(self.tensor)

    def of(self, part: Callable[[Tensor], T]) -> T:
        """What `part`, a method of a module, makes of the tensor."""
        if torch.is_grad_enabled():
            return part(self.tensor)
        if part not in self.known:
            self.known[part] = part(self.tensor)
        return self.known[part]  # type: ignore[return-value]


def read(source: Tensor | Once, part: Callable[[Tensor], T]) -> T:
    """part(source), looked up if it is known."""
    return source.of(part) if isinstance(source, Once) else part(source)


def fan_out(x: Tensor, batch: int) -> Tensor:
    """x (B, ...) for each of several conditions: x after x, (n·B, ...). As it is, if it has that batch already."""
    return x if x.shape[0] == batch else torch.cat([x] * (batch // x.shape[0]))  # keeps memory in x's order
