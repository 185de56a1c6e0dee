"""The noise levels that a stranger's picture was drawn on, against those programs' own formulas in NumPy."""

import json
import math

import numpy as np
import pytest
import torch
from PIL import Image, PngImagePlugin

from safelight.diffusion.grids import make_grid
from safelight.diffusion.samplers import sample
from safelight.diffusion.schedule import noise_schedule
from safelight.pipeline.recipes.infotext import read
from safelight.pipeline.recipes.reading import checked, read_picture
from safelight.pipeline.recipes.walks import share

SD = noise_schedule()
SIGMAS = SD.sigmas.numpy()
LOW, HIGH = SD.sigma_min, SD.sigma_max


def a1111(fields, version="v1.10.1"):
    return checked(read(f"a fox\nSeed: 1, CFG scale: 7, {fields}, Version: {version}"))


def levels(request):
    """The sigmas that a request walks."""
    grid = make_grid(SD, request["steps"], request["grid"], **request.get("grid_options", {}))
    return np.array(grid.last(request.get("strength", 1.0)).sigmas)


def uniform(n):
    """k-diffusion's get_sigmas."""
    return np.append(np.exp(np.interp(np.linspace(999, 0, n), np.arange(1000), np.log(SIGMAS))), 0)


def karras(n):
    return np.append((np.linspace(HIGH ** (1 / 7), LOW ** (1 / 7), n)) ** 7, 0)


