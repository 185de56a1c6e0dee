import math

import pytest
import torch
from torch import nn

from safelight.errors import InputError
from safelight.training.loop.optim import adamw, guarded_step, rate_factor


def test_the_rate_rises_and_follows_its_course():
    def rates(course):
        return [rate_factor(i, steps=14, warmup=4, course=course) for i in range(14)]

    assert rates("constant") == pytest.approx([0.2, 0.4, 0.6, 0.8, *[1.0] * 10])
    assert rates("linear")[4:] == pytest.approx([1 - i / 10 for i in range(10)])
    assert rates("cosine")[4:] == pytest.approx([(1 + math.cos(math.pi * i / 10)) / 2 for i in range(10)])
    assert rate_factor(99, steps=14, course="cosine") == pytest.approx(0)
    with pytest.raises(InputError, match="cosin"):
        rate_factor(0, steps=1, course="cosin")


def test_gradients_are_clipped_to_one_norm_and_the_rate_is_given_back():
    layer = nn.Linear(3, 1, bias=False)
    optimizer = adamw([layer], learning_rate=0.1, weight_decay=0.0)
    layer.weight.grad = torch.tensor([[3.0, 0.0, 4.0]])
    norm, skipped = guarded_step(optimizer, factor=0.5, clip=1.0)
    assert norm == 5 and skipped == 0 and optimizer.param_groups[0]["lr"] == 0.1
    torch.testing.assert_close(optimizer.state[layer.weight]["exp_avg"], torch.tensor([[0.06, 0.0, 0.08]]))
    assert layer.weight.grad is None


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_one_number_that_is_not_finite_changes_nothing(bad):
    layer = nn.Linear(3, 2)
    optimizer = adamw([layer], learning_rate=0.1)
    for value in (1.0, bad):
        before = [p.detach().clone() for p in layer.parameters()]
        layer.weight.grad, layer.bias.grad = torch.full((2, 3), value), torch.ones(2)
        _, skipped = guarded_step(optimizer, factor=1.0, clip=1.0)
    assert skipped == 1 and all(torch.equal(a, b) for a, b in zip(before, layer.parameters(), strict=True))
    assert optimizer.state[layer.weight]["step"] == 1
    assert optimizer.state[layer.bias]["exp_avg"].isfinite().all()


def test_frozen_parameters_are_left_out():
    layer = nn.Linear(3, 2)
    layer.bias.requires_grad_(False)
    assert [p.shape for p in adamw([layer], learning_rate=0.1).param_groups[0]["params"]] == [(2, 3)]
