"""What is drawn unasked, for a class or a layout, or beside another picture or map."""

from typing import TYPE_CHECKING, Unpack

from safelight.errors import InputError
from safelight.pipeline.fields import (
    Boxes,
    ClassMap,
    Height,
    ImagePath,
    Label,
    NoiseLevel,
    Prompt,
    Settings,
    Width,
)
from safelight.pipeline.tasks.task import task

if TYPE_CHECKING:
    from safelight.pipeline.bundle import LatentDiffusion
    from safelight.pipeline.pictures import Pictures


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
