import json
from dataclasses import replace

import pytest
import torch
from tiny import MomentData, tiny_model
from torch.utils._python_dispatch import TorchDispatchMode

from safelight.training.loop.distributed import World
from safelight.training.loop.log import read_log
from safelight.training.loop.recipes import DiffusionConfig, LoopConfig
from safelight.training.loop.train import Trainer, train
from safelight.training.stages.diffusion import DiffusionStage


def config(**options):
    defaults = {"steps": 6, "batch_size": 4, "warmup": 2, "log_every": 2, "checkpoint_every": 2, "sheet_every": 0,
                "ema_lengths": (0.1,)}  # fmt: skip
    return LoopConfig(**(defaults | options))


def stage(**options):
    model = options.pop("model", None) or tiny_model()
    return DiffusionStage(model, DiffusionConfig(**({"learning_rate": 1e-3} | options)))


def weights(run_stage):
    return {f"{n}.{k}": t.clone() for n, m in run_stage.modules.items() for k, t in m.state_dict().items()}


def same(a, b):
    assert a.keys() == b.keys()
    return all(torch.equal(a[k], b[k]) for k in a)


def test_a_run_leaves_a_model_a_log_and_checkpoints(tmp_path):
    outcome = train(stage(), MomentData(), tmp_path, config())
    assert outcome.finished and outcome.step == 6
    rows = [json.loads(line) for line in (tmp_path / "log.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows] == [2, 4, 6]
    assert {"loss", "gradient_norm", "learning_rate", "samples_per_second", "skipped"} <= rows[0].keys()
    assert sorted(p.name for p in (tmp_path / "checkpoints").iterdir()) == ["step-00000004", "step-00000006"]
    assert (tmp_path / "model" / "model_index.json").is_file()
    assert "| steps | 6 |" in (tmp_path / "model" / "README.md").read_text()


def test_stopped_and_resumed_is_bit_for_bit_the_same(tmp_path):
    whole = stage()
    train(whole, MomentData(), tmp_path / "whole", config())
    steps = iter(range(100))
    first = stage()
    outcome = train(first, MomentData(), tmp_path / "halves", config(), stop=lambda: next(steps) == 3)
    assert not outcome.finished and outcome.step == 3
    second = stage(model=replace(tiny_model(), unet=tiny_model(seed=5).unet))  # all must come from the checkpoint
    train(second, MomentData(), tmp_path / "halves", config())
    assert same(weights(whole), weights(second))
    a, b = (tmp_path / run / "checkpoints" / "step-00000006" for run in ("whole", "halves"))
    files = sorted(p.name for p in a.glob("*.safetensors"))
    assert files == ["counters.safetensors", "ema-exponential-0.9999.safetensors", "ema-power-0.1.safetensors",
                     "modules.safetensors", "optimizer-unet.safetensors", "rng.safetensors"]  # fmt: skip
    for name in files:
        assert (a / name).read_bytes() == (b / name).read_bytes(), name
    assert [row["step"] for row in read_log(tmp_path / "halves")] == [2, 4, 6]


def test_a_sheet_is_drawn_without_compiling_for_it(tmp_path, monkeypatch):
    graphs = []

    def counted(graph, inputs):
        graphs.append(graph)
        return graph.forward

    compiled = torch.nn.Module.compile
    monkeypatch.setattr(torch.nn.Module, "compile", lambda module: compiled(module, backend=counted))
    numbers = []
    for run, every in (("quiet", 0), ("drawn", 1)):
        torch.compiler.reset()
        graphs.clear()
        train(stage(sheet_steps=2), MomentData(), tmp_path / run, config(steps=2, sheet_every=every, compile=True))
        numbers.append(len(graphs))
    torch.compiler.reset()
    assert numbers[0] == numbers[1] > 0 and (tmp_path / "drawn/sheets/step-00000002.png").is_file()


def gradients(run_stage, run, **options):
    trainer = Trainer(run_stage, MomentData(), run, config(**options), World())
    trainer.forward_backward(trainer.batches())
    return {f"{n}.{k}": p.grad for n, m in run_stage.modules.items() for k, p in m.named_parameters()}


def test_accumulated_passes_add_up_to_the_same_gradients(tmp_path):
    one, four = gradients(stage(), tmp_path / "one"), gradients(stage(), tmp_path / "four", accumulate=4)
    for key, gradient in one.items():
        assert gradient.abs().max() > 0, key
        torch.testing.assert_close(four[key], gradient, rtol=1e-4, atol=1e-5 * float(gradient.abs().max()), msg=key)


class NoSync(TorchDispatchMode):
    """Raises where the host would ask a device for a number."""

    ASKING = ("_local_scalar_dense", "nonzero", "is_nonzero", "equal", "masked_select", "unique")

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        name = func.overloadpacket.__name__
        if any(asking in name for asking in self.ASKING) and args[0].device.type != "meta":
            raise AssertionError(f"{func} makes the host wait for the device")
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
@pytest.mark.parametrize("text", ["context", "ids"])
def test_a_step_on_latents_asks_the_device_for_nothing(tmp_path, text, precision):
    built = stage(train_text_encoder=text == "ids", weighting="min_snr", offset_noise=0.1)
    trainer = Trainer(built, MomentData(text=text), tmp_path, config(precision=precision, clip=0.5), World())
    batch = trainer.batches()
    before = weights(built)
    trainer.forward_backward(batch)  # the first step may prepare things, such as the null caption's context
    trainer.update()
    with NoSync():
        trainer.forward_backward(batch)
        trainer.update()
    assert not same(before, weights(built))
    with pytest.raises(AssertionError, match="wait for the device"), NoSync():
        trainer.figures.read()


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU, whose driver knows who waits")
@pytest.mark.parametrize("text", ["context", "ids"])
def test_a_step_does_not_wait_for_a_gpu(tmp_path, text):
    model = tiny_model().to("cuda")
    built = stage(model=model, train_text_encoder=text == "ids", weighting="min_snr", offset_noise=0.1)
    batches, world = MomentData(text=text), World(device=torch.device("cuda"))
    trainer = Trainer(built, batches, tmp_path, config(precision="bfloat16", accumulate=2), world)
    ready = [batches.batch(0, [2 * i, 2 * i + 1], "cuda") for i in range(8)]  # the data's own copies are not at issue
    batches.batch = lambda seed, numbers, device: ready[numbers[0] // 2]
    batch = trainer.batches()
    trainer.forward_backward(batch)
    trainer.update()
    torch.cuda.set_sync_debug_mode("error")
    try:
        trainer.forward_backward(batch)
        trainer.update()
    finally:
        torch.cuda.set_sync_debug_mode("default")


def test_a_loss_that_is_not_finite_skips_its_step_alone(tmp_path):
    bad, good = stage(), stage()
    seen = []
    train(bad, MomentData(bad={5}), tmp_path / "bad", config(steps=2, log_every=1),
          watch=lambda step, row: seen.append(row))  # fmt: skip
    train(good, MomentData(), tmp_path / "good", config(steps=1))
    assert seen[-1]["skipped"] == 1 and seen[1]["skipped"] == 0
    assert same(weights(bad), weights(good))
    for a, b in zip(bad.optimizers["unet"].state.values(), good.optimizers["unet"].state.values(), strict=True):
        assert all(torch.equal(a[k], b[k]) for k in a)


def test_many_in_a_row_stop_the_run_at_its_last_checkpoint(tmp_path):
    from safelight.errors import NonFiniteError

    data = MomentData(bad=range(12, 1000))
    with pytest.raises(NonFiniteError, match="4 steps up to step 7") as caught:
        train(stage(), data, tmp_path, config(steps=20, checkpoint_every=1, log_every=1, skipped_in_a_row=4))
    assert "step-00000003" in caught.value.remedy
    assert sorted(p.name for p in (tmp_path / "checkpoints").iterdir())[-1] == "step-00000003"


def test_a_failing_data_set_loses_nothing(tmp_path):
    class Failing(MomentData):
        def batch(self, seed, numbers, device="cpu"):
            if 12 in numbers:
                raise OSError("the disk is gone")
            return super().batch(seed, numbers, device)

    whole, second = stage(), stage()
    train(whole, MomentData(), tmp_path / "whole", config(steps=5))
    with pytest.raises(OSError, match="disk is gone"):
        train(stage(), Failing(), tmp_path / "run", config(steps=5, checkpoint_every=100))
    assert (tmp_path / "run" / "checkpoints" / "step-00000003").is_dir()
    train(second, MomentData(), tmp_path / "run", config(steps=5, checkpoint_every=100))
    assert same(weights(whole), weights(second))


def test_batches_must_be_shared_evenly(tmp_path):
    from safelight.errors import InputError

    with pytest.raises(InputError, match="multiple of 3 passes"):
        train(stage(), MomentData(), tmp_path, config(accumulate=3))


def test_the_loss_falls_on_few_latents(tmp_path):
    class Few(MomentData):
        def batch(self, seed, numbers, device="cpu"):
            return super().batch(seed, [n % 2 for n in numbers], device)

    rows = []
    train(stage(learning_rate=1e-2, condition_dropout=0.0), Few(), tmp_path,
          config(steps=120, batch_size=8, log_every=20, checkpoint_every=1000),
          watch=lambda step, row: rows.append(row) if row else None)  # fmt: skip
    assert rows[-1]["loss"] < 0.75 * rows[0]["loss"]
