"""What the command line shows people. Everything but results goes to the standard error."""

from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

from rich.console import Console

if TYPE_CHECKING:
    from safelight.app.terminal import Preview
    from safelight.diffusion.samplers import Step, Watch
    from safelight.pipeline.bundle import LatentDiffusion


def say(text: str) -> None:
    """A remark, for people only. Lines are broken by the terminal alone, so that what is copied is whole."""
    Console(stderr=True).print(text, style="dim", highlight=False, markup=False, emoji=False, soft_wrap=True)


def warn(text: str) -> None:
    """Something that went otherwise than it should have, though the work goes on."""
    Console(stderr=True).print(text, style="yellow", highlight=False, markup=False, emoji=False, soft_wrap=True)


def error(what: str, remedy: str) -> None:
    """What went wrong, and the next thing to do."""
    console = Console(stderr=True)
    console.print(f"error: {what}", style="bold red", highlight=False, markup=False, emoji=False, soft_wrap=True)
    if remedy:
        console.print(f"  -> {remedy}", highlight=False, markup=False, emoji=False, soft_wrap=True)


def table(rows: list[dict[str, Any]]) -> None:
    """Rows with equal keys, as a table on the standard output. Nothing in them is taken for rich's markup."""
    from rich.table import Table
    from rich.text import Text

    shown = Table(*(rows[0] if rows else ()), box=None, pad_edge=False)
    for row in rows:
        shown.add_row(*(Text(str(value)) for value in row.values()))
    Console().print(shown)


def onlooker(preview: bool, description: str) -> "Progress | Preview":
    """What shows a run to whoever sits at the terminal: pictures, where they are asked for and can be shown, or a bar.

    It is a context manager; `watching(model)` gives the one watcher that a task takes.
    """
    if preview:
        from safelight.app.terminal import Preview

        pictures = Preview()
        if pictures.shown:
            return pictures
        warn("This terminal shows no previews: drawing without.")
    return Progress(description)


class Progress:
    """A bar over the evaluations of the network. It shows on a terminal only; `watch` is what a task calls."""

    def __init__(self, description: str) -> None:
        from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn
        from rich.progress import Progress as Bar

        columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
        self._bar = Bar(*columns, TimeRemainingColumn(), console=Console(stderr=True), transient=True)
        self._task = self._bar.add_task(description, total=None)
        self._part = ""

    def __enter__(self) -> Self:
        if self._bar.console.is_terminal:  # elsewhere rich would print the bar once, as an empty line
            self._bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._bar.live.is_started:
            self._bar.stop()

    def watching(self, model: "LatentDiffusion") -> "Watch":
        """The watcher of a run, whatever the model: `terminal.Preview` needs to know it."""
        return self.watch

    def watch(self, step: "Step") -> None:
        """Note one evaluation."""
        description = f"{self._part}sigma {step.sigma:.2f}"
        self._bar.update(self._task, description=description, completed=step.index + 1, total=step.total)

    def part(self, number: int, total: int) -> None:
        """Say which of several pictures comes now, counted from 1."""
        self._part = f"{number} of {total}, "
