"""The U-Net by way of torch.compile, as far as it goes without a GPU."""

from dataclasses import replace

import pytest
import torch

import safelight
from safelight.errors import InputError
from safelight.models.presets import UNETS, levels
from safelight.models.run import untouched
from safelight.models.unet import UNet
from safelight.pipeline.compiling import compiled
from safelight.pipeline.standin import random_model

TINY = {"block_out_channels": (32,), "layers_per_block": 1, "cross_attention_dim": 64, "sample_size": 8}


def small():
    torch.manual_seed(0)
    unet = UNet(replace(UNETS["sd15"], **levels("CrossAttn"), **TINY)).eval()
    torch.nn.init.normal_(unet.conv_out.weight, std=0.1)
    return replace(random_model(), unet=unet)


def test_a_compiled_model_draws_the_same():
    plain, model = small(), small()
    assert untouched(model.unet) and compiled(model, backend="eager") is model and not untouched(model.unet)
    ours, theirs = (safelight.text_to_image(m, "a fox", steps=1, seed=1).latents for m in (model, plain))
    assert torch.allclose(ours, theirs, atol=1e-4 * theirs.abs().max())  # it computes both halves of guidance apart


def test_what_is_missing_is_named(monkeypatch):
    monkeypatch.setenv("PATH", "")
    monkeypatch.delenv("CXX", raising=False)
    model = small()
    with pytest.raises(InputError, match=r"a C\+\+ compiler"):
        compiled(model)
    assert untouched(model.unet)
