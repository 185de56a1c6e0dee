"""The tables against the originals' known counts, and against diffusers' own converters on whole models of unique
numbers."""

import pytest
import torch
from diffusers.loaders import single_file_utils as peer

from safelight.checkpoint import layouts
from safelight.checkpoint.build import on_meta
from safelight.checkpoint.keymap import KeyMap
from safelight.checkpoint.single import text_keymap, unet_keymap
from safelight.models.autoencoder import Autoencoder
from safelight.models.clip import TextEncoder
from safelight.models.presets import AUTOENCODERS, TEXT_ENCODERS, UNETS
from safelight.models.unet import UNet


def unique(shapes: dict[str, tuple[int, ...]]) -> dict[str, torch.Tensor]:
    """One tiny tensor a name, each with a number of its own: enough to prove where it goes."""
    return {name: torch.full([1] * len(shape), float(i)) for i, (name, shape) in enumerate(shapes.items())}


def their_shapes(network: torch.nn.Module, keymap: KeyMap) -> dict[str, tuple[int, ...]]:
    return {name: tuple(tensor.shape) for name, tensor in keymap.to_theirs(network.state_dict()).items()}


def agrees(ours: dict[str, torch.Tensor], theirs: dict[str, torch.Tensor]) -> bool:
    return ours.keys() == theirs.keys() and all(ours[name].flatten().equal(theirs[name].flatten()) for name in ours)


def sd1_networks() -> tuple[UNet, Autoencoder, TextEncoder]:
    return on_meta(lambda: (UNet(UNETS["sd15"]), Autoencoder(AUTOENCODERS["sd15"]), TextEncoder(TEXT_ENCODERS["sd15"])))


def test_sd1_has_the_686_and_248_and_196_tensors_of_the_original():
    unet, stage, text = sd1_networks()
    keys = (
        unet_keymap(unet).by_theirs.keys()
        | layouts.first_stage_layout(stage.state_dict()).under("first_stage_model.").by_theirs.keys()
    )
    keys |= text_keymap(text, "clip").by_theirs.keys()
    counts = [
        sum(key.startswith(p) for key in keys)
        for p in ("model.diffusion_model.", "first_stage_model.", "cond_stage_model.")
    ]
    assert counts == [686, 248, 196]  # and position_ids, a buffer, which `save` adds: 1,131
    assert {  # names that the note on the original layout lists
        "model.diffusion_model.input_blocks.3.0.op.weight", "model.diffusion_model.output_blocks.2.1.conv.bias",
        "model.diffusion_model.output_blocks.5.2.conv.weight", "model.diffusion_model.middle_block.1.proj_in.weight",
        "model.diffusion_model.output_blocks.11.0.skip_connection.weight", "model.diffusion_model.out.2.bias",
        "first_stage_model.decoder.up.3.upsample.conv.weight", "first_stage_model.encoder.mid.attn_1.q.weight",
        "first_stage_model.decoder.up.0.block.0.nin_shortcut.weight", "first_stage_model.post_quant_conv.bias",
        "cond_stage_model.transformer.text_model.encoder.layers.11.mlp.fc2.bias",
    } <= keys  # fmt: skip


@pytest.mark.parametrize("name", ["sd15", "sd2_v", "sd2_depth", "ldm_txt2img_1p4b", "ldm_cin256_v2", "sd2_unclip_h"])
def test_unet_tables_agree_with_diffusers(name):
    network = on_meta(lambda: UNet(UNETS[name]))
    keymap = unet_keymap(network)
    theirs = unique(their_shapes(network, keymap))
    config = {"layers_per_block": 2, "class_embed_type": UNETS[name].class_embed_type}
    assert agrees(keymap.to_ours(theirs), peer.convert_ldm_unet_checkpoint(theirs, config))


@pytest.mark.parametrize("name", ["sd15", "kl_f4"])
def test_first_stage_table_agrees_with_diffusers(name):
    network = on_meta(lambda: Autoencoder(AUTOENCODERS[name]))
    keymap = layouts.first_stage_layout(network.state_dict()).under("first_stage_model.")
    theirs = unique(their_shapes(network, keymap))
    levels = len(AUTOENCODERS[name].block_out_channels)
    config = {"down_block_types": ["DownEncoderBlock2D"] * levels, "up_block_types": ["UpDecoderBlock2D"] * levels}
    assert agrees(keymap.to_ours(theirs), peer.convert_ldm_vae_checkpoint(theirs, config))


