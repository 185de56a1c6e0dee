"""The curves of a run, from its log."""

from collections.abc import Mapping, Sequence
from math import ceil, isfinite
from pathlib import Path
from typing import Any

from safelight.errors import MissingPartError

NO_CURVES = {"step", "samples", "seconds"}
EXACT = {"learning_rate", "skipped"}  # drawn as they are: nothing in them is chance
POINTS = 30  # the bold line's running mean reaches about the n-th part of the run back


def plot_curves(rows: Sequence[Mapping[str, Any]], path: Path, *, title: str = "") -> Path:
    """Draw every figure of a log over the steps, each in its own panel, and write the picture to `path`.

    The faint line is what was measured, the bold one its running mean. Positive measurements that span more than two
    orders of magnitude have a logarithmic axis (on which a learning rate's last step, next to 0, would hide its
    course); figures that were 0 throughout are left out. Raises MissingPartError without
    matplotlib.
    """
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise MissingPartError("plots need matplotlib", remedy="pip install 'safelight[train]'") from error
    names = figure_names(rows)
    columns = min(len(names), 3)
    lines = ceil(len(names) / columns)
    figure = Figure(figsize=(4.2 * columns, 2.8 * lines + 0.4), layout="constrained")
    figure.suptitle(title)
    for i, name in enumerate(names, 1):
        axes = figure.add_subplot(lines, columns, i)
        points = [(row["step"], row[name]) for row in rows if _is_number(row.get(name))]
        steps, values = zip(*points, strict=True)
        exact = name in EXACT
        axes.plot(steps, values, color="tab:blue", alpha=1.0 if exact else 0.3, linewidth=1.8 if exact else 1)
        if not exact:
            axes.plot(steps, smoothed(values), color="tab:blue", linewidth=1.8)
        axes.set_title(name.replace("_", " "), fontsize=10)
        axes.grid(alpha=0.25)
        if not exact and min(values) > 0 and max(values) > 100 * min(values):
            axes.set_yscale("log")
        if i > len(names) - columns:
            axes.set_xlabel("step")
    figure.savefig(path, dpi=120)
    return path


def figure_names(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    """The figures that are a number other than 0 in some row, losses first."""
    names = dict.fromkeys(name for row in rows for name, value in row.items() if _is_number(value) and value != 0)
    return sorted((name for name in names if name not in NO_CURVES), key=lambda name: "loss" not in name)


def smoothed(values: Sequence[float]) -> list[float]:
    """A running mean with exponentially fading weights, corrected for its start; the longer the run, the smoother."""
    amount = max(0.0, 1 - POINTS / len(values))
    total = weight = 0.0
    result = []
    for value in values:
        total, weight = amount * total + (1 - amount) * value, amount * weight + (1 - amount)
        result.append(total / weight)
    return result


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and isfinite(value)
