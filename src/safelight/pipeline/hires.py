"""The second pass of "hires fix": what was drawn is enlarged, and drawn again from there with noise of that size.

A network draws things twice where a picture is larger than those it knows. So the picture is laid out at their size,
and its details are drawn at the larger one (AUTOMATIC1111's txt2img with enable_hr).
"""

from dataclasses import dataclass, replace
from secrets import randbelow
from typing import cast

import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from safelight.errors import InputError
from safelight.pipeline.bundle import LatentDiffusion
from safelight.pipeline.developing import develop, encode, sampled
from safelight.pipeline.fields import Settings
from safelight.pipeline.pictures import Pictures, load_picture
from safelight.pipeline.wording import Words

MOST = 16384  # pixels a side
# Ways to enlarge latents, by torch's name and whether it smooths; and pictures
LATENT = {
    "latent": ("bilinear", False),
    "latent_antialiased": ("bilinear", True),
    "latent_bicubic": ("bicubic", False),
    "latent_bicubic_antialiased": ("bicubic", True),
    "latent_nearest": ("nearest", False),
    "latent_nearest_exact": ("nearest-exact", False),
}
PIXELS = {"lanczos": Image.Resampling.LANCZOS, "nearest": Image.Resampling.NEAREST}


@dataclass(frozen=True)
class SecondPass:
    """How many times as large, by which of the ways above, and what the second pass walks."""

    scale: float
    upscaler: str
    strength: float
    prompt: Words
    settings: Settings  # complete

    def size(self, model: LatentDiffusion, first: tuple[int, int]) -> tuple[int, int]:
        """The latent's (h, w) for one of this size in the first pass. Raises InputError for one too large."""
        factor = model.autoencoder.config.factor
        h, w = (int(n * factor * self.scale) // factor for n in first)
        if max(h, w) * factor > MOST:
            what = f"hires={self.scale:g} would be a picture of {w * factor}x{h * factor}"
            raise InputError(what, remedy=f"ask for {MOST} pixels a side at most")
        return h, w


def draw_larger(
    model: LatentDiffusion, prompt: Words, settings: Settings, size: tuple[int, int], hires: SecondPass
) -> Pictures:
    """Both passes. The recipe's words and seeds are those of the first."""
    large = hires.size(model, size)
    given = {"seed": settings["seed"], "subseed": settings["subseed"]}
    seeds = {name: randbelow(2**32) for name, seed in given.items() if seed is None}  # the same for both
    draw = sampled if hires.upscaler in LATENT else develop
    first = draw(model, prompt, cast(Settings, settings | seeds), size=size)
    latents = enlarged(model, first, large, hires.upscaler, settings["tile"])
    again = cast(Settings, hires.settings | seeds)
    drawn = develop(model, hires.prompt, again, latent=latents, strength=hires.strength)
    return replace(drawn, prompts=first.prompts, negative_prompts=first.negative_prompts)


def enlarged(model: LatentDiffusion, drawn: Pictures, size: tuple[int, int], upscaler: str, tile: str) -> Tensor:
    """The latents (B, C, h, w) of pictures at another size, interpolated themselves or by way of the pictures."""
    if upscaler in LATENT:
        mode, antialias = LATENT[upscaler]
        return F.interpolate(drawn.latents, size, mode=mode, antialias=antialias).to(model.device)
    height, width = (n * model.autoencoder.config.factor for n in size)
    pictures = (image.resize((width, height), PIXELS[upscaler]) for image in drawn.images)
    return torch.cat([encode(model, load_picture(picture), tile) for picture in pictures])
