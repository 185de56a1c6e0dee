"""A U-Net during one run of many steps: the same answers for less work.

                             computed once for
time embedding               the run: every block's part of it, of all timesteps together
keys and values of a prompt  the run, in every cross-attention
all before the first look    both halves of guidance, which have the same x and t until then
the deep features            `every` steps, if asked for (DeepCache): this one is no longer exact
"""

from collections.abc import Sequence
from typing import NamedTuple, TypeGuard

import torch
from torch import Tensor

from safelight.errors import InputError
from safelight.models.controlnet import Control
from safelight.models.once import Once
from safelight.models.unet import UNet, plus

__all__ = ["Run", "untouched"]

CONTEXTS = 4  # whose keys and values are kept: a prompt alone and beside its negative, and those it alternates with


def untouched(unet: object) -> TypeGuard[UNet]:
    """Whether a `Run` may stand for it: a U-Net that nobody has wrapped, compiled, patched or hung a hook on."""
    if type(unet) is not UNet or unet._forward_hooks or unet._forward_pre_hooks or "forward" in vars(unet):
        return False
    return all(part._compiled_call_impl is None for part in unet.modules())


class Kept(NamedTuple):
    """Deep features, and what they were computed for."""

    features: Tensor
    context: Once | None
    timestep: float

    def fit(self, first: Tensor, context: Once | None, timestep: float) -> bool:
        """Whether they may stand in at another evaluation: of the same size and prompts, and of no more noise."""
        batch = len(first) if context is None else len(context)
        alike = self.features.shape[-2:] == first.shape[-2:] and len(self.features) == batch
        return alike and self.context is context and timestep <= self.timestep


class Run:
    """What a `Denoiser` may take for its network in place of a U-Net, for as long as the weights stay as they are.

    unet: any; what has no cross-attention still gains from the timesteps. timesteps: those of the grid; others work,
    and are embedded when they come. every, below: at timesteps under `below` only one evaluation in `every` is full;
    the others compute the first convolution and the last layer anew, and between them take what the last full one
    has left there (Ma et al. 2024, arXiv 2312.00858, with its shallowest branch). 1 is exact. control: a ControlNet's
    run beside this one, which adds to it.

    One run is for one thread.
    """

    shares = True  # see `safelight.diffusion.denoiser.Denoiser`

    def __init__(
        self, unet: UNet, timesteps: Sequence[float], *, every: int = 1, below: float = float("inf"),
        control: Control | None = None,
    ) -> None:  # fmt: skip
        if every < 1:
            raise InputError(f"one evaluation in {every} cannot be full", remedy="give a whole number from 1 on")
        self.unet, self.every, self.below, self.control = unet, every, below, control
        self.times: dict[float, Once] = {}
        plain = unet.class_embedding is None and unet.add_embedding is None  # else it depends on more than time
        if plain and len(timesteps) > 0:
            with torch.no_grad():
                self.times = dict(zip(timesteps, unet.embed_steps(timesteps), strict=True))
        self.contexts: list[Once] = []
        self.kept: Kept | None = None
        self.age = 0  # evaluations since those were computed

    def __call__(
        self, x: Tensor, timestep: float, *, context: Tensor | None = None, class_labels: Tensor | None = None,
        pooled: Tensor | None = None,
    ) -> Tensor:  # fmt: skip
        """x (B, in_channels, H, W), context (n·B, L, D) or None -> (n·B, out_channels, H, W); `UNet.forward` else."""
        self.unet.check_inputs(x, context, 1 if context is None else max(len(context) // len(x), 1))
        emb = self.time(timestep, class_labels, pooled)
        told = None if context is None else self.told(context)
        if self.every == 1 or torch.is_grad_enabled():
            added = None if self.control is None else self.control(x, timestep, told, pooled)
            return self.unet.forward_embedded(x, emb, told, added)
        first = self.unet.enter(x)
        deep = self.deep(x, first, emb, told, timestep, pooled)
        more = None if self.control is None else self.control.first(x, timestep)
        return self.unet.leave(deep, first if more is None else plus(first, more), emb, told)

    @property
    def dtype(self) -> torch.dtype:
        """The dtype of the weights."""
        return self.unet.dtype

    def time(self, timestep: float, class_labels: Tensor | None, pooled: Tensor | None = None) -> Tensor | Once:
        """The embedding of a timestep: looked up, if it is the grid's and there is nothing beside it."""
        known = self.times.get(timestep) if class_labels is None and pooled is None else None
        return self.unet.embed_time(timestep, class_labels, pooled) if known is None else known

    def told(self, context: Tensor) -> Once:
        """A context with its keys and values; it is known by being the same tensor."""
        for known in self.contexts:
            if known.tensor is context:
                return known
        self.contexts = [*self.contexts, Once(context)][-CONTEXTS:]
        return self.contexts[-1]

    def deep(
        self, x: Tensor, first: Tensor, emb: Tensor | Once, context: Once | None, timestep: float,
        pooled: Tensor | None,
    ) -> Tensor:  # fmt: skip
        """The deep features: those of the last full evaluation, or anew where it is too old or was of another kind."""
        self.age += 1
        late = timestep < self.below and self.age < self.every
        if self.kept is None or not (late and self.kept.fit(first, context, timestep)):
            added = None if self.control is None else self.control(x, timestep, context, pooled)
            self.kept, self.age = Kept(self.unet.deep(first, emb, context, added), context, timestep), 0
        return self.kept.features
