"""What can be asked for. Every task has a route of its name; what it takes is what its command takes.

    POST   /api/tasks/{task}          ask for pictures: 202 and the job, whose `id` is known at once
    GET    /api/tasks                 what can be asked for: each task's body as a JSON schema
    GET    /api/jobs                  all jobs: those that wait, with their places, the one that is drawn, those ended
    GET    /api/jobs/{id}             one; with ?wait=30, as soon as it has ended, or after so many seconds
    DELETE /api/jobs/{id}             stop one
    GET    /api/events                all jobs again whenever something is new, as server-sent events
    GET    /api/pictures              names of the pictures in the folder, the latest first; ?before=NAME goes on
    GET    /api/pictures/{name}       how one was made, as its file says
    POST   /api/read                  the same of a picture that is sent
    GET    /pictures/{name}           the picture itself
    GET    /health                    that the server is there
    POST   /v1/images/generations     as OpenAI's clients ask (openai.py)
    POST   /sdapi/v1/txt2img, ...     as AUTOMATIC1111's clients ask (a1111.py)

Errors are {"error": {"what", "remedy"}}: 422 for a request that cannot be drawn, 404 for what is not there, 503 with
Retry-After where too many wait.
"""

import asyncio
import hmac
import json
import tempfile
import time
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Annotated, Any

from fastapi import Body, FastAPI, Query, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import FileResponse, JSONResponse, StreamingResponse
from fastapi.staticfiles import StaticFiles
from starlette.exceptions import HTTPException

from safelight import __version__
from safelight.app.server import a1111, openai
from safelight.app.server.darkroom import Darkroom
from safelight.app.server.forms import decoded, request_of, schema
from safelight.app.server.gallery import Gallery, reading_of
from safelight.app.server.guard import COOKIE, Guard
from safelight.app.server.jobs import ENDS, Job, Jobs, QueueFullError
from safelight.errors import InputError
from safelight.pipeline.pictures import ENDINGS
from safelight.pipeline.tasks import TASKS

PAGE = Path(__file__).parent / "page"
RETRY_AFTER = "5"  # seconds
LOOK_EVERY = 0.1  # seconds, for what is new
KEEP_ALIVE = 15.0  # seconds between two signs of life of a stream
Json = dict[str, Any]


class AbsentError(InputError):
    """What a route names is not there."""


def create_app(
    jobs: Jobs,
    darkroom: Darkroom,
    *,
    host: str = "127.0.0.1",
    names: Sequence[str] = (),
    token: str | None = None,
    fixed: Mapping[str, Any] | None = None,
) -> Guard:
    """The server as an ASGI application.

    Args:
        jobs: the queue; it is opened when the server starts, and closed when it stops.
        darkroom: what the queue draws with.
        host: the address that it will listen at.
        names: further names that this machine is asked by.
        token: what whoever asks must know, if anything.
        fixed: keywords that every task gets, such as `wildcards`.
    """

    @asynccontextmanager
    async def life(app: FastAPI) -> AsyncIterator[None]:
        jobs.open()
        yield
        await asyncio.to_thread(jobs.join)

    app = FastAPI(title="Safelight", version=__version__, lifespan=life, docs_url=None, redoc_url=None)
    answers(app)
    add_jobs(app, jobs)
    add_pictures(app, darkroom.gallery)
    add_page(app, token)

    @app.get("/health")
    def health() -> Json:
        return {"status": "ok", "version": __version__}

    @app.get("/api/tasks")
    def tasks() -> Json:
        known = {name: list(tasks) for name, tasks in darkroom.tasks.items()}
        shapes, controlled = {task: schema(task) for task in TASKS}, darkroom.loading.get("control") is not None
        return {"models": darkroom.models, "tasks": shapes, "tasks_of": known, "controlled": controlled}

    for task in TASKS:
        route(app, task, jobs, darkroom, fixed or {})
    openai.add_routes(app, jobs, darkroom, fixed or {})
    a1111.add_routes(app, jobs, darkroom, fixed or {})
    return Guard(app, host=host, token=token, names=names)


def add_jobs(app: FastAPI, jobs: Jobs) -> None:
    """Add what tells of jobs, and stops them."""

    @app.get("/api/jobs")
    def all_jobs() -> list[Json]:
        return jobs.told(previews=False)

    @app.get("/api/jobs/{name}")
    async def one_job(name: str, wait: Annotated[float, Query(ge=0, le=600)] = 0) -> Json:
        job = found(jobs, name)
        end = time.monotonic() + wait
        while job.state not in ENDS and not jobs.closed and time.monotonic() < end:
            await asyncio.sleep(LOOK_EVERY)
        return next(told for told in jobs.told() if told["id"] == job.id)

    @app.delete("/api/jobs/{name}")
    def stop_job(name: str) -> Json:
        found(jobs, name)
        return jobs.stop(name).told()

    @app.get("/api/events")
    async def events(request: Request) -> StreamingResponse:
        return StreamingResponse(news(jobs, request), media_type="text/event-stream",
                                 headers={"cache-control": "no-store"})  # fmt: skip


