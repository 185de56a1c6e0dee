"""The mean of the weights of two autoencoders, the second of which was trained on from the first.

    python recipes/average_autoencoders.py FIRST SECOND OUT --share 0.5

Between two such lies what is nearly as good as each at what it was trained for (model soups: Wortsman et al. 2022,
arXiv 2203.05482): of the default model's decoders one was trained on calm latents, the other, from there, on disturbed
ones.
"""

import argparse
import sys
from pathlib import Path

import torch

from safelight.checkpoint.load import load_autoencoder
from safelight.checkpoint.save import save_autoencoder
from safelight.errors import InputError
from safelight.models.autoencoder import Autoencoder


def mean(first: Autoencoder, second: Autoencoder, share: float) -> Autoencoder:
    """The first, with `share` of the way gone to the second's weights. Raises InputError for two kinds."""
    if first.config != second.config:
        raise InputError(
            "the autoencoders have other shapes", remedy="give two of which one was trained from the other"
        )
    ours, theirs = first.state_dict(), second.state_dict()
    first.load_state_dict({name: torch.lerp(weight, theirs[name], share) for name, weight in ours.items()})
    return first


def main() -> int:
    """Read, average, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("first", help="a model or an autoencoder: a folder, a file, a hub id")
    parser.add_argument("second", help="likewise")
    parser.add_argument("out", type=Path, help="folder for the mean")
    parser.add_argument("--share", type=float, default=0.5, help="of the second; 0.5 is the mean")
    asked = parser.parse_args()
    pair = [load_autoencoder(name, dtype=torch.float32) for name in (asked.first, asked.second)]
    save_autoencoder(mean(*pair, asked.share), asked.out)
    print(asked.out)
    return 0


if __name__ == "__main__":
    sys.exit(main())
