"""`safelight grid` and `safelight morph`: many pictures of one request, and the way from one picture to another."""

import json
from collections.abc import Callable
from itertools import count
from pathlib import Path
from typing import Annotated, Any

import typer

from safelight.app.console import Progress, onlooker, say
from safelight.app.options import DEFAULT_MODEL, LOADING, FolderOption, JsonOption, ModelOption, PreviewOption, asking
from safelight.pipeline.exploring import explore, planned, slug
from safelight.pipeline.morphing import check_way, morph, save_way, settled

WayOption = Annotated[
    Path, typer.Option("--out", "-o", help="a .gif, .webp or .mp4; a .png is a sheet; no ending, a folder")
]
EndArgument = Annotated[str | None, typer.Argument(help="what it should show at the end; by default the same")]
FpsOption = Annotated[float, typer.Option(help="frames shown in a second")]

GRID: dict[str, tuple[Any, Any]] = {
    "model": (DEFAULT_MODEL, ModelOption),
    **LOADING,
    "out": (Path("outputs"), FolderOption),
    "as_json": (False, JsonOption),
}
MORPH: dict[str, tuple[Any, Any]] = {
    "to_prompt": (None, EndArgument),
    "model": (DEFAULT_MODEL, ModelOption),
    **LOADING,
    "out": (Path("morph.gif"), WayOption),
    "fps": (8.0, FpsOption),
    "preview": (False, PreviewOption),
}


def register(app: typer.Typer, answers: Callable[..., Any]) -> None:
    """Add the commands to the command line; `answers` turns what they raise into messages."""

    def grid(**given: Any) -> None:
        """Draw a request at every combination of some options' values, and lay the pictures out on a sheet.

        What lies in the folder by the same request is not drawn again, so a stopped grid goes on where it was.
        """
        around = {name: given.pop(name) for name in GRID}
        draw_grid(given, **around)

    def way(**given: Any) -> None:
        """Draw the way from one prompt or seed to another, as an animation or a sheet."""
        around = {name: given.pop(name) for name in MORPH if name != "to_prompt"}
        draw_way(given, **around)

    app.command("grid")(answers(asking(grid, explore, GRID, without=("count", "batch_size"))))
    app.command("morph")(answers(asking(way, morph, MORPH, without=("count", "to_prompt"))))


def draw_grid(given: dict[str, Any], *, model: str, out: Path, as_json: bool, **loading: Any) -> None:
    """Load, draw what is not there yet, write the sheet, and tell where it is."""
    plan = planned(given)  # before anything that takes a while
    from safelight.pipeline.loading import load
    from safelight.pipeline.pictures import check_folder

    check_folder(out)
    folder = out / f"grid-{slug(given['prompt'] or Path(given['image'] or 'pictures').stem)[:48]}"
    with Progress(f"loading {model}") as progress:
        done = count(2)
        progress.part(1, len(plan))
        drawn = explore(
            load(model, **loading),
            **given,
            folder=folder,
            watch=progress.watch,
            each=lambda cell, total: progress.part(next(done), total),
        )
    sheet = drawn.save_sheet(folder)
    found = sum(cell.found for cell in drawn.cells)
    if as_json:
        rows = [
            {"path": str(cell.path), "found": cell.found, "seed": cell.request["seed"], "place": cell.place}
            for cell in drawn.cells
        ]
        axes = [{"name": axis.name, "labels": axis.labels} for axis in drawn.axes]
        typer.echo(json.dumps({"model": model, "sheet": str(sheet), "axes": axes, "cells": rows}))
        return
    typer.echo(sheet)
    say(
        f"{len(drawn.cells)} pictures, {found} of them from before; "
        f"{drawn.asked - drawn.made} of {drawn.asked} evaluations were shared"
    )


def draw_way(given: dict[str, Any], *, model: str, out: Path, fps: float, preview: bool, **loading: Any) -> None:
    """Load, draw the frames, and write them as the ending of the name says."""
    settled(given)  # before anything that takes a while
    check_way(out, fps)
    from safelight.pipeline.loading import load

    with onlooker(preview, f"loading {model}") as looking:
        loaded = load(model, **loading)
        frames = morph(loaded, watch=looking.watching(loaded), **given)
    first, last = (f"{frames.prompts[k]}, seed {frames.seeds[k]}" for k in (0, -1))
    typer.echo(save_way(frames, out, fps=fps, title=f"{first} \N{RIGHTWARDS ARROW} {last}"))
    say(f"from {first} to {last}")
