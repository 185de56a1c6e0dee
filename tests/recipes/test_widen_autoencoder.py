"""Twice the channels: what is said and drawn stays, and the copies learn to differ."""

import subprocess
import sys
from dataclasses import replace

import pytest
import torch
import widen_autoencoder

from safelight.checkpoint.load import load_autoencoder
from safelight.errors import InputError


@pytest.fixture
def old(two_levels):
    return two_levels(16, 32)


@torch.no_grad()
@pytest.mark.parametrize("times", [2, 3])
def test_it_says_and_draws_the_same(times, old):
    for weight in old.parameters():  # norms that change nothing and biases of zero would hide mistakes
        weight.add_(torch.randn_like(weight), alpha=0.1)
    new, x, z = widen_autoencoder.widened(old, times), torch.rand(2, 3, 16, 16) * 2 - 1, torch.randn(2, 4, 8, 8)
    torch.testing.assert_close(new.encode(x).mean, old.encode(x).mean, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(new.encode(x).std, old.encode(x).std, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(new.decode(z), old.decode(z), atol=2e-5, rtol=1e-5)
    assert new.config == replace(old.config, block_out_channels=(16 * times, 32 * times))


@torch.no_grad()
def test_one_with_a_codebook_too(two_levels):
    old, x = two_levels(16, 32, num_vq_embeddings=16), torch.rand(1, 3, 16, 16) * 2 - 1
    torch.testing.assert_close(widen_autoencoder.widened(old, 2)(x), old(x), atol=1e-5, rtol=1e-5)


def test_copies_get_gradients_of_their_own(old):
    new = widen_autoencoder.widened(old, 2)
    new(torch.rand(1, 3, 16, 16) * 2 - 1).square().mean().backward()
    grad = new.decoder.up_blocks[0].resnets[0].conv1.weight.grad
    first, second = grad[0::2], grad[1::2]
    assert (first - second).norm() > 0.05 * first.norm()


def test_no_more_channels_are_refused(old):
    with pytest.raises(InputError, match="1 times the channels"):
        widen_autoencoder.widened(old, 1)


def test_one_command_writes_an_autoencoder(tmp_path):
    command = [sys.executable, widen_autoencoder.__file__, "default", str(tmp_path / "wide")]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    wide, old = load_autoencoder(tmp_path / "wide"), load_autoencoder("default")
    assert wide.config.block_out_channels == tuple(2 * c for c in old.config.block_out_channels)
