"""Whether every group norm of a network has something to normalise, seen before a training starts.

A group of one channel, at a level that is down to 1x1, is a single number: its mean is itself, and what is left of it
is 0, whatever it was. torch refuses to do that for one sample, and lets a level go dead for several.
"""

from collections.abc import Sequence

from safelight.errors import InputError
from safelight.models.autoencoder_config import AutoencoderConfig
from safelight.models.unet_config import UNetConfig

Level = tuple[int, int, int]  # channels, height, width


def check_unet_norms(config: UNetConfig, size: tuple[int, int]) -> None:
    """Raise InputError where a level of the U-Net has one value in a group, for latents of this (h, w)."""
    levels: list[Level] = []
    h, w = size
    for level in config.down:
        levels.append((level.channels, h, w))
        odd = int(level.resample == "conv" and config.downsample_padding == 1)  # an odd side is rounded up
        h, w = (h + odd) // 2, (w + odd) // 2
    _check("U-Net", levels, config.norm_num_groups, "latent")


def check_autoencoder_norms(config: AutoencoderConfig, size: tuple[int, int]) -> None:
    """Raise InputError where a level of the autoencoder has one value in a group, for pictures of this (H, W)."""
    levels = [(c, size[0] >> i, size[1] >> i) for i, c in enumerate(config.block_out_channels)]
    _check("autoencoder", levels, config.norm_num_groups, "picture")


def _check(network: str, levels: Sequence[Level], groups: int, what: str) -> None:
    above = levels[0][0]
    for number, (channels, h, w) in enumerate(levels, 1):
        least = min(above, channels)  # a level's first norm is of what comes from the level above
        if least // groups * h * w == 1:
            raise InputError(
                f"level {number} of the {network} has norms of {least} channels in {groups} groups, and the {what} is "
                f"{h}x{w} there: a group would be a single number, of which a norm leaves 0",
                remedy="leave that level out (--multipliers), train larger pictures (--size), or give it and the level "
                f"above it {2 * groups} channels or more (--channels, --multipliers)",
            )
        above = channels
