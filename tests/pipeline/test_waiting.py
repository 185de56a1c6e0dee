"""Nothing in the steps waits for the device: shown on torch's device "meta", whose tensors hold no numbers to wait for.

Whoever asks for a number there (`item`, `float`, a branch on a tensor) gets an error. What the host sends is counted.
"""

from dataclasses import replace

import pytest
import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

from safelight.diffusion.condition import Condition
from safelight.diffusion.noise import make_noise
from safelight.diffusion.samplers import SAMPLERS, sample
from safelight.models.presets import UNETS, levels
from safelight.models.unet import UNet
from safelight.pipeline.developing import guide, walk
from safelight.pipeline.fields import for_model, validate
from safelight.pipeline.standin import random_model
from safelight.pipeline.steering import Steering
from safelight.pipeline.tasks import text_to_image

META = torch.device("meta")
WAIT_BY_NATURE = {name for name, sampler in SAMPLERS.items() if sampler.adaptive}  # their next step depends on x
TINY = replace(UNETS["sd15"], **levels("CrossAttn"), block_out_channels=(32,), layers_per_block=1)


class Sent(TorchFunctionMode):
    """Counts the tensors that come to the device from the host."""

    def __init__(self):
        super().__init__()
        self.count = 0

    def __torch_function__(self, function, types, args=(), kwargs=None):
        given = function(*args, **(kwargs or {}))
        if isinstance(given, Tensor) and given.device == META:
            of_numbers = function in (torch.tensor, torch.as_tensor) and not isinstance(args[0], Tensor)
            self.count += of_numbers or any(isinstance(a, Tensor) and a.device.type == "cpu" and a.dim() for a in args)
        return given


def test_the_count_counts():
    with Sent() as sent:
        torch.ones(2).to(META)
        torch.tensor([1.0], device=META)
        torch.empty(2, device=META).copy_(torch.ones(2))
        torch.full((2,), 3.0, device=META) * 2 + torch.arange(2, device=META)
    assert sent.count == 3
    with pytest.raises((RuntimeError, NotImplementedError)):
        float(torch.empty((), device=META))


@pytest.mark.parametrize("name", sorted(set(SAMPLERS) - WAIT_BY_NATURE))
def test_a_sampler_only_gives_orders(name):
    x = torch.empty(2, 4, 8, 8, device=META)
    sigmas = (14.6, 7.0, 3.0, 1.0, 0.4, 0)
    with Sent() as sent:
        found = sample(lambda x, sigma: x / 2, x, sigmas, sampler=name, noise=lambda *_: torch.empty_like(x))
    assert found.device == META and not sent.count


@pytest.fixture(scope="module")
def model():
    return replace(random_model(), unet=UNet(TINY)).to(META)


@pytest.mark.parametrize(("sampler", "each"), [("dpmpp_2m", 0), ("euler_ancestral", 1), ("dpmpp_sde", 2)])
@pytest.mark.parametrize("compiled", [False, True])
def test_a_drawing_sends_nothing_but_noise(model, sampler, each, compiled, monkeypatch):
    """From the second evaluation on: before it, timesteps, words and what they give are sent and computed, once."""
    if compiled:  # as torch leaves a part that it compiles: then each step is the U-Net's own
        monkeypatch.setattr(model.unet.conv_in, "_compiled_call_impl", model.unet.conv_in._call_impl)
    settings = for_model(validate(text_to_image, {"sampler": sampler, "guidance_rescale": 0.7}), model)
    grid = model.grid("karras", 4)
    words, nothing = (Steering.of(Condition(context=torch.zeros(1, 77, 768))) for _ in range(2))
    denoise = guide(model, grid, words, nothing, settings)
    noise = make_noise(SAMPLERS[sampler].noise, [1], (4, 8, 8), device=META)
    seen = []
    with Sent() as sent:
        x = walk(denoise, grid, noise, {**settings, "watch": lambda step: seen.append(sent.count)})
    assert x.device == META
    assert seen[-1] - seen[0] == each * (len(grid) - 1)
