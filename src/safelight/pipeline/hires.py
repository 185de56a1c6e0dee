"""The second pass of "hires fix": what was drawn is enlarged, and drawn again from there with noise of that size.

A network draws things twice where a picture is larger than those it knows. So the picture is laid out at their size,
and its details are drawn at the larger one (AUTOMATIC1111's txt2img with enable_hr).
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from secrets import randbelow
from typing import Any, Self, cast

import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from safelight.diffusion import aliases
from safelight.diffusion.condition import Condition
from safelight.diffusion.grids import GRIDS
from safelight.diffusion.samplers import SAMPLERS
from safelight.errors import InputError
from safelight.pipeline.bundle import LatentDiffusion
from safelight.pipeline.developing import develop, encode
from safelight.pipeline.fields import Settings, changed
from safelight.pipeline.pictures import Pictures, load_picture
from safelight.pipeline.wording import Wording, Words, worded

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
# What may be others in the second pass; all else is of the whole picture
WORDS = ("prompt", "negative_prompt")
OTHERS = (*WORDS, "sampler", "grid", "sampler_options", "grid_options", "guidance_scale")
A_HAIR = 1e-6  # by which a scale that is a ratio of sizes may fall short


@dataclass(frozen=True)
class SecondPass:
    """How many times as large, by which of the ways above, and what the second pass walks."""

    scale: float
    upscaler: str
    strength: float
    settings: Settings  # complete
    prompt: str | None  # None is that of the first pass, with its styles and choices; so is the next
    negative_prompt: str | None

    @classmethod
    def of(cls, scale: float, upscaler: str, strength: float, settings: Settings, options: Mapping[str, Any]) -> Self:
        """The first pass's settings, with some changed: `steps`, and those of `OTHERS`.

        Another sampler or grid has options of its own, and A1111's name of a sampler may hold a grid; None is what the
        first pass has. Raises InputError for what cannot be another, or not that.
        """
        options = {name: value for name, value in options.items() if value is not None or name.endswith("_options")}
        for name, value in options.items():
            if name not in (*OTHERS, "steps"):
                what = f"hires_options: {name!r} is the same in both passes"
                raise InputError(what, remedy=f"it may hold {', '.join(OTHERS)}")
            if name in WORDS and not isinstance(value, str):
                raise InputError(f"hires_options: {name} is no text", remedy="give one, for all pictures")
        changes = {name: value for name, value in options.items() if name not in WORDS}
        if "sampler" in changes:
            named = aliases.split(str(changes["sampler"]), SAMPLERS, GRIDS)
            if named is not None and named[1] is not None:
                changes = {"grid": named[1]} | changes
            eta = settings["eta"] if named is not None and "eta" in SAMPLERS[named[0]].options else None
            changes = {"sampler_options": None, "eta": eta} | changes
        if "grid" in changes:
            changes = {"grid_options": None} | changes
        words = (options.get(name) for name in WORDS)
        return cls(scale, upscaler, strength, cast(Settings, changed(settings, changes)), *words)

    def size(self, model: LatentDiffusion, first: tuple[int, int]) -> tuple[int, int]:
        """The latent's (h, w) for one of this size in the first pass. Raises InputError for one too large."""
        factor = model.autoencoder.config.factor
        h, w = (int(n * factor * self.scale + A_HAIR) // factor for n in first)
        if max(h, w) * factor > MOST:
            what = f"hires={self.scale:g} would be a picture of {w * factor}x{h * factor}"
            raise InputError(what, remedy=f"ask for {MOST} pixels a side at most")
        return h, w

    def words(self, first: Wording) -> Wording:
        """What the pictures are drawn for, of what they were drawn for in the first pass."""
        number = first.prompts.batch if isinstance(first.prompts, Condition) else len(first.prompts)
        prompts = first.prompts if self.prompt is None else [self.prompt] * number
        negatives = first.negatives if self.negative_prompt is None else [self.negative_prompt] * number
        return Wording(prompts, negatives, first.rows)


def draw_larger(
    model: LatentDiffusion, prompt: Words, settings: Settings, size: tuple[int, int], hires: SecondPass
) -> Pictures:
    """Both passes. Seeds, and words in the recipe, are those of the first."""
    large = hires.size(model, size)
    given = {"seed": settings["seed"], "subseed": settings["subseed"]}
    seeds = {name: randbelow(2**32) if seed is None else seed for name, seed in given.items()}
    words = worded(prompt, settings, seeds["seed"])
    printing = hires.upscaler not in LATENT
    first = develop(model, words, cast(Settings, settings | seeds), size=size, printing=printing)
    latents = enlarged(model, first, large, hires.upscaler, settings["tile"])
    again = cast(Settings, hires.settings | seeds)
    drawn = develop(model, hires.words(words), again, latent=latents, strength=hires.strength)
    return replace(drawn, prompts=first.prompts, negative_prompts=first.negative_prompts)


def enlarged(model: LatentDiffusion, drawn: Pictures, size: tuple[int, int], upscaler: str, tile: str) -> Tensor:
    """The latents (B, C, h, w) of pictures at another size, interpolated themselves or by way of the pictures."""
    if upscaler in LATENT:
        mode, antialias = LATENT[upscaler]
        return F.interpolate(drawn.latents, size, mode=mode, antialias=antialias).to(model.device)
    height, width = (n * model.autoencoder.config.factor for n in size)
    pictures = (image.resize((width, height), PIXELS[upscaler]) for image in drawn.images)
    return torch.cat([encode(model, load_picture(picture), tile) for picture in pictures])
