"""Two measurements: how strongly guidance pulls at each step, and what an autoencoder's round trip loses."""

from dataclasses import dataclass
from math import log10
from typing import Any, Unpack

import torch
from torch import Tensor

from safelight.diffusion.composition import rows_of
from safelight.errors import InputError
from safelight.pipeline.bundle import LatentDiffusion
from safelight.pipeline.developing import decode, encode
from safelight.pipeline.fields import Settings, for_model, validate
from safelight.pipeline.pictures import load_picture, pad
from safelight.pipeline.seeing.watching import Record, together
from safelight.pipeline.steering import steer, steered, step_of
from safelight.pipeline.tasks import text_to_image


@dataclass(frozen=True)
class Pull:
    """Guidance at one step, as root mean squares over the latent, in units of the noise.

    The network's guess of the noise is u under the negative prompt and c under the prompt; guidance makes of them
    u + scale · (c - u) (Ho & Salimans 2022, arXiv 2207.12598).
    """

    number: int  # from 1
    sigma: float
    t: float
    noise: float  # |u|, near 1
    difference: float  # |c - u|
    term: float  # scale · |c - u|


def guidance_pulls(
    model: LatentDiffusion,
    prompt: str,
    *,
    width: int | None = None,
    height: int | None = None,
    **settings: Unpack[Settings],
) -> tuple[Pull, ...]:
    """Draw one picture, and measure at each of its steps what guidance adds, inside its interval or not.

    Each step is measured in passes of their own: the run itself is as ever. Raises InputError for a `count` other than
    1, and where nothing guides.
    """
    if settings.get("count", 1) != 1:
        raise InputError(f"count={settings['count']}: pulls are of one picture", remedy="leave count out")
    record = Record()
    settings["watch"] = together(record, settings.get("watch"))
    drawn = text_to_image(model, prompt, width=width, height=height, **settings)
    asked: Any = for_model(validate(text_to_image, {"prompt": prompt, **settings}), model)
    scale = asked["guidance_scale"]
    said = drawn.prompts[0] or "", drawn.negative_prompts[0] or ""
    positive, negative = steer(model, *said, asked, drawn.latents.shape[-2:])
    if negative is None:
        raise InputError("nothing guides this run", remedy="take a guidance_scale other than 1, and a model with text")
    grid = model.grid(asked["grid"], asked["steps"], **(asked["grid_options"] or {}))
    alone: Any = {**asked, "guidance_scale": 1.0}
    toward = steered(model, grid, positive, negative if len(positive.prompts[0]) > 1 else None, alone)
    pulls = []
    with torch.no_grad():
        for step in record.steps:
            x, sigma = step.x.to(model.device), step.sigma
            rows = negative.rows(step_of(grid, sigma, asked["prompt_delay"]))
            x0 = model.denoiser.on(grid)(x, sigma, rows_of(negative.condition, rows))
            difference = _rms(toward(x, sigma) - x0) / sigma
            t = model.schedule.t(sigma)
            pulls.append(Pull(step.index + 1, sigma, t, _rms(x - x0) / sigma, difference, scale * difference))
    return tuple(pulls)


def _rms(x: Tensor) -> float:
    return x.cpu().double().square().mean().sqrt().item()


@dataclass(frozen=True, eq=False)
class RoundTrip:
    """A picture (1, 3, H, W) in [-1, 1], its latent (1, C, h, w), scaled, and what comes back from it."""

    picture: Tensor
    latent: Tensor
    again: Tensor

    @property
    def error(self) -> Tensor:
        """The mean of |again - picture| over the colours, (H, W), in levels of 255."""
        return (self.again - self.picture).abs().mean(1)[0] * 127.5

    @property
    def psnr(self) -> float:
        """The peak signal-to-noise ratio in decibels."""
        error = (self.again - self.picture).double().square().mean().item()
        return 10 * log10(4 / error) if error else float("inf")


def round_trip(model: LatentDiffusion, image: Any, *, width: int | None = None, height: int | None = None) -> RoundTrip:
    """Encode a picture, to the mode of its posterior, and decode it. `image`: as `image_to_image` takes it."""
    picture = load_picture(image, width, height)
    latent = encode(model, pad(picture, model.autoencoder.config.factor))
    again = decode(model, latent)[..., : picture.shape[-2], : picture.shape[-1]].clamp(-1, 1)
    return RoundTrip(picture, latent.cpu(), again)
