"""The training loop of both stages: passes, steps, averages, log, sheets, checkpoints, and going on after any end.

`train(stage, data, run, config)` does all there is to do until `config.steps`, from wherever the run stands. What it
does in step k depends on the run's config and on k alone, and a checkpoint holds all that the steps before have left.
So a run that was killed goes on as if it had not been, bit for bit (on the same machines, with the same libraries).

A step makes the host wait for the device nowhere. Figures are summed up on the device and read every `log_every` steps.
"""

import time
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from safelight import kernels
from safelight.errors import CheckpointError, InputError, NonFiniteError, SafelightError
from safelight.training.data.batches import Data, batches, sample_numbers
from safelight.training.loop import snapshots
from safelight.training.loop.capture import capture, restore
from safelight.training.loop.distributed import World, apart, bare, release, replicate, reshard, sharded, whole
from safelight.training.loop.ema import Averages, profiles
from safelight.training.loop.log import LOG, Figures, Log, read_log
from safelight.training.loop.optim import guarded_step, parameters_of, rate_factor
from safelight.training.loop.recipes import LoopConfig
from safelight.training.loop.rng import rng_state, seed_everything, set_rng_state
from safelight.training.loop.state import damage, found, load_state, newest, save_state, step_name, sweep
from safelight.training.stages.noise import BatchNoise
from safelight.training.stages.stage import Stage

Row = Mapping[str, Any]
Watch = Callable[[int, Row | None], None]  # steps done, and a row of the log when there is a new one


class OutOfMemoryError(SafelightError, MemoryError):
    """The device's memory does not hold a pass of training."""


@dataclass(frozen=True)
class Outcome:
    """How a call of `train` ended: after `step` steps, `finished` or stopped, its model in `result` if finished."""

    step: int
    finished: bool
    result: Path | None


def train(
    stage: Stage,
    data: Data[Any],
    run: Path,
    config: LoopConfig,
    *,
    world: World | None = None,
    stop: Callable[[], bool] = lambda: False,
    watch: Watch = lambda step, row: None,
    about: Row | None = None,
) -> Outcome:
    """Train `stage` on `data` from where the folder `run` stands until `config.steps`, and write run/model.

    world: the processes that take part. stop: asked after every step; once any process says yes, the state is saved and
    the call returns. watch: told of every step. about: what the model card should say beside the loop's own record.

    Raises NonFiniteError after `skipped_in_a_row` steps without a finite loss (the run then stands at its last
    checkpoint), OutOfMemoryError, CheckpointError where the disk refuses at the end, and what data and stage raise.
    """
    try:
        trainer = Trainer(stage, data, run, config, world or World())
        finished = trainer.until(stop, watch)
        return Outcome(trainer.step, finished, trainer.finish(about or {}) if finished else None)
    finally:
        release(stage.modules)


