import math

import pytest
import torch

from safelight.diffusion.parameterization import PARAMETERIZATIONS, edm

SIGMAS = (0.03, 0.5, 1.0, 14.6, 4096.0)
generator = torch.Generator().manual_seed(0)
X0 = torch.randn(5, 4, 3, 3, generator=generator, dtype=torch.float64)
NOISE = torch.randn(5, 4, 3, 3, generator=generator, dtype=torch.float64)
EACH = torch.tensor(SIGMAS, dtype=torch.float64)


@pytest.mark.parametrize("kind", PARAMETERIZATIONS.values(), ids=PARAMETERIZATIONS)
def test_the_target_denoises_to_the_picture(kind):
    """What training asks for is what sampling undoes, for one sigma and for one per picture."""
    x = X0 + EACH.reshape(-1, 1, 1, 1) * NOISE
    torch.testing.assert_close(kind.denoised(kind.target(X0, NOISE, EACH), x, EACH), X0, rtol=0, atol=1e-11)
    for i, sigma in enumerate(SIGMAS):
        target = kind.target(X0[i : i + 1], NOISE[i : i + 1], sigma)
        torch.testing.assert_close(target, kind.target(X0, NOISE, EACH)[i : i + 1])
        torch.testing.assert_close(kind.denoised(target, x[i : i + 1], sigma), X0[i : i + 1], rtol=0, atol=1e-11)


@pytest.mark.parametrize("sigma", SIGMAS)
def test_targets_are_the_papers(sigma):
    alpha_cumprod = 1 / (1 + sigma**2)
    a, b = math.sqrt(alpha_cumprod), math.sqrt(1 - alpha_cumprod)
    torch.testing.assert_close(PARAMETERIZATIONS["epsilon"].target(X0, NOISE, sigma), NOISE)
    torch.testing.assert_close(PARAMETERIZATIONS["v_prediction"].target(X0, NOISE, sigma), a * NOISE - b * X0)
    torch.testing.assert_close(PARAMETERIZATIONS["sample"].target(X0, NOISE, sigma), X0)


@pytest.mark.parametrize("sigma", SIGMAS)
@pytest.mark.parametrize("name", ["epsilon", "v_prediction", "sample"])
def test_input_is_the_variance_preserving_x(name, sigma):
    assert PARAMETERIZATIONS[name].coefficients(sigma)[2] == pytest.approx(math.sqrt(1 / (1 + sigma**2)), rel=1e-14)


@pytest.mark.parametrize("sigma", SIGMAS)
def test_edm_has_unit_variance_in_and_out(sigma):
    """Karras et al. 2022, appendix B.6: what goes in, and what is asked for, has variance 1."""
    kind = edm(sigma_data=0.7)
    c_skip, c_out, c_in = kind.coefficients(sigma)
    assert c_in**2 * (0.7**2 + sigma**2) == pytest.approx(1)
    assert ((1 - c_skip) ** 2 * 0.7**2 + c_skip**2 * sigma**2) / c_out**2 == pytest.approx(1)
    assert kind.c_noise(sigma) == math.log(sigma) / 4


def test_float32_keeps_the_noise_at_small_sigma():
    x0, noise = X0.float(), NOISE.float()
    torch.testing.assert_close(PARAMETERIZATIONS["epsilon"].target(x0, noise, 0.03), noise, rtol=1e-6, atol=0)
    assert PARAMETERIZATIONS["v_prediction"].target(x0, noise, EACH).dtype == torch.float32
