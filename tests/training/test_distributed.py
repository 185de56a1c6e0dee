"""Two gloo processes, started as torchrun starts them, against one.

As torchrun's agent does, the test itself holds the store where the processes meet, on a port that the system chooses
and that stays taken until the last of them has left. They are forked from a server that has imported things and done
nothing: the test's own process may have threads.
"""

import multiprocessing
import os
import sys

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from safetensors.torch import load_file
from tiny import MomentData, tiny_model

from safelight.training.loop.distributed import World
from safelight.training.loop.recipes import DiffusionConfig, LoopConfig
from safelight.training.loop.train import train
from safelight.training.stages.diffusion import DiffusionStage

multiprocessing.set_forkserver_preload(["safelight.training.stages.diffusion", "safelight.training.loop.train"])


def work(rank, size, port, run, options, stop_at, bad):
    os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(size),
                   "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "TORCHELASTIC_USE_AGENT_STORE": "True",
                   "GLOO_SOCKET_IFNAME": "lo0" if sys.platform == "darwin" else "lo"}  # fmt: skip
    torch.set_num_threads(1)
    stage = DiffusionStage(
        tiny_model(), DiffusionConfig(learning_rate=1e-3, train_text_encoder=True, stratified=True, sheet_steps=2)
    )
    steps = iter(range(100))
    with World.entered("cpu") as world:
        # only rank 1 is asked to stop: the other must hear of it
        stop = (lambda: next(steps) == stop_at) if rank == size - 1 else (lambda: False)
        told = {"sheet_every": 4, **options}
        config = LoopConfig(steps=4, batch_size=4, warmup=1, log_every=1, checkpoint_every=2, **told)
        train(stage, MomentData(text="ids", bad=bad), run, config, world=world, stop=stop)


def launch(run, size, *, stop_at=None, bad=(), **options):
    store = dist.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    mp.start_processes(work, (size, store.port, run, options, stop_at, bad), nprocs=size, start_method="forkserver")
    return sorted((run / "checkpoints").glob("step-*"))[-1]


def tensors(checkpoint, name="modules"):
    return load_file(checkpoint / f"{name}.safetensors")


@pytest.fixture(scope="module")
def alone(tmp_path_factory):
    return launch(tmp_path_factory.mktemp("alone"), 1)


@pytest.mark.parametrize(("how", "accumulate"), [("ddp", 1), ("ddp", 2), ("fsdp", 1)])
def test_two_processes_train_what_one_does(tmp_path, alone, how, accumulate):
    """The same order, noise and timesteps for the same global batch: what differs is how sums are rounded."""
    checkpoint = launch(tmp_path, 2, parallel=how, accumulate=accumulate)
    one, two = tensors(alone), tensors(checkpoint)
    assert one.keys() == two.keys()
    first = {f"{n}.{k}": t for n, m in [("unet", tiny_model().unet), ("text_encoder", tiny_model().text_encoder)]
             for k, t in m.state_dict().items()}  # fmt: skip
    moved = torch.cat([(one[k] - first[k]).flatten() for k in one])
    apart = torch.cat([(one[k] - two[k]).flatten() for k in one])
    assert moved.norm() > 0.05
    assert apart.norm() < 0.02 * moved.norm()
    losses = [float(line) for line in losses_of(tmp_path)]
    assert losses == pytest.approx([float(line) for line in losses_of(alone.parent.parent)], rel=1e-3)
    assert (tmp_path / "model" / "unet" / "diffusion_pytorch_model.safetensors").is_file()
    assert (tmp_path / "sheets" / "step-00000004.png").is_file()


@pytest.mark.parametrize("how", ["ddp", "fsdp"])
def test_averages_are_drawn_with_and_written_and_the_weights_come_back(tmp_path, how):
    """A sheet after each step puts averages in the weights' place: what is trained on must be the weights again."""
    quiet = tensors(launch(tmp_path / "quiet", 2, parallel=how, ema_decay=0.5, sheet_every=0))
    checkpoint = launch(tmp_path / "drawn", 2, parallel=how, ema_decay=0.5, sheet_every=1)
    weights, averages = tensors(checkpoint), tensors(checkpoint, "ema-exponential-0.5")
    assert all(torch.equal(weights[key], quiet[key]) for key in quiet)
    written = load_file(tmp_path / "drawn" / "model" / "unet" / "diffusion_pytorch_model.safetensors")
    assert all(torch.equal(tensor, averages[f"unet.{key}"]) for key, tensor in written.items())
    assert any(not torch.equal(tensor, weights[f"unet.{key}"]) for key, tensor in written.items())


def losses_of(run):
    from safelight.training.loop.log import read_log

    return [row["loss"] for row in read_log(run)]


@pytest.mark.parametrize("how", ["ddp", "fsdp"])
def test_stopped_on_one_process_and_resumed_on_all_is_bit_for_bit_the_same(tmp_path, how):
    whole = launch(tmp_path / "whole", 2, parallel=how)
    stopped = launch(tmp_path / "halves", 2, parallel=how, stop_at=3)
    assert stopped.name == "step-00000003"
    resumed = launch(tmp_path / "halves", 2, parallel=how)
    names = {file.name for file in whole.glob("*.safetensors")}
    assert "ema-exponential-0.9999.safetensors" in names
    for name in names:
        assert (whole / name).read_bytes() == (resumed / name).read_bytes(), name


def test_one_process_goes_on_where_two_stopped(tmp_path, alone):
    launch(tmp_path, 2, parallel="fsdp", stop_at=2)
    resumed = launch(tmp_path, 1)
    one, two = tensors(alone), tensors(resumed)
    assert sum(float((one[k] - two[k]).norm()) for k in one) < 0.1
    assert tensors(resumed, "rng").keys() >= {"0::torch"}


def test_a_loss_that_is_not_finite_on_one_process_is_skipped_on_both(tmp_path):
    checkpoint = launch(tmp_path, 2, bad={6})  # a sample of rank 1 in the second step
    assert float(tensors(checkpoint, "counters")["skipped"]) == 1
    assert all(t.isfinite().all() for t in tensors(checkpoint).values())
