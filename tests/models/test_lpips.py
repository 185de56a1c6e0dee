"""LPIPS against its formula, written again from equation 1 of the paper with torchvision's table of VGG16."""

import pytest
import torch
from torch.nn import functional as F

from safelight.errors import InputError
from safelight.models.lpips import LPIPS, VGG, VGG16, VGGConfig, unit

SMALL = VGGConfig(channels=(4, 6, 8), layers=(1, 2, 2))

# torchvision's configuration "D": where the convolutions are among `features`, and after which ones LPIPS looks.
VGG16_PLAN = [0, 2, "tap", "pool", 5, 7, "tap", "pool", 10, 12, 14, "tap", "pool", 17, 19, 21, "tap", "pool",
              24, 26, 28, "tap"]  # fmt: skip


def drawn(config: VGGConfig, seed: int = 0, **options) -> LPIPS:
    torch.manual_seed(seed)
    metric = LPIPS(config, **options)
    for head in metric.heads:
        head.uniform_(0, 1)
    return metric


def plain_lpips(weights, heads, plan, x, y):
    """Zhang et al. 2018, equation 1, in the plainest words and in float64."""
    seen = []
    for picture in (x, y):
        shift = torch.tensor([-0.030, -0.088, -0.188], dtype=torch.float64)[:, None, None]
        scale = torch.tensor([0.458, 0.448, 0.450], dtype=torch.float64)[:, None, None]
        h, taps = (picture - shift) / scale, []
        for place in plan:
            if place == "tap":
                taps.append(h / ((h * h).sum(1, keepdim=True).sqrt() + 1e-10))
            elif place == "pool":
                h = F.max_pool2d(h, 2)
            else:
                h = F.conv2d(h, weights[f"features.{place}.weight"], weights[f"features.{place}.bias"], padding=1)
                h = h.clamp(min=0)
        seen.append(taps)
    total = 0
    for a, b, head in zip(*seen, heads, strict=True):
        height, width = a.shape[2:]
        total = total + (head[:, None, None] * (a - b) ** 2).sum(dim=(1, 2, 3)) / (height * width)
    return total


def test_vgg16_distance_is_the_formula():
    metric = drawn(VGG16)
    torch.manual_seed(1)
    x, y = (torch.rand(2, 3, 16, 24) * 2 - 1 for _ in range(2))
    weights = {key: value.double() for key, value in metric.vgg.state_dict().items()}
    expected = plain_lpips(weights, [h.double() for h in metric.heads], VGG16_PLAN, x.double(), y.double())
    torch.testing.assert_close(metric(x, y).double(), expected, rtol=1e-5, atol=1e-9)


def test_vgg16_has_torchvisions_names_and_shapes():
    with torch.device("meta"):
        state = VGG(VGG16).state_dict()
    places = [place for place in VGG16_PLAN if isinstance(place, int)]
    assert set(state) == {f"features.{place}.{kind}" for place in places for kind in ("weight", "bias")}
    assert tuple(state["features.28.weight"].shape) == (512, 512, 3, 3)
    assert sum(value.numel() for value in state.values()) == 14_714_688  # torchvision's vgg16().features


def test_it_is_a_distance():
    metric = drawn(SMALL)
    torch.manual_seed(2)
    x, y = (torch.rand(3, 3, 16, 16) * 2 - 1 for _ in range(2))
    assert torch.equal(metric(x, x), torch.zeros(3))
    assert torch.equal(metric(x, y), metric(y, x))
    assert (metric(x, y) > 0).all()


def test_heads_start_with_the_published_heads_mean_weight():
    metric = LPIPS(SMALL, name="mine")
    torch.manual_seed(3)
    x, y = (torch.rand(1, 3, 8, 8) * 2 - 1 for _ in range(2))
    stages = [((unit(a) - unit(b)) ** 2).sum(1).mean() for a, b in zip(metric.vgg(x), metric.vgg(y), strict=True)]
    torch.testing.assert_close(metric(x, y)[0], 0.088 * sum(stages))
    assert metric.name == "mine"


def test_gradients_reach_the_picture_alone_and_are_finite_where_features_are_zero():
    metric = drawn(SMALL)
    for parameter in metric.vgg.parameters():
        parameter.fill_(-1.0)  # all rectified features of a bright picture are zero
    y = torch.ones(1, 3, 8, 8, requires_grad=True)
    metric(torch.zeros(1, 3, 8, 8), y).sum().backward()
    assert y.grad is not None and torch.isfinite(y.grad).all()
    assert all(parameter.grad is None for parameter in metric.parameters())


def test_dropout_halves_the_differences_and_doubles_the_rest():
    metric = drawn(SMALL)
    torch.manual_seed(4)
    x, y = (torch.rand(1, 3, 16, 16) * 2 - 1 for _ in range(2))
    draws = torch.stack([metric(x, y, dropout=torch.Generator().manual_seed(seed)) for seed in range(60)])
    assert draws.std() > 0
    assert abs(draws.mean() / metric(x, y) - 1) < 4 * draws.std() / draws.mean() / 60**0.5
    again = metric(x, y, dropout=torch.Generator().manual_seed(7))
    assert torch.equal(again, draws[7])


def test_bfloat16_networks_are_compared_in_float32():
    metric = drawn(SMALL)
    torch.manual_seed(5)
    x, y = (torch.rand(2, 3, 16, 16) * 2 - 1 for _ in range(2))
    with torch.autocast("cpu", torch.bfloat16):
        distance = metric(x, y)
    assert distance.dtype == torch.float32
    torch.testing.assert_close(distance, metric(x, y), rtol=0.05, atol=0)


def test_bad_shapes_are_refused():
    with pytest.raises(InputError, match="sides of 16 or more"):
        drawn(VGG16)(torch.zeros(1, 3, 8, 8), torch.zeros(1, 3, 8, 8))
    with pytest.raises(InputError, match="3, height"):
        LPIPS(SMALL)(torch.zeros(1, 1, 8, 8), torch.zeros(1, 1, 8, 8))
    with pytest.raises(InputError, match="stages"):
        VGGConfig(channels=(4, 8), layers=(1,))
