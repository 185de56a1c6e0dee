from dataclasses import replace
from pathlib import Path

import pytest
import torch

from safelight.checkpoint import layouts
from safelight.checkpoint.build import on_meta
from safelight.checkpoint.detect import autoencoder_config, detect, family, unet_config
from safelight.checkpoint.errors import CorruptFile, KeyMismatch, WrongModel
from safelight.checkpoint.files import Entry, Tensors
from safelight.checkpoint.shapes import Shapes
from safelight.checkpoint.single import dialects, text_keymap, unet_keymap
from safelight.models.autoencoder import Autoencoder
from safelight.models.autoencoder_config import AutoencoderConfig
from safelight.models.clip import TextConfig, TextEncoder
from safelight.models.presets import AUTOENCODERS, TEXT_ENCODERS, TEXT_ENCODERS_2, UNETS
from safelight.models.unet import UNet
from safelight.models.unet_config import UNetConfig


def listed(shapes: dict[str, tuple[int, ...]]) -> Tensors:
    """A file of which only the header is ever read."""
    return Tensors(
        Path("model.ckpt"), {k: Entry(torch.float16, tuple(s), Path("model.ckpt"), None) for k, s in shapes.items()}
    )


def header(name: str) -> dict[str, tuple[int, ...]]:
    """The names and shapes of a published single file."""
    unet, stage = on_meta(lambda: (UNet(UNETS[name]), Autoencoder(AUTOENCODERS[name])))
    tensors = unet_keymap(unet).to_theirs(unet.state_dict())
    tensors |= layouts.first_stage_layout(stage.state_dict()).under("first_stage_model.").to_theirs(stage.state_dict())
    if name in TEXT_ENCODERS:
        dialect = "pair" if name in TEXT_ENCODERS_2 else "openclip" if name.startswith("sd2") else "clip"
        for one, kind in zip(text_encoders(name), dialects(dialect), strict=True):
            tensors |= text_keymap(one, kind).to_theirs(one.state_dict())
    return {key: tuple(tensor.shape) for key, tensor in tensors.items()}


def text_encoders(name: str) -> list[TextEncoder]:
    configs = [table[name] for table in (TEXT_ENCODERS, TEXT_ENCODERS_2) if name in table]
    return on_meta(lambda: [TextEncoder(config) for config in configs])


# Pairs that differ in nothing that a file shows: the first of them is recognised.
TWINS = {"sd2_v": "sd2_base", "ldm_semantic512": "ldm_semantic256"}


@pytest.mark.parametrize("name", UNETS)
def test_every_published_model_is_recognised_from_names_and_shapes(name):
    found = detect(listed(header(name)))
    twin = TWINS.get(name, name)
    assert UNetConfig.from_diffusers(found.unet) == UNETS[twin]
    stage, published = AutoencoderConfig.from_diffusers(found.autoencoder), AUTOENCODERS[twin]
    assert (stage.scaling_factor, stage.sample_size) == (published.scaling_factor, published.sample_size)
    assert stage.kind == published.kind
    kind = "ldm" if name.startswith(("ldm", "rdm")) else name.split("_")[0].replace("sd15", "sd1")
    assert found.family.split("-")[0] == kind
    if name in TEXT_ENCODERS:
        assert TextConfig.from_transformers(found.text_encoder) == TEXT_ENCODERS[name]
    assert (found.text_encoder_2 is not None) == (name in TEXT_ENCODERS_2)
    if name in TEXT_ENCODERS_2:
        assert TextConfig.from_transformers(found.text_encoder_2) == TEXT_ENCODERS_2[name]


# The published configs (linear_start and linear_end), by what their files show.
BETAS = {
    "sd15": (0.00085, 0.012), "sd2_upscaler": (0.0001, 0.02), "ldm_celebahq": (0.0015, 0.0195),
    "ldm_churches": (0.0015, 0.0155), "ldm_cin256_v2": (0.0015, 0.0195), "ldm_txt2img_1p4b": (0.00085, 0.012),
    "ldm_text2img256": (0.0015, 0.0195), "ldm_layout2img_openimages256": (0.0015, 0.0205),
    "ldm_semantic512": (0.0015, 0.0205), "ldm_sr_bsr": (0.0015, 0.0155), "ldm_inpainting_big": (0.0015, 0.0205),
    "rdm768": (0.0015, 0.015),
}  # fmt: skip


@pytest.mark.parametrize("name", BETAS)
def test_a_published_model_has_the_noise_it_was_trained_on(name):
    scheduler = detect(listed(header(name))).scheduler
    assert (scheduler["beta_schedule"], scheduler["beta_start"], scheduler["beta_end"]) == (
        "scaled_linear",
        *BETAS[name],
    )


