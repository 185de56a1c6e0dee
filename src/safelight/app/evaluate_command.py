"""`safelight evaluate`: figures of a model, an autoencoder, or a folder of pictures.

The options are the fields of `EvaluateOptions`. Nothing heavy is imported before the command runs.
"""

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from inspect import Parameter, Signature
from pathlib import Path
from typing import Annotated, Any

import typer

from safelight.app.console import say, table
from safelight.training.evaluation.evaluate_config import EvaluateOptions
from safelight.training.loop.recipes import recipe_of

ModelArgument = Annotated[str, typer.Argument(help="a model, a folder of an autoencoder, or a folder of pictures")]
OutOption = Annotated[Path, typer.Option("--out", "-o", help="folder for report.json, report.md and sheets")]
DeviceOption = Annotated[str | None, typer.Option(help="cpu, cuda, mps; by default the best there is")]
JsonOption = Annotated[bool, typer.Option("--json", help="print one JSON object instead of text")]


def register(app: typer.Typer, answers: Callable[..., Any]) -> None:
    """Add the command to the command line; `answers` turns what it raises into messages."""
    app.command("evaluate")(answers(evaluate_command()))


def evaluate_command() -> Callable[..., Any]:
    """Build the command with the options' fields as its options."""

    def command(model: str, out: Path, device: str | None, as_json: bool, **values: Any) -> None:
        run(model, recipe_of(EvaluateOptions, values), out, device, as_json)

    around = [
        Parameter("model", Parameter.KEYWORD_ONLY, annotation=ModelArgument),
        Parameter("out", Parameter.KEYWORD_ONLY, default=Path("evaluation"), annotation=OutOption),
        Parameter("device", Parameter.KEYWORD_ONLY, default=None, annotation=DeviceOption),
        Parameter("as_json", Parameter.KEYWORD_ONLY, default=False, annotation=JsonOption),
    ]
    options = [
        Parameter(
            name,
            Parameter.KEYWORD_ONLY,
            default=field.default,
            annotation=Annotated[field.annotation, typer.Option(help=field.description)],
        )
        for name, field in EvaluateOptions.model_fields.items()
    ]
    parameters = [*around, *options]
    command.__signature__ = Signature(parameters)  # type: ignore[attr-defined]
    command.__annotations__ = {parameter.name: parameter.annotation for parameter in parameters}
    command.__doc__ = (
        "Measure a model against real pictures: reconstruction, samples, prompt following."
        "\n\nWrites a JSON report, a table for the model card, and sheets of pictures to look at."
    )
    return command


def run(model: str, options: EvaluateOptions, out: Path, device: str | None, as_json: bool) -> None:
    """Evaluate, write the report, and show its figures."""
    from safelight.training.evaluation.evaluate import evaluate

    with told() as tell:
        report = evaluate(model, options, device=device, tell=tell)
    report.write(out)
    if as_json:
        typer.echo(json.dumps(report.as_dict()))
        return
    table([
        {"what": one.section, "measure": one.name, "model": f"{one.value:.4g}",
         "real": "" if one.real is None else f"{one.real:.4g}", "n": one.pictures, "by": one.by}
        for one in report.figures
    ])  # fmt: skip
    for remark in report.remarks:
        say(remark)
    say(f"the whole report, and sheets to look at, are in {out}")


@contextmanager
def told() -> Iterator[Callable[[str, int, int], None]]:
    """A bar of what is being done; it shows on a terminal only."""
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

    console = Console(stderr=True)
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as progress:
        task = progress.add_task("loading", total=None)
        yield lambda what, done, total: progress.update(task, description=what, completed=done, total=total)
