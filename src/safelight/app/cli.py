"""The command line. `safelight "a red fox"` draws; `safelight --help` lists the rest.

The drawing commands are made from the tasks in `pipeline.tasks`: a keyword there is an option here. Nothing heavy is
imported before a command runs, so that help answers at once. Exit codes: 0 done, 1 an error, 2 wrong usage, 130 Ctrl-C.
"""

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from safelight import __version__
from safelight.app import (
    evaluate_command,
    exploring_commands,
    plot_commands,
    recipe_commands,
    seeing_commands,
    serve_command,
    training_commands,
)
from safelight.app.console import onlooker, say, table
from safelight.app.options import (
    DEFAULT_MODEL,
    LOADING,
    JsonOption,
    LoraOption,
    ModelOption,
    OutOption,
    PreviewOption,
    VaeOption,
    answers,
    asking,
)
from safelight.pipeline.fields import validate
from safelight.pipeline.files import file_stem
from safelight.pipeline.tasks import TASKS

app = typer.Typer(
    no_args_is_help=True,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    help=f'Safelight {__version__}: latent diffusion. Draw with: safelight "a red fox in the snow"',
)

# What every drawing command takes around its task's own keywords: name -> (default, option)
AROUND: dict[str, tuple[Any, Any]] = {
    "model": (DEFAULT_MODEL, ModelOption),
    **LOADING,
    "out": (Path("outputs"), OutOption),
    "format": ("png", Annotated[Literal["png", "jpeg", "webp"], typer.Option(help="of the pictures' files")]),
    "metadata": (True, recipe_commands.MetadataOption),
    "as_json": (False, JsonOption),
    "preview": (False, PreviewOption),
}


def main() -> None:
    """Entry point of `safelight`.

    Words that are no command are a prompt: `safelight "a fox"` is `safelight text2image "a fox"`.
    """
    arguments = sys.argv[1:]
    if arguments and arguments[0] not in COMMANDS | {
        "--help",
        "--version",
        "--install-completion",
        "--show-completion",
    }:
        arguments = ["text2image", *arguments]
    app(arguments, prog_name="safelight")


@app.callback(invoke_without_command=True)
def root(version: Annotated[bool, typer.Option("--version", help="print the version")] = False) -> None:
    """Print the version if asked; everything else is a command."""
    if version:
        typer.echo(__version__)


def drawing_command(task: Callable[..., Any]) -> Callable[..., Any]:
    """The command of a task: its required keywords as arguments, the others as options, and how to load and save."""

    def command(**given: Any) -> None:
        around = {name: given.pop(name) for name in AROUND}
        draw(task, given, **around)

    command.__doc__ = (task.__doc__ or "").split("\n\n")[0]
    return answers(asking(command, task, AROUND))


def draw(
    task: Callable[..., Any],
    given: dict[str, Any],
    *,
    model: str,
    out: Path,
    format: str,
    metadata: bool,
    as_json: bool,
    preview: bool,
    **loading: Any,
) -> None:
    """Load, draw with a progress bar, or with previews, write files, and tell where they are."""
    validate(task, given)  # before anything that takes a while
    from safelight.pipeline.loading import load
    from safelight.pipeline.pictures import check_folder, folder_of
    from safelight.pipeline.recipes.adapters import named

    check_folder(folder_of(out))
    given, loading["loras"] = named(given, loading["loras"])
    if model == "random":
        say("Drawing with an untrained stand-in: expect coloured noise.")
    with onlooker(preview, f"loading {model}") as looking:
        loaded = load(model, **loading)
        pictures = task(loaded, watch=looking.watching(loaded), **given)
    stem = file_stem(given.get("prompt") or given.get("label") or Path(str(given.get("image", task.__name__))).stem)
    rows = []
    paths = pictures.save(out, stem, format=format, metadata=metadata)
    for path, image, seed, prompt in zip(paths, pictures.images, pictures.seeds, pictures.prompts, strict=True):
        rows.append({"path": str(path), "seed": seed, "prompt": prompt, "width": image.width, "height": image.height})
        if not as_json:
            typer.echo(path)
            if prompt != given.get("prompt"):
                say(prompt or "(no words)")
    if as_json:
        typer.echo(json.dumps({"model": model, "pictures": rows}))


