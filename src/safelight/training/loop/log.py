"""The diary of a run: one JSON object a line in log.jsonl, and TensorBoard's files where that is installed.

Figures stay on the device until a row is written, so that no step waits for them.
"""

import json
import warnings
from collections.abc import Mapping
from math import isfinite
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from safelight.writing import replacing

LOG = "log.jsonl"


class Figures:
    """Scalars on the device, kept until someone reads their means; and how many steps were skipped."""

    def __init__(self, device: torch.device) -> None:
        self.skipped_steps = torch.zeros((), device=device)
        self.steps_in_a_row = torch.zeros((), device=device)
        self._values: dict[str, list[Tensor]] = {}

    def add(self, figures: Mapping[str, Tensor]) -> None:
        """Note scalars."""
        for name, value in figures.items():
            self._values.setdefault(name, []).append(value.detach())

    def count(self, skipped: Tensor) -> None:
        """Note whether (1.0 or 0.0) a step was skipped."""
        self.skipped_steps += skipped
        self.steps_in_a_row.add_(1).mul_(skipped)

    def read(self) -> dict[str, float]:
        """The mean of each figure's finite values since the last call (NaN if there are none). Waits for the device."""
        values = {name: torch.stack(some).float() for name, some in self._values.items()}
        self._values = {}
        return {name: float(some[some.isfinite()].mean()) for name, some in values.items()}

    @property
    def skipped(self) -> int:
        """Steps skipped in all. Waits for the device."""
        return int(self.skipped_steps)

    @property
    def in_a_row(self) -> int:
        """Steps skipped since the last one that was not. Waits for the device."""
        return int(self.steps_in_a_row)


class Log:
    """Writes rows of figures. A full disk costs rows and says so, but stops no training."""

    def __init__(self, run: Path, *, after: int = 0, tensorboard: bool = True) -> None:
        """Go on with run/log.jsonl: rows of steps beyond `after`, which will be made again, are dropped."""
        self.path, self._failed = run / LOG, False
        kept = [row for row in read_log(run) if row["step"] <= after]
        with replacing(self.path) as file:
            file.write("".join(json.dumps(row) + "\n" for row in kept).encode())
        self._board = _tensorboard(run, after) if tensorboard else None

    def write(self, row: Mapping[str, Any]) -> None:
        """Add one row; it has a "step"."""
        finite = {
            name: value if not isinstance(value, float) or isfinite(value) else None for name, value in row.items()
        }
        try:
            with self.path.open("a", encoding="utf-8") as file:
                file.write(json.dumps(finite) + "\n")  # JSON knows no NaN
            if self._board is not None:
                for name, value in finite.items():
                    if isinstance(value, float | int) and name != "step":
                        self._board.add_scalar(name, value, row["step"])
        except OSError as error:
            if not self._failed:
                warnings.warn(f"{self.path} cannot be written ({error.strerror}); training goes on", stacklevel=2)
            self._failed = True

    def close(self) -> None:
        """Flush what TensorBoard holds back."""
        if self._board is not None:
            self._board.close()


def _tensorboard(run: Path, after: int) -> Any:
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError:
        return None
    return SummaryWriter(str(run / "tensorboard"), purge_step=after + 1)


def read_log(run: Path) -> list[dict[str, Any]]:
    """The rows of a run's log, as far as they are whole: a killed process may leave half a line at the end."""
    path = run / LOG
    rows = []
    for line in path.read_text(encoding="utf-8", errors="replace").splitlines() if path.exists() else []:
        try:
            row = json.loads(line)
        except ValueError:
            continue
        if isinstance(row, dict) and isinstance(row.get("step"), int):
            rows.append(row)
    return rows
