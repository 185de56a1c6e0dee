"""What people ask for. A task is an initial x, a place on the grid to start, wrappers on the denoiser, and a decode.

Each task is one function; its keywords become the options of the command line by themselves (see `fields`). This module
is light: what computes is imported when a task is called.
"""

from collections.abc import Callable
from functools import wraps
from inspect import signature
from os import PathLike
from typing import TYPE_CHECKING, Any, ParamSpec, Unpack

from safelight.errors import InputError
from safelight.pipeline.fields import (
    Boxes,
    ClassMap,
    Height,
    ImagePath,
    Label,
    Margin,
    MaskBlur,
    MaskPadding,
    MaskPath,
    NoiseLevel,
    Prompt,
    Settings,
    Strength,
    Width,
    for_model,
    validate,
)

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
        if isinstance(model, str | PathLike):
            raise InputError(f"model: {str(model)!r} is a name", remedy="load it first: safelight.load(…)")
        values = for_model(validate(function, given), model)
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
        width: in pixels, any multiple of 8; by default what the model was trained at, or `control_image` has.
        height: likewise.
        **settings: see `Settings`; the picture with index k is drawn with seed + k.

    Returns:
        Pictures: a sequence of PIL images, with their seeds and latents.
    """
    from safelight.pipeline.controlling import size_like
    from safelight.pipeline.developing import develop

    return develop(model, prompt, settings, size=size_like(model, width, height, settings["control_image"]))


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
    mask_blur: MaskBlur = 0.0,
    padding_mask_crop: MaskPadding = None,
    **settings: Unpack[Settings],
) -> "Pictures":
    """Repaint the white part of a mask.

    Pixels under black come back exactly as they were.

    Inpainting models see the mask and the masked picture (Rombach et al. 2022, Sec. 4.5). With any other
    model the known part of the latent is put back, at the current noise level, before every evaluation.

    Args:
        model: what `safelight.load` returns.
        prompt: a string, or several; every prompt is drawn `count` times.
        image: path, PIL image, uint8 array (H, W, 3) or float tensor (3, H, W) in [-1, 1].
        mask: path, PIL image, array or tensor of the picture's size; white (or 1) is repainted, black (or 0) kept, and
            grey mixes the two in the finished picture.
        strength: below 1, what lies under the mask steers the result.
        mask_blur: the deviation in pixels of a Gaussian that softens the mask, so that no edge shows; what is beside
            the white is then repainted a little.
        padding_mask_crop: with a number, the mask's surroundings of so many pixels (and more, for the shape of the
            model's own pictures) are repainted at the size the model was trained at and laid back: for small masks in
            large pictures. None repaints at the picture's own size.
        **settings: see `Settings`.
    """
    from safelight.pipeline.developing import composite, crop, develop, encode, inpainting_channels, keep_known
    from safelight.pipeline.pictures import load_mask, load_picture, pad
    from safelight.pipeline.surroundings import cut, laid_back, softened, surroundings, white_box

    whole = picture = load_picture(image)
    stencil = mask = softened(load_mask(mask, picture), mask_blur)
    factor, box = model.autoencoder.config.factor, None
    if padding_mask_crop is not None:
        if settings["control_image"] is not None:
            raise InputError("control_image is not cropped along with the mask", remedy="leave padding_mask_crop out")
        height, width = (factor * n for n in model.latent_size())
        box = surroundings(white_box(mask), (whole.shape[-1], whole.shape[-2]), width / height, padding_mask_crop)
        picture, mask = cut(whole, box, (height, width)), cut(mask, box, (height, width), smooth=False)
    padded, padded_mask = pad(picture, factor), pad(mask, factor)
    latent = encode(model, padded, settings["tile"])
    if model.paints_masks:
        concat = inpainting_channels(model, padded, padded_mask, settings["tile"])
        start = latent if strength < 1 else None
        h, w = latent.shape[-2:]
        drawn = develop(model, prompt, settings, latent=start, size=(h, w), strength=strength, concat=concat)
    else:
        edit = keep_known(latent, padded_mask)
        drawn = develop(model, prompt, settings, latent=latent, strength=strength, blend=edit)
    drawn = crop(drawn, picture)
    return composite(laid_back(drawn, whole, box) if box else drawn, whole, stencil)


@task
def outpaint(
    model: "LatentDiffusion",
    prompt: Prompt,
    image: ImagePath,
    *,
    left: Margin = 0,
    right: Margin = 0,
    top: Margin = 0,
    bottom: Margin = 0,
    mask_blur: MaskBlur = 8.0,
    **settings: Unpack[Settings],
) -> "Pictures":
    """Draw what lies beyond a picture's edges.

    `inpaint` of a wider canvas. Models trained to inpaint see what they go on from; others keep it alone.

    Args:
        model: what `safelight.load` returns.
        prompt: a string, or several; what the whole picture shows.
        image: path, PIL image, uint8 array (H, W, 3) or float tensor (3, H, W) in [-1, 1].
        left: how many pixels to add there.
        right: likewise.
        top: likewise.
        bottom: likewise.
        mask_blur: the deviation in pixels of a Gaussian, by which the picture's own rim is drawn anew, so that no edge
            shows. With 0 all its pixels stay as they were.
        **settings: see `Settings`.

    Raises:
        InputError: where nothing is to be added.
    """
    from safelight.pipeline.pictures import load_picture
    from safelight.pipeline.surroundings import wider

    if not (left or right or top or bottom):
        raise InputError("nothing is to be drawn beyond the picture", remedy="say where, such as right=64")
    canvas, mask = wider(load_picture(image), (left, right, top, bottom))
    return inpaint(model, prompt, canvas, mask, mask_blur=mask_blur, **settings)


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


@task
def unconditional(
    model: "LatentDiffusion",
    *,
    width: Width = None,
    height: Height = None,
    **settings: Unpack[Settings],
) -> "Pictures":
    """Draw whatever a model draws unasked.

    Samples of the distribution that it was trained on (Rombach et al. 2022, Sec. 4.2). A model that is usually asked
    for something is told nothing: the empty prompt, no class, an empty layout.

    Args:
        model: what `safelight.load` returns.
        width: in pixels; by default the size the model was trained at.
        height: likewise.
        **settings: see `Settings`; there is nothing to guide by, so that guidance and words have no effect.
    """
    from safelight.pipeline.conditions import null_condition
    from safelight.pipeline.developing import develop

    settings = settings | {"guidance_scale": 1.0}
    size = model.latent_size(width, height)
    return develop(model, null_condition(model, size), settings, size=size)


@task
def class_to_image(
    model: "LatentDiffusion",
    label: Label,
    *,
    width: Width = None,
    height: Height = None,
    **settings: Unpack[Settings],
) -> "Pictures":
    """Draw pictures of a class.

    For models trained on labelled pictures (Rombach et al. 2022, Sec. 4.4 and appendix D.4).

    Args:
        model: what `safelight.load` returns.
        label: the class's name or number.
        width: in pixels; by default the size the model was trained at.
        height: likewise.
        **settings: see `Settings`; `negative_prompt` may be a class. Raises InputError for guidance without one where
            the model has learned no picture without a class.
    """
    from safelight.pipeline.conditions import class_condition, null_class
    from safelight.pipeline.developing import develop

    condition, against = class_condition(model, label), settings["negative_prompt"]
    negative = null_class(model) if against == "" else class_condition(model, against)
    if negative is None and settings["guidance_scale"] != 1:
        what = "this model has learned no picture without a class, which guidance would need"
        raise InputError(what, remedy="set guidance_scale to 1, or name a class as negative_prompt")
    settings = settings | {"negative_prompt": negative or condition}
    return develop(model, condition, settings, size=model.latent_size(width, height))


@task
def upscale(
    model: "LatentDiffusion",
    image: ImagePath,
    *,
    prompt: Prompt = "",
    noise_level: NoiseLevel = None,
    **settings: Unpack[Settings],
) -> "Pictures":
    """Draw a picture larger, with the details that it may have had.

    The U-Net sees the small picture beside a latent of its size (Rombach et al. 2022, Sec. 4.4), which the autoencoder
    decodes f times as large: Stable Diffusion's x4 upscaler, latent diffusion's super-resolution, and models trained
    here with `--concat low_resolution`.

    Args:
        model: what `safelight.load` returns.
        image: path, PIL image, uint8 array (H, W, 3) or float tensor (3, H, W) in [-1, 1].
        prompt: words to steer by, for models that read some.
        noise_level: how much noise is laid on the small picture first; more frees the model from its details. Only the
            x4 upscaler and its like know of it: 0 to 350, by default 20.
        **settings: see `Settings`.
    """
    from safelight.pipeline.conditions import small_picture
    from safelight.pipeline.developing import develop
    from safelight.pipeline.pictures import load_picture

    picture = load_picture(image)
    beside = small_picture(model, picture, noise_level)
    return develop(model, prompt, settings, size=(picture.shape[-2], picture.shape[-1]), beside=beside)


@task
def layout_to_image(
    model: "LatentDiffusion",
    boxes: Boxes,
    *,
    width: Width = None,
    height: Height = None,
    **settings: Unpack[Settings],
) -> "Pictures":
    """Draw objects in their places.

    For models trained on boxes and their classes (Rombach et al. 2022, Sec. 4.3.1); here with `--conditioning layout`.

    Args:
        model: what `safelight.load` returns.
        boxes: (class, x0, y0, x1, y1) for each object, the class by name or number, the box in shares of width and
            height from the upper left corner; or all that as a text, "apple 0.1 0.2 0.5 0.6, dog 0.5 0.5 0.9 0.9".
        width: in pixels; by default the size the model was trained at.
        height: likewise.
        **settings: see `Settings`; guidance leads away from the empty layout, or from one given as `negative_prompt`.
    """
    from safelight.pipeline.conditions import layout_condition, null_layout
    from safelight.pipeline.developing import develop

    condition, against = layout_condition(model, boxes), settings["negative_prompt"]
    negative = null_layout(model) if against == "" else layout_condition(model, against)
    settings = settings | {"negative_prompt": negative}
    return develop(model, condition, settings, size=model.latent_size(width, height))


@task
def semantic_synthesis(
    model: "LatentDiffusion",
    class_map: ClassMap,
    *,
    prompt: Prompt = "",
    **settings: Unpack[Settings],
) -> "Pictures":
    """Draw a picture for a map of classes.

    The U-Net sees the map, shrunk, beside the latent (Rombach et al. 2022, Sec. 4.3.2); models trained here with
    `--concat class_map`.

    Args:
        model: what `safelight.load` returns.
        class_map: path or PIL image, grey or indexed, or a tensor of whole numbers (H, W): the number of each pixel's
            class. The picture gets its size.
        prompt: words to steer by, for models that read some.
        **settings: see `Settings`.
    """
    from safelight.pipeline.conditions import load_map, map_channels
    from safelight.pipeline.developing import crop, develop
    from safelight.pipeline.pictures import pad

    numbers, factor = load_map(class_map), model.autoencoder.config.factor
    padded = pad(numbers[None].float(), factor)[0].long()
    h, w = padded.shape[-2] // factor, padded.shape[-1] // factor
    concat = map_channels(model, padded, (h, w))
    return crop(develop(model, prompt, settings, size=(h, w), concat=concat), numbers)
