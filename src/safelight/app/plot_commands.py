"""`safelight plot schedule | sigmas | guidance | latents | attention | roundtrip | run`.

`safelight plot FOLDER` is `safelight plot run FOLDER`: whatever names a path, and no figure, is a run.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from typer.core import TyperGroup

from safelight.app.console import Progress
from safelight.app.options import DEFAULT_MODEL, LOADING, ModelOption, asking
from safelight.app.training_commands import plot as plot_run
from safelight.pipeline.fields import validate
from safelight.pipeline.tasks import text_to_image

if TYPE_CHECKING:
    from safelight.diffusion.samplers import Watch
    from safelight.diffusion.schedule import NoiseSchedule
    from safelight.pipeline.bundle import LatentDiffusion

FigureOption = Annotated[Path | None, typer.Option("--out", "-o", help="a .png, .svg or .pdf; by default NAME.png")]
WhoseOption = Annotated[str | None, typer.Option("--model", "-m", help="whose; by default Stable Diffusion's")]
ImageArgument = Annotated[Path, typer.Argument(help="a picture (PNG, JPEG or WebP)")]
WidthOption = Annotated[int | None, typer.Option(help="resize the picture to this width first")]
HeightOption = Annotated[int | None, typer.Option(help="likewise")]
ROUND_TRIPS = {
    "latents": "Draw a picture beside the channels of its latent.",
    "roundtrip": "Draw a picture before and after the autoencoder, and the error.",
}
COMPARED = "karras,exponential,linspace,trailing,align_your_steps"

# What figures of a drawing take around the keywords of text to image: name -> (default, option)
AROUND: dict[str, tuple[Any, Any]] = {"model": (DEFAULT_MODEL, ModelOption), **LOADING, "out": (None, FigureOption)}


class Plots(TyperGroup):
    """The group of figures, in which a path is a run."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Put `run` before what is no figure but a path, there or not."""
        first = args[0] if args else ""
        if first not in self.commands and not first.startswith("-") and ("/" in first or Path(first).exists()):
            args = ["run", *args]
        return super().parse_args(ctx, args)


def register(app: typer.Typer, answers: Callable[..., Any]) -> None:
    """Add the figures to the command line; `answers` turns what they raise into messages."""
    what = "Draw figures: schedules, grids, guidance, latents, attention, round trips; or a training run's curves."
    group = typer.Typer(cls=Plots, no_args_is_help=True, rich_markup_mode=None, help=what)
    of_drawings: list[Callable[..., None]] = [guidance, attention]
    group.command()(answers(schedule))
    group.command()(answers(sigmas))
    for name, says in ROUND_TRIPS.items():
        group.command(name)(answers(of_round_trip(name, says)))
    for command in of_drawings:
        group.command()(answers(asking(command, text_to_image, AROUND, without=("count", "batch_size"))))
    group.command("run")(answers(plot_run))
    app.add_typer(group, name="plot")


def schedule(model: WhoseOption = None, out: FigureOption = None) -> None:
    """Draw the noise a model was trained on: betas, alphas_cumprod, sigma."""
    out = writable(out, "schedule")
    from safelight.pipeline.seeing.figures import save_figure, schedule_figure

    typer.echo(save_figure(schedule_figure(schedule_of(model)), out))


def sigmas(
    grids: Annotated[
        str, typer.Option(help="names of grids, with commas between; see `safelight samplers`")
    ] = COMPARED,
    steps: Annotated[int, typer.Option(help="number of steps")] = 20,
    model: WhoseOption = None,
    out: FigureOption = None,
) -> None:
    """Draw several grids together: how sigma falls, and where."""
    out = writable(out, "sigmas")
    from safelight.diffusion.grids import find
    from safelight.pipeline.seeing.figures import save_figure, sigmas_figure

    names = [find(name.strip()).name for name in grids.split(",") if name.strip()]  # before a model is loaded
    typer.echo(save_figure(sigmas_figure(schedule_of(model), names, steps), out))


def of_round_trip(name: str, what: str) -> Callable[..., None]:
    """The command `name`, which draws a figure of a picture's way through an autoencoder; `what` is its help."""

    def command(
        image: ImageArgument,
        model: ModelOption = DEFAULT_MODEL,
        width: WidthOption = None,
        height: HeightOption = None,
        out: FigureOption = None,
    ) -> None:
        """Load the model, send the picture through its autoencoder, and draw what `name` says of the way."""
        out = writable(out, name)
        from safelight.pipeline.loading import load
        from safelight.pipeline.seeing import figures
        from safelight.pipeline.seeing.measuring import round_trip

        draw = {"latents": figures.latents_figure, "roundtrip": figures.roundtrip_figure}[name]
        typer.echo(figures.save_figure(draw(round_trip(load(model), image, width=width, height=height)), out))

    command.__doc__ = what
    return command


def guidance(**given: Any) -> None:
    """Draw how strongly guidance pulls at each step."""
    around, out = prepared(given, "guidance")
    from safelight.pipeline.seeing.figures import guidance_figure, save_figure
    from safelight.pipeline.seeing.measuring import guidance_pulls

    with drawing(**around) as (model, watch):
        pulls = guidance_pulls(model, watch=watch, **given)
    typer.echo(save_figure(guidance_figure(pulls), out))


def attention(**given: Any) -> None:
    """Draw where a picture looked at each word."""
    around, out = prepared(given, "attention")
    from safelight.pipeline.seeing.attention import attention_maps
    from safelight.pipeline.seeing.figures import attention_figure, save_figure

    with drawing(**around) as (model, watch):
        maps = attention_maps(model, watch=watch, **given)
    typer.echo(save_figure(attention_figure(maps), out))


def prepared(given: dict[str, Any], name: str) -> tuple[dict[str, Any], Path]:
    """Check what was asked before anything that takes a while: how to load the model, and where the figure goes."""
    around = {name: given.pop(name) for name in AROUND}
    validate(text_to_image, given)
    return around, writable(around.pop("out"), name)


@contextmanager
def drawing(model: str, **loading: Any) -> Iterator[tuple["LatentDiffusion", "Watch"]]:
    """A loaded model, and the watcher that moves a bar on the terminal."""
    from safelight.pipeline.loading import load

    with Progress(f"loading {model}") as progress:
        yield load(model, **loading), progress.watch


def writable(out: Path | None, name: str) -> Path:
    """Where a figure goes, once it is sure that it can be written there."""
    from safelight.pipeline.seeing.figures import check_figure

    path = Path(f"{name}.png") if out is None else out
    check_figure(path)
    return path


def schedule_of(model: str | None) -> "NoiseSchedule":
    """The noise schedule of a model, or Stable Diffusion's."""
    if model is None:
        from safelight.diffusion.schedule import noise_schedule

        return noise_schedule()
    from safelight.pipeline.loading import load

    return load(model).schedule
