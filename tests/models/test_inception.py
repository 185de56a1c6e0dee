"""The Inception network of the Fréchet inception distance: its file's names and shapes, torch-fidelity's numbers."""

import pytest
import torch
from torch.nn import functional as F

from safelight.models.inception import Inception, Mixed, enlarged_by_tensorflow


def numbers(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def drawn(network):
    """Weights that keep the variance of what passes, the same wherever they are drawn."""
    state = {}
    for i, (name, value) in enumerate(sorted(network.state_dict().items())):
        noise = numbers(*value.shape, seed=i)
        if name.endswith("conv.weight"):
            state[name] = noise * (2 / value[0].numel()) ** 0.5
        else:
            state[name] = 0.1 * noise + (1 if name.endswith(("bn.weight", "running_var")) else 0)
    return state


@pytest.fixture(scope="module")
def network():
    network = Inception().eval()
    network.load_state_dict(drawn(network))
    return network


def test_names_and_size(network):
    """The published file has 470 tensors of these names beside its classifier and batch counters."""
    state = network.state_dict()
    assert len(state) == 470 and sum(value.numel() for value in state.values()) == 21_820_000
    assert state["Mixed_5b.branch5x5_2.conv.weight"].shape == (64, 48, 5, 5)
    assert state["Mixed_6c.branch7x7dbl_4.conv.weight"].shape == (160, 160, 7, 1)
    assert state["Mixed_7a.branch7x7x3_4.bn.running_var"].shape == (192,)
    assert state["Mixed_7c.branch3x3dbl_3b.conv.weight"].shape == (384, 384, 3, 1)
    assert state["Mixed_7c.branch_pool.conv.weight"].shape == (192, 2048, 1, 1)


# Features 0, 256, ... 1792, and the length of all 2048.
GOLDEN = {
    48: (0.3866317, 0.0, 2.20112, 0.944631, 0.6498533, 0.8499822, 0.03521419, 0.0440867, 48.05253456),
    299: (0.5816199, 0.0, 3.055465, 1.592453, 1.000655, 1.54811, 0.07058638, 0.05820931, 75.50687221),
}


@pytest.mark.parametrize("side", sorted(GOLDEN))
def test_features_are_torch_fidelitys(network, side):
    """Numbers of torch-fidelity 0.4.0's extractor on the same weights and pictures."""
    pictures = (numbers(1, 3, side, side, seed=side).clamp(-2, 2) * 63.75 + 127.5).round() / 127.5 - 1
    features = network(pictures)[0]
    assert features.shape == (2048,)
    assert features[::256].tolist() == pytest.approx(GOLDEN[side][:8], rel=1e-4)
    assert features.double().norm().item() == pytest.approx(GOLDEN[side][8], rel=1e-5)


def test_averages_leave_the_padding_out_and_the_last_block_takes_a_maximum(network):
    assert [name for name, block in network.named_children() if isinstance(block, Mixed) and block.pool == "max"] == [
        "Mixed_7c"
    ]
    block = Mixed(2, [("branch1x1", 1, 1)], pool_channels=1)
    x = torch.ones(1, 2, 3, 3)
    assert torch.equal(block(x)[:, 1:], F.relu(block.branch_pool(x)))  # a mean with zeros in it would be less at edges


def test_enlarging_reads_place_i_at_i_times_the_scale():
    row = enlarged_by_tensorflow(torch.tensor([0.0, 10.0]).expand(1, 1, 2, 2), 4)[0, 0, 0]
    assert row.tolist() == [0, 5, 10, 10]
