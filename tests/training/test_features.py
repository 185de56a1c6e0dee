"""What pictures are compared by, and the weight files that the networks among them are read from."""

import json

import numpy as np
import pytest
import scipy.fft
import torch
from safetensors.torch import save_file

from safelight.checkpoint.errors import KeyMismatch, WrongShape
from safelight.errors import CheckpointError, InputError
from safelight.models.clip_vision import VisionConfig, VisionEncoder
from safelight.models.inception import Inception
from safelight.training.evaluation.features import clip_features, dct_features, extracted, file_hash, inception_features

SMALL = VisionConfig(
    hidden_size=128, intermediate_size=32, projection_dim=8, num_hidden_layers=1, num_attention_heads=2, image_size=32,
    patch_size=16,
)  # fmt: skip


def pictures(n=2, side=32, seed=0):
    return torch.rand(n, 3, side, side, generator=torch.Generator().manual_seed(seed)) * 2 - 1


def test_dct_is_scipys():
    x = pictures()
    wanted = scipy.fft.dctn(x.numpy(), axes=(2, 3), norm="ortho")[:, :, :8, :8].reshape(2, -1)
    assert np.allclose(dct_features()(x), wanted, atol=1e-5)
    assert dct_features(keep=4)(pictures(side=64)).shape == (2, 48)


def test_dct_of_everything_keeps_distances():
    x = pictures()
    features = dct_features(keep=32)(x)
    assert (features[0] - features[1]).norm().item() == pytest.approx((x[0] - x[1]).norm().item(), rel=1e-5)
    with pytest.raises(InputError):
        dct_features(side=4, keep=5)


def test_features_of_batches():
    x, dct = pictures(5), dct_features()
    assert torch.equal(extracted(dct, x.split(2)), torch.cat([dct(x[:2]), dct(x[2:4]), dct(x[4:])]))
    with pytest.raises(InputError, match="no pictures"):
        extracted(dct, [])


@pytest.fixture(scope="module")
def inception(tmp_path_factory):
    """A file with the published one's tensors, beside ours: the classifier, and counters of batches."""
    torch.manual_seed(0)
    state = dict(Inception().state_dict())
    state |= {k.replace("running_mean", "num_batches_tracked"): torch.tensor(7) for k in state if "running_mean" in k}
    state |= {"fc.weight": torch.zeros(1008, 2048), "fc.bias": torch.zeros(1008)}
    path = tmp_path_factory.mktemp("inception") / "pt_inception-2015-12-05-6726825d.pth"
    torch.save(state, path)
    return path, state


def test_inception_from_its_file(inception):
    path, state = inception
    extractor = inception_features(path)
    assert (extractor.frechet, extractor.kernel) == ("FID", "KID")
    assert extractor.sha256 == file_hash(path) and path.name in extractor.name
    network = Inception().eval()
    network.load_state_dict({k: v for k, v in state.items() if "num_batches" not in k and not k.startswith("fc.")})
    assert torch.equal(extractor(pictures()), network(pictures()))


def test_inception_from_another_file(inception, tmp_path):
    """torchvision's network has an auxiliary classifier, and a classifier of 1000."""
    _, state = inception
    save_file({**state, "AuxLogits.fc.weight": torch.zeros(1000, 768)}, tmp_path / "a.safetensors")
    with pytest.raises(KeyMismatch, match=r"AuxLogits\.fc\.weight"):
        inception_features(tmp_path / "a.safetensors")
    save_file({k: v for k, v in state.items() if "Mixed_7c" not in k}, tmp_path / "b.safetensors")
    with pytest.raises(KeyMismatch, match="Mixed_7c"):
        inception_features(tmp_path / "b.safetensors")
    spoiled = {**state, "Conv2d_1a_3x3.conv.weight": torch.zeros(32, 1, 3, 3)}
    save_file(spoiled, tmp_path / "c.safetensors")
    with pytest.raises(WrongShape, match="Conv2d_1a_3x3"):
        inception_features(tmp_path / "c.safetensors")
    with pytest.raises(CheckpointError, match="no such file"):
        inception_features(tmp_path / "d.pth")


@pytest.fixture
def clip():
    torch.manual_seed(0)
    network = VisionEncoder(SMALL).eval()
    torch.nn.init.normal_(network.vision_model.embeddings.class_embedding)
    return network


def test_clip_from_a_whole_models_folder(clip, tmp_path):
    others = {"text_model.final_layer_norm.weight": torch.ones(4), "logit_scale": torch.tensor(4.6),
              "vision_model.embeddings.position_ids": torch.arange(5)[None]}  # fmt: skip
    save_file({**clip.state_dict(), **others}, tmp_path / "model.safetensors")
    extractor = clip_features(tmp_path)  # shape from the tensors
    assert torch.allclose(extractor(pictures()), clip(pictures()).detach(), atol=1e-6)
    assert extractor.sha256 == file_hash(tmp_path / "model.safetensors") and extractor.frechet == "FD-clip"
    config = {"vision_config": {"num_attention_heads": 4, "hidden_act": "gelu"}, "projection_dim": 8}
    inner = {
        k: getattr(SMALL, k)
        for k in ("hidden_size", "intermediate_size", "num_hidden_layers", "image_size", "patch_size")
    }
    config["vision_config"] |= inner
    (tmp_path / "config.json").write_text(json.dumps(config))
    other = clip_features(tmp_path / "model.safetensors")  # heads and activation from the config beside it
    assert not torch.allclose(extractor(pictures()), other(pictures()), atol=1e-3)


def test_clip_from_another_file(clip, tmp_path):
    save_file({"visual.proj": torch.zeros(2, 2)}, tmp_path / "openai.safetensors")
    with pytest.raises(KeyMismatch, match=r"lacks .*patch_embedding.*'visual\.proj'"):
        clip_features(tmp_path / "openai.safetensors")
    with pytest.raises(CheckpointError, match="holds no weights"):
        (tmp_path / "empty").mkdir()
        clip_features(tmp_path / "empty")
