"""Scenes composed of sprites on backgrounds, endless and each different, with captions, boxes, class maps and masks.

From a collection of a few thousand captioned sprites, backgrounds and photographs this makes a training set in which
everything about a picture is known exactly. A scene is a pure function of (seed, number):

    planning    what is in it and where
    captions    what people would write under it
    composing   its pixels, on the training device in batches, or by worker processes
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from safelight.diffusion.noise import sent
from safelight.errors import InputError
from safelight.training.data.banking import cached_bank
from safelight.training.data.batches import CAPTION, Batch, Device
from safelight.training.data.captions import Wording, caption
from safelight.training.data.collections import Collection
from safelight.training.data.composing import Composed, compose
from safelight.training.data.holdout import is_held_out, trained_on
from safelight.training.data.order import Draws
from safelight.training.data.planning import Mix, Plan, Planner
from safelight.training.data.sprites import Bank

__all__ = ["Mix", "Scene", "SceneData", "Wording", "is_held_out", "trained_on"]


@dataclass(frozen=True, slots=True)
class Scene:
    """One scene: what is in it, and its caption."""

    plan: Plan
    caption: str


class SceneData:
    """Scenes of `size` x `size` pixels made of a collection (see `sprites` for what it may hold).

    mix        how often scenes are what
    wording    how often captions say what, and caption dropout
    classes    the column of the table that names an object's class
    layout     whether batches have boxes, class maps and masks
    splits     of entries with a `split`, those to train on
    hold_out   which (hex, folder) never to show: pairs of a concept and the style that its folder holds; None for none
    cache      a folder to keep the sprites in, ready to use; without it they are made anew each time (minutes)

    All pictures are read when the data set is made, which takes seconds for each thousand. They are kept in `bank` on
    the CPU, with a copy on every device that a batch is asked for on (`Bank.nbytes`; 1.1 GB for 8,000 sprites and
    4,000 plates at 128 pixels). There is no epoch: scenes do not end, and `len` is the number of their ingredients.

    One core plans 3,700 scenes a second, and plans and composes about 850 of 128 pixels, 1,900 of 64: where a training
    device is faster than that, let `batches` have worker processes.
    """

    def __init__(
        self,
        collection: Collection,
        *,
        size: int,
        mix: Mix | None = None,
        wording: Wording | None = None,
        classes: str = "group",
        layout: bool = False,
        splits: tuple[str, ...] = ("train",),
        hold_out: Callable[[str, str], bool] | None = is_held_out,
        cache: Path | None = None,
    ) -> None:
        if size < 8:
            raise InputError(
                f"scenes of {size} pixels are too small to show anything", remedy="give a size of 8 or more"
            )
        kept = collection.where(lambda entry: trained_on(entry, splits, hold_out))
        self.collection, self.layout = kept, layout
        self.mix, self.wording = mix or Mix(), wording or Wording()
        self._banks: dict[torch.device, Bank] = {}
        self.bank, self.class_names = cached_bank(kept, size, classes, cache)

    def __len__(self) -> int:
        return len(self.bank.sprites) + len(self.bank.photos)

    @cached_property
    def planner(self) -> Planner:
        """Draws the plans."""
        return Planner(self.bank, self.mix)

    def sample(self, seed: int, n: int) -> Scene:
        """Give scene n: what is in it, and its caption, without pixels."""
        plan = self.planner.plan(Draws(seed, n))
        return Scene(plan, caption(plan, self.bank.size, self.wording, Draws(seed, n, CAPTION)))

    def captions(self, seed: int, count: int) -> Iterator[str]:
        """Give the captions of the first scenes, without pixels."""
        return (self.sample(seed, n).caption for n in range(count))

    def batch(self, seed: int, numbers: Sequence[int], device: Device = "cpu") -> Batch:
        """Compose the scenes of these numbers on the device."""
        scenes = [self.sample(seed, n) for n in numbers]
        composed = compose(
            self._bank_on(device), [scene.plan for scene in scenes], masks=len(self.mix.counts) if self.layout else 0
        )
        batch = Batch(composed.pictures.mul_(2).sub_(1), [scene.caption for scene in scenes])
        return replace(batch, **self._known([scene.plan for scene in scenes], composed))

    def gather(self, seed: int, numbers: Sequence[int]) -> Batch:
        """Compose on the CPU, pictures as bytes: what workers send."""
        batch = self.batch(seed, numbers)
        return replace(batch, pictures=batch.pictures.add_(1).mul_(127.5).round_().to(torch.uint8))

    def _bank_on(self, device: Device) -> Bank:
        device = torch.device(device)
        if device not in self._banks:
            self._banks[device] = self.bank.to(device)
        return self._banks[device]

    def _known(self, plans: Sequence[Plan], composed: Composed) -> dict[str, Any]:
        """The tensors of a batch that are known from the plans; see `Batch`."""
        device, size = composed.pictures.device, self.bank.size
        lone = [plan.objects[0].sprite.label if len(plan.objects) == 1 else -1 for plan in plans]
        known: dict[str, Tensor] = {"labels": sent(torch.tensor(lone), device)}
        if composed.masks is None:
            return known
        most = len(self.mix.counts)
        boxes, labels = torch.zeros(len(plans), most, 4), torch.full((len(plans), most), -1)
        for b, plan in enumerate(plans):
            for k, placed in enumerate(plan.objects):
                boxes[b, k] = torch.tensor(placed.box) / size
                labels[b, k] = placed.sprite.label
        labels = sent(labels, device)
        shown = composed.masks * (labels + 1)[..., None, None]
        return known | {
            "boxes": sent(boxes.clamp_(0, 1), device),
            "box_labels": labels,
            "masks": composed.masks,
            "class_maps": shown.amax(1),
        }
