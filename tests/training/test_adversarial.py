"""The losses one by one, against numbers worked out by hand."""

import math

import pytest
import torch

from safelight.training.stages.adversarial import (
    adaptive_weight,
    generator_loss,
    hinge_loss,
    negative_log_likelihood,
    pixel_error,
    r1_penalty,
    vanilla_loss,
    with_gradient,
)


def test_hinge_by_hand():
    real, fake = torch.tensor([2.0, 0.5, -1.0]), torch.tensor([-2.0, 0.0, 3.0])
    assert float(hinge_loss(real, fake)) == pytest.approx(0.5 * ((0 + 0.5 + 2) / 3 + (0 + 1 + 4) / 3))


def test_vanilla_is_the_cross_entropy_of_telling_real_from_fake():
    real, fake = torch.tensor([1.5, -0.3]), torch.tensor([0.7, -2.0])
    sigmoid = lambda v: 1 / (1 + math.exp(-v))  # noqa: E731
    wanted = -0.5 * (
        (math.log(sigmoid(1.5)) + math.log(sigmoid(-0.3))) / 2
        + (math.log(1 - sigmoid(0.7)) + math.log(1 - sigmoid(-2.0))) / 2
    )
    assert float(vanilla_loss(real, fake)) == pytest.approx(wanted, rel=1e-6)
    assert float(generator_loss(fake)) == pytest.approx(0.65)


def test_the_logarithm_is_the_likelihood_with_each_pictures_own_variance():
    torch.manual_seed(0)
    error, distance = torch.rand(2, 3, 4, 5) ** 2, torch.tensor([0.25, 0.0])
    found = negative_log_likelihood(error, distance, torch.tensor(0.3), "log")
    best = [(one + d).mean().log() for one, d in zip(error, distance, strict=True)]
    likely = [negative_log_likelihood(error[k : k + 1], distance[k : k + 1], best[k], "mean") for k in range(2)]
    torch.testing.assert_close(found, sum(likely) / 2 - 1)  # at its best, r/exp(logvar) is 1
    assert negative_log_likelihood(torch.zeros(1, 3, 2, 2), torch.zeros(1), torch.tensor(0.0), "log").isfinite()


def test_reductions():
    error, distance = torch.full((2, 3, 4, 5), 0.5), torch.tensor([0.25, 0.75])
    logvar = torch.tensor(0.3)
    each = [(0.5 + d) / math.exp(0.3) + 0.3 for d in (0.25, 0.75)]
    assert float(negative_log_likelihood(error, distance, logvar, "mean")) == pytest.approx(sum(each) / 2, rel=1e-6)
    assert float(negative_log_likelihood(error, distance, logvar, "sum")) == pytest.approx(60 * sum(each) / 2, rel=1e-6)


def test_logvar_is_best_at_the_log_of_the_mean_error():
    """Why it is worth training: its optimum is known, exp(logvar) = mean error."""
    error, logvar = torch.rand(2, 3, 4, 4) + 0.1, torch.zeros((), requires_grad=True)
    optimizer = torch.optim.LBFGS([logvar], max_iter=50)

    def closure():
        optimizer.zero_grad()
        loss = negative_log_likelihood(error, torch.zeros(2), logvar, "mean")
        loss.backward()
        return loss

    optimizer.step(closure)
    assert float(logvar.detach().exp()) == pytest.approx(float(error.mean()), rel=1e-4)


def test_pixel_errors():
    x, y = torch.tensor([[[[1.0]]]]), torch.tensor([[[[-0.5]]]])
    assert float(pixel_error(x, y)) == 1.5 and float(pixel_error(x, y, "l2")) == 2.25
    assert pixel_error(x.bfloat16(), y.bfloat16()).dtype == torch.float32


@pytest.mark.parametrize(("likelihood", "adversarial", "wanted"), [(3.0, 1.5, 3 / 1.5001), (1.0, 0.0, 1e4), (0, 1, 0)])
def test_adaptive_weight(likelihood, adversarial, wanted):
    directions = torch.tensor([0.6, 0.8]), torch.tensor([-0.8, 0.6])
    weight = adaptive_weight(likelihood * directions[0], adversarial * directions[1])
    assert float(weight) == pytest.approx(wanted, rel=1e-5)


def test_adaptive_weight_has_no_gradient():
    x = torch.ones(3, requires_grad=True)
    assert not adaptive_weight(2 * x, x).requires_grad


def test_r1_of_a_known_network():
    """D(x) = mean over patches of a·x: the gradient of a picture is a/patches everywhere."""
    x = torch.randn(2, 1, 4, 4, requires_grad=True)
    slope = torch.tensor(3.0, requires_grad=True)
    penalty = r1_penalty(slope * x, x)
    assert float(penalty.detach()) == pytest.approx(0.5 * 16 * (3 / 16) ** 2)
    penalty.backward()
    assert float(slope.grad) == pytest.approx(3 / 16)  # d/da of a²/32


def test_a_value_with_known_gradients():
    a, b = torch.tensor([1.0, 2.0], requires_grad=True), torch.tensor(3.0, requires_grad=True)
    value = with_gradient(torch.tensor(7.5), [(2 * a, torch.tensor([1.0, -1.0])), (b, torch.tensor(4.0))])
    value.backward()
    assert float(value) == 7.5
    assert a.grad.tolist() == [2.0, -2.0] and float(b.grad) == 4.0
