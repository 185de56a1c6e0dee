import json
import random
import shutil
import warnings

import numpy as np
import pytest
import torch
from tiny import MomentData, tiny_model

from safelight.errors import CheckpointError
from safelight.training.loop.distributed import World
from safelight.training.loop.recipes import DiffusionConfig, LoopConfig
from safelight.training.loop.rng import rng_state, seed_everything, set_rng_state
from safelight.training.loop.state import (
    DamagedCheckpointWarning,
    State,
    damage,
    found,
    load_state,
    newest,
    save_state,
    sweep,
)
from safelight.training.loop.train import Trainer, train
from safelight.training.stages.diffusion import DiffusionStage


def state(step, n=50):
    numbers = {"a": torch.arange(n, dtype=torch.float32), "b": torch.tensor(True), "c": torch.randn(3, 4).bfloat16()}
    return State(step, {"seconds": 1.5}, {"modules": numbers, "rng": {"x": torch.arange(9, dtype=torch.uint8)}})


def test_what_is_saved_is_loaded(tmp_path):
    saved = state(7)
    path = save_state(tmp_path, saved)
    assert path.name == "step-00000007" and newest(tmp_path) == path
    loaded = load_state(path)
    assert loaded.step == 7 and loaded.facts["seconds"] == 1.5
    for stem, tensors in saved.tensors.items():
        for key, tensor in tensors.items():
            assert torch.equal(loaded.tensors[stem][key], tensor) and loaded.tensors[stem][key].dtype == tensor.dtype
    assert not [p for p in path.iterdir() if p.suffix not in (".safetensors", ".json")]  # no pickle


def test_two_are_kept(tmp_path):
    for step in (1, 2, 10):
        save_state(tmp_path, state(step))
    assert [p.name for p in found(tmp_path)] == ["step-00000010", "step-00000002"]


def test_every_flipped_bit_and_every_cut_is_noticed(tmp_path):
    """A6, 13: 200 flips and 50 truncations of the newest checkpoint; each time the older one is taken, loudly."""
    older, path = save_state(tmp_path, state(1, 5)), save_state(tmp_path, state(2, 5))
    chance = random.Random(0)
    files = sorted(path.iterdir())
    for trial in range(250):
        file = chance.choice(files)
        whole = file.read_bytes()
        place = chance.randrange(len(whole))
        flipped = whole[:place] + bytes([whole[place] ^ 1 << chance.randrange(8)]) + whole[place + 1 :]
        broken = whole[:place] if trial >= 200 else flipped
        file.write_bytes(broken)
        with pytest.warns(DamagedCheckpointWarning, match="step-00000002"):
            assert newest(tmp_path) == older, (file.name, place)
        file.write_bytes(whole)
    assert newest(tmp_path) == path


def test_a_missing_file_is_noticed_and_nothing_left_is_an_error(tmp_path):
    assert newest(tmp_path) is None
    path = save_state(tmp_path, state(1))
    (path / "rng.safetensors").unlink()
    with (
        pytest.raises(CheckpointError, match="all 1 checkpoints"),
        pytest.warns(DamagedCheckpointWarning, match="lacks"),
    ):
        newest(tmp_path)


def test_half_written_checkpoints_are_not_seen_and_swept(tmp_path):
    save_state(tmp_path, state(1))
    half = tmp_path / ".step-00000002.123.part"
    shutil.copytree(tmp_path / "step-00000001", half)
    assert [p.name for p in found(tmp_path)] == ["step-00000001"]
    sweep(tmp_path)
    assert not half.exists() and newest(tmp_path) is not None


def test_a_full_disk_leaves_the_older_checkpoint_and_says_so(tmp_path):
    """The limit on a file's size stands in for the disk's end: write() fails in the middle of the file all the same."""
    resource = pytest.importorskip("resource")
    older = save_state(tmp_path, state(1))
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, hard))
    try:
        with pytest.raises(CheckpointError, match=r"could not be written .*large"):
            save_state(tmp_path, state(2, 100_000))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert sorted(p.name for p in tmp_path.iterdir()) == ["step-00000001"] and damage(older) is None
    save_state(tmp_path, state(2, 100_000))  # and when there is room again, it goes on


def small_stage():
    return DiffusionStage(tiny_model(), DiffusionConfig(learning_rate=1e-3))


def test_training_goes_on_while_the_disk_is_full_and_ends_with_an_error(tmp_path):
    resource = pytest.importorskip("resource")
    config = LoopConfig(steps=4, batch_size=2, log_every=1, checkpoint_every=2, sheet_every=0)
    trainer = Trainer(small_stage(), MomentData(), tmp_path, config, World())
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, hard))
    try:
        with pytest.raises(CheckpointError, match="could not be written"), pytest.warns(UserWarning, match="AT STEP 2"):
            trainer.until(lambda: False, lambda step, row: None)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert trainer.step == 4 and not list((tmp_path / "checkpoints").iterdir())


def test_memory_that_does_not_suffice_is_said_and_nothing_lost(tmp_path):
    from safelight.training.loop.train import OutOfMemoryError

    class Huge(MomentData):
        def batch(self, seed, numbers, device="cpu"):
            if 4 in numbers:
                torch.empty(2**50)  # a true refusal of the allocator
            return super().batch(seed, numbers, device)

    config = LoopConfig(steps=4, batch_size=2, log_every=1, checkpoint_every=100, sheet_every=0)
    with pytest.raises(OutOfMemoryError, match="at step 2, with 2 samples a pass") as caught:
        train(small_stage(), Huge(), tmp_path, config)
    assert "--accumulate" in caught.value.remedy
    assert [p.name for p in found(tmp_path / "checkpoints")] == ["step-00000002"]


def test_another_networks_checkpoint_is_refused_by_name(tmp_path):
    config = LoopConfig(steps=1, batch_size=2, log_every=1, sheet_every=0)
    train(small_stage(), MomentData(), tmp_path, config)
    other = DiffusionStage(tiny_model(layers_per_block=2), DiffusionConfig())
    with pytest.raises(CheckpointError, match="do not have the same tensors"):
        train(other, MomentData(), tmp_path, config)


def test_random_generators_go_on_where_they_were():
    seed_everything(3)
    random.gauss(0, 1), np.random.standard_normal()  # both keep a second normal number back
    saved = rng_state(torch.device("cpu"))

    def draws():
        return [
            random.gauss(0, 1),
            random.random(),
            np.random.standard_normal(),
            np.random.rand(),
            float(torch.rand(())),
        ]

    first = draws()
    seed_everything(99)
    set_rng_state(saved, torch.device("cpu"))
    assert draws() == first


def test_a_checkpoint_is_json_and_safetensors_of_the_run(tmp_path):
    config = LoopConfig(steps=2, batch_size=2, log_every=1, sheet_every=0)
    train(small_stage(), MomentData(), tmp_path, config)
    facts = json.loads((tmp_path / "checkpoints" / "step-00000002" / "state.json").read_text())
    assert facts["step"] == 2 and facts["world"] == 1 and facts["torch"] == torch.__version__
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        tensors = load_state(newest(tmp_path / "checkpoints")).tensors
    assert tensors["optimizer-unet"]["unet.conv_in.weight::step"] == 2
