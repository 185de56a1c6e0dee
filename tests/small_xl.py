"""Stable Diffusion XL's architecture in small, with seeded weights, by diffusers and transformers themselves."""

import diffusers
import torch
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection, CLIPTokenizer

from safelight.text.tokenizer import Tokenizer

TEXT = {"intermediate_size": 64, "num_hidden_layers": 3, "num_attention_heads": 4, "bos_token_id": 49406}


def write_small_xl(folder, *, in_channels=4):
    """Write one into `folder`, with both of its tokenizers."""
    torch.manual_seed(0)
    unet = diffusers.UNet2DConditionModel(
        sample_size=16, in_channels=in_channels, block_out_channels=(32, 64), layers_per_block=1,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"), up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
        cross_attention_dim=32 + 48, attention_head_dim=(2, 4), transformer_layers_per_block=[1, 2],
        use_linear_projection=True, addition_embed_type="text_time", addition_time_embed_dim=8,
        projection_class_embeddings_input_dim=24 + 6 * 8,
    )  # fmt: skip
    vae = diffusers.AutoencoderKL(
        block_out_channels=(32,) * 4, layers_per_block=1, sample_size=128,
        down_block_types=("DownEncoderBlock2D",) * 4, up_block_types=("UpDecoderBlock2D",) * 4, scaling_factor=0.13025,
    )  # fmt: skip
    # The files on the hub have the legacy eos_token_id of 2, "the highest id", in the first
    first = CLIPTextModel(CLIPTextConfig(**TEXT, hidden_size=32, eos_token_id=2))
    second = CLIPTextModelWithProjection(
        CLIPTextConfig(**TEXT, hidden_size=48, projection_dim=24, hidden_act="gelu", eos_token_id=49407)
    )
    for name, pad in (("tokenizer", "<|endoftext|>"), ("tokenizer_2", "!")):
        Tokenizer.clip(pad_token=pad).save(folder / "clip" / name)
    scheduler = diffusers.EulerDiscreteScheduler(
        beta_schedule="scaled_linear", beta_start=0.00085, beta_end=0.012, steps_offset=1, timestep_spacing="leading"
    )
    pipe = diffusers.StableDiffusionXLPipeline(
        vae=vae, text_encoder=first, text_encoder_2=second, unet=unet, scheduler=scheduler, add_watermarker=False,
        tokenizer=CLIPTokenizer.from_pretrained(folder / "clip" / "tokenizer"),
        tokenizer_2=CLIPTokenizer.from_pretrained(folder / "clip" / "tokenizer_2"),
    )  # fmt: skip
    pipe.save_pretrained(folder / "model")
    return folder / "model"
