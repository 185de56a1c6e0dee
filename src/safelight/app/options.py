"""What commands share: how to load a model, where to write, a task's keywords as options, errors as messages."""

import warnings
from collections.abc import Callable, Collection, Mapping
from functools import wraps
from inspect import Parameter, Signature
from pathlib import Path
from typing import Annotated, Any

import typer

from safelight.app.console import error, warn
from safelight.errors import InputError, SafelightError
from safelight.pipeline.fields import FAST, parameters

DEFAULT_MODEL = "default"  # which ships with the package

ModelOption = Annotated[str, typer.Option("--model", "-m", help="folder, single file or hub id of a model")]
DeviceOption = Annotated[str | None, typer.Option(help="cpu, cuda, mps; by default the best there is")]
DecoderOption = Annotated[
    str | None, typer.Option(help="folder of a tiny decoder to draw with, from `safelight train decoder`")
]
ControlOption = Annotated[
    str | None, typer.Option(help="file, folder or hub id of a ControlNet, to follow pictures given as --control-image")
]
VaeOption = Annotated[str | None, typer.Option(help="file or folder of another autoencoder")]
LoraOption = Annotated[
    list[str],
    typer.Option(
        "--lora",
        metavar="FILE[:WEIGHT]",
        help="a LoRA to add, by 1 or so much: file, folder or hub id, or a folder of those that <lora:NAME:WEIGHT> in "
        "the prompt asks for; may be repeated",
    ),
]
EmbeddingOption = Annotated[
    list[str],
    typer.Option(
        "--embedding",
        metavar="[WORD=]FILE",
        help="a learned word (textual inversion): file, folder or hub id; may be repeated",
    ),
]
DtypeOption = Annotated[str | None, typer.Option(help="float32, float16 or bfloat16")]
FolderOption = Annotated[Path, typer.Option("--out", "-o", help="folder for the pictures")]
OutOption = Annotated[Path, typer.Option("--out", "-o", help="folder for the pictures, or a name such as fox.png")]
PreviewOption = Annotated[bool, typer.Option("--preview", help="show in the terminal what is coming, at each step")]
JsonOption = Annotated[bool, typer.Option("--json", help="print one JSON object instead of text")]

# How to load a model, beside its name: what `safelight.load` takes
LOADING: dict[str, tuple[Any, Any]] = {
    "device": (None, DeviceOption),
    "dtype": (None, DtypeOption),
    "variant": (None, Annotated[str | None, typer.Option(help="of a folder's files, such as fp16")]),
    "revision": (None, Annotated[str | None, typer.Option(help="branch, tag or commit of a hub id")]),
    "vae": (None, VaeOption),
    "decoder": (None, DecoderOption),
    "control": (None, ControlOption),
    "loras": ((), LoraOption),
    "embeddings": ((), EmbeddingOption),
    "ema": (None, Annotated[bool | None, typer.Option(help="of a file with both: averaged weights or not")]),
    "prediction_type": (
        None,
        Annotated[str | None, typer.Option(help="epsilon, v_prediction or sample, if the model does not say")],
    ),
    "int8": (False, Annotated[bool, typer.Option("--int8", help="linear layers in 8 bits: faster, nearly the same")]),
}


def answers(function: Callable[..., Any]) -> Callable[..., Any]:
    """Turn what a command raises into a message and an exit code."""

    @wraps(function)
    def command(*args: Any, **kwargs: Any) -> None:
        """Run it; wrong usage ends with 2, other errors with 1, Ctrl-C with 130."""
        try:
            with warnings.catch_warnings():
                warnings.showwarning = lambda message, *place: warn(str(message))  # no line of ours under it
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


def as_option(parameter: Parameter) -> Parameter:
    """A task's keyword as a Typer parameter. What is `Any` in Python (a picture, words) is a string here."""
    kind = parameter.annotation.__origin__
    kind = str if kind is Any else kind
    description = field(parameter).description
    positional = parameter.default is Parameter.empty or parameter.name == "prompt"
    info = typer.Argument(help=description) if positional else typer.Option(help=description)
    return Parameter(
        parameter.name, Parameter.KEYWORD_ONLY, default=parameter.default, annotation=Annotated[kind, info]
    )


def field(parameter: Parameter) -> Any:
    """What is said about a keyword: default, bounds, description."""
    return parameter.annotation.__metadata__[0]


def asking(
    command: Callable[..., None],
    task: Callable[..., Any],
    around: Mapping[str, tuple[Any, Any]],
    *,
    without: Collection[str] = (),
) -> Callable[..., None]:
    """Give `command(**given)` the keywords of a task as options, and those of `around`: name -> (default, option).

    The grid, which the sampler's name may hold, is not in `given` unless it was said; with --fast, nor is what the
    preset may choose.
    """
    asked = [p for p in parameters(task).values() if not field(p).exclude and p.name not in without]
    own = [as_option(p) for p in asked]
    others = [Parameter(name, Parameter.KEYWORD_ONLY, default=d, annotation=a) for name, (d, a) in around.items()]
    context = Parameter("context", Parameter.KEYWORD_ONLY, annotation=typer.Context)

    @wraps(command)
    def settling(context: typer.Context, **given: Any) -> None:
        unsaid = {name for name in given if context.get_parameter_source(name).name == "DEFAULT"}  # type: ignore[union-attr]
        left = unsaid & {"grid", *(FAST if given.get("fast") else ())}
        command(**{name: value for name, value in given.items() if name not in left})

    settling.__signature__ = Signature([*own, *others, context])  # type: ignore[attr-defined]
    settling.__annotations__ = {p.name: p.annotation for p in [*own, *others, context]}
    return settling