@pytest.mark.parametrize("label", ["DDIM", "PLMS"])
@pytest.mark.parametrize("steps", [3, 20, 27, 30])
def test_a1111s_ddim_and_plms(label, steps):
    """It evaluates its timesteps but the lowest, where it ends."""
    timesteps = np.clip(np.arange(0, 1000, 1000 // steps) + 1, 0, 999)[::-1]
    reading = a1111(f"Steps: {steps}, Sampler: {label}, Schedule type: Automatic, Eta DDIM: 0.5")
    np.testing.assert_allclose(levels(reading.request), SIGMAS[timesteps], rtol=1e-12)
    assert reading.request["initial_noise"] == "unit_variance" and reading.request["eta"] == 0.5
    assert reading.kept == {}
    old = a1111(
        f"Steps: {steps}, Sampler: {label}", "v1.5.2"
    ).request  # CompVis's evaluates all, and ends at timestep 0
    inside = np.arange(1, 1000, 1000 // steps)[::-1]
    np.testing.assert_allclose(levels(old), SIGMAS[[*inside, 0]], rtol=1e-12)


def noise_seen(x, t):
    """What stands in for a network: the noise in DDPM's x_t."""
    return torch.tanh(x * (1 + t / 1000)) * 0.9


@pytest.mark.parametrize("label", ["DDIM", "PLMS"])
def test_a1111s_ddim_and_plms_number_by_number(label):
    """Its loops (sd_samplers_timesteps_impl.py), on x_t of variance 1, beside what we draw from the same noise."""
    request = a1111(f"Steps: 20, Sampler: {label}").request
    grid = make_grid(SD, request["steps"], request["grid"], **request["grid_options"])
    noise = torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(1), dtype=torch.float64)

    def denoise(x, sigma):
        return x - sigma * noise_seen(x / math.hypot(1, sigma), SD.t(sigma))

    start = noise * math.hypot(1, grid.sigmas[0])
    found = sample(denoise, start, grid.sigmas, sampler=request["sampler"]) / math.hypot(1, grid.sigmas[-1])

    timesteps, x, seen = list(range(1, 1000, 50)), noise, []
    for index in range(19, 0, -1):
        a, b = (float(SD.alphas_cumprod[timesteps[k]]) for k in (index, index - 1))

        def stepped(e, x=x, a=a, b=b):
            return b**0.5 * (x - (1 - a) ** 0.5 * e) / a**0.5 + (1 - b) ** 0.5 * e

        e = noise_seen(x, timesteps[index])
        if label == "DDIM":
            mean = e
        elif not seen:
            mean = (e + noise_seen(stepped(e), timesteps[index - 1])) / 2
        elif len(seen) == 1:
            mean = (3 * e - seen[-1]) / 2
        elif len(seen) == 2:
            mean = (23 * e - 16 * seen[-1] + 5 * seen[-2]) / 12
        else:
            mean = (55 * e - 59 * seen[-1] + 37 * seen[-2] - 9 * seen[-3]) / 24
        x, seen = stepped(mean), [*seen, e]
    assert torch.allclose(found, x, atol=1e-8)


def test_a1111s_unipc():
    reading = a1111("Steps: 30, Sampler: UniPC, UniPC order: 2")
    timesteps = np.linspace(999, 0, 31 + 1)  # as many steps as there are timesteps 0, 33, 66, …
    expected = np.exp(np.interp(timesteps, np.arange(1000), np.log(SIGMAS)))
    np.testing.assert_allclose(levels(reading.request), expected, rtol=1e-9)
    assert reading.request["sampler_options"] == {"order": 2, "solver_type": "bh1"} and reading.kept == {}
    assert reading.request["initial_noise"] == "unit_variance"


@pytest.mark.parametrize("strength", [0, 0.05, 0.3, 0.58, 0.75, 0.999, 1])
@pytest.mark.parametrize("steps", [1, 7, 20, 29])
def test_a1111s_strength(steps, strength):
    """Its sigmas[steps - t_enc - 1:]."""
    request = a1111(f"Steps: {steps}, Sampler: Euler, Denoising strength: {strength}").request
    begun = int(min(strength, 0.999) * steps)
    np.testing.assert_allclose(levels(request), uniform(steps)[steps - begun - 1 :], rtol=1e-9)


def test_shares_are_exact():
    grids = {n: make_grid(SD, n, "simple") for n in (1, 3, 20, 49, 93, 250, 1000)}
    assert all(len(grid.last(share(k, n))) == k for n, grid in grids.items() for k in range(n + 1))


def test_a1111s_strength_by_timesteps():
    timesteps = (np.arange(0, 1000, 50) + 1)[:12][::-1]  # of int(0.6 * 20), the lowest is where it ends
    request = a1111("Steps: 20, Sampler: DDIM, Denoising strength: 0.6").request
    np.testing.assert_allclose(levels(request), SIGMAS[timesteps], rtol=1e-12)


def test_a1111s_dpm2_leaves_the_penultimate_level_out():
    expected = np.delete(karras(21), -2)
    for label in ("DPM2 Karras", "DPM2 a Karras"):
        np.testing.assert_allclose(levels(a1111(f"Steps: 20, Sampler: {label}").request), expected, rtol=1e-9)
    asked = a1111("Steps: 20, Sampler: Euler, Schedule type: Karras, Discard penultimate sigma: True")
    np.testing.assert_allclose(levels(asked.request), expected, rtol=1e-9)
    assert asked.kept == {}


@pytest.mark.parametrize(
    ("steps", "own", "options"),
    [(19, 19, {"restart_times": 0}), (30, 21, {"restart_times": 1, "restart_steps": 9}),
     (40, 20, {"restart_times": 2, "restart_steps": 10})],
)  # fmt: skip
def test_a1111s_restart_takes_its_steps_from_those_asked_for(steps, own, options):
    request = a1111(f"Steps: {steps}, Sampler: Restart, Schedule type: Uniform").request
    assert request["sampler_options"] == options
    np.testing.assert_allclose(levels(request), uniform(own) if own == steps else karras(own), rtol=1e-9)


def test_a1111s_kl_optimal_and_align_your_steps():
    share = np.arange(21) / 20
    kl = np.tan(share * math.atan(LOW) + (1 - share) * math.atan(HIGH))
    np.testing.assert_allclose(levels(a1111("Steps: 20, Sampler: Euler, Schedule type: KL Optimal").request), kl)
    whole = a1111("Steps: 11, Sampler: Euler, Schedule type: Align Your Steps").request
    assert len(levels(whole)) == 12 and levels(whole)[-2] == SIGMAS[0]


@pytest.mark.parametrize("label", ["DPM fast", "DPM adaptive"])
def test_dpm_fast_and_adaptive_stop_above_0(label):
    found = levels(a1111(f"Steps: 20, Sampler: {label} Karras").request)
    assert len(found) == 21 and found[-1] == pytest.approx(LOW)


def test_a1111s_options_of_samplers_and_schedules():
    fields = "Sigma churn: 3, Sigma tmin: 0.1, Sigma tmax: 9, Sigma noise: 1.1, Schedule rho: 5, "
    reading = a1111(f"{fields}Schedule min sigma: 0.1, Schedule max sigma: 10, Steps: 9, Sampler: Euler Karras")
    assert reading.request["sampler_options"] == {"s_churn": 3, "s_tmin": 0.1, "s_tmax": 9, "s_noise": 1.1}
    assert reading.request["grid_options"] == {"rho": 5, "sigma_min": 0.1, "sigma_max": 10} and reading.kept == {}
    sgm = a1111("Steps: 9, Sampler: DPM++ 2M, Schedule rho: 5, Sigma churn: 3, SGM noise multiplier: True")
    assert sgm.kept == {"Schedule rho": "5", "Sigma churn": "3"}  # which neither has
    assert sgm.request["initial_noise"] == "unit_variance"


@pytest.mark.parametrize("value", ["0", "nan", "1e999", "-1", "much"])
def test_options_that_no_schedule_has_are_kept(value):
    reading = a1111(f"Steps: 9, Sampler: Euler Karras, Schedule rho: {value}, Denoising strength: {value}")
    assert reading.kept["Schedule rho"] == value and "grid_options" not in reading.request


def comfyui(tmp_path, **inputs):
    graph = {
        "1": {"class_type": "KSampler", "inputs": {"seed": 1, "steps": 20, "cfg": 7, "sampler_name": "euler",
              "scheduler": "karras", "denoise": 1, "latent_image": ["2", 0], **inputs}},
        "2": {"class_type": "VAEEncode", "inputs": {"pixels": ["4", 0]}},
        "3": {"class_type": "SaveImage", "inputs": {"images": ["1", 0]}},
    }  # fmt: skip
    info = PngImagePlugin.PngInfo()
    info.add_text("prompt", json.dumps(graph))
    Image.new("RGB", (8, 8)).save(tmp_path / "a.png", pnginfo=info)
    return read_picture(tmp_path / "a.png")


@pytest.mark.parametrize("denoise", [0.02, 0.1, 0.33, 0.6, 0.87, 0.9999, 1])
@pytest.mark.parametrize("steps", [1, 7, 20])
def test_comfyuis_denoise(tmp_path, steps, denoise):
    """It lays int(steps / denoise) steps, and walks the last of them."""
    request = comfyui(tmp_path, steps=steps, denoise=denoise).request
    whole = karras(steps if denoise > 0.9999 else int(steps / denoise))
    np.testing.assert_allclose(levels(request), whole[-(steps + 1) :], rtol=1e-9)


def test_comfyuis_beta_is_in_timesteps(tmp_path):
    stats = pytest.importorskip("scipy.stats")
    found = np.rint(stats.beta.ppf(1 - np.linspace(0, 1, 20, endpoint=False), 0.6, 0.6) * 999).astype(int)
    expected = [*SIGMAS[list(dict.fromkeys(found.tolist()))], 0]
    np.testing.assert_allclose(levels(comfyui(tmp_path, scheduler="beta").request), expected, rtol=1e-12)


def test_comfyuis_dpm2_and_unipc_leave_the_penultimate_level_out(tmp_path):
    for name in ("dpm_2", "dpm_2_ancestral"):
        found = levels(comfyui(tmp_path, sampler_name=name, denoise=0.5).request)
        np.testing.assert_allclose(found, np.delete(karras(41), -2)[-21:], rtol=1e-9)
    for name, kind in (("uni_pc", "bh1"), ("uni_pc_bh2", "bh2")):
        request = comfyui(tmp_path, sampler_name=name).request
        np.testing.assert_allclose(levels(request), [*np.delete(karras(21), -2)[:-1], 0.001], rtol=1e-9)
        assert request["sampler_options"] == {"order": 3, "solver_type": kind}
    assert comfyui(tmp_path, sampler_name="uni_pc", steps=3).request["sampler_options"]["order"] == 2


def test_comfyuis_walks_in_parts_are_kept(tmp_path):
    reading = comfyui(tmp_path, start_at_step=5, end_at_step=10000, add_noise="enable")
    assert reading.kept["start_at_step"] == 5
    assert "start_at_step" not in comfyui(tmp_path, start_at_step=0, end_at_step=10000, add_noise="enable").kept
