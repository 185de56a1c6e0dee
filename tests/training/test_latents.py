"""Precomputed latents: what is read is what would have been encoded, and nothing is written half."""

import json
import os
import pickle
from itertools import islice

import numpy as np
import pytest
import torch
from PIL import Image

from safelight.checkpoint import writing
from safelight.checkpoint.errors import CorruptFile
from safelight.errors import CheckpointError, InputError
from safelight.models.autoencoder import Autoencoder, AutoencoderConfig
from safelight.training.data.batches import PictureData, batches
from safelight.training.data.buckets import Buckets
from safelight.training.data.collections import open_collection
from safelight.training.data.encoding import Index, precompute
from safelight.training.data.latents import LatentData

N = 11


def autoencoder(seed=0, **more):
    torch.manual_seed(seed)
    config = AutoencoderConfig(
        block_out_channels=(8, 8),
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
        layers_per_block=1,
        norm_num_groups=4,
        **more,
    )
    return Autoencoder(config).eval()


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    folder = tmp_path_factory.mktemp("pictures")
    rng = np.random.default_rng(0)
    (folder / "noise").mkdir()
    for i in range(N):
        Image.fromarray(rng.integers(0, 255, (16, 16, 3), np.uint8)).save(folder / f"noise/{i:02}.png")
        (folder / f"noise/{i:02}.txt").write_text(f"caption {i}")
    return folder


def data(pictures, **options):
    return PictureData(open_collection(pictures), size=16, **options)


def ids(captions):
    return torch.tensor([[7, int(c.split()[1]), 9] for c in captions])


def context(captions):
    return torch.stack([torch.full((2, 4), float(c.split()[1])) for c in captions])


def small(pictures, folder, **options):
    """Three shards of at most four samples."""
    options = {"text": ids, "batch_size": 2, "shard_bytes": 4 * 8 * 64 * 2 + 4 * 20, "dtype": torch.float32} | options
    return precompute(data(pictures), autoencoder(), folder, **options)


@pytest.mark.parametrize("resident", [True, False])
def test_latents_are_what_encoding_gives(pictures, tmp_path, resident):
    network = autoencoder()
    index = small(pictures, tmp_path)
    assert len(index.shards) > 2 and index.done == N
    latents = LatentData(tmp_path, resident=resident, verify=True)
    latents.check(network)
    batch = latents.batch(5, range(N))
    assert sorted(batch.captions) == sorted(f"caption {i}" for i in range(N))
    assert batch.ids[:, 1].tolist() == [int(c.split()[1]) for c in batch.captions]
    whole = data(pictures).batch(0, range(N))
    by_caption = dict(zip(whole.captions, whole.pictures, strict=True))
    wanted = network.moments(torch.stack([by_caption[c] for c in batch.captions]))
    assert torch.allclose(batch.moments, wanted, atol=1e-5)
    posterior, direct = batch.posterior(network), network.encode(torch.stack([by_caption[c] for c in batch.captions]))
    noise = torch.randn_like(posterior.mean)
    assert torch.allclose(posterior.sample(noise), direct.sample(noise), atol=1e-4)
    assert not torch.equal(posterior.sample(noise), posterior.mode())


def test_latents_have_the_face_of_a_data_set(pictures, tmp_path):
    small(pictures, tmp_path)
    latents = LatentData(tmp_path)
    steps = list(islice(batches(latents, seed=1, batch_size=4), 8))
    captions = [c for batch in steps for c in batch.captions]
    assert len(set(captions[:N])) == len(set(captions[N : 2 * N])) == N and captions[:N] != captions[N : 2 * N]
    assert list(latents.captions(1, 32)) == captions
    resident = islice(batches(LatentData(tmp_path, resident=True), seed=1, batch_size=4, start=8), 6)
    workers = islice(batches(latents, seed=1, batch_size=4, start=8, workers=1), 6)
    for a, b, c in zip(steps[2:], resident, workers, strict=True):
        assert a.captions == b.captions == c.captions
        assert torch.equal(a.moments, b.moments) and torch.equal(a.moments, c.moments)
    assert pickle.loads(pickle.dumps(latents)).batch(0, [1]).captions == latents.batch(0, [1]).captions


def test_embeddings_labels_and_half_precision(pictures, tmp_path):
    labelled = PictureData(open_collection(pictures, label="folder"), size=16)
    precompute(labelled, autoencoder(), tmp_path, text=context)
    batch = LatentData(tmp_path).batch(0, range(4))
    assert batch.context.shape == (4, 2, 4) and batch.context.dtype == batch.moments.dtype == torch.float16
    assert batch.context[:, 0, 0].tolist() == [float(c.split()[1]) for c in batch.captions]
    assert batch.ids is None and batch.labels.tolist() == [0] * 4


def test_no_text_and_a_codebook(pictures, tmp_path):
    network = autoencoder(num_vq_embeddings=8, latent_channels=3)
    precompute(data(pictures), network, tmp_path, count=3)
    batch = LatentData(tmp_path).batch(0, [0])
    assert batch.moments.shape == (1, 3, 8, 8) and batch.ids is None and batch.context is None
    assert torch.equal(batch.posterior(network).sample(torch.ones(1, 3, 8, 8)), batch.posterior(network).mode())


