"""What steers a network, apart from the noisy picture and its noise level."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields

import torch
from torch import Tensor

from safelight.errors import InputError


@dataclass(frozen=True, eq=False)
class Condition:
    """A batch of B conditions. Every field is absent (None) or a tensor whose first dimension is B."""

    context: Tensor | None = None  # (B, L, D), what cross-attention looks at, such as CLIP's last hidden states
    pooled: Tensor | None = None  # (B, D), one vector per picture
    concat: Tensor | None = None  # (B, C, H, W), channels put behind the latent's: mask and masked picture, depth, ...
    class_labels: Tensor | None = None  # (B,) whole numbers, or (B, D) vectors

    def __post_init__(self) -> None:
        sizes = {name: len(tensor) for name, tensor in self.present().items()}
        if len(set(sizes.values())) > 1:
            raise InputError(f"the fields of a condition must have one batch size, got {sizes}")

    def present(self) -> dict[str, Tensor]:
        """The fields that are not None, by name."""
        return {f.name: getattr(self, f.name) for f in fields(self) if getattr(self, f.name) is not None}

    @property
    def batch(self) -> int:
        """B; 1 where every field is absent."""
        return next((len(tensor) for tensor in self.present().values()), 1)

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        """The shape of every present field without its batch. Conditions with equal shapes can share a batch."""
        return {name: tuple(tensor.shape[1:]) for name, tensor in self.present().items()}

    def to(self, device: torch.device | str | None = None, dtype: torch.dtype | None = None) -> "Condition":
        """On another device, and in another floating type; whole numbers stay whole."""
        return self._each(lambda x: x.to(device, dtype if x.is_floating_point() else None))

    def repeat(self, n: int) -> "Condition":
        """Each of the B conditions n times in a row: (B * n)."""
        return self._each(lambda x: x.repeat_interleave(n, dim=0))

    def expand(self, batch: int) -> "Condition":
        """A single condition for `batch` pictures; a condition of that batch as it is. Raises InputError for others."""
        if self.batch not in (1, batch):
            raise InputError(
                f"{self.batch} conditions for {batch} pictures", remedy="give one, or one for each picture"
            )
        return self if self.batch == batch else self.repeat(batch)

    def select(self, index: slice) -> "Condition":
        """Some of the batch."""
        return self._each(lambda x: x[index])

    @staticmethod
    def cat(conditions: Sequence["Condition"]) -> "Condition":
        """One batch of several. Raises InputError where they differ in anything but the batch size."""
        shapes = [c.shapes for c in conditions]
        if any(s != shapes[0] for s in shapes):
            raise InputError(f"conditions of different shapes cannot share a batch: {shapes}")
        return Condition(**{k: torch.cat([c.present()[k] for c in conditions]) for k in shapes[0]})

    def _each(self, change: Callable[[Tensor], Tensor]) -> "Condition":
        return Condition(**{name: change(tensor) for name, tensor in self.present().items()})
