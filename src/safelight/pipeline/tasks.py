"""What people ask for. A task is an initial x, a place on the grid to start, wrappers on the denoiser, and a decode.

Each task is one function; its keywords become the options of the command line by themselves (see `fields`). This module
is light: what computes is imported when a task is called.
"""

from collections.abc import Callable
from functools import wraps
from inspect import signature
from typing import TYPE_CHECKING, Any, ParamSpec, Unpack

from safelight.pipeline.fields import Height, ImagePath, MaskPath, Prompt, Settings, Strength, Width, validate

if TYPE_CHECKING:
    from safelight.pipeline.bundle import LatentDiffusion
    from safelight.pipeline.pictures import Pictures

P = ParamSpec("P")

TASKS: dict[str, Callable[..., Any]] = {}


def task(function: Callable[P, "Pictures"]) -> Callable[P, "Pictures"]:
    """Register a task: whenever it is called, check its keywords, and note with each picture what draws it again."""

    @wraps(function)
    def call(*args: P.args, **kwargs: P.kwargs) -> "Pictures":
        given = signature(function).bind(*args, **kwargs).arguments
        given |= given.pop("settings", {})
        model = given.pop("model")
        values = validate(function, given)
        from safelight.pipeline.recipes.recipe import opened, recorded

        values = opened(values)
        return recorded(function(model, **values), function, values, model)

    TASKS[function.__name__] = call
    return call


@task
def text_to_image(
    model: "LatentDiffusion",
    prompt: Prompt = "",
    *,
    width: Width = None,
    height: Height = None,
    **settings: Unpack[Settings],
) -> "Pictures":
    """Draw pictures from words.

    Reverse diffusion from pure noise, steered by the prompt (Rombach et al. 2022, Sec. 3.3).

    Args:
        model: what `safelight.load` returns.
        prompt: a string, or several; every prompt is drawn `count` times.
        width: in pixels, any multiple of 8; by default the size the model was trained at.
        height: likewise.
        **settings: see `Settings`; the picture with index k is drawn with seed + k.

    Returns:
        Pictures: a sequence of PIL images, with their seeds and latents.
    """
    from safelight.pipeline.developing import develop

    return develop(model, prompt, settings, size=model.latent_size(width, height))


@task
def image_to_image(
    model: "LatentDiffusion",
    prompt: Prompt,
    image: ImagePath,
    *,
    strength: Strength = 0.8,
    width: Width = None,
    height: Height = None,
    **settings: Unpack[Settings],
) -> "Pictures":
    """Redraw a picture.

    Its latent is noised part of the way up the grid and walked down again (SDEdit, Meng et al. 2022).

    Args:
        model: what `safelight.load` returns.
        prompt: a string, or several; every prompt is drawn `count` times.
        image: path, PIL image, uint8 array (H, W, 3) or float tensor (3, H, W) in [-1, 1].
        strength: the share of the grid that is walked; int(steps * strength) steps are taken. 0 gives the picture's
            autoencoder reconstruction.
        width: the picture is first resized to this width; by default it keeps its size.
        height: likewise.
        **settings: see `Settings`.
    """
    from safelight.pipeline.developing import crop, develop, encode
    from safelight.pipeline.pictures import load_picture, pad

    picture = load_picture(image, width, height)
    latent = encode(model, pad(picture, model.autoencoder.config.factor), settings["tile"])
    drawn = develop(model, prompt, settings, latent=latent, strength=strength)
    return crop(drawn, picture)


@task
def inpaint(
    model: "LatentDiffusion",
    prompt: Prompt,
    image: ImagePath,
    mask: MaskPath,
    *,
    strength: Strength = 1.0,
    **settings: Unpack[Settings],
) -> "Pictures":
    """Repaint the white part of a mask.

    Pixels under black come back exactly as they were.

    Models with 9 input channels see the mask and the masked picture (Rombach et al. 2022, Sec. 4.5). With any other
    model the known part of the latent is put back, at the current noise level, before every evaluation.

    Args:
        model: what `safelight.load` returns.
        prompt: a string, or several; every prompt is drawn `count` times.
        image: path, PIL image, uint8 array (H, W, 3) or float tensor (3, H, W) in [-1, 1].
        mask: path, PIL image, array or tensor of the picture's size; white (or 1) is repainted, black (or 0) kept, and
            grey mixes the two in the finished picture.
        strength: below 1, what lies under the mask steers the result.
        **settings: see `Settings`.
    """
    from safelight.pipeline.developing import composite, crop, develop, encode, inpainting_channels, keep_known
    from safelight.pipeline.pictures import load_mask, load_picture, pad

    picture = load_picture(image)
    mask = load_mask(mask, picture)
    padded, padded_mask = pad(picture, model.autoencoder.config.factor), pad(mask, model.autoencoder.config.factor)
    latent = encode(model, padded, settings["tile"])
    if model.paints_masks:
        concat = inpainting_channels(model, padded, padded_mask, settings["tile"])
        start = latent if strength < 1 else None
        h, w = latent.shape[-2:]
        drawn = develop(model, prompt, settings, latent=start, size=(h, w), strength=strength, concat=concat)
    else:
        edit = keep_known(latent, padded_mask)
        drawn = develop(model, prompt, settings, latent=latent, strength=strength, blend=edit)
    return composite(crop(drawn, picture), picture, mask)


@task
def variations(
    model: "LatentDiffusion",
    image: ImagePath,
    *,
    prompt: Prompt = "",
    strength: Strength = 0.6,
    **settings: Unpack[Settings],
) -> "Pictures":
    """Draw relatives of a picture.

    `image_to_image` with few words and one seed after another. (Variations from a CLIP image embedding, as unCLIP
    models draw them, need a model of that kind.)

    Args:
        model: what `safelight.load` returns.
        image: path, PIL image, uint8 array (H, W, 3) or float tensor (3, H, W) in [-1, 1].
        prompt: words to steer by, if any.
        strength: how far the relatives may wander.
        **settings: see `Settings`; `count` says how many.
    """
    return image_to_image(model, prompt, image, strength=strength, **settings)
