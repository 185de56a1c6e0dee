"""One more level around an autoencoder: the old weights are in their places, and it learns, saves and goes on."""

import subprocess
import sys

import grow_autoencoder
import pytest
import torch
from sprite_sets import write_sprites
from torch.nn import functional as F

from safelight.checkpoint.load import load_autoencoder
from safelight.checkpoint.save import save_autoencoder
from safelight.errors import InputError


@pytest.fixture
def old(two_levels):
    return two_levels(8, 16)


def test_it_is_the_old_one_and_a_level_more(old):
    new = grow_autoencoder.grown(old, 8)
    assert new.config.factor == 2 * old.config.factor and new.config.sample_size == 32
    theirs, ours = old.state_dict(), new.state_dict()
    assert torch.equal(
        ours["encoder.down_blocks.2.resnets.0.conv1.weight"], theirs["encoder.down_blocks.1.resnets.0.conv1.weight"]
    )
    for name in ("encoder.mid_block.resnets.0.conv1.weight", "decoder.conv_in.weight", "quant_conv.weight"):
        assert torch.equal(ours[name], theirs[name])


def test_what_is_new_averages_colours_and_repeats_pixels(old):
    new, x = grow_autoencoder.grown(old, 8), torch.randn(1, 3, 16, 16)
    with torch.no_grad():
        halved = new.encoder.down_blocks[0](new.encoder.conv_in(x))
        h = torch.randn(1, 8, 5, 4)
        repeated = new.decoder.up_blocks[1].upsamplers[0](h)
    torch.testing.assert_close(halved[:, :3], F.avg_pool2d(x, 2))
    torch.testing.assert_close(repeated, F.interpolate(h, scale_factor=2))


def test_a_level_too_thin_is_refused(old):
    with pytest.raises(InputError, match="5 channels"):
        grow_autoencoder.grown(old, 5)


def test_it_learns_what_the_former_encoder_says(old):
    growing = grow_autoencoder.LargerPictures(old, 8, steps=40, rate=3e-3)
    x = F.interpolate(torch.rand(4, 3, 8, 8, generator=torch.Generator().manual_seed(1)) * 2 - 1, scale_factor=4)
    told = [growing.take(x) for _ in range(40)]
    assert told[-1]["latents"] < 0.5 * told[0]["latents"] and told[-1]["psnr"] > told[0]["psnr"]


def test_it_goes_on_where_it_stopped(old, tmp_path):
    x = torch.rand(2, 3, 32, 32) * 2 - 1
    runs = []
    for _ in range(3):
        torch.manual_seed(0)
        runs.append(grow_autoencoder.LargerPictures(old, 8, steps=4, rate=1e-3))
    whole, first, second = runs
    for _ in range(4):
        whole.take(x)
    for _ in range(2):
        first.take(x)
    first.save(tmp_path)
    second.go_on(tmp_path)
    for _ in range(2):
        second.take(x)
    second.save(tmp_path)
    broken = load_autoencoder(tmp_path / "model").state_dict()
    whole.save(tmp_path)
    averaged = load_autoencoder(tmp_path / "model").state_dict()
    ours, theirs = second.new.state_dict(), whole.new.state_dict()
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)
    assert all(torch.equal(broken[name], averaged[name]) for name in averaged)


def test_one_command_from_an_autoencoder_to_a_larger_one(old, tmp_path):
    save_autoencoder(old, tmp_path / "old")
    pictures = write_sprites(tmp_path / "pictures")
    command = [sys.executable, grow_autoencoder.__file__, tmp_path / "old", pictures, "--run", tmp_path / "run",
               "--size", 32, "--batch-size", 2, "--steps", 2]  # fmt: skip
    done = subprocess.run([*map(str, command)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    made = load_autoencoder(tmp_path / "run" / "model")
    assert made.config.factor == 2 * old.config.factor
    with torch.no_grad():
        assert made.decode(made.encode(torch.zeros(1, 3, 32, 32)).mean).shape == (1, 3, 32, 32)
