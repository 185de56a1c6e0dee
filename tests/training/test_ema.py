import numpy as np
import pytest
import torch
from torch import nn

from safelight.errors import InputError
from safelight.training.loop.distributed import World
from safelight.training.loop.ema import Averages, Exponential, Power, combination, exponent
from safelight.training.loop.snapshots import average, take


def trajectory(steps=400):
    """A weight's walk, and what stands in its place as a network."""
    g = torch.Generator().manual_seed(0)
    return torch.randn(steps, 3, generator=g).cumsum(0) * 0.1


def run(profiles, path, every=0, folder=None):
    net = nn.Linear(3, 1, bias=False)
    averages = Averages({"net": net}, profiles)
    for step, point in enumerate(path, 1):
        net.weight.data.copy_(point)
        averages.update()
        if every and step % every == 0:
            take(folder, averages, step, World())
    return {name: averages.tensors(name)["net.weight"][0] for name in averages.sets}


def test_exponential_average_warms_up_as_in_ldm():
    path = trajectory(50)
    expected = torch.zeros(3)
    got = run([Exponential(0.9)], path)["exponential-0.9"]
    for n, point in enumerate(path, 1):
        decay = min(0.9, (1 + n) / (10 + n))
        expected = decay * (expected if n > 1 else torch.zeros(3)) + (1 - decay) * point
    rest = np.prod([min(0.9, (1 + n) / (10 + n)) for n in range(1, 51)])  # what is left of the first weights
    torch.testing.assert_close(got, expected, rtol=0, atol=float(rest) * 2 + 1e-5)


@pytest.mark.parametrize("sigma_rel", [0.05, 0.1, 0.25])
def test_power_function_has_the_stated_width(sigma_rel):
    """The weight of step t in the average at the end is t^γ; its standard deviation is sigma_rel of the whole."""
    n = 20_000
    gamma = exponent(sigma_rel)
    t = np.arange(1, n + 1) / n
    weight = t**gamma / (t**gamma).sum()
    assert np.sqrt((weight * t**2).sum() - (weight * t).sum() ** 2) == pytest.approx(sigma_rel, rel=1e-3)


def test_power_average_is_the_weighted_mean_of_the_whole_path():
    path = trajectory().double()
    got = run([Power(0.1)], path.float())["power-0.1"]
    gamma, t = exponent(0.1), torch.arange(1, 401, dtype=torch.float64)
    discrete = t ** (gamma + 1) - (t - 1) ** (gamma + 1)  # what (1 - 1/n)^(γ+1) adds up to
    expected = (discrete[:, None] * path).sum(0) / discrete.sum()
    torch.testing.assert_close(got.double(), expected, rtol=1e-5, atol=1e-5)


def test_any_length_can_be_chosen_afterwards(tmp_path):
    path = trajectory()
    run([Power(0.05), Power(0.1)], path, every=25, folder=tmp_path)
    for wanted in (0.05, 0.07, 0.1, 0.15):
        true = run([Power(wanted)], path)[f"power-{wanted:g}"]
        made = average(tmp_path, wanted)["net.weight"][0]
        spread = (path[-1] - path.mean(0)).abs().max()
        torch.testing.assert_close(made, true, rtol=0, atol=float(spread) * 0.02)
    nearest = run([Power(0.1)], path[:200])["power-0.1"]
    torch.testing.assert_close(average(tmp_path, 0.1, 200)["net.weight"][0], nearest, rtol=0, atol=1e-4)


def test_weights_of_a_stored_length_pick_that_snapshot():
    snapshots = [(t, s) for t in (100, 200, 300) for s in (0.05, 0.1)]
    shares = combination(snapshots, 300, 0.1)
    assert shares == pytest.approx([0, 0, 0, 0, 0, 1], abs=1e-6)
    assert combination(snapshots, 300, 0.075).sum() == pytest.approx(1, abs=0.05)  # three times are few


def test_averages_are_lent_and_taken_back():
    net = nn.Linear(2, 2)
    averages = Averages({"net": net}, [Exponential(0.9)])
    start = net.weight.detach().clone()
    net.weight.data += 1
    averages.update()
    end = net.weight.detach().clone()
    with averages.applied():
        torch.testing.assert_close(net.weight, start + (1 - 2 / 11))
    assert torch.equal(net.weight, end)
    with Averages({"net": net}, []).applied():
        assert torch.equal(net.weight, end)


@pytest.mark.parametrize("length", [0.0, 0.3, -1.0])
def test_lengths_that_no_power_function_has_are_refused(length):
    with pytest.raises(InputError, match="sigma_rel"):
        Power(length)


def test_without_snapshots_there_is_nothing_to_choose_from(tmp_path):
    with pytest.raises(InputError, match="no snapshots"):
        average(tmp_path, 0.1)
