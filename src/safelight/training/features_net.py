"""A stand-in for VGG16, trained here on the pictures at hand, for perceptual losses where LPIPS' files are not.

A small VGG learns which way up a picture was (Gidaris et al. 2018, arXiv 1803.07728): a task that needs no labels, and
that asks for edges, parts and things. Zhang et al. (2018, section 4.1) found that features learned without labels
measure likeness about as well as those of a classifier. Pictures without an upright, such as textures, teach it little.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from safelight.models.lpips import LPIPS, VGG, VGGConfig
from safelight.training.data import Data
from safelight.training.optim import adamw, rate_factor
from safelight.training.perceptual import STAND_IN_NAME

__all__ = ["STAND_IN", "Features", "quarter_turns", "train_features"]

STAND_IN = VGGConfig(channels=(32, 64, 128, 128), layers=(1, 2, 2, 2))

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
        network = nn.Sequential(Last(metric.vgg), nn.Linear(config.channels[-1], 4)).requires_grad_(True)
        initialise(network)
    network.to(device)
    optimizer = adamw([network], learning_rate=learning_rate, weight_decay=1e-4)
    for step in range(steps):
        numbers = range(step * batch_size, (step + 1) * batch_size)
        for group in optimizer.param_groups:
            group["lr"] = learning_rate * rate_factor(step, steps=steps, warmup=steps // 20, course="cosine")
        loss, accuracy = turn_loss(network, data.batch(seed, numbers, device).pictures)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        watch(step, loss.detach(), accuracy)
    held_out = range(steps * batch_size, steps * batch_size + 128)
    with torch.no_grad():
        _, accuracy = turn_loss(network, data.batch(seed, held_out, device).pictures)
    return Features(metric.to(device).requires_grad_(False).eval(), float(accuracy))


class Last(nn.Module):
    """The last stage of a feature network, its mean over all pixels: (B, 3, H, W) -> (B, C)."""

    def __init__(self, vgg: VGG) -> None:
        super().__init__()
        self.vgg = vgg

    def forward(self, picture: Tensor) -> Tensor:
        """See the class."""
        return self.vgg(picture)[-1].mean(dim=(2, 3))


def initialise(network: nn.Module) -> None:
    """Draw weights that keep the signal's variance through rectifiers (He et al. 2015, arXiv 1502.01852)."""
    for module in network.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, nonlinearity="relu")
            if module.bias is not None:
                nn.init.zeros_(module.bias)


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
