"""The routes of AUTOMATIC1111's web API, over the same queue, so that programs written for it draw here.

    POST /sdapi/v1/txt2img, /img2img      pictures in the answer itself; whoever hangs up stops the drawing
    GET  /sdapi/v1/progress               how far it is, with a preview; POST /interrupt, /skip stop it
    GET  /sdapi/v1/options                and POST: which model is asked for where a request names none
    GET  /sdapi/v1/samplers, /schedulers, /sd-models, /loras, ...   what may be named
    POST /sdapi/v1/png-info               how a picture was made that is sent

A request is read as the text that A1111 would have written into its picture (pipeline/recipes/infotext.py), so that
sampler, schedule, noise, seeds, weights and hires fix are A1111's. What is asked for and is not here (scripts, face
restoration, tiling) is refused by its name; fields that mean nothing here are passed over, as A1111 does, and so is
`inpainting_fill`: what is masked is drawn from what was there.
"""

import base64
import json
import tempfile
from collections.abc import Mapping
from contextlib import suppress
from math import isfinite
from pathlib import Path
from typing import Annotated, Any

from fastapi import Body, FastAPI, Request
from fastapi.responses import JSONResponse

from safelight.app.server.darkroom import Darkroom
from safelight.app.server.forms import decoded, request_of
from safelight.app.server.gallery import infotext_of
from safelight.app.server.jobs import Job, Jobs, QueueFullError
from safelight.diffusion.grids import GRIDS
from safelight.diffusion.samplers import SAMPLERS
from safelight.errors import InputError
from safelight.pipeline.fields import validate
from safelight.pipeline.hires import LATENT
from safelight.pipeline.recipes.infotext import of_fields
from safelight.pipeline.recipes.second_pass import UPSCALERS
from safelight.pipeline.tasks import TASKS

VERSION = "v1.10.1"  # whose rules are followed
STEPS, SCALE, STRENGTH = 50, 7.0, 0.75  # what A1111 takes where nothing is said; sizes are then the model's own
MOST, MOST_SIDE = 64, 8192  # pictures of one request, and their pixels a side
LARGEST = 2**63
# Fields of a request -> fields of the text in A1111's pictures
TEXT = {"sampler_name": "Sampler", "scheduler": "Schedule type", "subseed": "Variation seed", "eta": "Eta",
        "subseed_strength": "Variation seed strength", "s_churn": "Sigma churn", "s_tmin": "Sigma tmin",
        "s_tmax": "Sigma tmax", "s_noise": "Sigma noise"}  # fmt: skip
# and of its settings
SETTINGS = {"eta_noise_seed_delta": "ENSD", "emphasis": "Emphasis"}
RANDN = ("CPU", "NV", "GPU")
ABSENT = {"restore_faces": "face restoration", "tiling": "tiling", "script_name": "scripts",
          "alwayson_scripts": "scripts", "refiner_checkpoint": "the refiner",
          "hr_checkpoint_name": "another model for the second pass"}  # fmt: skip
KNOWN = (*SETTINGS, "sd_model_checkpoint", "randn_source", "CLIP_stop_at_last_layers")
OPTIONS = ("sampler_options", "grid_options", "hires_options")
SECOND = {"hr_upscaler": "Hires upscaler", "hr_sampler_name": "Hires sampler", "hr_scheduler": "Hires schedule type",
          "hr_prompt": "Hires prompt", "hr_negative_prompt": "Hires negative prompt"}  # fmt: skip
COUNTS = ("hr_second_pass_steps", "hr_resize_x", "hr_resize_y")
EMPTY = ("sd-vae", "hypernetworks", "face-restorers", "realesrgan-models", "prompt-styles")


def add_routes(app: FastAPI, jobs: Jobs, darkroom: Darkroom, fixed: Mapping[str, Any]) -> None:
    """Add all routes to the server."""
    settings: dict[str, Any] = {"sd_model_checkpoint": Path(darkroom.models[0]).name}
    add_drawing(app, jobs, darkroom, fixed, settings)
    add_progress(app, jobs)
    add_settings(app, darkroom, settings)
    add_lists(app, darkroom)


