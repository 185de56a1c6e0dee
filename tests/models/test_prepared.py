"""Networks prepared for the C kernels give what they give without, to the rounding of float32."""

from copy import deepcopy

import pytest
import torch
from torch import nn

from safelight import kernels
from safelight.models.autoencoder import Autoencoder, AutoencoderConfig
from safelight.models.layers import Conv3x3
from safelight.models.unet import UNet, UNetConfig

pytestmark = pytest.mark.skipif(kernels.kernels_for(torch.float32) is None, reason="this machine has no C kernels")

TOLERANCE = 1e-5  # of the result's norm


def filled(network: nn.Module) -> nn.Module:
    """Random weights that keep activations near 1: new networks begin with zeros."""
    generator = torch.Generator().manual_seed(0)
    for parameter in network.parameters():
        scale = parameter[0].numel() ** -0.5 if parameter.ndim > 1 else 0.1
        parameter.data = torch.randn(parameter.shape, generator=generator) * scale
    return network.eval()


def both(network: nn.Module) -> tuple[nn.Module, nn.Module]:
    prepared = deepcopy(filled(network))
    assert kernels.prepare(prepared)
    return network, prepared


def assert_close(ours: torch.Tensor, theirs: torch.Tensor, tolerance: float = TOLERANCE) -> None:
    assert ours.shape == theirs.shape
    assert (ours - theirs).norm() <= tolerance * theirs.norm()


def unet() -> UNet:
    return UNet(UNetConfig(block_out_channels=(64, 96, 128, 128), cross_attention_dim=32, attention_head_dim=4))


@pytest.mark.parametrize("size", [(16, 16), (19, 11)])
@torch.no_grad()
def test_a_prepared_unet_gives_the_same(size):
    plain, prepared = both(unet())
    x, context = torch.randn(2, 4, *size), torch.randn(2, 7, 32)
    expected = plain(x, 500, context)
    result = prepared(x, 500, context)
    assert_close(result, expected)
    assert not torch.equal(result, expected)  # so the C kernels have run
    kernels.prepare(prepared, fast=False)
    assert_close(prepared(x, 500, context), expected, 1e-6)


@torch.no_grad()
def test_a_prepared_autoencoder_gives_the_same():
    down, up = ("DownEncoderBlock2D",) * 3, ("UpDecoderBlock2D",) * 3
    config = AutoencoderConfig(block_out_channels=(32, 64, 96), down_block_types=down, up_block_types=up)
    plain, prepared = both(Autoencoder(config))
    picture = torch.rand(1, 3, 56, 40) * 2 - 1
    latent = plain.encode(picture).mode()
    assert_close(prepared.encode(picture).mode(), latent)
    assert_close(prepared.decode(latent), plain.decode(latent))


def test_preparing_keeps_the_weights():
    plain, prepared = both(unet())
    for (name, a), (other, b) in zip(plain.state_dict().items(), prepared.state_dict().items(), strict=True):
        assert name == other
        assert torch.equal(a, b)


def test_a_prepared_network_trains_as_before():
    plain, prepared = both(unet())
    x, context = torch.randn(2, 4, 16, 16), torch.randn(2, 7, 32)
    for network in (plain, prepared):
        network(x, 500, context).square().mean().backward()
    for a, b in zip(plain.parameters(), prepared.parameters(), strict=True):
        assert_close(b.grad, a.grad, 1e-4)  # other convolutions are channels-last, where torch adds in another order


@torch.no_grad()
def test_shift_and_residual_are_added():
    conv = Conv3x3(16, 32)
    x, shift, residual = torch.randn(2, 16, 6, 7), torch.randn(2, 32), torch.randn(2, 32, 6, 7)
    expected = nn.functional.conv2d(x, conv.weight, conv.bias, padding=1) + shift[:, :, None, None] + residual
    for conv.fast in (False, True):
        assert_close(conv(x, shift=shift, residual=residual), expected)
