"""From a recipe to the training of a tiny decoder."""

from pathlib import Path

import torch

from safelight import kernels
from safelight.checkpoint.load import load_autoencoder, load_decoder
from safelight.errors import InputError
from safelight.models.autoencoder import AutoencoderConfig
from safelight.models.tiny_decoder import TinyDecoder, TinyDecoderConfig
from safelight.training.data.latents import LatentData
from safelight.training.loop.assembly import Assembled, about, data_set, seeded
from safelight.training.loop.recipes import DecoderRecipe
from safelight.training.stages.decoder import DecoderStage
from safelight.training.stages.perceptual import load_perceptual


def assemble_decoder(recipe: DecoderRecipe, run: Path, device: torch.device) -> Assembled:
    """Make the training of a tiny decoder."""
    data = data_set(recipe, recipe)
    if isinstance(data, LatentData):
        raise InputError("a decoder is trained on pictures, not on latents", remedy="name the pictures' folder")
    autoencoder = load_autoencoder(recipe.autoencoder, device=device, dtype=torch.float32)
    kernels.prepare(autoencoder)
    config = decoder_config(recipe, autoencoder.config)
    with seeded(recipe.seed):
        new = recipe.init is None
        decoder = TinyDecoder(config) if new else load_decoder(str(recipe.init), dtype=torch.float32)
    decoder.requires_grad_(True).to(device)
    perceptual = load_perceptual(recipe.lpips_vgg, recipe.lpips_heads, recipe.features)
    chosen = perceptual if recipe.perceptual_weight else None
    stage = DecoderStage(decoder, autoencoder, recipe, data, perceptual=chosen, seed=recipe.seed)
    facts = {"decoder of": Path(recipe.autoencoder).name, **about(recipe, data, {"decoder": decoder})}
    return Assembled(stage, data, facts)


def decoder_config(recipe: DecoderRecipe, autoencoder: AutoencoderConfig) -> TinyDecoderConfig:
    """The shape of a new decoder for an autoencoder."""
    levels = len(autoencoder.block_out_channels)
    multipliers = recipe.multipliers or (1, *[2] * (levels - 1))
    if len(multipliers) != levels:
        what = f"multipliers={','.join(map(str, multipliers))}, but the autoencoder has {levels} levels"
        raise InputError(what, remedy="give one for each level, from the picture's to the latent's, or none at all")
    return TinyDecoderConfig(
        latent_channels=autoencoder.embed_dim,
        out_channels=autoencoder.out_channels,
        block_out_channels=tuple(recipe.channels * m for m in reversed(multipliers)),
        num_blocks=(*[recipe.layers] * (levels - 1), 1),
        scaling_factor=autoencoder.scaling_factor,
    )
