"""What the recipes share that grow an autoencoder: a training all of whose state is kept, and its command.

`Growing` needs to be told what a step learns (`losses`); `grow` is the whole run.
"""

import argparse
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor

from safelight.checkpoint.load import load_autoencoder
from safelight.checkpoint.save import save_autoencoder
from safelight.checkpoint.writing import replacing
from safelight.models.autoencoder import Autoencoder
from safelight.training.data.collections import open_collection
from safelight.training.data.planning import MIXES
from safelight.training.data.scenes import SceneData
from safelight.training.loop.ema import Averages, profiles
from safelight.training.loop.optim import adamw, guarded_step, rate_factor

EMA, WARMUP, SAVE_EVERY, TELL_EVERY = 0.998, 100, 250, 50
STATE = "state.pt"


class Growing:
    """The training: state that a step changes, all of which is kept."""

    def __init__(self, old: Autoencoder, new: Autoencoder, steps: int, rate: float) -> None:
        self.old, self.new = old.eval().requires_grad_(False), new.requires_grad_(True)
        self.steps, self.step = steps, 0
        self.averages = Averages({"autoencoder": self.new}, profiles(EMA, ()))
        self.optimizer = adamw([self.new], learning_rate=rate, betas=(0.9, 0.99), weight_decay=0.0)
        self.generator = torch.Generator().manual_seed(0)

    def losses(self, x: Tensor) -> tuple[Tensor, dict[str, float]]:
        """What pictures (B, 3, H, W) teach: the loss, and figures for the log."""
        raise NotImplementedError

    def noise(self, z: Tensor) -> Tensor:
        """Standard normal, like z."""
        return torch.randn(z.shape, generator=self.generator)

    def take(self, x: Tensor) -> dict[str, float]:
        """One step on pictures (B, 3, H, W)."""
        loss, figures = self.losses(x)
        loss.backward()
        factor = rate_factor(self.step, steps=self.steps, warmup=WARMUP, course="cosine")
        guarded_step(self.optimizer, factor=factor, clip=1.0)
        self.averages.update()
        self.step += 1
        return figures

    def save(self, run: Path) -> None:
        """Keep all that goes on, and the averaged weights as a model."""
        state = {part: getattr(self, part).state_dict() for part in ("new", "optimizer")}
        state |= {"averages": self.averages.sets, "updates": self.averages.updates, "step": self.step}
        with replacing(run / STATE) as file:
            torch.save(state | {"generator": self.generator.get_state()}, file)
        with self.averages.applied():
            save_autoencoder(self.new, run / "model")

    def go_on(self, run: Path) -> None:
        """Read what was kept, if anything was."""
        if not (run / STATE).exists():
            return
        state = torch.load(run / STATE, weights_only=True)
        for part in ("new", "optimizer"):
            getattr(self, part).load_state_dict(state[part])
        self.averages.sets, self.averages.updates, self.step = state["averages"], state["updates"], state["step"]
        self.generator.set_state(state["generator"])


def arguments(description: str, *, channels: int, meaning: str) -> argparse.Namespace:
    """What was asked for; `channels` and its `meaning` are the recipe's own."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", help="a model or an autoencoder: a folder, a file, a hub id")
    parser.add_argument("pictures", type=Path, help="the collection")
    parser.add_argument("--run", type=Path, required=True, help="folder for all that is made")
    parser.add_argument("--channels", type=int, default=channels, help=f"{meaning} ({channels})")
    parser.add_argument("--size", type=int, default=128, help="side of the pictures, in pixels (128)")
    parser.add_argument("--mixes", nargs="+", choices=MIXES, default=["varied"], help="of scenes, in turns (varied)")
    parser.add_argument("--steps", type=int, default=6000)
    parser.add_argument("--batch-size", type=int, default=8)
    parser.add_argument("--learning-rate", type=float, default=8e-4)
    return parser.parse_args()


def grow(asked: argparse.Namespace, begin: Callable[[Autoencoder, int, int, float], Growing]) -> None:
    """Train from where the run stopped to its end, and say how it goes."""
    asked.run.mkdir(parents=True, exist_ok=True)
    torch.manual_seed(0)
    old = load_autoencoder(asked.model, dtype=torch.float32)
    growing = begin(old, asked.channels, asked.steps, asked.learning_rate)
    growing.go_on(asked.run)
    pictures = open_collection(asked.pictures)
    data = [SceneData(pictures, size=asked.size, mix=MIXES[mix], cache=asked.run / "cache") for mix in asked.mixes]
    while growing.step < asked.steps:
        first = asked.batch_size * growing.step
        scenes = data[growing.step % len(data)].batch(0, range(first, first + asked.batch_size))
        told = growing.take(scenes.pictures)
        if growing.step % TELL_EVERY == 0:
            figures = "  ".join(f"{name} {value:.4g}" for name, value in told.items())
            print(f"step {growing.step}/{asked.steps}  {figures}", flush=True)
        if growing.step % SAVE_EVERY == 0 or growing.step == asked.steps:
            growing.save(asked.run)
    print(f"written: {asked.run / 'model'}")
