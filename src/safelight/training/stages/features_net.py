"""A stand-in for VGG16, trained here on the pictures at hand, for perceptual losses where LPIPS' files are not.

A small VGG learns which way up a picture was (Gidaris et al. 2018, arXiv 1803.07728): a task that needs no labels, and
that asks for edges, parts and things. Zhang et al. (2018, section 4.1) found that features learned without labels
measure likeness about as well as those of a classifier. Pictures without an upright, such as textures, teach it little.
"""

import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from safelight import kernels
from safelight.models.lpips import LPIPS, VGG, VGGConfig
from safelight.training.data.batches import Data
from safelight.training.loop.distributed import once
from safelight.training.loop.optim import adamw, rate_factor
from safelight.training.stages.perceptual import STAND_IN_NAME, load_features, save_features

__all__ = ["STAND_IN", "Features", "quarter_turns", "stand_in", "train_features"]

STAND_IN = VGGConfig(channels=(32, 64, 128, 128), layers=(1, 2, 2, 2))

HELD_OUT = 128  # pictures to measure the accuracy on

Watch = Callable[[int, Tensor, Tensor], None]  # step, loss, share of turns found


class Features(NamedTuple):
    """A trained stand-in, and the share of turns it finds in the samples after the last it was trained on.

    Chance is 0.25. A small data set may have shown these pictures before.
    """

    metric: LPIPS
    accuracy: float


def train_features(
    data: Data[Any],
    *,
    config: VGGConfig = STAND_IN,
    steps: int = 600,
    batch_size: int = 16,
    learning_rate: float = 1e-3,
    seed: int = 0,
    device: torch.device | str = "cpu",
    watch: Watch = lambda step, loss, accuracy: None,
) -> Features:
    """Train a feature network on a data set's `pictures` (any with sides of 2^(stages-1) or more), minutes on a CPU.

    Every picture is shown in all four turns. `watch` is told of each step, in tensors. The same seed on the same
    machine gives the same network.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        metric = LPIPS(config, name=STAND_IN_NAME)
        pupil = Pupil(metric.vgg).to(device)
    kernels.prepare(pupil)
    optimizer = adamw([pupil], learning_rate=learning_rate, weight_decay=1e-4)
    for step in range(steps):
        numbers = range(step * batch_size, (step + 1) * batch_size)
        for group in optimizer.param_groups:
            group["lr"] = learning_rate * rate_factor(step, steps=steps, warmup=steps // 20, course="cosine")
        loss, accuracy = turn_loss(pupil, data.batch(seed, numbers, device).pictures)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        watch(step, loss.detach(), accuracy)
    pupil.fold()
    held_out = range(steps * batch_size, steps * batch_size + HELD_OUT)
    with torch.no_grad():
        _, accuracy = turn_loss(pupil.eval(), data.batch(seed, held_out, device).pictures)
    return Features(metric.to(device).requires_grad_(False).eval(), float(accuracy))


def stand_in(
    path: Path,
    data: Data[Any],
    *,
    steps: int = 600,
    seed: int = 0,
    device: torch.device | str = "cpu",
    watch: Watch = lambda step, loss, accuracy: None,
) -> LPIPS:
    """The stand-in features in the file `path`; if there is none, they are first trained on `data` and written there.

    Where several processes do this together, rank 0 trains and the others wait for it.
    """

    def make() -> None:
        if not path.exists():
            what = "no weight files of LPIPS were named: features to stand in for it are trained first"
            warnings.warn(f"{what}, in {steps} steps, and kept in {path}", stacklevel=4)
            trained = train_features(data, steps=steps, seed=seed, device=device, watch=watch)
            record = {"steps": str(steps), "task": "quarter turns", "turns found": f"{trained.accuracy:.3f}"}
            save_features(trained.metric, path, record)

    once(make)
    return load_features(path)


class Pupil(nn.Module):
    """A VGG network while it learns: batch normalisation after every convolution, and logits of the four turns.

    Without it, so few steps teach next to nothing. `fold` then puts what it does into the convolutions.
    """

    def __init__(self, vgg: VGG) -> None:
        super().__init__()
        self.vgg = vgg.requires_grad_(True)
        self.convolutions = [block for block in vgg.features if isinstance(block, nn.Conv2d)]
        for convolution in self.convolutions:  # He et al. 2015, arXiv 1502.01852
            nn.init.kaiming_normal_(convolution.weight, nonlinearity="relu")
        self.norms: nn.ModuleList | None = nn.ModuleList(nn.BatchNorm2d(c.out_channels) for c in self.convolutions)
        self.turns = nn.Linear(vgg.config.channels[-1], 4)

    def forward(self, picture: Tensor) -> Tensor:
        """(B, 3, H, W) in [-1, 1] -> (B, 4)."""
        if self.norms is None:
            return self.turns(self.vgg(picture)[-1].mean(dim=(2, 3)))
        x, norms = (picture - self.vgg.shift) / self.vgg.scale, iter(self.norms)
        for block in self.vgg.features:
            x = block(x)
            if isinstance(block, nn.Conv2d):
                x = next(norms)(x)
        return self.turns(x.mean(dim=(2, 3)))

    @torch.no_grad()
    def fold(self) -> None:
        """Let each convolution do what its normalisation does in evaluation, and leave the normalisations out."""
        for convolution, norm in zip(self.convolutions, cast(nn.ModuleList, self.norms), strict=True):
            assert isinstance(norm, nn.BatchNorm2d) and norm.running_mean is not None and norm.running_var is not None
            gain = norm.weight / (norm.running_var + norm.eps).sqrt()
            convolution.weight.mul_(gain[:, None, None, None])
            convolution.bias.sub_(norm.running_mean).mul_(gain).add_(norm.bias)  # type: ignore[union-attr]
        self.norms = None


def turn_loss(network: nn.Module, pictures: Tensor) -> tuple[Tensor, Tensor]:
    """The cross-entropy of finding each picture's quarter turns, and the share that is found: two scalars."""
    turned, turns = quarter_turns(pictures)
    logits = network(turned)
    return F.cross_entropy(logits, turns), (logits.argmax(1) == turns).float().mean()


def quarter_turns(pictures: Tensor) -> tuple[Tensor, Tensor]:
    """Pictures (B, 3, H, W), cut to squares, in all four turns: (4B, 3, s, s), and by how many quarters: (4B,)."""
    side = min(pictures.shape[2:])
    top, left = ((length - side) // 2 for length in pictures.shape[2:])
    square = pictures[:, :, top : top + side, left : left + side]
    turned = torch.cat([square.rot90(k, dims=(2, 3)) for k in range(4)])
    return turned, torch.arange(4, device=pictures.device).repeat_interleave(len(pictures))
