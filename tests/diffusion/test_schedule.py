import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from safelight.diffusion.schedule import BETA_SCHEDULES, noise_schedule
from safelight.errors import InputError

SD = noise_schedule()
ZERO_SNR = noise_schedule(rescale_betas_zero_snr=True)


def test_stable_diffusions_numbers():
    assert SD.num_train_timesteps == 1000
    assert SD.sigma_max == pytest.approx(14.6146, abs=1e-4)
    assert SD.sigma_min == pytest.approx(0.0292, abs=1e-4)
    assert float(SD.alphas_cumprod[-1]) == pytest.approx(4.66e-3, abs=1e-5)
    assert all(x.dtype == torch.float64 for x in (SD.betas, SD.alphas_cumprod, SD.sigmas))


@pytest.mark.parametrize(("start", "end", "sigma_max"), [(0.0015, 0.0195, 83.8), (0.0015, 0.0155, 38.7)])
def test_latent_diffusions_numbers(start, end, sigma_max):
    assert noise_schedule(beta_start=start, beta_end=end).sigma_max == pytest.approx(sigma_max, rel=2e-3)


@pytest.mark.parametrize("name", BETA_SCHEDULES)
@pytest.mark.parametrize("zero_snr", [False, True])
def test_equals_diffusers(name, zero_snr):
    diffusers = pytest.importorskip("diffusers")
    config = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": name}
    if name == "exp":  # only one class knows it, and that one cannot rescale
        if zero_snr:
            return
        peer = diffusers.HeunDiscreteScheduler(**config)
    else:
        peer = diffusers.DDPMScheduler(rescale_betas_zero_snr=zero_snr, **config)
    schedule = noise_schedule(name, rescale_betas_zero_snr=zero_snr)
    # the peer computes in float32, and does not hold back the last, infinite sigma in this class
    inner = slice(None, -1) if zero_snr else slice(None)
    torch.testing.assert_close(schedule.betas[inner].float(), peer.betas[inner], rtol=2e-4, atol=1e-6)
    torch.testing.assert_close(schedule.alphas_cumprod.float()[inner], peer.alphas_cumprod[inner], rtol=2e-3, atol=1e-6)


def test_zero_terminal_snr():
    assert float(ZERO_SNR.alphas_cumprod[-1]) == 2.0**-24
    assert ZERO_SNR.sigma_max == pytest.approx(4096, abs=1e-3)
    assert float(ZERO_SNR.alphas_cumprod[0]) == pytest.approx(float(SD.alphas_cumprod[0]), rel=1e-12)


@pytest.mark.parametrize("schedule", [SD, ZERO_SNR, noise_schedule("squaredcos_cap_v2")], ids=["sd", "zero", "cosine"])
def test_sigma_and_t_are_inverses(schedule):
    whole = torch.arange(1000.0, dtype=torch.float64)
    assert torch.equal(schedule.sigmas_at(whole), schedule.sigmas)
    assert torch.equal(schedule.timesteps_at(schedule.sigmas), whole)
    t = torch.rand(5000, dtype=torch.float64, generator=torch.Generator().manual_seed(0)) * 999
    torch.testing.assert_close(schedule.timesteps_at(schedule.sigmas_at(t)), t, rtol=0, atol=1e-9)


@given(st.floats(0, 999))
def test_one_number_is_as_a_tensor_of_them(t):
    sigma = SD.sigma(t)
    assert sigma == float(SD.sigmas_at(torch.tensor([[t]], dtype=torch.float64)))
    assert SD.t(sigma) == pytest.approx(t, abs=1e-9)


def test_interpolates_log_sigma():
    log_sigmas = SD.sigmas.log().numpy()
    for t in (0.25, 17.5, 500.1, 998.999):
        assert math.log(SD.sigma(t)) == pytest.approx(float(np.interp(t, np.arange(1000), log_sigmas)), abs=1e-12)


def test_held_inside_the_training_range():
    assert SD.sigma(-3) == SD.sigma_min and SD.sigma(5000) == SD.sigma_max
    assert SD.t(1e-9) == 0 and SD.t(1e9) == 999


def test_trained_betas():
    assert noise_schedule(trained_betas=[0.1, 0.2]).alphas_cumprod.tolist() == pytest.approx([0.9, 0.72])


@pytest.mark.parametrize("betas", [[0.1], [0.0, 0.1], [0.1, 1.0], [[0.1, 0.2]], [0.1, float("nan")]])
def test_refuses_bad_betas(betas):
    with pytest.raises(InputError, match="betas"):
        noise_schedule(trained_betas=betas)


def test_unknown_name_is_told_the_nearest():
    with pytest.raises(InputError, match="scaled_linear"):
        noise_schedule("scale_linear")
