"""Killed (SIGKILL) at random moments and resumed, a training ends with the same bytes."""

import multiprocessing
import os
import random
import time

import torch
from tiny import MomentData, tiny_model

from safelight.training.loop.distributed import World
from safelight.training.loop.recipes import DiffusionConfig, LoopConfig
from safelight.training.loop.train import Trainer
from safelight.training.stages.diffusion import DiffusionStage

KILLS = 6


def work(run, began):
    torch.set_num_threads(1)
    stage = DiffusionStage(tiny_model(dropout=0.1), DiffusionConfig(learning_rate=1e-3))  # dropout: global generators
    config = LoopConfig(steps=24, batch_size=4, accumulate=2, warmup=3, course="cosine", log_every=4,
                        checkpoint_every=3, sheet_every=0, ema_lengths=(0.1,))  # fmt: skip
    trainer = Trainer(stage, MomentData(), run, config, World())
    began.set()
    trainer.until(lambda: False, lambda step, row: None)
    os._exit(0)


def attempt(run, seconds):
    """Let a process train; kill it `seconds` after it began. Returns whether it had finished by itself."""
    context = multiprocessing.get_context("fork")
    began = context.Event()
    process = context.Process(target=work, args=(run, began))
    process.start()
    assert began.wait(60)
    process.join(seconds)
    killed = process.is_alive()
    process.kill()
    process.join()
    assert killed or process.exitcode == 0
    return not killed


def test_killed_at_any_moment_and_resumed_the_bytes_are_the_same(tmp_path):
    started = time.monotonic()
    assert attempt(tmp_path / "whole", None)
    duration = time.monotonic() - started
    chance, kills, tries = random.Random(1), 0, 0
    while kills < KILLS and tries < 50:
        tries += 1
        kills += not attempt(tmp_path / "killed", chance.uniform(0, duration / 3))
    assert kills == KILLS
    while not attempt(tmp_path / "killed", None):
        pass
    a, b = (tmp_path / run / "checkpoints" for run in ("whole", "killed"))
    assert sorted(p.name for p in a.iterdir()) == sorted(p.name for p in b.iterdir())  # nothing half written is left
    for file in sorted((a / "step-00000024").glob("*.safetensors")):
        assert file.read_bytes() == (b / "step-00000024" / file.name).read_bytes(), file.name
