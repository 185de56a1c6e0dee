"""Twice the pixels from the same latents: a level more around an autoencoder, so that what draws its latents can stay.

    python recipes/grow_autoencoder.py MODEL PICTURES --run RUN

MODEL is a model or an autoencoder, PICTURES a collection of sprites as `safelight.training.data.sprites` has them. The
encoder learns to say of a picture what the former one says of its half; the decoder learns to draw all pixels from the
former one's latents, and at last from those of the new encoder. RUN/model is the new autoencoder, of averaged weights,
which `safelight convert MODEL NEW --vae RUN/model` gives to a model: its U-Net then draws pictures twice as large, in
the same time but for the decoder's. The same command goes on wherever it was stopped.
"""

import argparse
import math
import re
import sys
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from safelight.checkpoint.load import load_autoencoder
from safelight.checkpoint.save import save_autoencoder
from safelight.checkpoint.writing import replacing
from safelight.errors import InputError
from safelight.models.autoencoder import Autoencoder
from safelight.training.data.collections import open_collection
from safelight.training.data.scenes import SceneData
from safelight.training.loop.assembly import groups
from safelight.training.loop.ema import Averages, profiles
from safelight.training.loop.optim import adamw, guarded_step, rate_factor

COLORS = 3
JOINT = 0.75  # of the steps: from then on the decoder reads what the new encoder writes
EMA, WARMUP, SAVE_EVERY, TELL_EVERY = 0.998, 100, 250, 50
STATE = "state.pt"


def grown(old: Autoencoder, channels: int) -> Autoencoder:
    """An autoencoder with one level of `channels` more, which has the old weights wherever there is a place for them.

    What is new does nearly nothing at first: the encoder averages colours over 2x2 pixels, the decoder repeats pixels.
    """
    c, last = old.config, len(old.config.block_out_channels)
    if c.kind != "AutoencoderKL" or channels < 2 * COLORS:
        raise InputError(f"a level of {channels} channels around a {c.kind}", remedy="take 6 or more, around a KL one")
    widths = (channels, *c.block_out_channels)
    new = Autoencoder(
        replace(
            c,
            block_out_channels=widths,
            down_block_types=("DownEncoderBlock2D", *c.down_block_types),
            up_block_types=(*c.up_block_types, "UpDecoderBlock2D"),
            norm_num_groups=groups(widths),
            sample_size=2 * c.sample_size if isinstance(c.sample_size, int) else tuple(2 * n for n in c.sample_size),
        )
    )
    kept = old.state_dict()
    with torch.no_grad():
        for name, weight in new.state_dict().items():
            former = kept.get(re.sub(r"(?<=encoder\.down_blocks\.)\d+", lambda n: str(int(n[0]) - 1), name))
            if former is not None and former.shape == weight.shape:
                weight.copy_(former)
        outer = (new.encoder.down_blocks[0], new.decoder.up_blocks[last])
        for block in (block for level in outer for block in level.resnets):
            block.conv2.weight.zero_()
            block.conv2.bias.zero_()
        pass_on(new.encoder.conv_in, COLORS, [(1, 1, 1.0)])
        pass_on(outer[0].downsamplers[0].conv, COLORS, [(y, x, 0.25) for y in (0, 1) for x in (0, 1)])
        repeating = new.decoder.up_blocks[last - 1].upsamplers[0].conv
        pass_on(repeating, repeating.out_channels, [(1, 1, 1.0)])
    return new


def pass_on(conv: nn.Conv2d, channels: int, taps: Iterable[tuple[int, int, float]]) -> None:
    """Let a convolution's first channels give its first inputs on, summed over `taps`: (row, column, share)."""
    conv.bias.zero_()
    conv.weight[:channels].zero_()
    for row, column, share in taps:
        conv.weight[range(channels), range(channels), row, column] = share


class Growing:
    """The training: state that a step changes, all of which is kept."""

    def __init__(self, old: Autoencoder, channels: int, steps: int, rate: float) -> None:
        self.old, self.steps, self.step = old.eval().requires_grad_(False), steps, 0
        self.new = grown(old, channels).requires_grad_(True)
        self.averages = Averages({"autoencoder": self.new}, profiles(EMA, ()))
        self.optimizer = adamw([self.new], learning_rate=rate, betas=(0.9, 0.99), weight_decay=0.0)
        self.generator = torch.Generator().manual_seed(0)

    def take(self, x: Tensor) -> dict[str, float]:
        """One step on pictures (B, 3, H, W)."""
        with torch.no_grad():
            taught = self.old.encode(F.avg_pool2d(x, 2))
        said = self.new.encode(x)
        read = said if self.step >= JOINT * self.steps else taught
        z = read.mean + read.std * torch.randn(read.mean.shape, generator=self.generator)
        error = self.new.decoder(self.new.post_quant_conv(z)) - x
        squared = error.square().mean()
        mean = (said.mean - taught.mean).square().mean()
        spread = (said.std.log() - taught.std.log()).square().mean()
        (error.abs().mean() / 0.15 + squared / 0.1 + mean + 0.1 * spread).backward()
        factor = rate_factor(self.step, steps=self.steps, warmup=WARMUP, course="cosine")
        guarded_step(self.optimizer, factor=factor, clip=1.0)
        self.averages.update()
        self.step += 1
        return {"psnr": 10 * math.log10(4 / squared.item()), "latents": mean.item()}

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


def main() -> int:
    """Grow, and say how it goes."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", help="a model or an autoencoder: a folder, a file, a hub id")
    parser.add_argument("pictures", type=Path, help="the collection")
    parser.add_argument("--run", type=Path, required=True, help="folder for all that is made")
    parser.add_argument("--channels", type=int, default=8, help="of the new level (8)")
    parser.add_argument("--size", type=int, default=128, help="side of the pictures, in pixels (128)")
    parser.add_argument("--steps", type=int, default=6000)
    parser.add_argument("--batch-size", type=int, default=8)
    parser.add_argument("--learning-rate", type=float, default=8e-4)
    asked = parser.parse_args()
    asked.run.mkdir(parents=True, exist_ok=True)
    torch.manual_seed(0)
    growing = Growing(load_autoencoder(asked.model), asked.channels, asked.steps, asked.learning_rate)
    growing.go_on(asked.run)
    data = SceneData(open_collection(asked.pictures), size=asked.size, cache=asked.run / "cache")
    while growing.step < asked.steps:
        first = asked.batch_size * growing.step
        told = growing.take(data.batch(0, range(first, first + asked.batch_size)).pictures)
        if growing.step % TELL_EVERY == 0:
            figures = "  ".join(f"{name} {value:.4g}" for name, value in told.items())
            print(f"step {growing.step}/{asked.steps}  {figures}", flush=True)
        if growing.step % SAVE_EVERY == 0 or growing.step == asked.steps:
            growing.save(asked.run)
    print(f"written: {asked.run / 'model'}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
