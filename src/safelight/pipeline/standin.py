"""A small untrained model, made on the spot, for trying things out where no model is at hand. It draws no objects."""

from dataclasses import replace

import torch

from safelight.diffusion.schedule import noise_schedule
from safelight.models.autoencoder import Autoencoder
from safelight.models.clip import TextEncoder
from safelight.models.presets import AUTOENCODERS, TEXT_ENCODERS, UNETS
from safelight.models.unet import UNet
from safelight.pipeline.bundle import LatentDiffusion
from safelight.text.tokenizer import Tokenizer


def random_model(seed: int = 0) -> LatentDiffusion:
    """Stable Diffusion 1.5 in small, with seeded random weights: its pictures are coloured clouds, whatever the prompt."""
    unet = replace(UNETS["sd15"], block_out_channels=(32, 64, 96, 96), cross_attention_dim=64, sample_size=32)
    autoencoder = replace(AUTOENCODERS["sd15"], block_out_channels=(32, 32, 64, 64))
    text = replace(TEXT_ENCODERS["sd15"], hidden_size=64, intermediate_size=256, num_hidden_layers=2, num_attention_heads=4)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return LatentDiffusion(
            unet=UNet(unet).eval(),
            autoencoder=Autoencoder(autoencoder).eval(),
            text_encoder=TextEncoder(text).eval(),
            tokenizer=Tokenizer.clip(),
            schedule=noise_schedule(),
            family="sd1",
            name="random",
        )
