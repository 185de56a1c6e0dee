"""ControlNets in the forms people have: diffusers' folder, the original's file alone or with the model beside it."""

import diffusers
import pytest
import torch
from safetensors.torch import save_file

from safelight.checkpoint import layouts
from safelight.checkpoint.build import on_meta
from safelight.checkpoint.load import controlnet_weights, load_controlnet, load_parts
from safelight.errors import CheckpointError
from safelight.models.controlnet import ControlNet, ControlNetConfig
from safelight.models.presets import SD2_BASE, SD15

SMALL = {
    "block_out_channels": (32, 64), "layers_per_block": 1, "down_block_types": ("CrossAttnDownBlock2D", "DownBlock2D"),
    "cross_attention_dim": 16, "attention_head_dim": 8, "conditioning_embedding_out_channels": (8, 8, 16, 16),
}  # fmt: skip


@pytest.fixture(scope="module")
def theirs():
    torch.manual_seed(0)
    network = diffusers.ControlNetModel(**SMALL)
    for parameter in network.parameters():
        parameter.data.normal_()
    return network


def keymap(network):
    c = network.config.unet
    heads = [level.heads for level in c.down]
    return layouts.controlnet_layout(network.state_dict(), down_heads=heads, mid_heads=c.mid.heads)


def original(theirs):
    """The weights in the original's names."""
    ours = on_meta(lambda: ControlNet(ControlNetConfig.from_diffusers(dict(theirs.config))))
    weights = theirs.state_dict()
    return {
        link.theirs: link.transform.merge([weights[name] for name in link.ours]).contiguous()
        for link in keymap(ours).links
    }


def same(network, theirs):
    weights = network.state_dict()
    assert weights.keys() == theirs.state_dict().keys()
    assert all(torch.equal(weights[name], tensor) for name, tensor in theirs.state_dict().items())


def test_a_folder_of_diffusers(theirs, tmp_path):
    theirs.save_pretrained(tmp_path)
    network = load_controlnet(tmp_path)
    same(network, theirs)
    assert list(controlnet_weights(tmp_path)) == ["control: diffusion_pytorch_model.safetensors"]
    assert load_controlnet(tmp_path, dtype=torch.bfloat16).conv_in.weight.dtype == torch.bfloat16


@pytest.mark.parametrize("prefix", ["control_model.", ""])
@pytest.mark.parametrize("ending", ["safetensors", "pth"])
def test_the_originals_file(theirs, tmp_path, prefix, ending):
    weights = {prefix + name: tensor for name, tensor in original(theirs).items()}
    assert f"{prefix}zero_convs.0.0.weight" in weights and f"{prefix}input_hint_block.14.bias" in weights
    file = tmp_path / f"control_canny.{ending}"
    if ending == "pth":
        torch.save(weights, file)
    else:
        save_file(weights, file)
    network = load_controlnet(file)
    same(network, theirs)
    assert [level.heads for level in network.config.unet.down] == [8, 1]
    assert list(controlnet_weights(file)) == [f"control: control_canny.{ending}"]


def test_the_whole_model_around_it_is_passed_over(theirs, tmp_path):
    weights = {f"control_model.{name}": tensor for name, tensor in original(theirs).items()}
    weights |= {"model.diffusion_model.input_blocks.0.0.weight": torch.zeros(4, 4, 3, 3), "betas": torch.zeros(3)}
    save_file(weights, tmp_path / "whole.safetensors")
    same(load_controlnet(tmp_path / "whole.safetensors"), theirs)


@pytest.mark.parametrize("preset", [SD15, SD2_BASE], ids=["sd15", "sd2"])
def test_the_names_of_the_real_ones(preset):
    """Counted in control_v11p_sd15_canny.pth and its like: 12 zero convolutions, 8 of the embedding, no name twice."""
    network = on_meta(lambda: ControlNet(ControlNetConfig(unet=preset)))
    links = keymap(network).links
    names = [link.theirs for link in links]
    assert len(set(names)) == len(names) and sorted(n for link in links for n in link.ours) == sorted(
        network.state_dict()
    )
    assert {f"zero_convs.{n}.0.weight" for n in range(12)} <= set(names)
    assert {f"input_hint_block.{n}.weight" for n in range(0, 16, 2)} <= set(names)
    inner = {"middle_block.1.transformer_blocks.0.attn2.to_k.weight", "input_blocks.11.0.out_layers.3.weight"}
    assert {"middle_block_out.0.bias", "time_embed.2.weight", "input_blocks.3.0.op.weight", *inner} <= set(names)


def test_what_is_none_is_named(theirs, tmp_path):
    save_file({"a": torch.zeros(3)}, tmp_path / "other.safetensors")
    with pytest.raises(CheckpointError, match="holds no ControlNet"):
        load_controlnet(tmp_path / "other.safetensors")
    theirs.save_pretrained(tmp_path / "folder")
    with pytest.raises(CheckpointError, match="without its config"):
        load_controlnet(tmp_path / "folder" / "diffusion_pytorch_model.safetensors")
    save_file({f"control_model.{name}": t for name, t in original(theirs).items()}, tmp_path / "control.safetensors")
    with pytest.raises(CheckpointError, match="--control"):
        load_parts(tmp_path / "control.safetensors")
    incomplete = original(theirs)
    del incomplete["zero_convs.1.0.weight"]
    save_file(incomplete, tmp_path / "half.safetensors")
    with pytest.raises(CheckpointError, match=r"zero_convs\.1\.0\.weight"):
        load_controlnet(tmp_path / "half.safetensors")
