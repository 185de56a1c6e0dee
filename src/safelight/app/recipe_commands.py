"""`safelight info` and `safelight again`: what a picture's file says of how it was made, and drawing it again."""

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Annotated, Any

import typer

from safelight.app.console import onlooker, say, table, warn
from safelight.app.options import (
    ControlOption,
    DecoderOption,
    DeviceOption,
    DtypeOption,
    EmbeddingOption,
    JsonOption,
    LoraOption,
    OutOption,
    VaeOption,
)

SHOWN = 400  # characters of a value that people are shown; --json has the whole

FileArgument = Annotated[Path, typer.Argument(help="a picture: PNG, JPEG or WebP")]
MetadataOption = Annotated[bool, typer.Option(help="write into the pictures' files how they were made")]


def register(app: typer.Typer, answers: Callable[..., Any]) -> None:
    """Add the commands to the command line; `answers` turns what they raise into messages."""
    app.command()(answers(info))
    app.command()(answers(again))


def info(file: FileArgument, as_json: JsonOption = False) -> None:
    """Show how a picture was made, as its file says: by Safelight, A1111, ComfyUI, InvokeAI or one of their kind."""
    from safelight.pipeline.recipes.reading import read_picture

    reading = read_picture(file)
    facts = {name: getattr(reading, name) for name in ("program", "task", "request", "model", "kept", "remarks")}
    if as_json:
        typer.echo(json.dumps({"file": str(file)} | facts))
        return
    version = reading.recipe.versions["safelight"] if reading.recipe else ""
    head = {"written by": f"{reading.program} {version}".strip(), "task": reading.task}
    model = {f"model {name}": value for name, value in reading.model.items()}
    rows({**head, **reading.request, **model, **(reading.recipe.inputs if reading.recipe else {})})
    if reading.kept:
        typer.echo("\nkept, but not understood:")
        rows(reading.kept)
    for remark in reading.remarks:
        warn(clean(remark))


def rows(values: Mapping[str, Any]) -> None:
    """Names and values as a table; None is left out, and so is what a stranger's file could do to a terminal."""
    shown = {name: value if isinstance(value, str) else json.dumps(value) for name, value in values.items()}
    table([{"what": clean(name), "is": clean(text)} for name, text in shown.items() if text != "null"])


def clean(text: str) -> str:
    """Text that moves no cursor: control characters become U+FFFD; what is long is cut."""
    whole = "".join(sign if sign.isprintable() or sign == "\n" else "\ufffd" for sign in text[:SHOWN])
    return whole + (f" … ({len(text) - SHOWN} more)" if len(text) > SHOWN else "")


def again(
    file: FileArgument,
    seed: Annotated[int | None, typer.Option(min=-1, help="another seed, -1 a fresh one, for a relative")] = None,
    model: Annotated[
        str | None, typer.Option("--model", "-m", help="the model, where it is not found by its hash; or another")
    ] = None,
    image: Annotated[Path | None, typer.Option(help="the picture that it was drawn from, if any")] = None,
    mask: Annotated[Path | None, typer.Option(help="the mask that it was drawn with, if any")] = None,
    class_map: Annotated[Path | None, typer.Option(help="the map of classes that it was drawn from, if any")] = None,
    depth: Annotated[Path | None, typer.Option(help="the map of depths that it was drawn after, if any")] = None,
    control_image: Annotated[Path | None, typer.Option(help="the picture that it was to follow, if any")] = None,
    vae: VaeOption = None,
    decoder: DecoderOption = None,
    control: ControlOption = None,
    loras: LoraOption = [],  # noqa: B006  # typer's way to say none
    without_loras: Annotated[
        bool, typer.Option("--without-loras", help="leave out LoRAs of another program's picture that --lora lacks")
    ] = False,
    embeddings: EmbeddingOption = [],  # noqa: B006
    device: DeviceOption = None,
    dtype: DtypeOption = None,
    out: OutOption = Path("outputs"),
    metadata: MetadataOption = True,
    as_json: JsonOption = False,
) -> None:
    """Draw a picture again from what its file says; one of ours comes out with the same pixels on the same machine.

    Where another program's picture has LoRAs, --lora FILE fills in for the one of its name, by the weight it had there.
    """
    from safelight.pipeline.loading import load
    from safelight.pipeline.pictures import check_folder, folder_of, names_picture
    from safelight.pipeline.recipes.adapters import filled
    from safelight.pipeline.recipes.reading import read_picture
    from safelight.pipeline.recipes.redraw import difference, model_for, redraw, required

    reading = read_picture(file)
    check_folder(folder_of(out))
    inputs = {"image": image, "mask": mask, "class_map": class_map, "depth": depth,
              "control_image": control_image}  # fmt: skip
    required(reading, **inputs)  # before anything that takes a while
    reading, added = filled(reading, loras, without=without_loras)
    with onlooker(False, f"loading {model or reading.model.get('name')}") as looking:
        if model is None:
            more = {"loras": added or None, "embeddings": embeddings or None}
            loaded = model_for(reading, device=device, dtype=dtype, vae=vae, decoder=decoder, control=control, **more)
        else:
            dtype = dtype or reading.model.get("dtype")
            int8 = reading.model.get("int8") is True
            loaded = load(model, device=device, dtype=dtype, vae=vae, decoder=decoder, control=control,
                          loras=added, embeddings=embeddings, int8=int8)  # fmt: skip
        redrawn = redraw(reading, loaded, seed=seed, watch=looking.watching(loaded), **inputs)
    picture, recipe = redrawn.pictures[0], redrawn.pictures.recipes[0]
    stem = f"{file.stem}-{'again' if seed is None else recipe.request['seed']}"
    name = out if names_picture(out) else out / f"{stem}.png"
    path = redrawn.pictures.save(name, metadata=metadata)[0]
    compared = difference(file, picture) if seed is None else ""
    if as_json:
        typer.echo(json.dumps({"path": str(path), "compared": compared, "remarks": redrawn.remarks}))
        return
    typer.echo(path)
    for remark in redrawn.remarks:
        warn(clean(remark))
    if compared:
        say(f"Compared with {file.name}: {compared}.")
