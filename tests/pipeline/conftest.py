import diffusers
import pytest
import torch
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

from safelight.pipeline.standin import random_model
from safelight.text.tokenizer import Tokenizer

SMALL = {"block_out_channels": (32, 64), "norm_num_groups": 8, "layers_per_block": 1}


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


@pytest.fixture(scope="session")
def folder(tmp_path_factory):
    """A Stable Diffusion of 1/1000 the size, written by diffusers itself."""
    torch.set_num_threads(1)
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("model")
    Tokenizer.clip().save(folder / "clip")
    unet = diffusers.UNet2DConditionModel(
        **SMALL, sample_size=16, cross_attention_dim=32, attention_head_dim=4,
        down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"), up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
    )  # fmt: skip
    vae = diffusers.AutoencoderKL(
        **SMALL | {"block_out_channels": (8, 16, 16, 32)}, down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4, sample_size=128,
    )  # fmt: skip
    text = CLIPTextModel(
        CLIPTextConfig(
            hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4, eos_token_id=49407
        )
    )
    pipe = diffusers.StableDiffusionPipeline(
        vae=vae, text_encoder=text, tokenizer=CLIPTokenizer.from_pretrained(folder / "clip"), unet=unet,
        scheduler=diffusers.DDIMScheduler(
            beta_schedule="scaled_linear", beta_start=0.00085, beta_end=0.012, steps_offset=1, set_alpha_to_one=False,
            clip_sample=False,
        ),
        safety_checker=None, feature_extractor=None, requires_safety_checker=False,
    )  # fmt: skip
    pipe.save_pretrained(folder / "model")
    return folder / "model"
