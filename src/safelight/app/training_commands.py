"""`safelight train diffusion | autoencoder | decoder | classifier | average`; and `safelight plot run`.

The options of a training are the fields of its recipe. Nothing heavy is imported before a command runs.
"""

import os
import signal
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from inspect import Parameter, Signature, signature
from pathlib import Path
from shlex import quote
from typing import TYPE_CHECKING, Annotated, Any, get_origin

import typer
from pydantic.fields import FieldInfo

from safelight.app.console import say
from safelight.errors import InputError
from safelight.training.evaluation.classifier_config import ClassifierRecipe
from safelight.training.loop.recipes import (
    AutoencoderRecipe,
    DataConfig,
    DecoderRecipe,
    DiffusionRecipe,
    read_run,
    recipe_for,
    recipe_of,
    written_run,
)
from safelight.training.stages.autoencoder_config import AUTOENCODER_BATCHES, AUTOENCODER_TRAININGS

if TYPE_CHECKING:
    from rich.progress import TaskID

    from safelight.training.loop.train import Row

RECIPES: dict[str, Any] = {
    "diffusion": DiffusionRecipe, "autoencoder": AutoencoderRecipe, "decoder": DecoderRecipe,
    "classifier": ClassifierRecipe,
}  # fmt: skip

RunOption = Annotated[
    Path, typer.Option("--run", "--out", "-o", help="folder of the run; to go on with one, name it alone")
]
DeviceOption = Annotated[str | None, typer.Option(help="cpu or cuda; by default the best there is")]
RunArgument = Annotated[Path, typer.Argument(help="folder of a run")]


def register(app: typer.Typer, answers: Callable[..., Any]) -> None:
    """Add the training commands to the command line; `answers` turns what they raise into messages."""
    group = typer.Typer(no_args_is_help=True, rich_markup_mode=None, help="Train a model on your own pictures.")
    for stage in RECIPES:
        group.command(stage)(answers(training_command(stage)))
    group.command()(answers(precompute_command()))
    group.command()(answers(average))
    app.add_typer(group, name="train")


def preset(name: str | None) -> dict[str, Any]:
    """What the original trains a preset's autoencoder with; nothing for a name that is none, which is told later."""
    if name not in AUTOENCODER_TRAININGS:
        return {}
    return {**AUTOENCODER_TRAININGS[name], "batch_size": AUTOENCODER_BATCHES[name], "warmup": 0}


def training_command(stage: str) -> Callable[..., Any]:
    """The command of a stage: `data` as its argument, the recipe's other fields as options."""
    recipe = RECIPES[stage]

    def command(context: typer.Context, run: Path, device: str | None, **values: Any) -> None:
        given = {
            name: as_field(recipe.model_fields[name], value)
            for name, value in values.items()
            if (source := context.get_parameter_source(name)) is not None and source.name != "DEFAULT"
        }
        start(stage, run, device, {**(preset(given.get("preset")) if stage == "autoencoder" else {}), **given})

    options = [as_option(name, field) for name, field in recipe.model_fields.items()]
    around = [
        Parameter("context", Parameter.KEYWORD_ONLY, annotation=typer.Context),
        Parameter("run", Parameter.KEYWORD_ONLY, annotation=RunOption),
        Parameter("device", Parameter.KEYWORD_ONLY, default=None, annotation=DeviceOption),
    ]
    command.__signature__ = Signature([*around, *options])  # type: ignore[attr-defined]
    command.__annotations__ = {p.name: p.annotation for p in (*around, *options)}
    what = {
        "autoencoder": "the first stage, an autoencoder",
        "diffusion": "the second stage, a diffusion model",
        "decoder": "a tiny decoder, to draw with in place of a model's own where time matters most",
        "classifier": "a classifier, for `safelight evaluate` to judge by whether pictures show what was asked for",
    }
    command.__doc__ = (
        f"Train {what[stage]}."
        "\n\nStop it with Ctrl-C, and go on with the same command, or with --run alone. On several GPUs: "
        "torchrun --nproc-per-node N -m safelight train … --out RUN (torchrun takes --run for its own); the batch size "
        "counts all of them together."
    )
    return command


