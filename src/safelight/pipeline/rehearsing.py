"""What can be wrong with a request, found before the first of many pictures is drawn."""

import json
from collections.abc import Mapping, Sequence
from typing import Any

from safelight.diffusion.samplers import find, visited
from safelight.pipeline.bundle import LatentDiffusion
from safelight.pipeline.pictures import load_mask, load_picture
from safelight.pipeline.steering import steer
from safelight.pipeline.wording import worded

WALK = ("sampler", "sampler_options", "grid", "grid_options", "steps", "eta")


def rehearse(model: LatentDiffusion, requests: Sequence[Mapping[str, Any]]) -> None:
    """Do all of complete requests that is cheap: name samplers and grids, walk without a network, encode the words.

    Raises what the task would raise for them.
    """
    walked: set[str] = set()
    said: set[str] = set()
    opened: set[tuple[int, int]] = set()
    for request in requests:
        walk = json.dumps([request[name] for name in WALK], default=repr)
        if walk not in walked:
            walked.add(walk)
            _walk(model, request)
        pictures = id(request.get("image")), id(request.get("mask"))
        if "image" in request and pictures not in opened:
            opened.add(pictures)
            picture = load_picture(request["image"])
            if "mask" in request:
                load_mask(request["mask"], picture)
        model.latent_size(request.get("width"), request.get("height"))
        for pair in worded(request["prompt"], request, request["seed"]).pairs():  # type: ignore[arg-type]
            if (key := repr((pair, request["steps"], request["prompt_syntax"], request["clip_skip"]))) not in said:
                said.add(key)
                steer(model, *pair, request)  # type: ignore[arg-type]


def _walk(model: LatentDiffusion, request: Mapping[str, Any]) -> None:
    grid = model.grid(request["grid"], request["steps"], **(request["grid_options"] or {}))
    kind = find(request["sampler"])
    options = dict(request["sampler_options"] or {}) | ({} if request["eta"] is None else {"eta": request["eta"]})
    if not kind.adaptive:
        visited(kind, grid.sigmas, **options)