def add_drawing(
    app: FastAPI, jobs: Jobs, darkroom: Darkroom, fixed: Mapping[str, Any], settings: Mapping[str, Any]
) -> None:
    """Add the two routes that draw."""

    @app.post("/sdapi/v1/txt2img")
    async def txt2img(request: Request, body: Annotated[dict[str, Any], Body()]) -> JSONResponse:
        return await drawn(request, "text_to_image", body)

    @app.post("/sdapi/v1/img2img")
    async def img2img(request: Request, body: Annotated[dict[str, Any], Body()]) -> JSONResponse:
        return await drawn(request, "inpaint" if body.get("mask") else "image_to_image", body)

    async def drawn(request: Request, task: str, body: dict[str, Any]) -> JSONResponse:
        """Draw, and answer with the pictures, or with what was wrong."""
        try:
            own = {**settings, **overridden(body)}
            model = named(own["sd_model_checkpoint"], darkroom)
            wanted = asked(task, body, own)
            laid = {name: wanted.pop(name) for name in OPTIONS if name in wanted}  # for Python callers, and us
            keywords, shown = request_of(task, wanted, darkroom.gallery, fixed)
            keywords |= laid
            fit(keywords, body)
            validate(TASKS[task], keywords)
            job = Job(task, keywords, shown, model, adapt=as_a1111)
            jobs.add(job)
        except InputError as error:
            return problem(422, error.what, error.remedy)
        except QueueFullError as error:
            return problem(503, error.what, error.remedy)
        await jobs.ended(job, request.is_disconnected)
        if job.state != "done":
            told = job.error or {"what": "the drawing was interrupted", "remedy": "ask again"}
            return problem(500, told["what"], told["remedy"])
        files = [darkroom.gallery.path(name) for name in job.pictures]
        images = [base64.b64encode(file.read_bytes()).decode() for file in files]
        echo = {name: value for name, value in body.items() if name not in ("init_images", "mask")}
        return JSONResponse({"images": images, "parameters": echo, "info": json.dumps(about(files, shown, own))})


def add_progress(app: FastAPI, jobs: Jobs) -> None:
    """Add what tells how far the drawing is, and stops it."""

    @app.get("/sdapi/v1/progress")
    def progress() -> dict[str, Any]:
        job = next((told for told in jobs.told() if told["state"] == "drawing"), None)
        preview = job["previews"][0].partition(",")[2] if job and job["previews"] else None
        waiting = sum(told["state"] == "waiting" for told in jobs.told(previews=False))
        state = {"skipped": False, "interrupted": bool(job and job["stopping"]), "job": job["id"] if job else "",
                 "job_count": waiting + (job is not None), "sampling_step": 0, "sampling_steps": 0}  # fmt: skip
        share = job["share"] if job else 0.0
        return {"progress": share, "eta_relative": 0.0, "state": state, "current_image": preview,
                "textinfo": job["doing"] if job else None}  # fmt: skip

    @app.post("/sdapi/v1/interrupt")
    @app.post("/sdapi/v1/skip")
    def interrupt() -> dict[str, Any]:
        for told in jobs.told(previews=False):
            if told["state"] == "drawing":
                jobs.stop(told["id"])
        return {}


def add_settings(app: FastAPI, darkroom: Darkroom, settings: dict[str, Any]) -> None:
    """Add what tells the settings, which count where a request has none of its own, and changes them."""

    @app.get("/sdapi/v1/options")
    def options() -> dict[str, Any]:
        return {"CLIP_stop_at_last_layers": 1, "samples_format": darkroom.format, **settings}

    @app.post("/sdapi/v1/options")
    def set_options(body: Annotated[dict[str, Any], Body()]) -> Any:
        known = {name: value for name, value in body.items() if name in KNOWN and value is not None}
        try:
            named(known.get("sd_model_checkpoint", settings["sd_model_checkpoint"]), darkroom)
            asked("text_to_image", {}, {**settings, **known})
        except InputError as error:
            return problem(422, error.what, error.remedy)
        settings.update(known)
        return None


