"""Safelight develops latent images: latent diffusion, Stable Diffusion included, in one small package.

>>> import safelight
>>> model = safelight.load("path/to/model")  # doctest: +SKIP
>>> safelight.text_to_image(model, "an otter in watercolour", seed=0)[0].save("otter.png")  # doctest: +SKIP

Importing the package does nothing and costs next to nothing: each name below is imported when it is first used.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

# public name -> the module that defines it
_EXPORTS: dict[str, str] = {}

__all__ = ["__version__", *_EXPORTS]  # noqa: PLE0604


def __getattr__(name: str) -> Any:
    if name in _EXPORTS:
        return getattr(import_module(_EXPORTS[name]), name)
    raise AttributeError(f"module 'safelight' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)