for _name, _task in TASKS.items():
    app.command(_name.replace("_to_", "2").replace("_", "-"))(drawing_command(_task))


@app.command()
@answers
def convert(
    source: Annotated[str, typer.Argument(help="folder, single file or hub id")],
    target: Annotated[Path, typer.Argument(help="a new folder, or a name that ends in .safetensors")],
    dtype: Annotated[str | None, typer.Option(help="store in another precision; by default the source's")] = None,
    prediction_type: Annotated[
        str | None, typer.Option(help="epsilon or v_prediction, if the file does not say")
    ] = None,
    vae: VaeOption = None,
    loras: LoraOption = [],  # noqa: B006  # typer's way to say none
    overwrite: Annotated[bool, typer.Option("--overwrite", help="replace a model that is there already")] = False,
    as_json: JsonOption = False,
) -> None:
    """Rewrite a model as a diffusers folder, or as a single file in the CompVis layout."""
    from safelight.checkpoint.convert import convert as rewrite

    rewrite(source, target, dtype=dtype, prediction_type=prediction_type, vae=vae, loras=loras, overwrite=overwrite)
    typer.echo(json.dumps({"source": source, "target": str(target)}) if as_json else target)


@app.command()
@answers
def tokens(
    text: Annotated[str, typer.Argument(help="the prompt to take apart")],
    model: Annotated[
        str | None, typer.Option("--model", "-m", help="a model whose tokenizer to use; by default CLIP's")
    ] = None,
    steps: Annotated[int, typer.Option(help="number of steps, for what changes on the way")] = 30,
    syntax: Annotated[str, typer.Option(help="a1111, comfyui, compel or plain")] = "a1111",
    as_json: JsonOption = False,
) -> None:
    """Show what is made of a prompt: tokens with their weights, chunks and branches, and what each step sees."""
    from safelight.app.reading import read_prompt

    read = read_prompt(text, steps, syntax, model)
    if as_json:
        typer.echo(json.dumps(read))
        return
    table(read["tokens"])
    if len(read["steps"]) > 1:
        typer.echo()
        table(read["steps"])
    for remark in read["remarks"]:
        say(remark)


@app.command()
@answers
def models(as_json: JsonOption = False) -> None:
    """List the models in the hub's cache on this machine."""
    from safelight.app.examining import cached_models

    rows = cached_models()
    if as_json:
        typer.echo(json.dumps(rows))
    elif rows:
        table(rows)
    else:
        say("No models in the hub's cache. Give --model a folder, a single file, or a hub id to download.")


@app.command()
@answers
def doctor(as_json: JsonOption = False) -> None:
    """Show what Safelight runs on: versions, devices, threads, paths, free space."""
    from safelight.app.examining import examine

    facts = examine()
    if as_json:
        typer.echo(json.dumps(facts))
    else:
        table([{"what": what, "is": str(value)} for what, value in facts.items()])


@app.command()
@answers
def samplers(as_json: JsonOption = False) -> None:
    """List the samplers and grids to choose from."""
    from safelight.diffusion.grids import GRIDS
    from safelight.diffusion.samplers import SAMPLERS

    rows = [{"option": "--sampler", "name": one.name, "label": one.label} for one in SAMPLERS.values()]
    rows += [{"option": "--grid", "name": one.name, "label": one.label} for one in GRIDS.values()]
    if as_json:
        typer.echo(json.dumps(rows))
    else:
        table(rows)


training_commands.register(app, answers)
evaluate_command.register(app, answers)
seeing_commands.register(app, answers)
plot_commands.register(app, answers)
recipe_commands.register(app, answers)
exploring_commands.register(app, answers)
serve_command.register(app, answers)

COMMANDS = {command.name or command.callback.__name__ for command in app.registered_commands if command.callback}
COMMANDS |= {group.name for group in app.registered_groups if group.name}
