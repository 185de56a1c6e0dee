"""The reference kernels are what their docstrings say, written out by hand."""

import copy
import math

import pytest
import torch

from safelight.kernels import attention, conv1x1, geglu, group_norm, linear, prepare, quantize
from safelight.models.attention import Attention
from safelight.models.layers import Conv3x3


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


def test_a_linear_layer_is_its_formula():
    x, weight, bias, residual = torch.randn(2, 5, 8), torch.randn(6, 8), torch.randn(6), torch.randn(2, 5, 6)
    y = x @ weight.T + bias
    torch.testing.assert_close(linear(x, weight, bias, residual=residual), y + residual)
    quick = y * (1.702 * y).sigmoid()
    torch.testing.assert_close(linear(x, weight, bias, act="quick_gelu", residual=residual), quick + residual)
    exact = y * (1 + (y / 2**0.5).erf()) / 2
    torch.testing.assert_close(linear(x, weight, bias, act="gelu"), exact)


def int8_layer(rows: int, columns: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """A weight (rows, columns), and the same in whole numbers with what one of each row is worth."""
    weight = torch.randn(rows, columns, generator=torch.Generator().manual_seed(0)) / columns**0.5
    whole, scale = quantize(weight)
    return weight, whole.to(torch.int8), scale[:, 0]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("channels", [64, 1024])  # of few weights torch computes, of many C where it can
@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
def test_a_1x1_convolution_is_a_linear_layer_of_each_pixel(dtype, channels, memory_format):
    g = torch.Generator().manual_seed(0)
    x, residual = (torch.randn(2, channels, 5, 3, generator=g).to(dtype, memory_format=memory_format) for _ in range(2))
    weight = (torch.randn(channels, channels, 1, 1, generator=g) / channels**0.5).to(dtype)
    bias = torch.randn(channels, generator=g).to(dtype)
    exact = linear(x.double().permute(0, 2, 3, 1), weight.double()[:, :, 0, 0], bias.double()).permute(0, 3, 1, 2)
    tolerance = {"rtol": 0, "atol": 1e-5 if dtype == torch.float32 else 0.06}  # half a bit of the largest, twice
    for fast in (False, True):
        got = conv1x1(x, weight, bias, fast=fast), conv1x1(x, weight, bias, residual=residual, fast=fast)
        assert all(y.dtype == dtype and y.shape == x.shape for y in got)
        torch.testing.assert_close(got[0].double(), exact, **tolerance)
        torch.testing.assert_close(got[1].double(), exact + residual.double(), **tolerance)


def test_with_int8_a_convolution_may_be_rough_and_is_near():
    """In bfloat16, where the CPU multiplies it; anywhere else nothing changes."""
    conv, x = Conv3x3(64, 64).to(torch.bfloat16), torch.randn(1, 64, 16, 16, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        exact = torch.nn.functional.conv2d(x.bfloat16().double(), conv.weight.double(), conv.bias.double(), padding=1)
        for int8, bound in ((False, 9e-3), (True, 1.5e-2)):
            prepare(conv, int8=int8)
            assert conv.rough == int8
            assert (conv(x.bfloat16()).double() - exact).norm() < bound * exact.norm()


def test_with_int8_a_picture_attends_to_itself_roughly_and_nearly():
    """So that keys have something in common, which softmax does not see, they get a bias; a prompt's stay exact."""
    g = torch.Generator().manual_seed(0)
    layer, prompted, x = (
        Attention(64, 2, bias=True),
        Attention(64, 2, context_dim=32),
        torch.randn(1, 1024, 64, generator=g),
    )
    with torch.no_grad():
        for weight, std in ((layer.to_q.weight, 0.25), (layer.to_k.weight, 0.25), (layer.to_k.bias, 5.0)):
            weight.normal_(0, std, generator=g)
        layer, x = layer.to(torch.bfloat16), x.bfloat16()
        exact = copy.deepcopy(layer).double()(x.double())
        for int8, bound in ((False, 2e-2), (True, 3e-2)):
            prepare(layer)
            if int8:
                layer.to_int8()
            assert layer.rough == int8
            assert (layer(x).double() - exact).norm() < bound * exact.norm()
    prepare(prompted, int8=True)
    assert not prompted.rough


def test_rows_are_rounded_to_127ths_of_their_largest():
    x = torch.tensor([[1.0, -127.0, 63.4], [0.5, 0.25, -0.125], [0.0, 0.0, 0.0]])
    whole, worth = quantize(x)
    assert whole.tolist() == [
        [1, -127, 63],
        [127, 64, -32],
        [0, 0, 0],
    ]  # 63.5 and 31.75 are rounded to even, to nearest
    torch.testing.assert_close(worth[:2, 0], torch.tensor([1, 0.5 / 127]))
    assert (whole * worth - x).abs().le(worth / 2 + 1e-7).all()


@torch.no_grad()
def test_an_int8_layer_is_its_formula_and_near_the_exact_one():
    weight, whole, scale = int8_layer(32, 64)
    x, bias, residual = torch.randn(2, 5, 64), torch.randn(32), torch.randn(2, 5, 32)
    rounded, worth = quantize(x)
    y = linear(x, whole, bias, scale=scale, residual=residual)
    torch.testing.assert_close(y, (rounded * worth) @ (whole * scale[:, None]).T + bias + residual)
    exact = linear(x, weight, bias, residual=residual)
    assert 1e-3 < (y - exact).norm() / exact.norm() < 0.02  # 0.008: two roundings of 1/254 of a largest at most


@torch.no_grad()
def test_a_gate_in_int8_is_its_formula():
    _, whole, scale = int8_layer(32, 64)
    x = torch.randn(7, 64)
    a, b = linear(x, whole, scale=scale).chunk(2, dim=-1)
    torch.testing.assert_close(geglu(x, whole, scale=scale), a * torch.nn.functional.gelu(b))


def test_an_int8_layer_lets_gradients_through():
    """Guidance by a loss goes through the network: rounding has no gradient, the layer that is rounded has."""
    _, whole, scale = int8_layer(32, 64)
    x = torch.randn(3, 64, requires_grad=True)
    linear(x, whole, scale=scale, fast=True).sum().backward()
    torch.testing.assert_close(x.grad, (whole * scale[:, None]).sum(0).expand(3, -1))
