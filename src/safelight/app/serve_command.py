"""`safelight serve`: the page and the routes, on this machine."""

import logging
import os
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from safelight.app.console import say
from safelight.app.options import DEFAULT_MODEL, LOADING, FolderOption
from safelight.errors import InputError, MissingPartError

PORT = 7878
TOKEN = "SAFELIGHT_TOKEN"

# What the command takes beside how to load: name -> (default, option)
AROUND: dict[str, tuple[Any, Any]] = {
    "models": (
        (DEFAULT_MODEL,),
        Annotated[
            list[str],
            typer.Option("--model", "-m", help="folder, single file or hub id of a model to offer; may be repeated"),
        ],
    ),
    **LOADING,
    "out": (Path("outputs"), FolderOption),
    "format": ("png", Annotated[Literal["png", "jpeg", "webp"], typer.Option(help="of the pictures' files")]),
    "wildcards": (None, Annotated[Path | None, typer.Option(help="folder of .txt files for __name__ in prompts")]),
    "styles_file": (None, Annotated[Path | None, typer.Option(help="where styles stand: name,prompt,negative_prompt")]),
    "host": ("127.0.0.1", Annotated[str, typer.Option(help="address to listen at; others than this machine's ask for "
                                                           f"a token in {TOKEN}")]),
    "port": (PORT, Annotated[int, typer.Option(min=1, max=65535, help="port to listen at")]),
    "names": ((), Annotated[list[str], typer.Option("--name", help="a further name by which this machine is asked")]),
}  # fmt: skip


def register(app: typer.Typer, answers: Callable[..., Any]) -> None:
    """Add the command to the command line; `answers` turns what it raises into messages."""
    app.command("serve")(answers(serve_command()))


def serve_command() -> Callable[..., Any]:
    """The command, with its options."""
    from inspect import Parameter, Signature

    def serve(**given: Any) -> None:
        """Draw for a page in the browser, and for programs that ask over HTTP, until Ctrl-C."""
        listen(**given)

    options = [Parameter(name, Parameter.KEYWORD_ONLY, default=d, annotation=a) for name, (d, a) in AROUND.items()]
    serve.__signature__ = Signature(options)  # type: ignore[attr-defined]
    serve.__annotations__ = {option.name: option.annotation for option in options}
    return serve


def listen(
    *,
    models: list[str],
    out: Path,
    format: str,
    wildcards: Path | None,
    styles_file: Path | None,
    host: str,
    port: int,
    names: list[str],
    **loading: Any,
) -> None:
    """Make the server, and let it run until someone stops it."""
    missing = [name for name in ("fastapi", "uvicorn") if find_spec(name) is None]
    if missing:
        raise MissingPartError(f"the server needs {' and '.join(missing)}", remedy='pip install "safelight[server]"')
    token = os.environ.get(TOKEN) or None
    from safelight.app.server.darkroom import Darkroom
    from safelight.app.server.gallery import Gallery
    from safelight.app.server.guard import OWN_NAMES
    from safelight.app.server.jobs import Jobs
    from safelight.app.server.routes import create_app
    from safelight.pipeline.pictures import check_folder

    if host not in OWN_NAMES and token is None:
        what = f"everyone who reaches {host} could draw here"
        raise InputError(what, remedy=f"set a token: {TOKEN}=… safelight serve --host {host}")
    check_folder(out)
    own = {"wildcards": wildcards, "styles_file": styles_file}
    fixed = {name: path for name, path in own.items() if path is not None}
    darkroom = Darkroom(Gallery(out), models, loading=loading, format=format)
    say(f"loading {models[0]}")
    darkroom.warm()
    jobs = Jobs(darkroom.draw)
    darkroom.changed = jobs.changed
    app = create_app(jobs, darkroom, host=host, names=names, token=token, fixed=fixed)
    address = f"http://{'localhost' if host in OWN_NAMES else f'[{host}]' if ':' in host else host}:{port}"
    say(f"Safelight draws at {address}, pictures go to {out}. Stop with Ctrl-C.")
    run(app, jobs, host, port)


def run(app: Any, jobs: Any, host: str, port: int) -> None:
    """Listen until a signal comes. Raises InputError where the port is taken."""
    import uvicorn

    class Server(uvicorn.Server):
        def handle_exit(self, *signal: Any) -> None:
            """Let those who listen to events go, or the server would wait for them."""
            jobs.close()
            logging.getLogger("uvicorn.error").disabled = True  # a second signal would be told as a traceback
            super().handle_exit(*signal)

    settings = uvicorn.Config(app, host=host, port=port, log_level="warning", access_log=False, server_header=False,
                              timeout_graceful_shutdown=10)  # fmt: skip
    server = Server(settings)
    try:
        server.run()
    except KeyboardInterrupt:  # the signal again, which uvicorn hands on when all is done
        say("stopped")
    except SystemExit:  # which uvicorn raises after it has logged why
        raise InputError(f"nothing can listen at {host}, port {port}", remedy="name another by --port") from None
