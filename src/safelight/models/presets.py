"""The published models, by name: each a few words said against its neighbour.

`UNETS`, `AUTOENCODERS`, `BETAS` and `TEXT_ENCODERS` share their names: UNETS["sd15"] works on the latents that
AUTOENCODERS["sd15"] makes, was trained on noise of BETAS["sd15"] and reads what TEXT_ENCODERS["sd15"] writes. Models
with another conditioner than CLIP, or none, have no entry in the last; the second text encoder of those that have two
is in `TEXT_ENCODERS_2`. `AUTOENCODERS` also holds the first stages by the paper's names: AUTOENCODERS["vq_f4"].

Sources: the configs of CompVis/latent-diffusion, CompVis/stable-diffusion and Stability-AI/stablediffusion, and the
tables of Rombach et al. 2022 (arXiv 2112.10752).
"""

from dataclasses import replace
from typing import Any

from safelight.models.autoencoder_config import SD_SCALING_FACTOR, AutoencoderConfig
from safelight.models.clip import TextConfig
from safelight.models.unet_config import UNetConfig


def levels(*kinds: str) -> dict[str, Any]:
    """The blocks of a U-Net whose levels, highest resolution first, are of these kinds: "", "Attn" or "CrossAttn"."""
    return {
        "down_block_types": tuple(f"{kind}DownBlock2D" for kind in kinds),
        "up_block_types": tuple(f"{kind}UpBlock2D" for kind in reversed(kinds)),
    }


def first_stage(multipliers: tuple[int, ...], *attention: int) -> dict[str, Any]:
    """The levels of an autoencoder of 128 channels times `multipliers`, with attention at the levels numbered."""
    kinds = ["Attn" if i in attention else "" for i in range(len(multipliers))]
    return {
        "block_out_channels": tuple(128 * multiplier for multiplier in multipliers),
        "down_block_types": tuple(f"{kind}DownEncoderBlock2D" for kind in kinds),
        "up_block_types": tuple(f"{kind}UpDecoderBlock2D" for kind in reversed(kinds)),
    }


# First stages (table 8; trained on OpenImages at 256x256). VQ latents are not scaled.

KL_F4 = AutoencoderConfig(
    **first_stage((1, 2, 4)), layers_per_block=2, latent_channels=3, sample_size=256, force_upcast=True
)
KL_F8 = replace(KL_F4, **first_stage((1, 2, 4, 4)), latent_channels=4)
KL_F16 = replace(KL_F4, **first_stage((1, 1, 2, 2, 4), 4), latent_channels=16)
KL_F32 = replace(KL_F4, **first_stage((1, 1, 2, 2, 4, 4), 4, 5), latent_channels=64)
VQ_F4 = replace(KL_F4, num_vq_embeddings=8192, force_upcast=False)
VQ_F4_NOATTN = replace(VQ_F4, mid_block_add_attention=False)
VQ_F8 = replace(VQ_F4, **first_stage((1, 2, 2, 4), 3), latent_channels=4, num_vq_embeddings=16384)
VQ_F8_N256 = replace(VQ_F8, num_vq_embeddings=256)
VQ_F16 = replace(VQ_F4, **first_stage((1, 1, 2, 2, 4), 4), latent_channels=8, num_vq_embeddings=16384)

SD_AUTOENCODER = replace(KL_F8, scaling_factor=SD_SCALING_FACTOR, sample_size=512)

SDXL_AUTOENCODER = replace(SD_AUTOENCODER, scaling_factor=0.13025, sample_size=1024)

# Text encoders

CLIP_L = TextConfig(
    hidden_size=768, intermediate_size=3072, num_attention_heads=12, projection_dim=768, pad_token_id=49407
)
# Of OpenCLIP's 24 layers the last is left out: Stable Diffusion 2 reads the penultimate one.
OPENCLIP_H = replace(
    CLIP_L,
    hidden_size=1024,
    intermediate_size=4096,
    num_hidden_layers=23,
    num_attention_heads=16,
    hidden_act="gelu",
    projection_dim=1024,
    pad_token_id=0,
)

# Whole, with its projection: Stable Diffusion XL reads its penultimate layer, and what its last one says of all.
OPENCLIP_BIGG = replace(
    OPENCLIP_H,
    hidden_size=1280,
    intermediate_size=5120,
    num_hidden_layers=32,
    num_attention_heads=20,
    projection_dim=1280,
    projection=True,
)

# U-Nets of Stable Diffusion. `attention_head_dim` is the number of heads here.