def add_lists(app: FastAPI, darkroom: Darkroom) -> None:
    """Add what may be named, and how a picture was made that is sent."""

    @app.get("/sdapi/v1/sd-models")
    def models() -> list[dict[str, Any]]:
        names = [Path(name).name for name in darkroom.models]
        return [{"title": name, "model_name": Path(name).stem, "hash": None, "sha256": None, "filename": name,
                 "config": None} for name in names]  # fmt: skip

    @app.get("/sdapi/v1/samplers")
    def samplers() -> list[dict[str, Any]]:
        return [{"name": one.label, "aliases": [name], "options": {}} for name, one in SAMPLERS.items()]

    @app.get("/sdapi/v1/schedulers")
    def schedulers() -> list[dict[str, Any]]:
        automatic = {"name": "automatic", "label": "Automatic", "aliases": None}
        return [automatic, *({"name": name, "label": one.label, "aliases": None} for name, one in GRIDS.items())]

    @app.get("/sdapi/v1/loras")
    def loras() -> list[dict[str, Any]]:
        return [{"name": name, "alias": name, "path": name, "metadata": {}} for name in darkroom.lora_names()]

    @app.get("/sdapi/v1/embeddings")
    def embeddings() -> dict[str, Any]:
        return {"loaded": {}, "skipped": {}}

    @app.post("/sdapi/v1/png-info")
    def png_info(body: Annotated[dict[str, Any], Body()]) -> Any:
        try:
            data = decoded(str(body.get("image", "")), "image")
            with tempfile.TemporaryDirectory() as folder:
                (file := Path(folder) / "picture").write_bytes(data)
                text = infotext_of(file)
        except InputError as error:
            return problem(422, error.what, error.remedy)
        return {"info": text, "items": {"parameters": text} if text else {}, "parameters": {}}

    @app.get("/sdapi/v1/cmd-flags")
    def flags() -> dict[str, Any]:
        return {}

    @app.get("/sdapi/v1/upscalers")
    def upscalers() -> list[dict[str, Any]]:
        names = [name for name, ours in UPSCALERS.items() if ours not in LATENT]
        return [{"name": name, "model_name": None, "model_path": None, "model_url": None, "scale": 4} for name in names]

    @app.get("/sdapi/v1/latent-upscale-modes")
    def latent_modes() -> list[dict[str, Any]]:
        return [{"name": name} for name, ours in UPSCALERS.items() if ours in LATENT]

    def none() -> list[Any]:
        return []

    for name in EMPTY:
        app.add_api_route(f"/sdapi/v1/{name}", none, methods=["GET"])


