"""Small seeded random models, made and saved by the peers, which both libraries then load."""

import pytest
import torch

from safelight.text.bpe import Vocabulary, clip_vocabulary

diffusers = pytest.importorskip("diffusers")
transformers = pytest.importorskip("transformers")

WIDTH = 32


def make_unet(in_channels=4, **changes):
    """The prompt's weight in it is raised to what it has in trained ones."""
    unet = diffusers.UNet2DConditionModel(
        sample_size=8,
        in_channels=in_channels,
        block_out_channels=(32, 64),
        layers_per_block=1,
        down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
        cross_attention_dim=WIDTH,
        attention_head_dim=4,
        norm_num_groups=8,
        **changes,
    )
    with torch.no_grad():
        for name, weight in unet.named_parameters():
            if "attn2.to_v" in name or "attn2.to_out" in name:
                weight *= 8
    return unet


def make_vae(levels=4):
    """Factor 2^(levels-1), 8 as Stable Diffusion's; its pictures are given the contrast of pictures."""
    vae = diffusers.AutoencoderKL(
        block_out_channels=(32,) * levels,
        down_block_types=("DownEncoderBlock2D",) * levels,
        up_block_types=("UpDecoderBlock2D",) * levels,
        sample_size=64,
    )
    with torch.no_grad():
        vae.decoder.conv_out.weight *= 4
        vae.quant_conv.bias[4:] -= 2  # a posterior narrower than the picture's own variety
    return vae


def make_text_encoder(words):
    config = transformers.CLIPTextConfig(
        hidden_size=WIDTH,
        intermediate_size=64,
        num_hidden_layers=3,
        num_attention_heads=4,
        projection_dim=WIDTH,
        vocab_size=words,
        bos_token_id=words - 2,
        eos_token_id=words - 1,
    )
    encoder = transformers.CLIPTextModel(config).eval()
    with torch.no_grad():
        encoder.embeddings.token_embedding.weight *= 30  # words that matter
    return encoder


def make_tokenizer(merges=None):
    """CLIP's, or one that knows only its first `merges` merges, which loads faster."""
    vocabulary = clip_vocabulary()
    if merges is not None:
        vocabulary = Vocabulary.from_merges(vocabulary.merges[:merges])
    pairs = [tuple(pair) for pair in vocabulary.merges]
    return transformers.CLIPTokenizer(vocab=dict(vocabulary.ids), merges=pairs, model_max_length=77)


def make_scheduler():
    return diffusers.PNDMScheduler(
        beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", skip_prk_steps=True, steps_offset=1,
        set_alpha_to_one=False,
    )  # fmt: skip


def save(folder, pipeline, *, merges=1000, in_channels=4):
    torch.manual_seed(0)
    tokenizer = make_tokenizer(merges)
    pipeline(
        vae=make_vae(),
        text_encoder=make_text_encoder(len(tokenizer)),
        tokenizer=tokenizer,
        unet=make_unet(in_channels),
        scheduler=make_scheduler(),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    ).save_pretrained(folder)
    return str(folder)


@pytest.fixture(scope="session")
def model(tmp_path_factory):
    """A text-to-image model."""
    return save(tmp_path_factory.mktemp("model"), diffusers.StableDiffusionPipeline)


@pytest.fixture(scope="session")
def wordy_model(tmp_path_factory):
    """The same with CLIP's whole vocabulary."""
    return save(tmp_path_factory.mktemp("wordy"), diffusers.StableDiffusionPipeline, merges=None)


@pytest.fixture(scope="session")
def inpainting_model(tmp_path_factory):
    """A model whose U-Net has nine input channels."""
    return save(tmp_path_factory.mktemp("inpainting"), diffusers.StableDiffusionInpaintPipeline, in_channels=9)
