"""The reference kernels are what their docstrings say, written out by hand."""

import math

import pytest
import torch

from safelight.kernels import attention, group_norm


@pytest.mark.parametrize("causal", [False, True])
def test_attention_is_its_formula(causal):
    q, k, v = (torch.randn(2, 3, 5, 8, generator=torch.Generator().manual_seed(i)) for i in range(3))
    scores = q @ k.transpose(-1, -2) / math.sqrt(8)
    if causal:
        scores = scores.masked_fill(torch.ones(5, 5).triu(1).bool(), -math.inf)
    torch.testing.assert_close(attention(q, k, v, causal=causal), scores.softmax(-1) @ v)


def test_attention_to_a_context_of_another_length():
    q, k, v = torch.randn(2, 3, 5, 8), torch.randn(2, 3, 7, 8), torch.randn(2, 3, 7, 8)
    torch.testing.assert_close(attention(q, k, v), (q @ k.transpose(-1, -2) / math.sqrt(8)).softmax(-1) @ v)


def test_attention_sees_what_the_mask_shows():
    q, k, v = torch.randn(2, 3, 5, 8), torch.randn(2, 3, 7, 8), torch.randn(2, 3, 7, 8)
    seen = torch.tensor([True] * 4 + [False] * 3)
    expected = attention(q, k[:, :, :4], v[:, :, :4])
    torch.testing.assert_close(attention(q, k, v, mask=seen[None, None, None].expand(2, 1, 5, 7)), expected)
    torch.testing.assert_close(attention(q, k, v, mask=torch.where(seen, 0.0, -math.inf)[None]), expected)


@pytest.mark.parametrize("silu", [False, True])
@pytest.mark.parametrize("shape", [(2, 12, 5, 3), (2, 12, 7)])
def test_group_norm_is_its_formula(shape, silu):
    x, weight, bias = 3 + 2 * torch.randn(shape), torch.randn(12), torch.randn(12)
    groups = x.unflatten(1, (4, 3)).flatten(2).double()
    y = (groups - groups.mean(-1, keepdim=True)) / (groups.var(-1, keepdim=True, correction=0) + 1e-3).sqrt()
    over_space = (1, -1, *[1] * (len(shape) - 2))
    y = y.reshape(shape) * weight.view(over_space) + bias.view(over_space)
    y = y * y.sigmoid() if silu else y
    torch.testing.assert_close(group_norm(x, 4, weight, bias, 1e-3, silu=silu), y.float())


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_group_norm_sums_in_float32(dtype):
    """Summed in its own dtype, 65,536 values around 3 would lose their mean altogether."""
    x = (3 + torch.randn(1, 4, 128, 128)).to(dtype)
    y = group_norm(x, 1, None, None, 1e-5)
    assert y.dtype == dtype
    torch.testing.assert_close(y.float(), group_norm(x.float(), 1, None, None, 1e-5), rtol=0.01, atol=0.02)
