"""Twice the pixels from the same latents: a level more around an autoencoder, so that what draws its latents can stay.

    python recipes/grow_autoencoder.py MODEL PICTURES --run RUN

MODEL is a model or an autoencoder, PICTURES a collection of sprites as `safelight.training.data.sprites` has them. The
encoder learns to say of a picture what the former one says of its half; the decoder learns to draw all pixels from the
former one's latents, and at last from those of the new encoder. RUN/model is the new autoencoder, of averaged weights,
which `safelight convert MODEL NEW --vae RUN/model` gives to a model: its U-Net then draws pictures twice as large, in
the same time but for the decoder's. The same command goes on wherever it was stopped.
"""

import math
import re
import sys
from collections.abc import Iterable
from dataclasses import replace

import torch
from growing import Growing, arguments, grow
from torch import Tensor, nn
from torch.nn import functional as F

from safelight.errors import InputError
from safelight.models.autoencoder import Autoencoder
from safelight.training.loop.assembly import groups

COLORS = 3
JOINT = 0.75  # of the steps: from then on the decoder reads what the new encoder writes


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


class LargerPictures(Growing):
    """The new encoder says of a picture what the old one says of its half; the decoder learns to draw all pixels."""

    def __init__(self, old: Autoencoder, channels: int, steps: int, rate: float) -> None:
        super().__init__(old, grown(old, channels), steps, rate)

    def losses(self, x: Tensor) -> tuple[Tensor, dict[str, float]]:
        """Likeness of pictures, and of what both encoders say."""
        with torch.no_grad():
            taught = self.old.encode(F.avg_pool2d(x, 2))
        said = self.new.encode(x)
        read = said if self.step >= JOINT * self.steps else taught
        z = read.mean + read.std * self.noise(read.mean)
        error = self.new.decoder(self.new.post_quant_conv(z)) - x
        squared = error.square().mean()
        mean = (said.mean - taught.mean).square().mean()
        spread = (said.std.log() - taught.std.log()).square().mean()
        loss = error.abs().mean() / 0.15 + squared / 0.1 + mean + 0.1 * spread
        return loss, {"psnr": 10 * math.log10(4 / squared.item()), "latents": mean.item()}


def main() -> int:
    """Grow, and say how it goes."""
    grow(arguments(__doc__, channels=8, meaning="of the new level"), LargerPictures)
    return 0


if __name__ == "__main__":
    sys.exit(main())
