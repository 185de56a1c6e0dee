"""More channels in every layer of an autoencoder, which goes on saying and drawing what it did: a start to train from.

    python recipes/widen_autoencoder.py MODEL OUT --times 2

MODEL is a model or an autoencoder. Each channel within it is there so many times in OUT, and what reads them shares its
weights out among the copies at random, so that gradients tell them apart (Net2Net: Chen et al. 2016, arXiv 1511.05641).
Latents stay what they were, so that what draws them can stay while the decoder learns to use its channels:
`safelight train autoencoder PICTURES --run RUN --init OUT --decoder-only`. It costs `times` squared the weights.
"""

import argparse
import sys
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor

from safelight.checkpoint.load import load_autoencoder
from safelight.checkpoint.save import save_autoencoder
from safelight.errors import InputError
from safelight.models.autoencoder import Autoencoder

LEAST = 0.5  # of the largest share that is dealt, before shares are made to sum to one


def widened(old: Autoencoder, times: int) -> Autoencoder:
    """An autoencoder of `times` the channels within, which says and draws the same but for rounding.

    Copies lie side by side, so that a group of a norm holds the copies of what it held, and has the same statistics.
    """
    if times < 2:
        raise InputError(f"{times} times the channels", remedy="take 2 or more")
    new = Autoencoder(replace(old.config, block_out_channels=tuple(times * c for c in old.config.block_out_channels)))
    kept, generator = old.state_dict(), torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, weight in new.state_dict().items():
            wide = kept[name]
            for axis, (many, few) in enumerate(zip(weight.shape, wide.shape, strict=True)):
                if many != few:
                    wide = wide.repeat_interleave(times, axis)
            if wide.ndim > 1 and weight.shape[1] != kept[name].shape[1]:
                wide = wide * shares(wide, times, generator)
            if ".to_q." in name:  # its products with k are sums over copies as well, divided by the root of the width
                wide = wide / times**0.5
            weight.copy_(wide)
    return new


def shares(weight: Tensor, times: int, generator: torch.Generator) -> Tensor:
    """How much of its input each weight (C', times·C, ...) takes from each of the copies; 1 over all of them."""
    dealt = LEAST + (1 - LEAST) * torch.rand(len(weight), weight.shape[1] // times, times, generator=generator)
    dealt = (dealt / dealt.sum(2, keepdim=True)).flatten(1)
    return dealt.view(*dealt.shape, *[1] * (weight.ndim - 2))


def main() -> int:
    """Read, widen, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", help="a model or an autoencoder: a folder, a file, a hub id")
    parser.add_argument("out", type=Path, help="folder of the new autoencoder")
    parser.add_argument("--times", type=int, default=2, help="channels for each there is (2)")
    asked = parser.parse_args()
    save_autoencoder(widened(load_autoencoder(asked.model, dtype=torch.float32), asked.times), asked.out)
    print(f"written: {asked.out}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
