"""Configuration keys that several schedulers share, with diffusers' defaults."""

from collections.abc import Mapping
from typing import Any

Options = Mapping[str, Any]

DDPM_BETAS = {
    "num_train_timesteps": 1000,
    "beta_start": 0.0001,
    "beta_end": 0.02,
    "beta_schedule": "linear",
    "trained_betas": None,
}
LDM_BETAS = DDPM_BETAS | {"beta_start": 0.00085, "beta_end": 0.012}
WARPS = {"use_karras_sigmas": False, "use_exponential_sigmas": False, "use_beta_sigmas": False}
FLOW = {"use_flow_sigmas": False, "flow_shift": 1.0}  # not supported; the keys stand in diffusers' files
SHIFTING = {"use_dynamic_shifting": False, "time_shift_type": "exponential"}
THRESHOLDING = {"thresholding": False, "dynamic_thresholding_ratio": 0.995, "sample_max_value": 1.0}
