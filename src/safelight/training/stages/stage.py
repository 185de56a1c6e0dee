"""What the loop knows of a stage of training: it computes losses, and can show and write what it has learned.

    loop                                         stage
    for each micro-batch of a step:
        for loss in stage.losses(batch, noise):  forward passes, on the device alone
            backward(loss)
    clip, skip if not finite, optimizer.step     stage.updated(step)
    EMA, log, checkpoint                         stage.state_tensors()
    every N steps                                stage.sheet()
    at the end                                   stage.finish(folder, weights, record)

So a stage never calls backward, zero_grad, clip or step, and accumulation, replicas, learning rates, averages and
checkpoints are written once, in the loop.
"""

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

import torch
from PIL import Image
from torch import Tensor, nn

from safelight.training.stages.noise import BatchNoise

Weights = Mapping[str, Mapping[str, Tensor]]  # name of a module -> its whole state dict, on the CPU


@dataclass(frozen=True, eq=False)
class Loss:
    """One backward pass. `value` is a scalar; `figures` are scalars to log. All stay on the device.

    `optimizer` names the optimizer this loss is for: where several losses of a stage are for different ones, each must
    give gradients to its own parameters alone (freeze the others with `requires_grad_` while computing it).
    """

    optimizer: str
    value: Tensor
    figures: Mapping[str, Tensor] = field(default_factory=dict)


class Stage(ABC):
    """A stage of training.

    Attributes:
        name: of the stage: "autoencoder", "diffusion".
        modules: the networks that are trained, by name. `losses` calls them as `self.modules[name](...)`, through
            `__call__`, because the loop may have put replicas in their place (DistributedDataParallel; FSDP2 and
            torch.compile change them where they are). A network of the loop's that is only used, not trained, in one
            loss (a discriminator in the generator's loss) is called bare.
        optimizers: by name, over the parameters of `modules`; make them with `optim.adamw`. Their learning rate is that
            of their param_groups, times the loop's factor for the step (warm-up, decay).
        averaged: the modules of which the loop keeps moving averages (EMA).
    """

    name: ClassVar[str]
    modules: dict[str, nn.Module]
    optimizers: dict[str, torch.optim.Optimizer]
    averaged: tuple[str, ...]

    @abstractmethod
    def losses(self, batch: Any, noise: BatchNoise) -> Iterator[Loss]:
        """Compute the losses of one micro-batch, in order; each is backpropagated before the next is asked for.

        batch: what the data gives (`Batch`, `LatentBatch`), on the training device. noise: this micro-batch's random
        numbers and its place: `noise.step`, `noise.numbers`. Nothing here may wait for the device: no `.item()`, no
        `if` on a tensor. A loss is a mean over the micro-batch; the loop divides it by the number of micro-batches.
        """

    def updated(self, step: int) -> None:  # noqa: B027  (most stages have nothing to do)
        """Act after all optimizers have made their step, number `step` (from 0): revive codes, and the like."""

    def state_tensors(self) -> dict[str, Tensor]:
        """What must be saved to go on exactly, beside modules, optimizers and averages: tensors by name."""
        return {}

    def load_state_tensors(self, tensors: Mapping[str, Tensor]) -> None:  # noqa: B027
        """Take back what `state_tensors` gave. Raises KeyError where something is missing."""

    @abstractmethod
    def sheet(self) -> Image.Image | None:
        """Draw what there is to look at, always of the same prompts and seeds; None if there is nothing.

        Called without gradients, with the averaged weights in `modules`, on every rank if the weights are sharded.
        """

    @abstractmethod
    def finish(self, folder: Path, weights: Weights, record: Mapping[str, Any]) -> None:
        """Write the result: a folder in diffusers' layout with a model card, whole or not at all.

        weights: of every module, averaged where there is an average. record: what the card should say about the run
        (data, steps, samples, seconds, device, figures).
        """
