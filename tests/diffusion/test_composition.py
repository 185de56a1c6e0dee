"""Composable diffusion: weighted sums of what several conditions say, and conditions that change with sigma."""

import pytest
import torch
from test_guidance import SD, Network, X

from safelight.diffusion.composition import Composition, composed, rows_of, scheduled
from safelight.diffusion.condition import Condition
from safelight.diffusion.denoiser import Denoiser
from safelight.diffusion.guidance import guided, rescaled
from safelight.diffusion.parameterization import PARAMETERIZATIONS
from safelight.errors import InputError


def words(*values, length=77):
    return Condition(context=torch.tensor(values).view(-1, 1, 1).expand(-1, length, 2))


NEGATIVE = words(-1.0, -1.0, -0.5)
# picture 0 has two conditions, picture 1 one of another weight, picture 2 three
POSITIVE = Composition(words(1.0, 0.3, 0.7, 1.0, 2.0, -2.0), (0, 0, 1, 2, 2, 2), (1.0, 0.5, 0.8, 1.0, -0.5, 2.0))


@pytest.mark.parametrize("kind", ["epsilon", "v_prediction", "sample"])
@pytest.mark.parametrize("scale", [0.0, 1.0, 7.5])
def test_formula_picture_by_picture(kind, scale):
    network = Network()
    parameterization = PARAMETERIZATIONS[kind]
    found = composed(Denoiser(network, SD, parameterization), POSITIVE, NEGATIVE, scale)(X, 3.0)
    assert network.rows == [3 + 6]
    plain = Denoiser(Network(), SD, parameterization)
    for k in range(3):
        x, u = X[k : k + 1], plain.output(X[k : k + 1], 3.0, NEGATIVE.select(slice(k, k + 1)))
        output = u.clone()
        for row, (owner, weight) in enumerate(zip(POSITIVE.owners, POSITIVE.weights, strict=True)):
            if owner == k:
                output += scale * weight * (plain.output(x, 3.0, POSITIVE.condition.select(slice(row, row + 1))) - u)
        torch.testing.assert_close(found[k : k + 1], parameterization.denoised(output, x, 3.0), atol=1e-5, rtol=1e-5)


def test_one_condition_of_weight_one_is_guidance_bit_by_bit():
    single = Composition(words(1.0, 0.5, 0.2), (0, 1, 2), (1.0, 1.0, 1.0))
    for scale in (1.0, 7.5):
        ours = composed(Denoiser(Network(), SD), single, NEGATIVE, scale, rescale=0.5)(X, 3.0)
        assert torch.equal(
            ours, guided(Denoiser(Network(), SD), single.condition, NEGATIVE, scale, rescale=0.5)(X, 3.0)
        )
    network = Network()
    composed(Denoiser(network, SD), single, None, 1.0)(X, 3.0)
    assert network.rows == [3]


def test_two_halves_of_one_condition_are_the_whole():
    halves = Composition(words(1.0, 1.0, 0.5, 0.5, 0.2, 0.2), (0, 0, 1, 1, 2, 2), (0.25, 0.75) * 3)
    whole = Composition(words(1.0, 0.5, 0.2), (0, 1, 2), (1.0, 1.0, 1.0))
    ours, theirs = (composed(Denoiser(Network(), SD), c, NEGATIVE, 5.0)(X, 3.0) for c in (halves, whole))
    torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=1e-5)


def test_outside_the_interval_the_scale_is_one():
    options = {"interval": (1.0, 5.0), "rescale": 0.3}
    denoise = composed(Denoiser(Network(), SD), POSITIVE, NEGATIVE, 7.5, **options)
    plain = composed(Denoiser(Network(), SD), POSITIVE, NEGATIVE, 1.0)
    torch.testing.assert_close(denoise(X, 6.0), plain(X, 6.0))
    assert not torch.allclose(denoise(X, 4.0), plain(X, 4.0), atol=1e-2)


def test_rescaling_refers_to_the_composition():
    denoiser = Denoiser(Network(), SD)
    found = composed(denoiser, POSITIVE, NEGATIVE, 7.5, rescale=0.7)(X, 3.0)
    u = denoiser.output(X, 3.0, NEGATIVE)
    one = (composed(denoiser, POSITIVE, NEGATIVE, 1.0)(X, 3.0) - X) / -3.0  # epsilon: x0 = x - sigma * output
    output = rescaled(u + 7.5 * (one - u), one, 0.7)
    torch.testing.assert_close(found, denoiser.parameterization.denoised(output, X, 3.0), atol=1e-4, rtol=1e-4)


def test_conditions_of_other_lengths_take_two_passes():
    network = Network()
    shorter = words(-1.0, -1.0, -0.5, length=7)
    found = composed(Denoiser(network, SD), POSITIVE, shorter, 7.5)(X, 3.0)
    assert network.rows == [3, 6]
    torch.testing.assert_close(found, composed(Denoiser(Network(), SD), POSITIVE, NEGATIVE, 7.5)(X, 3.0))


def test_scheduled_asks_at_each_sigma():
    denoise = scheduled(lambda sigma: lambda x, s: x * (2 if sigma > 1 else 3))
    assert torch.equal(denoise(X, 2.0), 2 * X) and torch.equal(denoise(X, 0.5), 3 * X)


def test_rows_may_repeat_and_carry_channels():
    picked = rows_of(words(1.0, 2.0), [1, 0, 1], torch.ones(1, 5, 6, 6))
    assert picked.context[:, 0, 0].tolist() == [2.0, 1.0, 2.0] and picked.concat.shape == (3, 5, 6, 6)
    nothing = rows_of(Condition(), [0, 0], torch.ones(1, 5, 6, 6))
    assert nothing.context is None and nothing.concat.shape == (2, 5, 6, 6)


def test_bad_compositions_are_named():
    with pytest.raises(InputError, match="2 owners and 1 weights for 3 conditions"):
        Composition(words(1.0, 2.0, 3.0), (0, 1), (1.0,))
    with pytest.raises(InputError, match="needs a negative condition"):
        composed(Denoiser(Network(), SD), POSITIVE, None, 1.0)
