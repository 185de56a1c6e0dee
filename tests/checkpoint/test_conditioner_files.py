"""What tells a U-Net of classes, layouts and maps: in folders, in single files of ours, and in the originals' names."""

import json

import pytest
import torch
from safetensors.torch import load_file, save_file
from small_models import same_weights

from safelight.checkpoint.load import load_parts
from safelight.checkpoint.parts import Parts
from safelight.checkpoint.save import save_folder, save_single_file
from safelight.errors import CheckpointError
from safelight.models.autoencoder import Autoencoder, AutoencoderConfig
from safelight.models.conditioners import ClassEmbedder, LayoutEmbedder, MapEmbedder
from safelight.models.presets import levels
from safelight.models.unet import UNet, UNetConfig

STAGE = AutoencoderConfig(block_out_channels=(32,), num_vq_embeddings=16, latent_channels=3)


def parts_with(conditioner, **more):
    torch.manual_seed(0)
    steered = not isinstance(conditioner, MapEmbedder)
    channels = 3 if steered else 6
    shape = {"cross_attention_dim": 16, "attention_head_dim": 2} if steered else {"attention_head_dim": 8}
    unet = UNetConfig(
        **levels("CrossAttn" if steered else "Attn", ""), in_channels=channels, out_channels=3, layers_per_block=1,
        mid_block_type="UNetMidBlock2DCrossAttn" if steered else "UNetMidBlock2D", block_out_channels=(32, 64), **shape,
    )  # fmt: skip
    return Parts(unet=UNet(unet), autoencoder=Autoencoder(STAGE), conditioner=conditioner, family="ldm", **more)


CONDITIONERS = {
    "class": lambda: ClassEmbedder(ClassEmbedder.Config(num_classes=5, embed_dim=16, null_class=4)),
    "layout": lambda: LayoutEmbedder(LayoutEmbedder.Config(num_classes=3, embed_dim=16, num_layers=1)),
    "map": lambda: MapEmbedder(MapEmbedder.Config(num_classes=7)),
}


@pytest.mark.parametrize("kind", CONDITIONERS)
def test_a_folder_and_a_single_file_keep_it_and_the_names_of_its_classes(kind, tmp_path):
    parts = parts_with(CONDITIONERS[kind](), classes=("apple", "pear", "dog"))
    save_folder(parts, tmp_path / "model")
    save_single_file(parts, tmp_path / "model.safetensors")
    index = json.loads((tmp_path / "model" / "model_index.json").read_text())
    assert index["conditioner"] == ["safelight", type(parts.conditioner).__name__]
    assert index["id2label"]["1"] == "pear"
    for path in (tmp_path / "model", tmp_path / "model.safetensors"):
        again = load_parts(path)
        assert again.conditioner.config == parts.conditioner.config
        assert same_weights(again.conditioner, parts.conditioner) and same_weights(again.unet, parts.unet)
        assert again.classes == parts.classes and not again.extra


@pytest.mark.parametrize("rows", [1000, 1001])
def test_a_class_embedder_in_the_originals_names(rows, tmp_path):
    """cin256-v2 has 1001 rows, the last for none; the older model of ImageNet's classes has no such row."""
    parts = parts_with(ClassEmbedder(ClassEmbedder.Config(num_classes=rows, embed_dim=16)))
    save_single_file(parts, tmp_path / "own.safetensors")
    tensors = load_file(tmp_path / "own.safetensors")
    assert tensors["cond_stage_model.embedding.weight"].shape == (rows, 16)
    save_file(tensors, tmp_path / "ldm.safetensors")  # without our note of the configs
    again = load_parts(tmp_path / "ldm.safetensors")
    assert again.conditioner.config.null_class == (None if rows == 1000 else 1000)
    assert torch.equal(again.conditioner.embedding.weight, parts.conditioner.embedding.weight)
    assert again.family == "ldm"


def test_a_channel_mapper_in_the_originals_names_does_what_the_original_does(tmp_path):
    """LDM's SpatialRescaler: one channel a class, halved twice (bilinear), mixed by a 1x1 convolution."""
    parts = parts_with(MapEmbedder(MapEmbedder.Config(num_classes=7)))
    save_single_file(parts, tmp_path / "own.safetensors")
    tensors = load_file(tmp_path / "own.safetensors")
    weight = tensors["cond_stage_model.channel_mapper.weight"]
    assert weight.shape == (3, 7, 1, 1)
    save_file(tensors, tmp_path / "ldm.safetensors")
    again = load_parts(tmp_path / "ldm.safetensors").conditioner
    maps = torch.randint(0, 7, (2, 16, 24))
    x = torch.nn.functional.one_hot(maps, 7).movedim(-1, 1).float()
    for _ in range(2):
        x = torch.nn.functional.interpolate(x, scale_factor=0.5, mode="bilinear")
    torch.testing.assert_close(again(maps, (4, 6)), torch.nn.functional.conv2d(x, weight), rtol=0, atol=1e-5)


def test_bad_configs_and_names_of_classes_are_told_with_their_file(tmp_path):
    save_folder(parts_with(CONDITIONERS["layout"](), classes=("a", "b", "c")), tmp_path)
    index, config = tmp_path / "model_index.json", tmp_path / "conditioner" / "config.json"
    for file, key, value in [
        (index, "id2label", {"0": "a", "2": "c"}), (index, "id2label", ["a"]), (config, "num_clases", 3),
        (config, "num_classes", 0), (config, "_class_name", "Embedder"), (config, "num_layers", 1000),
    ]:  # fmt: skip
        before = file.read_text()
        file.write_text(json.dumps({**json.loads(before), key: value}))
        with pytest.raises(CheckpointError, match=file.name):
            load_parts(tmp_path)
        file.write_text(before)
    assert load_parts(tmp_path).classes == ("a", "b", "c")