def as_option(name: str, field: FieldInfo) -> Parameter:
    """A recipe's field as a Typer parameter. Several texts repeat the option; numbers may also be one word: 1,2,4."""
    kind: Any = field.annotation
    default, words = field.default, field.description
    if field.is_required():  # which the recipe says, after it has looked at the run
        kind, default = kind | None, None
    if name == "data":
        return Parameter(name, Parameter.KEYWORD_ONLY, default=None,
                         annotation=Annotated[str | None, typer.Argument(help=words)])  # fmt: skip
    if get_origin(kind) is tuple:
        texts = kind == tuple[str, ...]
        kind = list[str]
        default = list(default) if texts or not default else [",".join(map(str, default))]
    return Parameter(
        name, Parameter.KEYWORD_ONLY, default=default, annotation=Annotated[kind, typer.Option(help=words)]
    )


def as_field(field: FieldInfo, value: Any) -> Any:
    """What `as_option` took apart, put together again."""
    if get_origin(field.annotation) is tuple and field.annotation != tuple[str, ...]:
        return tuple(" ".join(value).replace(",", " ").split())
    return value


def start(stage: str, run: Path, device: str | None, given: dict[str, Any]) -> None:
    """Begin or continue a run, until it is finished or asked to stop."""
    recipe = recipe_for(run, stage, RECIPES[stage], given)  # before anything that takes a while
    from safelight.training.loop.distributed import World
    from safelight.training.loop.train import train

    with (
        loud_warnings(),
        stopping() as stop,
        World.entered(device) as world,
        written_run(run, stage, recipe, first=world.first),
    ):
        made = assembled(stage, recipe, run, world.device)
        with bar(recipe.steps, world.first) as watch:
            outcome = train(made.stage, made.data, run, recipe, world=world, stop=stop, watch=watch, about=made.about)
    if world.first and outcome.result is not None:
        typer.echo(outcome.result)
    elif world.first:
        say(f"stopped after step {outcome.step} of {recipe.steps}; all is saved. Go on with:")
        say(f"safelight train {stage} --run {quote(str(run))}")