SD15 = UNetConfig(sample_size=64, cross_attention_dim=768)
SD15_INPAINT = replace(SD15, in_channels=9)
SD2_BASE = replace(SD15, cross_attention_dim=1024, attention_head_dim=(5, 10, 20, 20), use_linear_projection=True)
SD2_V = replace(SD2_BASE, sample_size=96)
SD2_INPAINT = replace(SD2_BASE, in_channels=9)
SD2_DEPTH = replace(SD2_BASE, in_channels=5)
SD2_UPSCALER = replace(
    SD2_BASE,
    **levels("", "CrossAttn", "CrossAttn", "CrossAttn"),
    block_out_channels=(256, 512, 512, 1024),
    in_channels=7,
    attention_head_dim=8,
    only_cross_attention=(True, True, True, False),
    num_class_embeds=1000,
    sample_size=128,
)
SD2_UNCLIP_H = replace(SD2_V, class_embed_type="projection", projection_class_embeddings_input_dim=2048)
SDXL = UNetConfig(
    **levels("", "CrossAttn", "CrossAttn"),
    block_out_channels=(320, 640, 1280),
    transformer_layers_per_block=(1, 2, 10),
    attention_head_dim=(5, 10, 20),
    cross_attention_dim=2048,
    use_linear_projection=True,
    addition_embed_type="text_time",
    addition_time_embed_dim=256,
    projection_class_embeddings_input_dim=2816,
    sample_size=128,
)
SDXL_INPAINT = replace(SDXL, in_channels=9)
SD2_UNCLIP_L = replace(SD2_UNCLIP_H, projection_class_embeddings_input_dim=1536)

# U-Nets of latent diffusion with a context. Again `attention_head_dim` is the number of heads; most are 32 wide.

LDM_TEXT2IMG_1P4B = replace(SD15, cross_attention_dim=1280, sample_size=32)
LDM_CIN256_V2 = UNetConfig(
    **levels("", "CrossAttn", "CrossAttn", "CrossAttn"),
    in_channels=3,
    out_channels=3,
    block_out_channels=(192, 384, 576, 960),
    attention_head_dim=1,
    cross_attention_dim=512,
    sample_size=64,
)
LDM_TEXT2IMG256 = replace(LDM_CIN256_V2, attention_head_dim=(6, 12, 18, 30), cross_attention_dim=640)
LDM_LAYOUT2IMG = replace(
    LDM_CIN256_V2,
    block_out_channels=(128, 256, 384, 512),
    attention_head_dim=(4, 8, 12, 16),
    transformer_layers_per_block=3,
)
LDM_CIN_VQ_F8 = replace(
    LDM_CIN256_V2,
    **levels("CrossAttn", "CrossAttn", "CrossAttn"),
    in_channels=4,
    out_channels=4,
    block_out_channels=(256, 512, 1024),
    attention_head_dim=(8, 16, 32),
    sample_size=32,
)
RDM768 = replace(
    LDM_CIN256_V2,
    **levels("CrossAttn", "CrossAttn", "CrossAttn", ""),
    in_channels=16,
    out_channels=16,
    block_out_channels=(448, 896, 1344, 1792),
    attention_head_dim=(14, 28, 42, 56),
    cross_attention_dim=768,
    sample_size=48,
)

# U-Nets of latent diffusion without a context: what conditions them is concatenated. `attention_head_dim` is a width.

LDM_CELEBAHQ = UNetConfig(
    **levels("", "Attn", "Attn", "Attn"),
    mid_block_type="UNetMidBlock2D",
    in_channels=3,
    out_channels=3,
    block_out_channels=(224, 448, 672, 896),
    attention_head_dim=32,
    sample_size=64,
)
LDM_SR_BSR = replace(LDM_CELEBAHQ, **levels("", "", "", "Attn"), in_channels=6, block_out_channels=(160, 320, 320, 640))
LDM_SEMANTIC = replace(
    LDM_CELEBAHQ,
    **levels("", "", ""),
    in_channels=6,
    block_out_channels=(128, 512, 1024),
    attention_head_dim=(16, 64, 128),  # 8 heads; attention is in the middle only
)
LDM_CHURCHES = replace(
    LDM_CELEBAHQ,
    in_channels=4,
    out_channels=4,
    down_block_types=("AttnDownBlock2D",) * 4 + ("DownBlock2D",),
    up_block_types=("ResnetUpsampleBlock2D",) + ("AttnUpBlock2D",) * 4,
    downsample_type="resnet",
    upsample_type="resnet",
    resnet_time_scale_shift="scale_shift",
    attn_norm_num_groups=32,
    block_out_channels=(192, 384, 384, 768, 768),
    attention_head_dim=(24, 48, 48, 96, 96),  # 8 heads
    sample_size=32,
)
LDM_INPAINTING_BIG = replace(
    LDM_CELEBAHQ,
    in_channels=7,
    down_block_types=("ResnetDownsampleBlock2D",) + ("AttnDownBlock2D",) * 3,
    up_block_types=("AttnUpBlock2D",) * 3 + ("UpBlock2D",),
    downsample_type="resnet",
    upsample_type="resnet",
    block_out_channels=(256, 512, 768, 1024),
    attention_head_dim=(32, 64, 96, 128),  # 8 heads
)

