"""LPIPS from files that look like the published ones, and stand-in features through a file and back."""

import pytest
import torch
from safetensors.torch import save_file

from safelight.checkpoint.errors import KeyMismatch, WrongModel
from safelight.errors import InputError
from safelight.models.lpips import LPIPS, VGG, VGGConfig
from safelight.training.stages.perceptual import (
    LPIPS_NAME,
    STAND_IN_NAME,
    load_features,
    load_lpips,
    load_perceptual,
    save_features,
)

CHANNELS = (64, 128, 256, 512, 512)


@pytest.fixture(scope="module")
def published(tmp_path_factory):
    """Two files with the names and shapes of the published ones, of random numbers, pickled as those are."""
    folder = tmp_path_factory.mktemp("lpips")
    torch.manual_seed(0)
    vgg = {**VGG().state_dict(), "classifier.6.weight": torch.zeros(3, 4), "classifier.6.bias": torch.zeros(3)}
    heads = {f"lin{i}.model.1.weight": torch.rand(1, c, 1, 1) for i, c in enumerate(CHANNELS)}
    torch.save(vgg, folder / "vgg16.pth")
    torch.save(heads, folder / "vgg.pth")
    return folder, vgg, heads


def test_reads_the_published_files(published):
    folder, vgg, heads = published
    metric = load_lpips(folder / "vgg16.pth", folder / "vgg.pth")
    assert metric.name == LPIPS_NAME == "LPIPS (VGG16)" and not metric.training
    assert torch.equal(metric.vgg.features[28].weight, vgg["features.28.weight"])
    assert torch.equal(metric.heads[3], heads["lin3.model.1.weight"].flatten())
    assert not any(parameter.requires_grad for parameter in metric.parameters())
    x = torch.zeros(1, 3, 16, 16)
    assert metric(x, x) == 0


def test_safetensors_serve_as_well(published, tmp_path):
    folder, _, heads = published
    save_file(heads, tmp_path / "heads.safetensors")
    metric = load_lpips(folder / "vgg16.pth", tmp_path / "heads.safetensors")
    assert torch.equal(metric.heads[0], heads["lin0.model.1.weight"].flatten())


def test_wrong_files_are_named(published, tmp_path):
    folder, vgg, _ = published
    with pytest.raises(KeyMismatch, match=r"features\.0\.weight"):
        load_lpips(folder / "vgg.pth", folder / "vgg.pth")
    with pytest.raises(KeyMismatch, match=r"lin0\.model\.1\.weight"):
        load_lpips(folder / "vgg16.pth", folder / "vgg16.pth")
    save_file({**{k: v for k, v in vgg.items() if not k.startswith("features.5")}}, tmp_path / "cut.safetensors")
    with pytest.raises(KeyMismatch, match=r"features\.5\.weight"):
        load_lpips(tmp_path / "cut.safetensors", folder / "vgg.pth")
    with pytest.raises(WrongModel, match="stand-in"):
        load_features(folder / "vgg.pth")


def test_stand_in_features_keep_their_shape_their_numbers_and_their_name(tmp_path):
    torch.manual_seed(0)
    metric = LPIPS(VGGConfig(channels=(4, 8), layers=(1, 2)), name=STAND_IN_NAME)
    save_features(metric, tmp_path / "features.safetensors", {"trained on": "noise"})
    again = load_features(tmp_path / "features.safetensors")
    x, y = torch.rand(2, 3, 8, 8), torch.rand(2, 3, 8, 8)
    assert torch.equal(metric(x, y), again(x, y))
    assert again.name == "stand-in features, not LPIPS"
    assert again.vgg.config == metric.vgg.config


def test_which_distance_is_used(published, tmp_path):
    folder, _, _ = published
    assert load_perceptual(None, None, None) is None
    save_features(LPIPS(VGGConfig(channels=(4,), layers=(1,)), name=STAND_IN_NAME), tmp_path / "f.safetensors")
    assert load_perceptual(None, None, tmp_path / "f.safetensors").name == STAND_IN_NAME
    assert load_perceptual(folder / "vgg16.pth", folder / "vgg.pth", tmp_path / "f.safetensors").name == LPIPS_NAME
    with pytest.raises(InputError, match="two weight files"):
        load_perceptual(folder / "vgg16.pth", None, None)