def add_pictures(app: FastAPI, gallery: Gallery) -> None:
    """Add the gallery, and what reads a picture that is sent."""

    @app.get("/api/pictures")
    def pictures(before: str | None = None, most: Annotated[int, Query(ge=1, le=1000)] = 60) -> list[str]:
        return gallery.names(before, most)

    @app.get("/api/pictures/{name}")
    def how_made(name: str) -> Json:
        lies(gallery, name)
        return gallery.recipe(name)

    @app.post("/api/read")
    def read(picture: Annotated[str, Body(embed=True)]) -> Json:
        return how_sent(picture)

    @app.get("/pictures/{name}")
    def file(name: str) -> FileResponse:
        path = lies(gallery, name)
        return FileResponse(
            path, media_type=f"image/{ENDINGS[path.suffix.lower()].lower()}", headers={"cache-control": "private"}
        )


def add_page(app: FastAPI, token: str | None) -> None:
    """Add the page, and how it signs in."""

    @app.post("/api/login")
    def login(told: Annotated[str, Body(embed=True, alias="token")]) -> JSONResponse:
        if token is None or not hmac.compare_digest(told.encode(), token.encode()):
            return problem(401, "this is not the token", "it is what the server was started with")
        answer = JSONResponse({})
        answer.set_cookie(COOKIE, token, httponly=True, samesite="strict", max_age=30 * 24 * 3600)
        return answer

    @app.get("/", include_in_schema=False)
    def page() -> FileResponse:
        return FileResponse(PAGE / "index.html")

    app.mount("/page", StaticFiles(directory=PAGE))


def route(app: FastAPI, task: str, jobs: Jobs, darkroom: Darkroom, fixed: Mapping[str, Any]) -> None:
    """Add the route of a task."""

    def ask(body: Annotated[Json, Body()]) -> JSONResponse:
        body = dict(body)
        model = body.pop("model", None)
        if model is not None:
            darkroom.known(str(model))
        request, asked = request_of(task, body, darkroom.gallery, fixed)
        job = Job(task, request, asked, model)
        jobs.add(job)
        return JSONResponse(next(told for told in jobs.told() if told["id"] == job.id), 202)

    described = schema(task)
    named = {"type": "string", "enum": list(darkroom.models), "description": "by default the first"}
    body = described | {"properties": described["properties"] | {"model": named}}
    app.post(
        f"/api/tasks/{task}",
        status_code=202,
        name=task,
        description=described["description"],
        openapi_extra={"requestBody": {"content": {"application/json": {"schema": body}}}},
    )(ask)


def answers(app: FastAPI) -> None:
    """Turn what routes raise into statuses, and words that say what to do."""

    @app.exception_handler(InputError)
    async def refused(request: Request, error: InputError) -> JSONResponse:
        return problem(404 if isinstance(error, AbsentError) else 422, error.what, error.remedy)

    @app.exception_handler(QueueFullError)
    async def full(request: Request, error: QueueFullError) -> JSONResponse:
        return problem(503, error.what, error.remedy, {"retry-after": RETRY_AFTER})

    @app.exception_handler(RequestValidationError)
    async def malformed(request: Request, error: RequestValidationError) -> JSONResponse:
        first = error.errors()[0]
        return problem(422, f"{first['loc'][-1]}: {first['msg']}", "see /openapi.json for what this route takes")

    @app.exception_handler(HTTPException)
    async def other(request: Request, error: HTTPException) -> JSONResponse:
        what = f"there is nothing at {request.url.path[:80]}" if error.status_code == 404 else str(error.detail)
        return problem(error.status_code, what, "see /openapi.json for what there is")

    @app.exception_handler(Exception)
    async def unforeseen(request: Request, error: Exception) -> JSONResponse:
        return problem(500, "something went wrong here", "the server's log says more")


def problem(status: int, what: str, remedy: str, headers: Mapping[str, str] | None = None) -> JSONResponse:
    """An error as every route tells it."""
    return JSONResponse({"error": {"what": what, "remedy": remedy}}, status, headers)


def found(jobs: Jobs, name: str) -> Job:
    """The job of an id. Raises AbsentError."""
    try:
        return jobs.get(name)
    except InputError as error:
        raise AbsentError(error.what, remedy=error.remedy) from None


def lies(gallery: Gallery, name: str) -> Path:
    """Where a picture of the gallery lies. Raises AbsentError."""
    try:
        return gallery.path(name)
    except InputError as error:
        raise AbsentError(error.what, remedy=error.remedy) from None


async def news(jobs: Jobs, request: Request) -> AsyncIterator[str]:
    """All jobs as an event whenever something is new: the newest alone, however slowly someone reads."""
    seen, spoke = -1, time.monotonic()
    while not jobs.closed and not await request.is_disconnected():
        if (version := jobs.version) != seen:
            seen, spoke = version, time.monotonic()
            yield f"data: {json.dumps(jobs.told())}\n\n"
        elif time.monotonic() - spoke > KEEP_ALIVE:
            spoke = time.monotonic()
            yield ": still here\n\n"
        await asyncio.sleep(LOOK_EVERY)


def how_sent(picture: str) -> Json:
    """How a picture was made that is sent as base64 or as a data URL. It is kept nowhere."""
    data = decoded(picture, "picture")
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "picture"
        file.write_bytes(data)
        return reading_of(file)