def asked(task: str, body: Mapping[str, Any], settings: Mapping[str, Any]) -> dict[str, Any]:
    """The keywords of a task, of what A1111 is asked. Raises InputError for what is not here, or is no value."""
    for field, what in ABSENT.items():
        if body.get(field) and str(body[field]).lower() not in ("none", "use same checkpoint"):
            raise InputError(f"{field}: {what.partition(':')[0]} is not here", remedy=what.partition(": ")[2] or
                             f"leave {field} out")  # fmt: skip
    drawing = task == "text_to_image"
    sides = {side: number(body, side, None, whole=True) for side in ("width", "height") if body.get(side)}
    sides = {} if task == "inpaint" else sides  # whose picture `fit` brings to that size
    fields = {"Steps": number(body, "steps", STEPS, whole=True), "CFG scale": number(body, "cfg_scale", SCALE),
              "Sampler": body.get("sampler_index") or "Euler", "Schedule type": "Automatic"}  # fmt: skip
    fields |= {text: body[name] for name, text in TEXT.items() if body.get(name) not in (None, "", -1, 0)}
    fields |= {text: settings[name] for name, text in SETTINGS.items() if settings.get(name) is not None}
    if (layers := number(settings, "CLIP_stop_at_last_layers", None, whole=True)) is not None:
        fields["Clip skip"] = layers
    if (source := settings.get("randn_source")) is not None:
        if source not in RANDN:
            raise InputError(f"randn_source {str(source)[:40]!r}", remedy=f"use {', '.join(RANDN)}")
        fields["RNG"] = source
    if (seed := number(body, "seed", -1, whole=True)) >= 0:
        fields["Seed"] = seed
    second = second_pass(body) if drawing and body.get("enable_hr") else {}
    if not drawing or second:
        fields["Denoising strength"] = number(body, "denoising_strength", STRENGTH)
    if second.keys() & {"Hires resize"}:
        if len(sides) < 2:
            raise InputError("hr_resize_x and hr_resize_y need a size", remedy="send width and height, or hr_scale")
        fields["Size"] = f"{sides['width']}x{sides['height']}"
    fields |= second
    words = {name: str(body.get(name) or "") for name in ("prompt", "negative_prompt")}
    said = of_fields(words["prompt"], words["negative_prompt"], {k: str(v) for k, v in fields.items()}, VERSION)
    if "sampler" not in said.request:
        raise InputError(f"sampler {fields['Sampler']!r} is unknown", remedy="see /sdapi/v1/samplers")
    named_fields = [name for name in second if name not in ("Hires upscale", "Hires steps")]
    understood = ("Schedule type", "Clip skip", "Emphasis", "RNG", *named_fields, "Denoising strength", *second)
    if left := next((name for name in understood if name in said.kept), None):
        remedy = "see /sdapi/v1/schedulers, upscalers and latent-upscale-modes, or leave it out"
        raise InputError(f"{left} {said.kept[left]!r} is unknown, or more than is here", remedy=remedy)
    wanted = {name: value for name, value in said.request.items() if name != "eta"}
    if "eta" in said.request and "eta" in SAMPLERS[said.request["sampler"]].options:  # it passes it over for others
        wanted["eta"] = min(said.request["eta"], 1.0)
    size, each = (number(body, name, 1, whole=True) for name in ("batch_size", "n_iter"))
    if not 1 <= size * each <= MOST or size < 1:
        raise InputError(f"batch_size {size} times n_iter {each}", remedy=f"ask for 1 to {MOST} pictures")
    count = {"count": size * each, "batch_size": size} if size * each > 1 else {}
    return {**wanted, **sides, **count, **({} if drawing else pictured(task, body))}


def second_pass(body: Mapping[str, Any]) -> dict[str, Any]:
    """The fields of hires fix, as A1111 writes them. Raises InputError."""
    named = {text: body[name] for name, text in SECOND.items() if body.get(name)}
    steps, wide, high = (number(body, name, 0, whole=True) for name in COUNTS)
    if min(steps, wide, high) < 0:
        raise InputError(f"one of {', '.join(COUNTS)} is below 0", remedy="leave it out")
    named["Hires steps"] = steps
    if wide or high:
        return {"Hires resize": f"{wide}x{high}", **named}
    return {"Hires upscale": number(body, "hr_scale", 2.0), **named}


def pictured(task: str, body: Mapping[str, Any]) -> dict[str, Any]:
    """What img2img says of its picture, and of the mask. Raises InputError."""
    images = body.get("init_images")
    if not isinstance(images, list) or len(images) != 1:
        raise InputError("init_images is not one picture", remedy="send one in base64; for several ask several times")
    if task == "image_to_image":
        return {"image": images[0]}
    found: dict[str, Any] = {"image": images[0], "mask": body["mask"]}
    if body.get("inpainting_mask_invert"):
        raise InputError("inpainting_mask_invert is not here", remedy="send the mask the other way round")
    if blur := number(body, "mask_blur", 4):
        found["mask_blur"] = blur
    if body.get("inpaint_full_res", True):
        found["padding_mask_crop"] = number(body, "inpaint_full_res_padding", 0, whole=True)
    return found


