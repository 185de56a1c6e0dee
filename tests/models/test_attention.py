"""Attention, attention block and transformer equal diffusers' ones, each alone."""

import pytest
import torch
from diffusers.models.attention_processor import Attention as PeerAttention
from diffusers.models.transformers.transformer_2d import Transformer2DModel

from safelight.models.attention import Attention, AttentionBlock, Transformer

torch.set_num_threads(1)


def same_weights(peer, ours):
    state = {key: torch.randn_like(value) / 4 for key, value in peer.state_dict().items()}
    peer.load_state_dict(state)
    ours.load_state_dict(state)


@pytest.mark.parametrize("context_dim", [None, 10])
@torch.no_grad()
def test_attention_equals_diffusers(context_dim):
    peer = PeerAttention(24, heads=3, dim_head=8, cross_attention_dim=context_dim)
    ours = Attention(24, 3, context_dim=context_dim)
    same_weights(peer, ours)
    x, context = torch.randn(2, 5, 24), None if context_dim is None else torch.randn(2, 7, 10)
    torch.testing.assert_close(ours(x, context), peer(x, context), rtol=1e-5, atol=1e-6)


@torch.no_grad()
def test_keys_and_values_may_be_computed_ahead():
    ours, x, context = Attention(24, 3, context_dim=10), torch.randn(2, 5, 24), torch.randn(2, 7, 10)
    keys, values = ours.keys_values(context)
    assert keys.shape == values.shape == (2, 3, 7, 8)
    assert torch.equal(ours.attend(x, keys, values), ours(x, context))


@pytest.mark.parametrize("groups", [4, None])
@torch.no_grad()
def test_attention_block_equals_diffusers(groups):
    peer = PeerAttention(16, heads=2, dim_head=8, norm_num_groups=groups, eps=1e-5, residual_connection=True, bias=True)
    ours = AttentionBlock(16, 2, groups=groups)
    same_weights(peer, ours)
    x = torch.randn(2, 16, 5, 3)
    torch.testing.assert_close(ours(x), peer(x), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("linear", [False, True])
@pytest.mark.parametrize("only_cross", [False, True])
@torch.no_grad()
def test_transformer_equals_diffusers(linear, only_cross):
    peer = Transformer2DModel(
        2,
        8,
        in_channels=16,
        num_layers=2,
        cross_attention_dim=10,
        norm_num_groups=4,
        use_linear_projection=linear,
        only_cross_attention=only_cross,
    )
    ours = Transformer(16, 2, 10, depth=2, groups=4, linear_projection=linear, only_cross_attention=only_cross)
    same_weights(peer, ours)
    x, context = torch.randn(2, 16, 5, 3), torch.randn(2, 7, 10)
    torch.testing.assert_close(ours(x, context), peer(x, context).sample, rtol=1e-5, atol=1e-5)
