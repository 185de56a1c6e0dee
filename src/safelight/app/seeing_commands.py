"""`safelight film` and `safelight latent-rgb`: commands that look inside while a picture develops."""

from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import typer

from safelight.app.console import onlooker, table
from safelight.app.options import DEFAULT_MODEL, LOADING, ModelOption, PreviewOption, asking
from safelight.pipeline.fields import validate
from safelight.pipeline.tasks import text_to_image

FilmOption = Annotated[Path, typer.Option("--out", "-o", help="a .gif, .webp or .mp4; a .png is a strip of steps")]
FpsOption = Annotated[float, typer.Option(help="steps shown in a second")]
ColumnsOption = Annotated[int, typer.Option(help="steps shown on a strip, at most")]

# What the film command takes around the keywords of text to image: name -> (default, option)
AROUND: dict[str, tuple[Any, Any]] = {
    "model": (DEFAULT_MODEL, ModelOption),
    **LOADING,
    "out": (Path("film.gif"), FilmOption),
    "fps": (8.0, FpsOption),
    "columns": (10, ColumnsOption),
    "preview": (False, PreviewOption),
}


def register(app: typer.Typer, answers: Callable[..., Any]) -> None:
    """Add the commands to the command line; `answers` turns what they raise into messages."""
    app.command("film")(answers(film_command()))
    app.command("latent-rgb")(answers(latent_rgb))


def film_command() -> Callable[..., Any]:
    """The command `film`: text to image's keywords as options, and where the film goes."""

    def film(**given: Any) -> None:
        """Film a picture as it develops: x_t as the network sees it, and the x0 it foresees, at every step."""
        around = {name: given.pop(name) for name in AROUND}
        shoot(given, **around)

    return asking(film, text_to_image, AROUND, without=("count", "batch_size"))


def shoot(
    given: dict[str, Any], *, model: str, out: Path, fps: float, columns: int, preview: bool, **loading: Any
) -> None:
    """Draw one picture, keep every step, and write the film."""
    validate(text_to_image, given)  # before anything that takes a while
    from safelight.pipeline.loading import load
    from safelight.pipeline.recipes.adapters import named
    from safelight.pipeline.seeing.film import check_film, film, save_film

    check_film(out, fps, columns)
    given, loading["loras"] = named(given, loading["loras"])
    with onlooker(preview, f"loading {model}") as looking:
        loaded = load(model, **loading)
        shot = film(loaded, watch=looking.watching(loaded), **given)
    typer.echo(save_film(shot, out, fps=fps, columns=columns))


def latent_rgb(
    folder: Annotated[Path, typer.Argument(help="folder of a model, or of an autoencoder alone")],
) -> None:
    """Fit the colours that previews show to a model's autoencoder, and store them in its config.json."""
    from safelight.pipeline.seeing.preview import store_latent_rgb

    rows = store_latent_rgb(folder)
    names = [f"channel {k}" for k in range(len(rows) - 1)] + ["to add"]
    table([{"": name} | dict(zip("RGB", row, strict=True)) for name, row in zip(names, rows, strict=True)])
