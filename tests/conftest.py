"""Shared by every test: one thread each, since they run side by side, and no network, so that nothing is fetched."""

import os
import warnings

os.environ.setdefault("OMP_NUM_THREADS", "1")  # before torch is imported; commands that tests start inherit it
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
os.environ.setdefault("DIFFUSERS_VERBOSITY", "error")

import pytest
import torch

warnings.filterwarnings("ignore", message=".*torch_dtype.*")


@pytest.fixture(autouse=True)
def _quiet_global_generator():
    """A test that seeds torch's global generator must not steer the next test."""
    state = torch.get_rng_state()
    yield
    torch.set_rng_state(state)