def test_more_than_an_epoch_keeps_other_crops_of_a_picture(pictures, tmp_path):
    index = precompute(data(pictures, crop="random", zoom=0.5), autoencoder(), tmp_path, count=2 * N)
    latents = LatentData(tmp_path)
    batch = latents.batch(0, range(2 * N))
    assert index.count == len(latents) == 2 * N
    first = [i for i, c in enumerate(batch.captions) if c == "caption 3"]
    assert len(first) == 2 and not torch.equal(batch.moments[first[0]], batch.moments[first[1]])


@pytest.mark.parametrize("moment", [5, 7])  # each file takes two: the second shard, then the index that has it
def test_a_full_disk_leaves_whole_shards_and_work_goes_on_there(pictures, tmp_path, monkeypatch, moment):
    """The disk fills while a file is written; then there is room again."""
    real, calls = os.fsync, []

    def fsync(handle):
        calls.append(handle)
        if len(calls) == moment:
            raise OSError(28, "No space left on device")
        real(handle)

    monkeypatch.setattr(writing.os, "fsync", fsync)
    with pytest.raises(CheckpointError, match="No space left on device"):
        small(pictures, tmp_path)
    monkeypatch.setattr(writing.os, "fsync", real)
    index = Index.read(tmp_path)
    assert 0 < index.done < N
    assert {p.name for p in tmp_path.iterdir()} <= {s.file for s in index.shards} | {"index.json", "00001.safetensors"}
    assert not [p for p in tmp_path.iterdir() if p.name.endswith(".part")]
    with pytest.raises(CheckpointError, match="run the precomputation again"):
        LatentData(tmp_path)
    times = {p.name: p.stat().st_mtime_ns for p in tmp_path.iterdir() if p.name in {s.file for s in index.shards}}
    small(pictures, tmp_path)
    assert all((tmp_path / name).stat().st_mtime_ns == time for name, time in times.items())
    small(pictures, tmp_path / "again")
    assert _contents(tmp_path) == _contents(tmp_path / "again")


def _contents(folder):
    return {p.name: p.read_bytes() for p in folder.iterdir() if p.is_file()}


def test_finished_work_is_not_done_again(pictures, tmp_path):
    small(pictures, tmp_path)
    done = []
    small(pictures, tmp_path, watch=lambda *state: done.append(state))
    assert done == []
    steps = []
    small(pictures, tmp_path / "b", watch=lambda *state: steps.append(state))
    assert steps == [(n, N) for n in (2, 4, 6, 8, 10, 11)]


def test_other_settings_do_not_mix(pictures, tmp_path):
    small(pictures, tmp_path)
    for options in ({"seed": 1}, {"dtype": torch.float16}, {"count": 3}, {"about": "another text encoder"}):
        with pytest.raises(InputError, match="other settings"):
            small(pictures, tmp_path, **options)
    with pytest.raises(InputError, match="other settings"):
        precompute(data(pictures), autoencoder(seed=1), tmp_path)
    with pytest.raises(InputError, match="another autoencoder"):
        LatentData(tmp_path).check(autoencoder(seed=1))
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("precious")
    with pytest.raises(InputError, match="other things"):
        small(pictures, tmp_path / "mine")


def test_damaged_folders_are_refused(pictures, tmp_path):
    with pytest.raises(CheckpointError, match="holds no latents"):
        LatentData(tmp_path)
    small(pictures, tmp_path)
    shard = tmp_path / "00001.safetensors"
    whole = shard.read_bytes()
    shard.write_bytes(whole[:-5])
    with pytest.raises(CorruptFile):
        LatentData(tmp_path)
    changed = bytearray(whole)
    changed[-1] ^= 1
    shard.write_bytes(changed)
    LatentData(tmp_path)
    with pytest.raises(CorruptFile, match="hash"):
        LatentData(tmp_path, verify=True)
    shard.write_bytes((tmp_path / "00000.safetensors").read_bytes())
    for text in ("{", "[]", '{"format": "other"}', json.dumps({"format": "safelight latents 1"})):
        (tmp_path / "index.json").write_text(text)
        with pytest.raises(CorruptFile, match="no index"):
            LatentData(tmp_path)


def test_numbers_that_do_not_fit_and_shapes_that_differ(pictures, tmp_path):
    network = autoencoder()
    with torch.no_grad():
        network.quant_conv.bias.fill_(1e6)
    with pytest.raises(InputError, match=r"torch.float16 cannot hold"):
        precompute(data(pictures), network, tmp_path / "a")
    (tmp_path / "wide").mkdir()
    for i, size in enumerate([(16, 16), (32, 16)] * 3):
        Image.new("RGB", size).save(tmp_path / "wide" / f"{i}.png")
    shaped = PictureData(
        open_collection(tmp_path / "wide", captions="optional"), size=16, buckets=Buckets(16, step=4), batch_size=2
    )
    with pytest.raises(InputError, match="several shapes"):
        precompute(shaped, autoencoder(), tmp_path / "b", batch_size=2)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_resident_latents_are_selected_without_waiting_for_the_device(pictures, tmp_path):
    small(pictures, tmp_path)
    latents = LatentData(tmp_path)
    first = latents.batch(0, range(4), "cuda")  # moves them there
    torch.cuda.set_sync_debug_mode("error")
    try:
        again = latents.batch(0, range(4), "cuda")
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert torch.equal(first.moments, again.moments)
    assert torch.equal(again.moments.cpu(), latents.batch(0, range(4)).moments)
