"""Drawing after a picture: what a model's ControlNet is shown, how large, and at which steps it acts."""

from collections.abc import Sequence
from math import inf
from typing import Any

from safelight.errors import InputError
from safelight.models.controlnet import FACTOR, Control
from safelight.pipeline.bundle import LatentDiffusion
from safelight.pipeline.fields import Settings
from safelight.pipeline.pictures import load_picture


def size_like(model: LatentDiffusion, width: int | None, height: int | None, image: Any) -> tuple[int, int]:
    """The latent's (h, w): as asked, or where nothing is, that of the picture to follow, if there is one."""
    if image is None or width is not None or height is not None:
        return model.latent_size(width, height)
    factor, (high, wide) = model.autoencoder.config.factor, load_picture(image).shape[-2:]
    return model.latent_size(max(wide // factor, 1) * factor, max(high // factor, 1) * factor)


def shown(model: LatentDiffusion, settings: Settings, size: Sequence[int]) -> Settings:
    """The settings with `control_image` as the ControlNet takes it for latents of this (h, w): (1, 3, H, W) in [0, 1].

    Raises InputError where there is a picture to follow, and no ControlNet.
    """
    if settings["control_image"] is None:
        return settings
    if model.control is None:
        what = "there is a picture to follow (control_image), and the model was loaded without a ControlNet"
        raise InputError(what, remedy="load one beside it: control=…, on the command line --control FILE")
    h, w = size
    picture = load_picture(settings["control_image"], w * FACTOR, h * FACTOR)
    return settings | {"control_image": (picture + 1) / 2}


def control_of(model: LatentDiffusion, timesteps: Sequence[float], settings: Settings) -> Control | None:
    """The ControlNet's part of a run along these timesteps, falling; None where there is nothing to follow.

    It acts at the steps that lie wholly between `control_start` and `control_end`, as in diffusers.
    """
    if model.control is None or settings["control_image"] is None:
        return None
    n, (start, end) = len(timesteps), (settings["control_start"], settings["control_end"])
    acting = [k for k in range(n) if k / n >= start and (k + 1) / n <= end]
    highest = timesteps[acting[0]] if acting else -inf
    lowest = timesteps[acting[-1] + 1] if acting and acting[-1] + 1 < n else -inf  # no more: the next step's
    return Control(
        model.control,
        settings["control_image"],
        timesteps,
        scale=settings["control_scale"],
        acts=lambda t: lowest < t <= highest,
    )
