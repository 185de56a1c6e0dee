"""Safelight develops latent images: latent diffusion, Stable Diffusion included, in one small package.

>>> import safelight
>>> model = safelight.load("path/to/model")  # doctest: +SKIP
>>> safelight.text_to_image(model, "an otter in watercolour", seed=0)[0].save("otter.png")  # doctest: +SKIP

Importing the package does nothing and costs next to nothing: each name below is imported when it is first used.
"""

from importlib import import_module
from typing import Any

__version__ = "0.1.0"

# public name -> the module that defines it
_EXPORTS: dict[str, str] = {
    "load": "safelight.pipeline.loading",
    "compiled": "safelight.pipeline.compiling",
    "LatentDiffusion": "safelight.pipeline.bundle",
    "text_to_image": "safelight.pipeline.tasks",
    "image_to_image": "safelight.pipeline.tasks",
    "inpaint": "safelight.pipeline.tasks",
    "outpaint": "safelight.pipeline.tasks",
    "variations": "safelight.pipeline.tasks",
    "edit": "safelight.pipeline.tasks",
    "depth_to_image": "safelight.pipeline.tasks",
    "unconditional": "safelight.pipeline.tasks",
    "class_to_image": "safelight.pipeline.tasks",
    "upscale": "safelight.pipeline.tasks",
    "layout_to_image": "safelight.pipeline.tasks",
    "semantic_synthesis": "safelight.pipeline.tasks",
    "explore": "safelight.pipeline.exploring",
    "morph": "safelight.pipeline.morphing",
    "contact_sheet": "safelight.pipeline.contact",
    "save_animation": "safelight.pipeline.animation",
    "Pictures": "safelight.pipeline.pictures",
    "save_png": "safelight.pipeline.pictures",
    "save_picture": "safelight.pipeline.pictures",
    "read_picture": "safelight.pipeline.recipes.reading",
    "convert": "safelight.checkpoint.convert",
    "Autoencoder": "safelight.models.autoencoder",
    "TextEncoder": "safelight.models.clip",
    "UNet": "safelight.models.unet",
    "ControlNet": "safelight.models.controlnet",
    "Tokenizer": "safelight.text.tokenizer",
    "encode_prompt": "safelight.text.prompt",
    "Condition": "safelight.diffusion.condition",
    "Denoiser": "safelight.diffusion.denoiser",
    "Grid": "safelight.diffusion.grids",
    "make_grid": "safelight.diffusion.grids",
    "noise_schedule": "safelight.diffusion.schedule",
    "guided": "safelight.diffusion.guidance",
    "SeededNoise": "safelight.diffusion.noise",
    "sample": "safelight.diffusion.samplers",
    "SafelightError": "safelight.errors",
}

__all__ = ["__version__", *_EXPORTS]


def __getattr__(name: str) -> Any:
    if name in _EXPORTS:
        return getattr(import_module(_EXPORTS[name]), name)
    raise AttributeError(f"module 'safelight' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)
