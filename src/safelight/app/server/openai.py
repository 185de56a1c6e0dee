"""The routes that OpenAI's clients call, over the same queue, so that programs written for them draw here.

    POST /v1/images/generations    pictures from words, in the answer itself; whoever hangs up stops the drawing
    GET  /v1/models                what may be named as `model`

Steps, seed, sampler and all other fields of `text_to_image` stand beside OpenAI's own (`extra_body` in its Python
client), by the names that diffusers has for them too. OpenAI's fields that mean nothing here are passed over.
"""

import base64
import io
import time
from collections.abc import Mapping
from typing import Annotated, Any

from fastapi import Body, FastAPI, Request
from fastapi.responses import JSONResponse
from PIL import Image

from safelight.app.server.darkroom import Darkroom
from safelight.app.server.forms import fields, request_of
from safelight.app.server.jobs import Job, Jobs, QueueFullError
from safelight.errors import InputError
from safelight.pipeline.fields import PEERS_WORDS

PASSED_OVER = {"quality", "style", "background", "moderation", "user", "output_compression", "input_fidelity"}
OWN = {"model", "n", "size", "response_format", "output_format", "stream", "partial_images"} | PASSED_OVER
MOST = 10  # pictures of one request
KINDS = {"png": "PNG", "jpeg": "JPEG", "webp": "WEBP"}


def add_routes(app: FastAPI, jobs: Jobs, darkroom: Darkroom, fixed: Mapping[str, Any]) -> None:
    """Add both routes to the server."""

    @app.get("/v1/models")
    def models() -> dict[str, Any]:
        listed = [{"id": name, "object": "model", "created": 0, "owned_by": "safelight"} for name in darkroom.models]
        return {"object": "list", "data": listed}

    @app.post("/v1/images/generations")
    async def generations(request: Request, body: Annotated[dict[str, Any], Body()]) -> JSONResponse:
        """Draw, and answer with the pictures, or with what was wrong."""
        try:
            form, kind, asked = said(body)
            model = None if body.get("model") is None else darkroom.known(str(body["model"]))
            keywords, shown = request_of("text_to_image", asked, darkroom.gallery, fixed)
            job = Job("text_to_image", keywords, shown, model)
            jobs.add(job)
        except InputError as error:
            return problem(400, f"{error.what}: {error.remedy}", "invalid_request_error")
        except QueueFullError as error:
            return problem(503, f"{error.what}: {error.remedy}", "server_error")
        await jobs.ended(job, request.is_disconnected)
        if job.state != "done":
            told = job.error or {"what": "the drawing was stopped", "remedy": "ask again"}
            return problem(500, f"{told['what']}: {told['remedy']}", "server_error")
        base = str(request.base_url)
        made = [{"url": f"{base}pictures/{name}"} if form == "url" else {"b64_json": read(darkroom, name, kind)}
                for name in job.pictures]  # fmt: skip
        return JSONResponse({"created": int(time.time()), "data": made, "output_format": kind})


def said(body: Mapping[str, Any]) -> tuple[str, str, dict[str, Any]]:
    """In what form pictures are wanted, as files of which kind, and the keywords of `text_to_image`."""
    form, kind, size = (
        body.get("response_format", "b64_json"),
        body.get("output_format", "png"),
        body.get("size", "auto"),
    )
    if form not in ("b64_json", "url"):
        raise InputError(f"response_format={form!r}", remedy="use b64_json or url")
    if kind not in KINDS:
        raise InputError(f"output_format={kind!r}", remedy="use png, jpeg or webp")
    if body.get("stream"):
        raise InputError("stream=true is not answered here", remedy="leave it out, or listen to /api/events")
    count = body.get("n", 1)
    if not isinstance(count, int) or not 1 <= count <= MOST:
        raise InputError(f"n={count!r}", remedy=f"ask for 1 to {MOST} pictures")
    asked: dict[str, Any] = {} if count == 1 else {"count": count}
    if size not in (None, "auto"):
        width, times, height = str(size).partition("x")
        if not (times and width.isdecimal() and height.isdecimal()):
            raise InputError(f"size={size!r}", remedy="say it in pixels, such as 512x512, or auto")
        asked |= {"width": int(width), "height": int(height)}
    known = fields("text_to_image")
    for name, value in body.items():
        if name in known or name not in OWN:  # what is neither is refused by its name
            asked[PEERS_WORDS.get(name, name)] = value
    return form, kind, {name: value for name, value in asked.items() if value is not None}


def read(darkroom: Darkroom, name: str, kind: str) -> str:
    """A picture of the gallery in base64; as it lies there, with its recipe, if it is of the kind that is wanted."""
    path = darkroom.gallery.path(name)
    if path.suffix[1:].lower().replace("jpg", "jpeg") == kind:
        return base64.b64encode(path.read_bytes()).decode()
    file = io.BytesIO()
    with Image.open(path) as image:
        image.save(file, format=KINDS[kind], **({} if kind == "png" else {"quality": 95}))
    return base64.b64encode(file.getvalue()).decode()


def problem(status: int, message: str, kind: str) -> JSONResponse:
    """An error in OpenAI's form."""
    told = {"message": message, "type": kind, "param": None, "code": None}
    headers = {"retry-after": "5"} if status == 503 else None
    return JSONResponse({"error": told}, status, headers)
