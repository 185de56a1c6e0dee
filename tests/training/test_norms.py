"""What the check says against what torch's own group norm does with one sample, level by level."""

from dataclasses import replace

import pytest
import torch
from tiny import FIRST_STAGE, UNET

from safelight.errors import InputError
from safelight.models.autoencoder import Autoencoder
from safelight.models.presets import levels
from safelight.models.unet import UNet
from safelight.training.stages.norms import check_autoencoder_norms, check_unet_norms


def refused(work):
    try:
        work()
    except (InputError, ValueError) as error:
        return str(error)
    return None


@pytest.mark.parametrize("padding", [0, 1])
@pytest.mark.parametrize("widths", [(8, 8, 8), (4, 8, 4), (4, 4, 4), (4, 4, 8)])
@pytest.mark.parametrize("side", [1, 2, 3, 4, 5, 7])
def test_unets_that_torch_refuses_for_one_sample_are_found_before(side, widths, padding):
    config = replace(
        UNET, **levels("", "", ""), mid_block_type="UNetMidBlock2D", block_out_channels=widths, attention_head_dim=4,
        downsample_padding=padding,
    )  # fmt: skip
    if side < config.min_size:
        return
    said = refused(lambda: check_unet_norms(config, (side, side)))
    assert (said is not None) == (refused(lambda: UNet(config)(torch.randn(1, 4, side, side), 1)) is not None)


@pytest.mark.parametrize("widths", [(4, 4), (4, 8), (8, 8)])
@pytest.mark.parametrize("side", [2, 4])
def test_autoencoders_that_torch_refuses_for_one_sample_are_found_before(side, widths):
    config = replace(FIRST_STAGE, block_out_channels=widths)
    said = refused(lambda: check_autoencoder_norms(config, (side, side)))
    assert (said is not None) == (
        refused(lambda: Autoencoder(config).encode(torch.randn(1, 3, side, side))) is not None
    )


def test_the_level_and_the_remedy_are_named():
    config = replace(
        UNET, **levels("", "", ""), mid_block_type="UNetMidBlock2D", block_out_channels=(8, 4, 4), attention_head_dim=4
    )
    with pytest.raises(InputError, match=r"level 3 of the U-Net has norms of 4 channels in 4 .* 1x1") as caught:
        check_unet_norms(config, (4, 4))
    assert "--multipliers" in caught.value.remedy and "8 channels or more" in caught.value.remedy
