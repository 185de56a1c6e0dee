"""The presets have the published numbers of parameters and are, but for two, nets that diffusers draws alike."""

import diffusers
import pytest
import torch

from safelight.models.autoencoder import Autoencoder
from safelight.models.clip import TextEncoder
from safelight.models.presets import AUTOENCODERS, TEXT_ENCODERS, TEXT_ENCODERS_2, UNETS
from safelight.models.unet import UNet

# Exact counts of the files people have.
EXACT = [
    (UNet, UNETS["sd15"], 859_520_964),
    (Autoencoder, AUTOENCODERS["sd15"], 83_653_863),
    (TextEncoder, TEXT_ENCODERS["sd15"], 123_060_480),
    (UNet, UNETS["sd15_inpaint"], 859_520_964 + 5 * 320 * 9),  # five more input channels of the first convolution
    (UNet, UNETS["sd2_inpaint"], 865_910_724 + 5 * 320 * 9),
    (UNet, UNETS["sd2_depth"], 865_910_724 + 1 * 320 * 9),
    (UNet, UNETS["sdxl"], 2_567_463_684),
    (TextEncoder, TEXT_ENCODERS_2["sdxl"], 694_659_840),
]
# Millions as printed: whole millions are cut off or rounded, as the sources do both.
PRINTED = {
    "sd2_base": 865,  # model card
    "ldm_celebahq": 274,  # table 12
    "ldm_ffhq": 274,
    "ldm_bedrooms": 274,
    "ldm_churches": 294,
    "ldm_cin_vq_f8": 395,  # table 13, LDM-8
    "ldm_cin256_v2": 400,  # table 3; table 15 says 395
    "ldm_semantic256": 215,  # table 15
    "ldm_inpainting_big": 387,  # section 4.5
}


def on_meta(network, config):
    with torch.device("meta"):
        return network(config)


def parameters(network, config):
    return sum(parameter.numel() for parameter in on_meta(network, config).parameters())


@pytest.mark.parametrize(("network", "config", "count"), EXACT)
def test_counts_of_stable_diffusion_are_exact(network, config, count):
    assert parameters(network, config) == count


@pytest.mark.parametrize("name", PRINTED)
def test_counts_are_those_printed(name):
    millions = parameters(UNet, UNETS[name]) / 1e6
    assert PRINTED[name] in (int(millions), round(millions))


def bert(width, layers, words, positions):
    """Parameters of latent diffusion's text encoder: 8 heads of 64, feed-forward of four times the width, a head."""
    attention = 4 * width * 512 + width
    feed_forward = 2 * 4 * width * width + 5 * width
    norms = 2 * 2 * width
    tables = (words + positions) * width + 2 * width + (width + 1) * words
    return layers * (attention + feed_forward + norms) + tables


def test_text_to_image_has_a_billion_and_a_half():
    name = "ldm_txt2img_1p4b"  # table 15: 1.45B, U-Net and BERT
    total = parameters(UNet, UNETS[name]) + bert(1280, 32, 30522, 77)
    assert round(total / 1e9, 2) == 1.45


def shapes(module):
    return {key: tuple(value.shape) for key, value in module.state_dict().items()}


def peers(config):
    """diffusers' network for a config of ours, on the meta device."""
    data = config.to_diffusers()
    with torch.device("meta"):
        return getattr(diffusers, data["_class_name"]).from_config(data)


# Heads of another width at each level: diffusers' plain U-Net has no word for it.
BEYOND_DIFFUSERS = {"ldm_churches", "ldm_inpainting_big", "ldm_semantic256", "ldm_semantic512"}
DISTINCT_UNETS = {config: name for name, config in UNETS.items() if name not in BEYOND_DIFFUSERS}
DISTINCT_AUTOENCODERS = {config: name for name, config in reversed(AUTOENCODERS.items())}


@pytest.mark.parametrize("config", DISTINCT_UNETS, ids=DISTINCT_UNETS.values())
def test_unets_have_the_tensors_of_diffusers(config):
    assert shapes(on_meta(UNet, config)) == shapes(peers(config))


@pytest.mark.parametrize("config", DISTINCT_AUTOENCODERS, ids=DISTINCT_AUTOENCODERS.values())
def test_autoencoders_have_the_tensors_of_diffusers(config):
    assert shapes(on_meta(Autoencoder, config)) == shapes(peers(config))


@pytest.mark.parametrize("name", UNETS)
def test_every_unet_has_an_autoencoder_whose_latents_it_takes(name):
    assert AUTOENCODERS[name].embed_dim == UNETS[name].out_channels
    if name in TEXT_ENCODERS:
        both = [one[name] for one in (TEXT_ENCODERS, TEXT_ENCODERS_2) if name in one]
        assert sum(text.hidden_size for text in both) == UNETS[name].cross_attention_dim
        sizes = 6 * (UNETS[name].addition_time_embed_dim or 0)
        if UNETS[name].pooled_width is not None:
            assert both[1].projection_dim + sizes == UNETS[name].pooled_width


@pytest.mark.parametrize("name", [name for name in AUTOENCODERS if name.startswith(("kl_", "vq_"))])
def test_first_stages_are_what_their_names_say(name):
    bottleneck, factor = name.split("_")[:2]
    config = AUTOENCODERS[name]
    assert f"f{config.factor}" == factor
    assert (config.num_vq_embeddings is None) == (bottleneck == "kl")


def test_latents_of_codebooks_are_not_scaled():
    assert {config.scaling_factor for config in AUTOENCODERS.values() if config.num_vq_embeddings} == {1.0}