def test_families():
    names = {"sd15": "sd1", "sd15_inpaint": "sd1-inpaint", "sd2_base": "sd2", "sd2_inpaint": "sd2-inpaint",
             "sd2_depth": "sd2-depth", "sd2_upscaler": "sd2-upscale", "ldm_celebahq": "ldm",
             "sdxl": "sdxl", "sdxl_inpaint": "sdxl-inpaint",
             "ldm_txt2img_1p4b": "ldm", "ldm_inpainting_big": "ldm-inpaint"}  # fmt: skip
    assert {name: detect(listed(header(name))).family for name in names} == names


def test_what_sees_a_small_picture_is_an_upscaler_only_if_it_is_told_of_noise():
    unet = {"cross_attention_dim": 1024, "in_channels": 7, "block_out_channels": (320, 640), "num_class_embeds": 1000}
    assert family(unet | {"use_linear_projection": True}, has_text=True) == "sd2-upscale"
    assert family(unet | {"num_class_embeds": None}, has_text=True) == "sd1"


def test_a_latent_of_eight_channels_is_no_picture_beside_one_of_four():
    unet = {"cross_attention_dim": 768, "in_channels": 8, "out_channels": 4, "block_out_channels": (320, 640)}
    assert family(unet, has_text=True) == "sd1-edit"
    assert family(unet | {"out_channels": 8}, has_text=True) == "sd1"


@pytest.mark.parametrize("name", [name for name in AUTOENCODERS if name.startswith(("kl", "vq"))])
def test_every_first_stage_is_recognised_in_both_dialects(name):
    network = on_meta(lambda: Autoencoder(AUTOENCODERS[name]))
    ours = {key: tuple(tensor.shape) for key, tensor in network.state_dict().items()}
    theirs = layouts.first_stage_layout(ours).to_theirs(network.state_dict())
    for shapes in (ours, {key: tuple(tensor.shape) for key, tensor in theirs.items()}):
        found = AutoencoderConfig.from_diffusers(autoencoder_config(Shapes(shapes, "vae.pt")))
        shape = {"sample_size": 256, "scaling_factor": 1.0, "force_upcast": True}
        assert replace(found, **shape) == replace(AUTOENCODERS[name], **shape)


def test_a_small_unet_of_ones_own_is_recognised_too():
    config = UNetConfig(block_out_channels=(32, 64), cross_attention_dim=24, layers_per_block=1, attention_head_dim=8,
                        down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
                        up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"), transformer_layers_per_block=2,
                        num_class_embeds=10)  # fmt: skip
    network = on_meta(lambda: UNet(config))
    keymap = unet_keymap(network)
    shapes = {
        key.removeprefix(layouts.UNET): tuple(t.shape) for key, t in keymap.to_theirs(network.state_dict()).items()
    }
    assert UNetConfig.from_diffusers(unet_config(Shapes(shapes, "own.ckpt"))) == config


STRANGERS = {
    "a LoRA": {"lora_unet_down_blocks_0_attentions_0.lora_up.weight": (4, 4)},
    "LoRA": {"unet.down_blocks.0.attentions.0.to_q.lora_A.weight": (4, 4)},
    "Stable Diffusion XL's refiner": {
        "model.diffusion_model.label_emb.0.0.weight": (1536, 2560),
        "conditioner.embedders.0.model.token_embedding.weight": (49408, 1280),
    },
    "ControlNet": {"control_model.time_embed.0.weight": (1280, 320)},
    "Flux": {"model.diffusion_model.double_blocks.0.img_attn.norm.key_norm.scale": (128,)},
    "Stable Diffusion 3": {"model.diffusion_model.joint_blocks.0.context_block.adaLN_modulation.1.bias": (1,)},
    "textual inversion": {"string_to_param.*": (2, 768)},
    "an autoencoder alone": {"encoder.conv_in.weight": (128, 3, 3, 3), "decoder.conv_out.weight": (3, 128, 3, 3)},
    "one network of a diffusers folder": {"down_blocks.0.resnets.0.conv1.weight": (320, 320, 3, 3)},
    "so few tensors": {"<cat>": (768,)},
    "no U-Net in the CompVis layout": {"conv_first.weight": (1,), "a": (1,), "b": (1,)},
}


@pytest.mark.parametrize("kind", STRANGERS)
def test_strangers_are_named_with_a_remedy(kind):
    with pytest.raises(WrongModel, match=kind) as caught:
        detect(listed(STRANGERS[kind]))
    assert caught.value.remedy
    assert caught.value.path == Path("model.ckpt")


def test_a_model_with_a_hole_is_named_by_the_missing_tensor():
    shapes = header("sd15")
    del shapes["model.diffusion_model.out.2.weight"]
    with pytest.raises(KeyMismatch, match=r"model\.diffusion_model\.out\.2\.weight"):
        detect(listed(shapes))


def test_absurd_block_numbers_end_at_once():
    shapes = header("sd15") | {"model.diffusion_model.output_blocks.999999999.0.in_layers.0.weight": (1,)}
    with pytest.raises(CorruptFile, match="999999999"):
        detect(listed(shapes))