def assembled(stage: str, recipe: Any, run: Path, device: Any) -> Any:
    """The stage and the data of a recipe. Of the features that a first stage may need before, a bar tells."""
    from safelight.training.loop import assembly

    if stage == "classifier":
        from safelight.training.evaluation.classifier import assemble_classifier

        return assemble_classifier(recipe, run, device)
    if stage == "decoder":
        from safelight.training.loop.decoders import assemble_decoder

        return assemble_decoder(recipe, run, device)
    if stage == "diffusion":
        return assembly.assemble_diffusion(recipe, run, device)
    with bar(recipe.features_steps, True, "features, step") as watch:
        every = max(recipe.features_steps // 10, 1)

        def told(step: int, loss: Any, found: Any) -> None:
            due = (step + 1) % every == 0
            watch(step + 1, {"loss": float(loss), "turns found": float(found)} if due else None)

        return assembly.assemble_autoencoder(recipe, run, device, watch=told)


@contextmanager
def stopping() -> Iterator[Callable[[], bool]]:
    """Within the block, Ctrl-C and SIGTERM are noted: the function it gives says so. The second ends the process."""
    asked: list[int] = []

    def note(number: int, frame: object) -> None:
        if asked:
            os._exit(128 + number)
        asked.append(number)
        say("finishing this step and saving; once more to stop at once, back at the last checkpoint")

    numbers = (signal.SIGINT, signal.SIGTERM)
    before = {number: signal.signal(number, note) for number in numbers}
    try:
        yield lambda: bool(asked)
    finally:
        for number in numbers:
            signal.signal(number, before[number])


@contextmanager
def loud_warnings() -> Iterator[None]:
    """Within the block, warnings are told each time they come."""
    with warnings.catch_warnings():
        warnings.simplefilter("always", UserWarning)
        yield


@contextmanager
def bar(steps: int, shown: bool, what: str = "step") -> Iterator[Callable[[int, "Row | None"], None]]:
    """A progress bar, lines without a terminal, of what is told of each step; it gives the loop's `watch`.

    It appears with the first step that is told, so that something with a bar of its own may come before.
    """
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    console = Console(stderr=True)
    columns = (BarColumn(), MofNCompleteColumn(), TextColumn("{task.description}"), TimeRemainingColumn())
    progress = Progress(*columns, console=console)
    task: TaskID = progress.add_task("", total=steps)

    def watch(step: int, row: "Row | None") -> None:
        if console.is_terminal:
            progress.start()
        progress.update(task, completed=step)
        if row is not None:
            progress.update(task, description=in_words(row))
            if not console.is_terminal:
                say(f"{what} {step}/{steps}  {in_words(row)}")

    try:
        yield watch if shown else lambda step, row: None
    finally:
        if progress.live.is_started:
            progress.stop()


def in_words(row: "Row") -> str:
    """A row of the log in a few words."""
    words = [f"{name} {row[name]:.4f}" for name in row if name.split("/")[0].endswith("loss")][:2]
    words += [f"{row['turns found']:.0%} of turns found"] if "turns found" in row else []
    words += [f"{row['samples_per_second']:.1f} samples/s"] if "samples_per_second" in row else []
    return "  ".join([*words, *([f"{row['skipped']} skipped"] if row.get("skipped") else [])])


def precompute_command() -> Callable[..., Any]:
    """The command that writes latents; its options are those of any data, and its own."""

    def precompute(
        *,
        out: Annotated[Path, typer.Option("--out", "-o", help="folder for the latents; name it as `data` to train")],
        autoencoder: Annotated[str, typer.Option(help="the first stage: a folder or file")],
        text_encoder: Annotated[str | None, typer.Option(help="a model whose text encoder stays frozen")] = None,
        count: Annotated[int | None, typer.Option(help="samples; by default one epoch")] = None,
        seed: Annotated[int, typer.Option(help="of the data's order and choices")] = 0,
        batch_size: Annotated[int, typer.Option(help="samples encoded together")] = 16,
        device: DeviceOption = None,
        **values: Any,
    ) -> None:
        """Encode pictures and captions once, so that training the second stage reads numbers."""
        fields = DataConfig.model_fields
        recipe = recipe_of(DataConfig, {k: as_field(fields[k], v) for k, v in values.items() if v is not None})
        from safelight.training.loop.assembly import precomputed
        from safelight.training.loop.distributed import World

        def watch(done: int, of: int) -> None:
            say(f"{done} of {of}")

        with loud_warnings(), World.entered(device) as world:
            precomputed(recipe, out, autoencoder=autoencoder, text_encoder=text_encoder, device=world.device,
                        count=count, seed=seed, batch_size=batch_size, watch=watch)  # fmt: skip
        typer.echo(out)

    own = [p for p in signature(precompute).parameters.values() if p.kind is not Parameter.VAR_KEYWORD]
    options = [*own, *(as_option(name, field) for name, field in DataConfig.model_fields.items())]
    precompute.__signature__ = Signature(options)  # type: ignore[attr-defined]
    precompute.__annotations__ = {p.name: p.annotation for p in options}
    return precompute


def average(
    run: RunArgument,
    out: Annotated[Path, typer.Option("--out", "-o", help="folder for the model")],
    length: Annotated[float, typer.Option(help="sigma_rel of the average: its width as a share of the training")],
    step: Annotated[int | None, typer.Option(help="step at which it ends; by default the newest")] = None,
) -> None:
    """Choose the length of the weights' moving average after a training.

    The run must have kept snapshots (--ema-lengths 0.05,0.1 --ema-snapshot-every N). Karras et al. 2024, section 3.
    """
    content = read_run(run)
    from safelight.training.loop.distributed import World
    from safelight.training.loop.snapshots import average as combined

    recipe = RECIPES[content["stage"]](**content["recipe"])
    tensors = combined(run / "averages", length, step)
    with World.entered("cpu") as world:
        made = assembled(content["stage"], recipe, run, world.device)
    weights = {
        name: {
            **module.state_dict(),
            **{k.removeprefix(f"{name}."): t for k, t in tensors.items() if k.startswith(name)},
        }
        for name, module in made.stage.modules.items()
    }
    made.stage.finish(out, weights, {**made.about, "weights": f"averaged afterwards, sigma_rel {length:g}"})
    typer.echo(out)


def plot(
    run: RunArgument,
    out: Annotated[
        Path | None, typer.Option("--out", "-o", help="a .png, .svg or .pdf; by default RUN/curves.png")
    ] = None,
) -> None:
    """Draw the curves of a run: losses, learning rate, gradients, speed."""
    read_run(run)
    from safelight.training.loop.log import read_log
    from safelight.training.loop.plots import plot_curves

    rows = read_log(run)
    if len(rows) < 2:
        raise InputError(
            f"{run} has {len(rows)} rows in its log, too few for a curve", remedy="train on, or lower --log-every"
        )
    typer.echo(plot_curves(rows, out or run / "curves.png", title=run.name))
