"""Killed at random moments and resumed, a training ends with the same bytes.

Death is a timer of the kernel's, which a process sets at some step of its own and which ends it as SIGKILL does: no
handler runs, nothing is flushed. So the moment is random within a step or two, however fast the machine is.
"""

import multiprocessing
import os
import random
import signal

import torch
from tiny import MomentData, tiny_model

from safelight.training.loop.distributed import World
from safelight.training.loop.recipes import DiffusionConfig, LoopConfig
from safelight.training.loop.train import Trainer
from safelight.training.stages.diffusion import DiffusionStage

KILLS, STEPS = 6, 24


def work(run, steps, seconds):
    """Train; set the timer when `steps` are done, unless `steps` is None."""
    signal.signal(signal.SIGALRM, signal.SIG_DFL)  # the test's own handler came along with the fork
    torch.set_num_threads(1)
    stage = DiffusionStage(tiny_model(dropout=0.1), DiffusionConfig(learning_rate=1e-3))  # dropout: global generators
    config = LoopConfig(steps=STEPS, batch_size=4, accumulate=2, warmup=3, course="cosine", log_every=4,
                        checkpoint_every=3, sheet_every=0, ema_lengths=(0.1,))  # fmt: skip
    trainer = Trainer(stage, MomentData(), run, config, World())
    last = None if steps is None else trainer.step + steps

    def stop():
        if trainer.step == last:
            signal.setitimer(signal.ITIMER_REAL, seconds)
        return False

    trainer.until(stop, lambda step, row: None)
    os._exit(0)


def attempt(run, steps=None, seconds=0.0):
    """Train in a process of its own. Returns whether it came to the end; False: the timer ended it."""
    process = multiprocessing.get_context("fork").Process(target=work, args=(run, steps, seconds))
    process.start()
    process.join(120)
    assert process.exitcode in (0, -signal.SIGALRM)
    return process.exitcode == 0


def test_killed_at_any_moment_and_resumed_the_bytes_are_the_same(tmp_path):
    assert attempt(tmp_path / "whole")
    chance, kills, over = random.Random(1), 0, False
    while kills < KILLS and not over:
        over = attempt(tmp_path / "killed", chance.randrange(4), chance.uniform(0.001, 0.08))
        kills += not over
    assert kills > 1  # a slow machine comes to all six; only one that stands still between two steps to fewer
    assert over or attempt(tmp_path / "killed")
    a, b = (tmp_path / run / "checkpoints" for run in ("whole", "killed"))
    assert sorted(p.name for p in a.iterdir()) == sorted(p.name for p in b.iterdir())  # nothing half written is left
    for file in sorted((a / f"step-{STEPS:08}").glob("*.safetensors")):
        assert file.read_bytes() == (b / f"step-{STEPS:08}" / file.name).read_bytes(), file.name
