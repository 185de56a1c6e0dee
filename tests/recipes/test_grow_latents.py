"""More latent channels: nothing changes until they are learnt, and then pictures come back nearer."""

import subprocess
import sys

import grow_latents
import pytest
import torch
from sprite_sets import write_sprites
from torch.nn import functional as F

import safelight
from safelight.checkpoint.load import load_parts
from safelight.errors import InputError
from safelight.models.unet import UNet
from safelight.models.unet_config import UNetConfig


@pytest.fixture
def old(two_levels):
    return two_levels(16, 32)


@torch.no_grad()
def test_the_first_channels_say_and_draw_what_all_did(old):
    new, x = grow_latents.grown(old, 12), torch.rand(2, 3, 16, 16) * 2 - 1
    theirs, ours = old.encode(x), new.encode(x)
    torch.testing.assert_close(ours.mean[:, :4], theirs.mean)
    torch.testing.assert_close(ours.std[:, :4], theirs.std)
    assert ours.mean.shape[1] == 12 and ours.mean[:, 4:].abs().amax() > 0
    z = torch.randn(1, 12, 8, 8)
    torch.testing.assert_close(new.decode(z), old.decode(z[:, :4]))


@pytest.mark.parametrize("channels", [3, 4])
def test_no_more_channels_are_refused(channels, old):
    with pytest.raises(InputError, match=f"{channels} latent channels instead of the 4"):
        grow_latents.grown(old, channels)


def test_a_net_that_reads_more_than_latents_is_refused():
    narrow = {"block_out_channels": (16,), "down_block_types": ("DownBlock2D",), "up_block_types": ("UpBlock2D",)}
    inpainting = UNet(UNetConfig(**narrow, mid_block_type=None, norm_num_groups=4, in_channels=9, out_channels=4))
    with pytest.raises(InputError, match="reads 9 channels and writes 4"):
        grow_latents.wider(inpainting, 12)


@torch.no_grad()
def test_the_net_predicts_what_it_did_and_nothing_of_the_new_channels():
    torch.manual_seed(0)
    down, up = ("DownBlock2D", "CrossAttnDownBlock2D"), ("CrossAttnUpBlock2D", "UpBlock2D")
    config = UNetConfig(
        block_out_channels=(16, 32), down_block_types=down, up_block_types=up, layers_per_block=1,
        cross_attention_dim=24, attention_head_dim=2, norm_num_groups=4, in_channels=4, out_channels=4,
    )  # fmt: skip
    old = UNet(config)
    with pytest.raises(InputError, match="4 latent channels instead of the U-Net's 4"):
        grow_latents.wider(old, 4)
    new, x, context = grow_latents.wider(old, 10), torch.randn(2, 10, 8, 8), torch.randn(2, 5, 24)
    said = new(x, 300.0, context)
    torch.testing.assert_close(said[:, :4], old(x[:, :4], 300.0, context))
    assert said[:, 4:].eq(0).all() and said.shape == x.shape


def test_new_channels_are_learnt_and_the_old_ones_kept(old):
    growing = grow_latents.MoreLatents(old, 12, steps=60, rate=3e-3)
    x = F.interpolate(torch.rand(4, 3, 8, 8, generator=torch.Generator().manual_seed(1)) * 2 - 1, scale_factor=4)
    told = [growing.take(x) for _ in range(60)]
    assert told[-1]["psnr"] > told[0]["psnr"] + 1 and told[-1]["latents"] < 0.05


def test_one_command_from_a_model_to_one_of_more_latents(tmp_path):
    pictures = write_sprites(tmp_path / "pictures")
    command = [sys.executable, grow_latents.__file__, "default", pictures, "--run", tmp_path / "run",
               "--channels", 68, "--batch-size", 2, "--steps", 2, "--mixes", "varied", "placed"]  # fmt: skip
    done = subprocess.run([*map(str, command)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    parts = load_parts(tmp_path / "run" / "grown")
    unet, autoencoder = parts.unet.config, parts.autoencoder.config
    assert unet.in_channels == unet.out_channels == autoencoder.latent_channels == 68
    model = safelight.load(tmp_path / "run" / "grown")
    assert safelight.text_to_image(model, "an apple", steps=2)[0].size == (128, 128)
