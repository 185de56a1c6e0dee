import pytest
import torch

from safelight.pipeline.standin import random_model


@pytest.fixture(scope="session")
def model():
    """Stable Diffusion's architecture in small, with seeded random weights."""
    torch.set_num_threads(1)
    return random_model()


@pytest.fixture(scope="session")
def picture():
    """A picture with structure at every scale, 72 x 56 pixels, which is no multiple of 16."""
    y, x = torch.meshgrid(torch.linspace(-1, 1, 56), torch.linspace(-1, 1, 72), indexing="ij")
    return torch.stack([x, y, torch.sin(9 * x * y)])