def fit(keywords: dict[str, Any], body: Mapping[str, Any]) -> None:
    """Bring a mask to its picture's size, and where the whole picture is drawn, both to the size that is asked for."""
    if "mask" not in keywords:
        return
    image = keywords["image"]
    if "padding_mask_crop" not in keywords:
        size = tuple(number(body, side, own, whole=True) or own
                     for side, own in zip(("width", "height"), image.size, strict=True))  # fmt: skip
        if not all(8 <= side <= MOST_SIDE for side in size):
            raise InputError(f"a picture of {size[0]}x{size[1]}", remedy=f"ask for 8 to {MOST_SIDE} pixels a side")
        keywords["image"] = image = image.resize(size) if image.size != size else image
    if keywords["mask"].size != image.size:
        keywords["mask"] = keywords["mask"].resize(image.size)


def as_a1111(request: dict[str, Any], model: Any) -> dict[str, Any]:
    """The request as A1111 means it for this model: "clip skip" counts differ with Stable Diffusion XL."""
    from safelight.pipeline.recipes.redraw import skipped

    layers = request.get("clip_skip")
    return {**request, "clip_skip": skipped("AUTOMATIC1111", layers, model)} if layers else request


def overridden(body: Mapping[str, Any]) -> dict[str, Any]:
    """A request's own settings. Raises InputError."""
    own = body.get("override_settings") or {}
    if not isinstance(own, dict):
        raise InputError("override_settings is no object", remedy='such as {"sd_model_checkpoint": "model"}')
    return {name: value for name, value in own.items() if value is not None}


def number(body: Mapping[str, Any], name: str, default: Any, *, whole: bool = False) -> Any:
    """A number of a request. Raises InputError."""
    value = body.get(name)
    if value is None:
        return default
    if isinstance(value, str):  # as A1111 takes them
        with suppress(ValueError):
            value = float(value)
    if isinstance(value, int) and abs(value) > LARGEST:
        raise InputError(f"{name} is too large", remedy="give a smaller number")
    fits = not isinstance(value, bool) and isinstance(value, int | float) and isfinite(value)
    if not fits or (whole and value != int(value)):
        kind = "whole number" if whole else "number"
        raise InputError(f"{name} {str(value)[:40]!r} is no {kind}", remedy=f"give a {kind}")
    return int(value) if whole else value


def named(title: Any, darkroom: Darkroom) -> str:
    """The model that A1111's clients call by its file's name, with or without ending and hash. Raises InputError."""
    wanted = str(title).partition(" [")[0]
    for name in darkroom.models:
        if wanted in (name, Path(name).name, Path(name).stem):
            return name
    return darkroom.known(wanted)


def about(files: list[Path], shown: Mapping[str, Any], settings: Mapping[str, Any]) -> dict[str, Any]:
    """What A1111 says of finished pictures."""
    from safelight.pipeline.recipes.reading import read_picture

    seeds = [read_picture(file).request.get("seed") for file in files]
    texts = [infotext_of(file) for file in files]
    words, against = str(shown.get("prompt", "")), str(shown.get("negative_prompt", ""))
    return {"prompt": words, "all_prompts": [words] * len(files), "negative_prompt": against,
            "all_negative_prompts": [against] * len(files), "seed": seeds[0], "all_seeds": seeds,
            "subseed": shown.get("subseed", -1), "subseed_strength": shown.get("subseed_strength", 0),
            "width": shown.get("width"), "height": shown.get("height"), "steps": shown.get("steps"),
            "sampler_name": SAMPLERS[shown["sampler"]].label, "cfg_scale": shown.get("guidance_scale"),
            "batch_size": shown.get("batch_size", 1), "sd_model_name": Path(settings["sd_model_checkpoint"]).stem,
            "infotexts": texts, "index_of_first_image": 0, "version": VERSION}  # fmt: skip


def problem(status: int, what: str, remedy: str) -> JSONResponse:
    """An error in A1111's form."""
    headers = {"retry-after": "5"} if status == 503 else None
    return JSONResponse({"error": what, "detail": f"{what}: {remedy}", "body": "", "errors": remedy}, status, headers)
