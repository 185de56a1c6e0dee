"""Large pictures through windows: the tasks' option."""

from dataclasses import replace

import numpy as np
import pytest
from PIL import Image

import safelight
from safelight.errors import InputError
from safelight.models.unet import UNet

QUICK = {"steps": 3, "seed": 5, "guidance_scale": 3.0}


def test_the_network_sees_windows_alone(model):
    sizes = []
    hook = model.unet.register_forward_pre_hook(lambda unet, inputs: sizes.append(tuple(inputs[0].shape[-2:])))
    try:
        drawn = safelight.text_to_image(model, "a fox", width=192, height=128, window=96, **QUICK)
    finally:
        hook.remove()
    assert drawn[0].size == (192, 128) and set(sizes) == {(12, 12)}
    assert len(sizes) == 3 * 3 * 2  # steps, windows along, windows down; both halves of guidance at once


def test_one_window_is_the_picture_itself(model):
    whole, seen = (safelight.text_to_image(model, "a fox", width=96, height=64, window=window, **QUICK)
                   for window in (None, 96))  # fmt: skip
    assert np.array_equal(np.asarray(whole[0]), np.asarray(seen[0]))


def test_a_picture_made_larger_in_windows_keeps_what_it_shows(model):
    small = Image.effect_noise((64, 64), 90).convert("RGB")
    large = {"width": 192, "height": 192, "strength": 0.3}
    drawn = safelight.image_to_image(model, "a fox", small, window=128, **large, **QUICK)
    again = safelight.image_to_image(model, "a fox", small, window=128, **large, **QUICK)
    assert drawn[0].size == (192, 192) and np.array_equal(np.asarray(drawn[0]), np.asarray(again[0]))


def test_what_does_not_go_with_windows_is_told(model):
    with pytest.raises(InputError, match="feature_cache"):
        safelight.text_to_image(model, "a fox", window=64, fast=True)
    upscaler = replace(model, unet=UNet(replace(model.unet.config, in_channels=7)))
    with pytest.raises(InputError, match="sees more than the latent"):
        safelight.upscale(upscaler, Image.new("RGB", (32, 32)), prompt="a fox", window=64, steps=1)
    with pytest.raises(InputError, match="not a multiple of 8"):
        safelight.text_to_image(model, "a fox", window=67)
    with pytest.raises(InputError, match="window=4"):
        safelight.text_to_image(model, "a fox", window=4)
