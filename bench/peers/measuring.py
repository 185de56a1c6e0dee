"""A row: everyone loads in a process of its own, then they take turns on the same numbers.

So a busy machine is busy for all of them, and what each process has held at most is that contestant's alone.
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from statistics import median
from typing import Any, Self

import numpy as np

from . import machine
from .channel import Channel, Failed
from .contestants import Contestant
from .rows import Row

ROOM = 6 * 2**30  # bytes that loading Stable Diffusion 1 takes at most, but for those who compile


@dataclass
class Result:
    """What a contestant did in a row: seconds, and bytes. `apart` is its distance from the row's reference.

    `imports`, `load` and `first` are what comes before the turns: a cold start is their sum. `error` says why there is
    nothing.
    """

    imports: float = 0.0
    prepare: float = 0.0
    load: float = 0.0
    first: float = 0.0
    turns: list[float] = field(default_factory=list)
    peak: int = 0
    apart: float | None = None
    versions: dict[str, str] = field(default_factory=dict)
    error: str = ""

    @property
    def seconds(self) -> float:
        """The median turn."""
        return median(self.turns)

    def to_json(self) -> dict[str, Any]:
        """Its fields."""
        return asdict(self)


@dataclass(frozen=True)
class Setting:
    """How to measure, and where everything lies. `patience` is for one answer, in seconds; `clock` as in `worker`."""

    cache: Path
    model: Path
    single: Path
    repeats: int
    threads: int
    dtype: str
    clock: str
    patience: float

    def job(self, row: Row, one: Contestant) -> dict[str, Any]:
        """What an engine is told (see `engines`)."""
        paths = {"model": str(self.model), "single": str(self.single), "cache": str(self.cache)}
        asked = {"part": row.part, "batch": row.batch, "side": row.side, "mode": one.mode, "steps": row.steps}
        return paths | asked | {"dtype": self.dtype, "threads": self.threads}


class Seat:
    """A contestant at a row, with a process of its own; a context manager that ends the process."""

    def __init__(self, one: Contestant, python: Path, row: Row, inputs: Path, setting: Setting) -> None:
        self.one, self.python, self.inputs, self.setting = one, python, inputs, setting
        self.job = setting.job(row, one)
        self.answer = setting.cache / "inputs" / f"{row.key}-{one.name}.npy"
        self.result = Result()
        self._open = ExitStack()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._open.close()

    def sit(self) -> None:
        """Start, load, and answer once."""
        with self._failing() as result:
            if machine.free_memory() < ROOM:
                raise Failed(f"less than {ROOM >> 30} GiB of memory were free beside the others: ask for fewer at once")
            if self.one.converts:
                with self._channel() as converter:  # which ends, so that its memory is not counted
                    converter.hello()
                    result.prepare = converter.ask("prepare", **self.job)["seconds"]
            self.channel = self._open.enter_context(self._channel())
            hello = self.channel.hello()
            result.imports, result.versions = hello["seconds"], hello["versions"]
            result.load = self.channel.ask("load", **self.job)["seconds"]
            first = self.channel.ask("run", inputs=str(self.inputs), out=str(self.answer))
            result.first, result.peak = first["seconds"], first["peak"]

    def turn(self) -> None:
        """Answer once more."""
        with self._failing() as result:
            again = self.channel.ask("run", inputs=str(self.inputs))
            result.turns.append(again["seconds"])
            result.peak = max(result.peak, again["peak"])

    @contextmanager
    def _failing(self) -> Iterator[Result]:
        """Keep the reason why there is no answer."""
        try:
            yield self.result
        except Failed as failure:
            self.result.error = str(failure)

    def _channel(self) -> Channel:
        log = self.setting.cache / f"{self.one.name}.log"
        one = self.setting
        return Channel(
            self.python, self.one.engine, clock=one.clock, threads=one.threads, log=log, patience=one.patience
        )


def measure(
    row: Row, contestants: Sequence[Contestant], pythons: Mapping[str, Path], inputs: Path, setting: Setting
) -> dict[str, Result]:
    """Measure a row: results by contestants' names, of those who failed too."""
    exact = reference(row, contestants, pythons, inputs, setting)
    with ExitStack() as stack:
        seats = [stack.enter_context(Seat(one, pythons[one.name], row, inputs, setting)) for one in contestants]
        for seat in seats:
            seat.sit()
        for turn in range(setting.repeats):
            present = [seat for seat in seats if not seat.result.error]
            first = turn % max(len(present), 1)
            for seat in present[first:] + present[:first]:
                seat.turn()
    compare([seat for seat in seats if not seat.result.error], exact)
    return {seat.one.name: seat.result for seat in seats}


def reference(
    row: Row, contestants: Sequence[Contestant], pythons: Mapping[str, Path], inputs: Path, setting: Setting
) -> Path | None:
    """A file of diffusers' answer in float32, where all run in less and it takes part; None: Safelight's own will do.

    It is made once, since inputs and weights have a seed. Whole pictures are left out: they take too long.
    """
    one = next((one for one in contestants if one.name == "diffusers"), None)
    if one is None or setting.dtype == "float32" or row.kind == "draw":
        return None
    seat = Seat(one, pythons[one.name], row, inputs, replace(setting, dtype="float32"))
    seat.answer = setting.cache / "inputs" / f"{row.key}-float32.npy"
    if not seat.answer.exists():
        with seat:
            seat.sit()
    return seat.answer if seat.answer.exists() else None


def compare(seats: Sequence[Seat], exact: Path | None) -> None:
    """Note each one's |answer - exact| / |exact|, Euclidean norms over the whole answer; or from the first's."""
    answers = [np.load(seat.answer).astype(np.float64) for seat in seats]
    target = answers[0] if exact is None else np.load(exact).astype(np.float64)
    for seat, answer in zip(seats, answers, strict=True):
        if answer.shape == target.shape:
            seat.result.apart = float(np.linalg.norm(answer - target) / np.linalg.norm(target))
