"""What the tests of recipes share: the folders they import from, and a small autoencoder."""

import sys
from pathlib import Path

import pytest
import torch

sys.path.append(str(Path(__file__).parents[2] / "recipes"))
sys.path.append(str(Path(__file__).parents[1] / "training"))

from safelight.models.autoencoder import Autoencoder
from safelight.models.autoencoder_config import AutoencoderConfig


@pytest.fixture
def two_levels():
    """Makes an autoencoder of two levels, of so many channels, `more` being of its config; the same one each time."""

    def make(*channels, **more):
        torch.manual_seed(0)
        two = {"down_block_types": ("DownEncoderBlock2D",) * 2, "up_block_types": ("UpDecoderBlock2D",) * 2}
        config = AutoencoderConfig(block_out_channels=channels, norm_num_groups=4, sample_size=16, **two, **more)
        return Autoencoder(config)

    return make
