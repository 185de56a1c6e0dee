"""The parts equal diffusers' parts, each alone."""

import pytest
import torch
from diffusers.models.downsampling import Downsample2D
from diffusers.models.resnet import ResnetBlock2D
from diffusers.models.upsampling import Upsample2D

from safelight.errors import InputError
from safelight.models.layers import Downsample, GroupNorm, ResBlock, Upsample, activation

torch.set_num_threads(1)


def same_weights(peer, ours):
    state = {key: torch.randn_like(value) / 8 for key, value in peer.state_dict().items()}
    peer.load_state_dict(state)
    ours.load_state_dict(state)


@pytest.mark.parametrize("resample", [None, "down", "up"])
@pytest.mark.parametrize("time_embedding_norm", ["default", "scale_shift"])
@pytest.mark.parametrize("act", ["silu", "gelu"])
@torch.no_grad()
def test_res_block_equals_diffusers(resample, time_embedding_norm, act):
    options = {"in_channels": 16, "out_channels": 8, "groups": 4, "eps": 1e-5, "temb_channels": 12}
    peer = ResnetBlock2D(
        **options,
        time_embedding_norm=time_embedding_norm,
        non_linearity=act,
        up=resample == "up",
        down=resample == "down",
    )
    scale_shift = time_embedding_norm == "scale_shift"
    ours = ResBlock(16, 8, emb_channels=12, groups=4, act=act, scale_shift=scale_shift, resample=resample)
    same_weights(peer, ours)
    x, emb = torch.randn(2, 16, 7, 6), torch.randn(2, 12)
    torch.testing.assert_close(ours(x, emb), peer(x, emb), rtol=1e-6, atol=1e-6)


@torch.no_grad()
def test_res_block_without_embedding_equals_diffusers():
    peer = ResnetBlock2D(in_channels=16, groups=4, temb_channels=None)
    ours = ResBlock(16, 16, groups=4, eps=1e-6)
    same_weights(peer, ours)
    x = torch.randn(2, 16, 5, 6)
    torch.testing.assert_close(ours(x), peer(x, None), rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("padding", [0, 1])
@pytest.mark.parametrize("size", [(8, 6), (7, 5)])
@torch.no_grad()
def test_downsample_equals_diffusers(padding, size):
    peer, ours = Downsample2D(8, use_conv=True, padding=padding, name="op"), Downsample(8, padding=padding)
    same_weights(peer, ours)
    x = torch.randn(2, 8, *size)
    torch.testing.assert_close(ours(x), peer(x), rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("size", [None, (9, 7), (10, 8), (3, 21)])
@torch.no_grad()
def test_upsample_equals_diffusers(size):
    peer, ours = Upsample2D(8, use_conv=True), Upsample(8)
    same_weights(peer, ours)
    x = torch.randn(2, 8, 5, 4)
    torch.testing.assert_close(ours(x, size=size), peer(x, size), rtol=1e-6, atol=1e-6)


def test_a_res_block_that_doubles_meets_any_size():
    block = ResBlock(8, 8, groups=4, resample="up")
    assert block(torch.randn(1, 8, 5, 4), size=(9, 7)).shape == (1, 8, 9, 7)


@pytest.mark.parametrize("act", ["silu", "swish", "gelu", "mish", "relu"])
@torch.no_grad()
def test_group_norm_ends_with_its_activation(act):
    x, plain, active = torch.randn(2, 8, 3, 3), GroupNorm(4, 8, 1e-5), GroupNorm(4, 8, 1e-5, act=act)
    torch.testing.assert_close(active(x), activation(act)(plain(x)))


def test_unknown_activation_is_named():
    with pytest.raises(InputError, match="'sillu'") as error:
        activation("sillu")
    assert "silu" in error.value.remedy
