"""Small real models of SD's own topology, with seeded weights, by diffusers and transformers themselves."""

from dataclasses import replace
from pathlib import Path

import torch
from diffusers import AutoencoderKL, DDIMScheduler, PNDMScheduler, StableDiffusionPipeline, UNet2DConditionModel
from safetensors.torch import load_file, save_file
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

from safelight.checkpoint.parts import Parts
from safelight.checkpoint.save import save_single_file
from safelight.models.autoencoder import Autoencoder, AutoencoderConfig
from safelight.models.presets import AUTOENCODERS, UNETS
from safelight.models.unet import UNet

SD_BETAS = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear", "steps_offset": 1}


def small_pipeline(tokenizer: CLIPTokenizer, *, sd2: bool = False, in_channels: int = 4) -> StableDiffusionPipeline:
    torch.manual_seed(0)
    unet = UNet2DConditionModel(
        sample_size=8, in_channels=in_channels, block_out_channels=(32, 64, 64, 64), cross_attention_dim=64,
        attention_head_dim=[1, 1, 1, 1] if sd2 else 8, use_linear_projection=sd2,
    )  # fmt: skip
    vae = AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * 4, up_block_types=("UpDecoderBlock2D",) * 4,
        block_out_channels=(32, 32, 64, 64), layers_per_block=2, sample_size=64,
    )  # fmt: skip
    text = CLIPTextModel(CLIPTextConfig(
        hidden_size=64, intermediate_size=128, num_hidden_layers=2, num_attention_heads=1, vocab_size=49408,
        hidden_act="gelu" if sd2 else "quick_gelu", bos_token_id=49406, eos_token_id=49407,
        pad_token_id=0 if sd2 else 49407,
    ))  # fmt: skip
    scheduler = (
        DDIMScheduler(**SD_BETAS, prediction_type="v_prediction", clip_sample=False)
        if sd2
        else PNDMScheduler(**SD_BETAS, skip_prk_steps=True)
    )
    return StableDiffusionPipeline(
        vae=vae, text_encoder=text, tokenizer=tokenizer, unet=unet, scheduler=scheduler, safety_checker=None,
        feature_extractor=None, requires_safety_checker=False,
    )  # fmt: skip


def same_weights(a: torch.nn.Module, b: torch.nn.Module) -> bool:
    """Whether two networks have the same parameters, bit for bit."""
    a, b = a.state_dict(), b.state_dict()
    return a.keys() == b.keys() and all(a[k].dtype == b[k].dtype and torch.equal(a[k], b[k]) for k in a)


def published_file(name: str, path: Path) -> dict[str, torch.Tensor]:
    """Write a published model, made small, as a single file from elsewhere: weights and nothing else. Its tensors."""
    torch.manual_seed(0)
    wide = UNETS[name].block_out_channels
    narrow = tuple(32 * c // wide[0] // 32 * 32 for c in wide)
    context = {"cross_attention_dim": 64, "attention_head_dim": 1} if UNETS[name].conditional else {}
    unet = replace(UNETS[name], block_out_channels=narrow, **context)
    stage: AutoencoderConfig = AUTOENCODERS[name]
    stage = replace(stage, block_out_channels=(32,) * len(stage.block_out_channels))
    save_single_file(Parts(unet=UNet(unet), autoencoder=Autoencoder(stage)), path)
    tensors = load_file(path)
    save_file(tensors, path)
    return tensors
