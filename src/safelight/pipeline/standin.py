"""A small untrained model, made on the spot, for trying things out where no model is at hand. It draws no objects."""

from dataclasses import replace
from typing import TypeVar

import torch
from torch import nn

from safelight.diffusion.schedule import noise_schedule
from safelight.models.autoencoder import Autoencoder
from safelight.models.clip import TextEncoder
from safelight.models.presets import AUTOENCODERS, TEXT_ENCODERS, UNETS
from safelight.models.unet import UNet
from safelight.pipeline.bundle import LatentDiffusion
from safelight.text.tokenizer import Tokenizer

Module = TypeVar("Module", bound=nn.Module)


def random_model(seed: int = 0) -> LatentDiffusion:
    """Stable Diffusion 1.5 in small, with seeded random weights: its pictures are coloured noise, whatever the prompt.

    It predicts pictures ("sample"), since a random prediction of noise would leave most of the noise in.
    """
    unet = replace(UNETS["sd15"], block_out_channels=(32, 64, 96, 96), cross_attention_dim=64, sample_size=32)
    autoencoder = replace(AUTOENCODERS["sd15"], block_out_channels=(32, 32, 64, 64))
    text = replace(
        TEXT_ENCODERS["sd15"], hidden_size=64, intermediate_size=256, num_hidden_layers=2, num_attention_heads=4
    )
    generator = torch.Generator().manual_seed(seed)
    return LatentDiffusion(
        unet=_randomised(UNet(unet), generator),
        autoencoder=_randomised(Autoencoder(autoencoder), generator),
        text_encoder=_randomised(TextEncoder(text), generator),
        tokenizer=Tokenizer.clip(),
        schedule=noise_schedule(),
        prediction_type="sample",
        family="sd1",
        name="random",
    )


def _randomised(module: Module, generator: torch.Generator) -> Module:
    """Fill every matrix and filter so that it keeps its input's variance. (A new network has zeros in places.)"""
    for name, parameter in module.named_parameters():
        if parameter.dim() > 1:
            nn.init.normal_(parameter, std=parameter[0].numel() ** -0.5, generator=generator)
        elif name.endswith("bias"):
            nn.init.zeros_(parameter)
    return module.eval().requires_grad_(False)
