"""What `safelight.load` gives is prepared for this machine's kernels: it saves, moves, trains and draws as before."""

from concurrent.futures import ThreadPoolExecutor
from copy import deepcopy
from operator import attrgetter

import numpy as np
import pytest
import torch

import safelight
from safelight import kernels
from safelight.checkpoint.load import load_parts
from safelight.checkpoint.parts import Parts
from safelight.checkpoint.save import save_folder
from safelight.errors import InputError
from safelight.kernels.choice import SWITCH
from safelight.pipeline.standin import random_model

QUICK = {"steps": 2, "width": 128, "height": 128}
pytestmark = pytest.mark.skipif(kernels.kernels_for(torch.float32) is None, reason="this machine has no C kernels")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """The stand-in on disk, saved as it was made."""
    path = tmp_path_factory.mktemp("model") / "plain"
    save_folder(parts(random_model()), path)
    return path


@pytest.fixture(scope="module")
def prepared(folder):
    return safelight.load(folder)


@pytest.fixture(scope="module")
def plain(folder):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv(SWITCH, "off")
        return safelight.load(folder)


def parts(model):
    return Parts(
        unet=model.unet,
        autoencoder=model.autoencoder,
        text_encoder=model.text_encoder,
        tokenizer=model.tokenizer,
        scheduler_config={"prediction_type": "sample"},
        source="here",
    )


def drawn(model, seed=0, **more):
    return safelight.text_to_image(model, "a fox", seed=seed, **{**QUICK, **more})


def assert_alike(ours, theirs):
    """Pictures that differ in rounding alone: a pixel on the edge between two of 255 values may fall to either side."""
    a, b = (np.asarray(pictures[0]).astype(int) for pictures in (ours, theirs))
    assert a.shape == b.shape
    assert np.abs(a - b).max() <= 1


def fast(network):
    return [part.fast for part in network.modules() if hasattr(part, "fast")]


def test_loading_prepares_and_the_switch_leaves_all_to_torch(prepared, plain):
    networks = attrgetter("unet", "autoencoder", "text_encoder")
    assert all(flags and all(flags) for flags in map(fast, networks(prepared)))
    assert not any(flag for flags in map(fast, networks(plain)) for flag in flags)
    ours, theirs = drawn(prepared), drawn(plain)
    assert_alike(ours, theirs)
    assert (ours.latents - theirs.latents).norm() < 1e-4 * theirs.latents.norm()
    assert not torch.equal(ours.latents, theirs.latents)  # so the kernels have computed


def test_a_prepared_model_is_saved_bit_for_bit(folder, prepared, tmp_path):
    save_folder(parts(prepared), tmp_path / "again")
    files = sorted(file.relative_to(folder) for file in folder.rglob("*.safetensors"))
    assert len(files) == 3
    for file in files:
        assert (tmp_path / "again" / file).read_bytes() == (folder / file).read_bytes()
    again = load_parts(tmp_path / "again")
    for name, weight in again.unet.state_dict().items():
        assert torch.equal(weight, prepared.unet.state_dict()[name])


def test_a_prepared_model_is_copied_and_changes_its_precision(prepared, plain):
    copy = deepcopy(prepared)
    assert_alike(drawn(copy), drawn(plain))
    half = copy.to(dtype=torch.bfloat16)
    assert np.isfinite(np.asarray(drawn(half)[0])).all()
    ours, theirs = (
        drawn(half.to(dtype=torch.float32)),
        drawn(deepcopy(plain).to(dtype=torch.bfloat16).to(dtype=torch.float32)),
    )
    assert_alike(ours, theirs)  # both with weights rounded to bfloat16


def test_a_prepared_network_has_the_gradients_of_torch(prepared, plain):
    x, context = torch.randn(1, 4, 16, 16), torch.randn(1, 7, prepared.unet.config.cross_attention_dim)
    grads = []
    for model in (prepared, plain):
        z = x.clone().requires_grad_()
        model.unet(z, 500, context).square().mean().backward()
        grads.append(z.grad)
    assert (grads[0] - grads[1]).norm() < 1e-4 * grads[1].norm()


def test_int8_draws_nearly_the_same_with_and_without_kernels(monkeypatch, tmp_path):
    """With the model that ships: one of random weights makes much of every difference."""
    exact, eight = safelight.load(), safelight.load(int8=True)
    assert (exact.int8, eight.int8) == (False, True)
    theirs, ours = drawn(exact, width=None, height=None), drawn(eight, width=None, height=None)
    assert (theirs.recipes[0].model.int8, ours.recipes[0].model.int8) == (False, True)
    assert 1e-3 < (ours.latents - theirs.latents).norm() / theirs.latents.norm() < 0.1  # 0.01
    with pytest.raises(InputError, match="8 bits is not saved"):
        save_folder(parts(eight), tmp_path / "model")
    assert not list(tmp_path.iterdir())
    torch.manual_seed(0)
    x, context = torch.randn(1, exact.unet.config.in_channels, 8, 8), exact.condition(["a red apple"]).context
    with torch.no_grad():
        whole, one = exact.unet(x, 500, context), eight.unet(x, 500, context)
        monkeypatch.setenv(SWITCH, "off")
        other = eight.unet(x, 500, context)
    # Another rounding before a layer makes another whole number here and there, after which the two ways round for
    # themselves: they are 0 to 0.96 of int8's own error apart (24 inputs); two with nothing in common would be 1.4.
    assert (one - whole).norm() < 0.03 * whole.norm()  # 0.006 to 0.015
    assert (one - other).norm() < 1.2 * (one - whole).norm()


def test_two_generations_at_once_give_the_single_pictures(prepared):
    alone = [drawn(prepared, seed) for seed in (1, 2)]
    with ThreadPoolExecutor(2) as pool:
        together = list(pool.map(lambda seed: drawn(prepared, seed), (1, 2)))
    for a, b in zip(alone, together, strict=True):
        assert (a.latents - b.latents).norm() < 1e-5 * a.latents.norm()
        assert_alike(a, b)


@pytest.mark.parametrize("given", [{"loras": ["x"]}, {"embeddings": ["x"]}, {"vae": "x"}])
def test_the_stand_in_takes_no_other_weights(given):
    with pytest.raises(InputError, match="stand-in"):
        safelight.load("random", **given)