class Trainer:
    """The state of a run in memory, and what moves it one step on."""

    def __init__(self, stage: Stage, data: Data[Any], run: Path, config: LoopConfig, world: World) -> None:
        self.stage, self.data, self.run, self.config, self.world = stage, data, run, config, world
        share = config.batch_size // (config.accumulate * world.size)
        if share * config.accumulate * world.size != config.batch_size:
            passes = f"{config.accumulate} passes x {world.size} processes"
            what = f"batch_size {config.batch_size} is not a multiple of {passes}"
            raise InputError(what, remedy="batch_size counts the samples of a step over all passes and processes")
        self.checkpoints = run / "checkpoints"
        self.checkpoints.mkdir(parents=True, exist_ok=True)
        self.step, self.seconds = 0, 0.0
        self._prepare_modules()
        averaged = {name: bare(stage.modules[name]) for name in stage.averaged}
        self.averages = Averages(averaged, profiles(config.ema_decay, config.ema_lengths))
        self.figures = Figures(world.device)
        seed_everything(config.seed + world.rank)
        self._resume()
        self.log = Log(run, after=self.step) if world.first else None

    def _prepare_modules(self) -> None:
        config, stage = self.config, self.stage
        for module in stage.modules.values():
            network: nn.Module = getattr(module, "network", module)  # behind a LoRA
            if config.channels_last:
                network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
            for part in network.modules():
                if hasattr(part, "gradient_checkpointing"):
                    part.gradient_checkpointing = config.gradient_checkpointing  # type: ignore[assignment]
            if config.compile:
                module.compile()
            elif config.precision == "float32" and config.parallel == "ddp":  # FSDP knows no channels-last
                kernels.prepare(network)
        replicate(stage.modules, stage.optimizers.values(), self.world, config.parallel)

    def _resume(self) -> None:
        """Take over the newest whole checkpoint, which rank 0 chooses."""
        chosen = None
        if self.world.first:
            sweep(self.checkpoints)
            path = newest(self.checkpoints)
            chosen = None if path is None else str(path)
        chosen = self.world.told(chosen)
        if chosen is not None:
            state = load_state(Path(chosen))
            restore(state, self.stage, self.averages, self.figures, self.world)
            self.step, self.seconds = state.step, float(state.facts["seconds"])

    def until(self, stop: Callable[[], bool], watch: Watch) -> bool:
        """Make steps until the last one, or until asked to stop; save. Returns whether all steps are done."""
        batch = self.batches()
        self._clock = self._mark = time.monotonic()
        self._logged = self.step
        watch(self.step, None)
        try:
            while self.step < self.config.steps and not self.world.any(stop()):
                self._guarded(batch)
                self.update()
                watch(self.step, self._log_row() if self._due(self.config.log_every) else None)
                self._keep()
            self._save(must=True)
        finally:
            if self.log is not None:
                self.log.close()
        return self.step >= self.config.steps

    def _keep(self) -> None:
        """Draw and write what is due after this step; the time it takes is no part of the samples per second."""
        c, started = self.config, time.monotonic()
        if self._due(c.sheet_every):
            self.draw_sheet()
        if self._due(c.ema_snapshot_every):
            snapshots.take(self.run / "averages", self.averages, self.step, self.world)
        if self._due(c.checkpoint_every) and self.step < c.steps:  # the last one must be, and has its own line
            self._save()
        self._mark += time.monotonic() - started

    def _due(self, every: int) -> bool:
        return every > 0 and (self.step % every == 0 or self.step == self.config.steps)

    def batches(self) -> Iterator[tuple[Any, BatchNoise]]:
        """Micro-batches from the run's present place on, each with its random numbers."""
        c, world = self.config, self.world
        start, size = self.step * c.batch_size, c.batch_size // c.accumulate
        shared = {"start": start, "batch_size": size, "rank": world.rank}
        data = batches(self.data, seed=c.seed, world=world.size, workers=c.workers, device=world.device, **shared)
        numbers = sample_numbers(world=world.size, **shared)
        for batch, own in zip(data, numbers, strict=False):
            places = [n % c.batch_size for n in own]
            step = own[0] // c.batch_size
            yield batch, BatchNoise(c.seed, own, step=step, places=places, total=c.batch_size, device=world.device)

    def forward_backward(self, batch: Iterator[tuple[Any, BatchNoise]]) -> None:
        """Add up the gradients of one step's passes. A loss that is not finite makes every gradient NaN, everywhere."""
        passes = self.config.accumulate
        for number in range(passes):
            inputs, noise = next(batch)
            losses = self.stage.losses(inputs, noise)
            with apart(self.stage.modules, last=number == passes - 1):
                while True:
                    with self._autocast():
                        loss = next(losses, None)
                    if loss is None:
                        break
                    weight = (1 + 0 * loss.value.detach()) / passes
                    loss.value.backward(weight)
                    self.figures.add(loss.figures)

    def update(self) -> None:
        """Let every optimizer step, or skip where its gradients are not finite; take in the new weights."""
        c = self.config
        factor = rate_factor(self.step, steps=c.steps, warmup=c.warmup, course=c.course)
        skipped = []
        for name, optimizer in self.stage.optimizers.items():
            if all(p.grad is None for p in parameters_of(optimizer)):
                continue  # a discriminator whose time has not come
            norm, skip = guarded_step(optimizer, factor=factor, clip=c.clip)
            self.figures.add({f"gradient_norm/{name}" if len(self.stage.optimizers) > 1 else "gradient_norm": norm})
            skipped.append(skip)
        self.figures.count(torch.stack(skipped).amax())
        self.stage.updated(self.step)
        self.averages.update()
        self.step += 1

    def _autocast(self) -> AbstractContextManager[Any]:
        if self.config.precision == "float32":
            return nullcontext()
        return torch.autocast(self.world.device.type, torch.bfloat16)

    def _uncompiled(self) -> AbstractContextManager[Any]:
        """Without gradients and in other batches, compiled networks would first be compiled again: for minutes."""
        return torch.compiler.set_stance("force_eager") if self.config.compile else nullcontext()

    def _guarded(self, batch: Iterator[Any]) -> None:
        """`forward_backward`; if it fails, save what the steps before have made, which its passes have not touched."""
        rng = rng_state(self.world.device)
        try:
            self.forward_backward(batch)
        except BaseException as error:
            for optimizer in self.stage.optimizers.values():
                optimizer.zero_grad()
            set_rng_state(rng, self.world.device)
            if self.world.size == 1:  # the others would not come to help
                try:
                    self._save()
                except (RuntimeError, MemoryError) as second:
                    error.add_note(f"and the state of step {self.step} could not be saved: {second}")
            if _is_out_of_memory(error):
                raise self._out_of_memory(error) from error
            raise

    def _out_of_memory(self, error: BaseException) -> OutOfMemoryError:
        samples = self.config.batch_size // self.config.accumulate // self.world.size
        return OutOfMemoryError(
            f"out of memory at step {self.step}, with {samples} samples a pass ({str(error).splitlines()[0]})",
            remedy="nothing is lost: go on with a larger --accumulate, which leaves the batch as it is, with "
            "--gradient-checkpointing, or with --precision bfloat16",
        )

    def _log_row(self) -> Row:
        """Read the figures since the last row (here the host waits), log them, and stop a run that is going nowhere."""
        c, now = self.config, time.monotonic()
        factor = rate_factor(self.step - 1, steps=c.steps, warmup=c.warmup, course=c.course)
        row = {
            "step": self.step,
            "samples": self.step * c.batch_size,
            "seconds": round(self._elapsed(), 3),
            **self.world.mean(self.figures.read()),
            "learning_rate": factor * next(iter(self.stage.optimizers.values())).param_groups[0]["lr"],
            "samples_per_second": round((self.step - self._logged) * c.batch_size / (now - self._mark), 3),
            "skipped": self.figures.skipped,
        }
        self._mark, self._logged = now, self.step
        if self.log is not None:
            self.log.write(row)
        if self.figures.in_a_row >= c.skipped_in_a_row:
            raise self._diverged()
        return row

    def _diverged(self) -> NonFiniteError:
        saved = found(self.checkpoints)
        last = saved[0].name if saved else "none yet"
        return NonFiniteError(
            f"the loss was not finite in the {self.figures.in_a_row} steps up to step {self.step}; they were skipped",
            remedy=f"the run is back at its last checkpoint ({last}), see {self.run / LOG}; "
            "go on in a new run with --init and a lower learning rate, or look for broken pictures",
        )

    def _elapsed(self) -> float:
        """Seconds of training, those before a resume included."""
        now = time.monotonic()
        self.seconds, self._clock = self.seconds + now - self._clock, now
        return self.seconds

    def _save(self, *, must: bool = False) -> None:
        """Write a checkpoint. A disk that refuses is an error only if it `must` be; otherwise the next one is tried.

        While losses are not finite none is written unless it must be, so that the last one is from before.
        """
        if self.figures.in_a_row and not must:
            return
        state = capture(self.step, self._elapsed(), self.stage, self.averages, self.figures, self.world)
        failure: CheckpointError | None = None
        if self.world.first and damage(self.checkpoints / step_name(self.step)) is not None:
            try:
                save_state(self.checkpoints, state, keep=self.config.keep)
            except CheckpointError as error:
                failure = error
        if self.world.any(failure is not None):
            failure = failure or CheckpointError("the first process could not write", path=self.checkpoints)
            if must:
                raise failure
            warnings.warn(f"NO CHECKPOINT AT STEP {self.step}: {failure}; training goes on", stacklevel=2)

    def draw_sheet(self) -> None:
        """Write run/sheets/step-….png, drawn with averaged weights. A sheet that fails is a warning."""
        if not (self.world.first or sharded(self.stage.modules)):
            return
        rng = rng_state(self.world.device)
        try:
            with torch.no_grad(), self.averages.applied(), self._autocast(), self._uncompiled():
                sheet = self.stage.sheet()
                reshard(self.stage.modules)
            if sheet is not None and self.world.first:
                folder = self.run / "sheets"
                folder.mkdir(exist_ok=True)
                sheet.save(folder / f"{step_name(self.step)}.png")
        except (NonFiniteError, OSError) as error:
            warnings.warn(f"no sheet at step {self.step}: {error}", stacklevel=2)
        set_rng_state(rng, self.world.device)

    def finish(self, about: Row) -> Path:
        """Write run/model, with averaged weights where there are any, and its card."""
        c, folder = self.config, self.run / "model"
        with torch.no_grad(), self.averages.applied():
            weights = {name: _copied(bare(module).state_dict()) for name, module in self.stage.modules.items()}
        if self.world.first:
            rows = read_log(self.run)
            record = {
                **about,
                "steps": self.step,
                "samples": self.step * c.batch_size,
                "samples a step": c.batch_size,
                "hours": self.seconds / 3600,
                "processes": f"{self.world.size} on {self.world.device.type}",
                "weights": f"averaged, {self.averages.profiles[0].name}"
                if self.averages.profiles
                else "the last step's",
                "figures": rows[-1] if rows else {},
            }
            self.stage.finish(folder, weights, record)
        self.world.any(False)  # the others wait for the first
        return folder


def _copied(tensors: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {key: whole(tensor).clone() for key, tensor in tensors.items()}


def _is_out_of_memory(error: BaseException) -> bool:
    return isinstance(error, torch.OutOfMemoryError | MemoryError) or "can't allocate memory" in str(error)