UNETS: dict[str, UNetConfig] = {
    "sd15": SD15,
    "sd15_inpaint": SD15_INPAINT,
    "sd2_base": SD2_BASE,
    "sd2_v": SD2_V,
    "sd2_inpaint": SD2_INPAINT,
    "sd2_depth": SD2_DEPTH,
    "sd2_upscaler": SD2_UPSCALER,
    "sd2_unclip_h": SD2_UNCLIP_H,
    "sd2_unclip_l": SD2_UNCLIP_L,
    "sdxl": SDXL,
    "sdxl_inpaint": SDXL_INPAINT,
    "ldm_celebahq": LDM_CELEBAHQ,
    "ldm_ffhq": LDM_CELEBAHQ,
    "ldm_bedrooms": LDM_CELEBAHQ,
    "ldm_churches": LDM_CHURCHES,
    "ldm_cin_vq_f8": LDM_CIN_VQ_F8,
    "ldm_cin256_v2": LDM_CIN256_V2,
    "ldm_text2img256": LDM_TEXT2IMG256,
    "ldm_txt2img_1p4b": LDM_TEXT2IMG_1P4B,
    "ldm_layout2img_openimages256": LDM_LAYOUT2IMG,
    "ldm_semantic256": LDM_SEMANTIC,
    "ldm_semantic512": replace(LDM_SEMANTIC, sample_size=128),
    "ldm_sr_bsr": LDM_SR_BSR,
    "ldm_inpainting_big": LDM_INPAINTING_BIG,
    "rdm768": RDM768,
}

# The first and the last beta of the noise each was trained on, "scaled_linear" in diffusers' words.
SD_BETAS = (0.00085, 0.012)
LDM_BETAS = (0.0015, 0.0195)
BETAS: dict[str, tuple[float, float]] = {
    **{name: SD_BETAS if name.startswith("sd") else LDM_BETAS for name in UNETS},
    "sd2_upscaler": (0.0001, 0.02),
    "ldm_churches": (0.0015, 0.0155),
    "ldm_txt2img_1p4b": SD_BETAS,
    **dict.fromkeys(("ldm_layout2img_openimages256", "ldm_semantic256", "ldm_semantic512"), (0.0015, 0.0205)),
    "ldm_sr_bsr": (0.0015, 0.0155),
    "ldm_inpainting_big": (0.0015, 0.0205),
    "rdm768": (0.0015, 0.015),
}

AUTOENCODERS: dict[str, AutoencoderConfig] = {
    "kl_f4": KL_F4,
    "kl_f8": KL_F8,
    "kl_f16": KL_F16,
    "kl_f32": KL_F32,
    "vq_f4": VQ_F4,
    "vq_f4_noattn": VQ_F4_NOATTN,
    "vq_f8": VQ_F8,
    "vq_f8_n256": VQ_F8_N256,
    "vq_f16": VQ_F16,
    **dict.fromkeys((name for name in UNETS if name.startswith("sd")), SD_AUTOENCODER),
    "sd2_v": replace(SD_AUTOENCODER, sample_size=768),
    **dict.fromkeys(("sdxl", "sdxl_inpaint"), SDXL_AUTOENCODER),
    "sd2_upscaler": replace(KL_F4, latent_channels=4, scaling_factor=0.08333),
    **dict.fromkeys((name for name in UNETS if name.startswith("ldm_")), VQ_F4),
    "ldm_churches": KL_F8,  # the checkpoint brings its own scale_factor, measured on its first batch
    "ldm_cin_vq_f8": VQ_F8,
    "ldm_txt2img_1p4b": replace(SD_AUTOENCODER, sample_size=256),
    "ldm_inpainting_big": VQ_F4_NOATTN,
    "rdm768": replace(KL_F16, scaling_factor=0.22765929),
}

TEXT_ENCODERS: dict[str, TextConfig] = {
    name: CLIP_L if name.startswith(("sd15", "sdxl")) else OPENCLIP_H for name in UNETS if name.startswith("sd")
}
TEXT_ENCODERS_2: dict[str, TextConfig] = dict.fromkeys(("sdxl", "sdxl_inpaint"), OPENCLIP_BIGG)