def test_clip_table_agrees_with_diffusers():
    _, _, text = sd1_networks()
    keymap = text_keymap(text, "clip")
    theirs = unique(their_shapes(text, keymap))
    assert agrees(keymap.to_ours(theirs), peer.convert_ldm_clip_checkpoint(theirs))


def test_openclip_table_agrees_with_diffusers():
    text = on_meta(lambda: TextEncoder(TEXT_ENCODERS["sd2_v"]))
    keymap = text_keymap(text, "openclip")
    shapes = their_shapes(text, keymap)
    theirs = {}
    for i, (key, shape) in enumerate(shapes.items()):  # in_proj needs its three parts to differ
        rows = 3 if ".in_proj_" in key else 1
        theirs[key] = (i + torch.arange(rows) / 4).reshape(rows, *[1] * (len(shape) - 1))
    config = type("Model", (), {"config": type("Config", (), {"hidden_size": 1})})
    assert agrees(keymap.to_ours(theirs), peer.convert_open_clip_checkpoint(config, theirs))
    assert not any(".23." in key for key in shapes)  # OpenCLIP's last block is no part of an SD 2 text encoder


@pytest.mark.parametrize("name", UNETS)
def test_every_unet_has_a_bijective_table(name):
    network = on_meta(lambda: UNet(UNETS[name]))
    keymap = unet_keymap(network)
    assert keymap.by_ours.keys() == network.state_dict().keys()
    again = keymap.to_ours(keymap.to_theirs(network.state_dict()))
    assert {n: t.shape for n, t in again.items()} == {n: t.shape for n, t in network.state_dict().items()}


@pytest.mark.parametrize("name", AUTOENCODERS)
def test_every_first_stage_has_a_bijective_table(name):
    network = on_meta(lambda: Autoencoder(AUTOENCODERS[name]))
    keymap = layouts.first_stage_layout(network.state_dict())
    assert keymap.by_ours.keys() == network.state_dict().keys()


def test_levels_of_the_way_up_are_counted_the_other_way_round():
    network = on_meta(lambda: Autoencoder(AUTOENCODERS["vq_f8"]))
    keymap = layouts.first_stage_layout(network.state_dict())
    assert keymap.by_theirs["decoder.up.3.attn.0.q.weight"].ours == ("decoder.up_blocks.0.attentions.0.to_q.weight",)
    assert keymap.by_theirs["encoder.down.3.attn.1.norm.bias"].ours == (
        "encoder.down_blocks.3.attentions.1.group_norm.bias",
    )
    assert "quantize.embedding.weight" in keymap.by_theirs


def test_resblock_updown_levels():
    keys = unet_keymap(on_meta(lambda: UNet(UNETS["ldm_churches"]))).by_ours
    assert (
        keys["down_blocks.0.downsamplers.0.conv1.weight"].theirs
        == "model.diffusion_model.input_blocks.3.0.in_layers.2.weight"
    )
    assert (
        keys["up_blocks.1.upsamplers.0.conv2.bias"].theirs
        == "model.diffusion_model.output_blocks.5.2.out_layers.3.bias"
    )
    assert keys["mid_block.attentions.0.to_k.weight"].theirs == "model.diffusion_model.middle_block.1.qkv.weight"


def test_moving_averages_have_flat_names():
    keys = {"model.diffusion_model.input_blocks.0.0.weight", "model_ema.diffusion_modelinput_blocks00weight", "betas"}
    assert dict(layouts.ema_names(keys)) == {
        "model.diffusion_model.input_blocks.0.0.weight": "model_ema.diffusion_modelinput_blocks00weight"
    }


def test_diffusers_older_attention_names():
    ours = on_meta(lambda: Autoencoder(AUTOENCODERS["kl_f8"])).state_dict()
    words = {"to_q": "query", "to_k": "key", "to_v": "value", "to_out.0": "proj_attn"}

    def old(name: str) -> str:
        for new, word in words.items():
            name = name.replace(f".{new}.", f".{word}.")
        return name

    theirs = [old(name) for name in ours]
    keymap = layouts.diffusers_layout(ours, theirs)
    assert {link.ours[0]: link.theirs for link in keymap.links} == dict(zip(ours, theirs, strict=True))
