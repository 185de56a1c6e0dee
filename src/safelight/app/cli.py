"""The command line. `safelight "a red fox"` draws; `safelight --help` lists the rest.

The drawing commands are made from the tasks in `pipeline.tasks`: a keyword there is an option here. Nothing heavy is
imported before a command runs, so that help answers at once. Exit codes: 0 done, 1 an error, 2 wrong usage, 130 Ctrl-C.
"""

import json
import re
import sys
from collections.abc import Callable
from functools import wraps
from inspect import Parameter, Signature
from pathlib import Path
from typing import Annotated, Any

import typer

from safelight import __version__
from safelight.app import evaluate_command, training_commands
from safelight.app.console import Progress, error, say, table
from safelight.errors import InputError, SafelightError
from safelight.pipeline.fields import parameters, validate
from safelight.pipeline.tasks import TASKS

DEFAULT_MODEL = "random"

app = typer.Typer(
    no_args_is_help=True,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    help=f'Safelight {__version__}: latent diffusion. Draw with: safelight "a red fox in the snow"',
)

ModelOption = Annotated[str, typer.Option("--model", "-m", help="folder, single file or hub id of a model")]
DeviceOption = Annotated[str | None, typer.Option(help="cpu, cuda, mps; by default the best there is")]
DtypeOption = Annotated[str | None, typer.Option(help="float32, float16 or bfloat16")]
OutOption = Annotated[Path, typer.Option("--out", "-o", help="folder for the pictures")]
JsonOption = Annotated[bool, typer.Option("--json", help="print one JSON object instead of text")]

# How to load a model, beside its name: what `safelight.load` takes
LOADING: dict[str, tuple[Any, Any]] = {
    "device": (None, DeviceOption),
    "dtype": (None, DtypeOption),
    "variant": (None, Annotated[str | None, typer.Option(help="of a folder's files, such as fp16")]),
    "revision": (None, Annotated[str | None, typer.Option(help="branch, tag or commit of a hub id")]),
    "vae": (None, Annotated[str | None, typer.Option(help="file or folder of another autoencoder")]),
    "ema": (None, Annotated[bool | None, typer.Option(help="of a file with both: averaged weights or not")]),
    "prediction_type": (
        None,
        Annotated[str | None, typer.Option(help="epsilon, v_prediction or sample, if the model does not say")],
    ),
}
# What every drawing command takes around its task's own keywords: name -> (default, option)
AROUND: dict[str, tuple[Any, Any]] = {
    "model": (DEFAULT_MODEL, ModelOption),
    **LOADING,
    "out": (Path("outputs"), OutOption),
    "as_json": (False, JsonOption),
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


def answers(function: Callable[..., Any]) -> Callable[..., Any]:
    """Turn what a command raises into a message and an exit code."""

    @wraps(function)
    def command(*args: Any, **kwargs: Any) -> None:
        try:
            function(*args, **kwargs)
        except SafelightError as failure:
            error(failure.what, failure.remedy)
            raise typer.Exit(2 if isinstance(failure, InputError) else 1) from None
        except BrokenPipeError:  # whoever read the output has left, as `head` does; click ends quietly
            raise
        except OSError as failure:  # a full disk, a lost mount, a file that may not be read
            error(str(failure), "check the disk's space and the permissions")
            raise typer.Exit(1) from None
        except KeyboardInterrupt:
            error("stopped", "nothing was left half written")
            raise typer.Exit(130) from None

    return command


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

    own = [as_option(p) for p in parameters(task).values() if not _field(p).exclude]
    around = [Parameter(name, Parameter.KEYWORD_ONLY, default=d, annotation=a) for name, (d, a) in AROUND.items()]
    command.__signature__ = Signature(own + around)  # type: ignore[attr-defined]
    command.__annotations__ = {p.name: p.annotation for p in own + around}
    command.__doc__ = (task.__doc__ or "").split("\n\n")[0]
    return answers(command)


def as_option(parameter: Parameter) -> Parameter:
    """A task's keyword as a Typer parameter. What is `Any` in Python (a picture, words) is a string here."""
    kind = parameter.annotation.__origin__
    kind = str if kind is Any else kind
    description = _field(parameter).description
    positional = parameter.default is Parameter.empty or parameter.name == "prompt"
    info = typer.Argument(help=description) if positional else typer.Option(help=description)
    return Parameter(
        parameter.name, Parameter.KEYWORD_ONLY, default=parameter.default, annotation=Annotated[kind, info]
    )


def _field(parameter: Parameter) -> Any:
    return parameter.annotation.__metadata__[0]


def draw(
    task: Callable[..., Any],
    given: dict[str, Any],
    *,
    model: str,
    out: Path,
    as_json: bool,
    **loading: Any,
) -> None:
    """Load, draw with a progress bar, write PNGs, and tell where they are."""
    validate(task, given)  # before anything that takes a while
    from safelight.pipeline.loading import load
    from safelight.pipeline.pictures import check_folder, save_png

    check_folder(out)
    if model == "random":
        say(
            "There is no trained default model yet: drawing with an untrained stand-in, so expect coloured noise.\n"
            "Name a model of yours with --model."
        )
    with Progress(f"loading {model}") as progress:
        pictures = task(load(model, **loading), watch=progress.watch, **given)
    stem = file_stem(given.get("prompt") or Path(str(given.get("image", "picture"))).stem)
    rows = []
    for image, seed, prompt in zip(pictures.images, pictures.seeds, pictures.prompts, strict=True):
        path = save_png(image, out / f"{stem}-{seed}.png")
        rows.append({"path": str(path), "seed": seed, "prompt": prompt, "width": image.width, "height": image.height})
        if not as_json:
            typer.echo(path)
            if prompt != given["prompt"]:
                say(prompt or "(no words)")
    if as_json:
        typer.echo(json.dumps({"model": model, "pictures": rows}))


def file_stem(words: str) -> str:
    """Words as the beginning of a file's name."""
    return re.sub(r"\W+", "-", words.lower()).strip("-")[:48].strip("-") or "picture"


for _name, _task in TASKS.items():
    app.command(_name.replace("_to_", "2"))(drawing_command(_task))


@app.command()
@answers
def convert(
    source: Annotated[str, typer.Argument(help="folder, single file or hub id")],
    target: Annotated[Path, typer.Argument(help="a new folder, or a name that ends in .safetensors")],
    dtype: Annotated[str | None, typer.Option(help="store in another precision; by default the source's")] = None,
    prediction_type: Annotated[
        str | None, typer.Option(help="epsilon or v_prediction, if the file does not say")
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Rewrite a model as a diffusers folder, or as a single file in the CompVis layout."""
    from safelight.checkpoint.convert import convert as rewrite

    rewrite(source, target, dtype=dtype, prediction_type=prediction_type)
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

COMMANDS = {command.name or command.callback.__name__ for command in app.registered_commands if command.callback}
COMMANDS |= {group.name for group in app.registered_groups if group.name}
