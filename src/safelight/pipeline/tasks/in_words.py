"""What models that are asked in words draw, of nothing or of a picture."""

from typing import TYPE_CHECKING, Unpack

from safelight.errors import InputError
from safelight.pipeline.fields import (
    DepthMap,
    Height,
    Hires,
    HiresOptions,
    HiresSteps,
    HiresStrength,
    HiresUpscaler,
    ImageGuidance,
    ImagePath,
    Instruction,
    Margin,
    MaskBlur,
    MaskPadding,
    MaskPath,
    Prompt,
    Settings,
    Strength,
    Width,
)
from safelight.pipeline.tasks.task import task

if TYPE_CHECKING:
    from safelight.pipeline.bundle import LatentDiffusion
    from safelight.pipeline.pictures import Pictures


@task
def text_to_image(
    model: "LatentDiffusion",
    prompt: Prompt = "",
    *,
    width: Width = None,
    height: Height = None,
    hires: Hires = None,
    hires_strength: HiresStrength = 0.3,
    hires_steps: HiresSteps = None,
    hires_upscaler: HiresUpscaler = "lanczos",
    hires_options: HiresOptions = None,
    **settings: Unpack[Settings],
) -> "Pictures":
    """Draw pictures from words.

    Reverse diffusion from pure noise, steered by the prompt (Rombach et al. 2022, Sec. 3.3).

    Pictures larger than those a model knows show things twice. With `hires` they are drawn at `width` x `height`,
    enlarged, and drawn again from there as `image_to_image` does it: of one piece, with details of the larger size.

    Args:
        model: what `safelight.load` returns.
        prompt: a string, or several; every prompt is drawn `count` times.
        width: in pixels, any multiple of 8; by default what the model was trained at, or `control_image` has.
        height: likewise.
        hires: how many times as large the picture becomes; None leaves it.
        hires_strength: the share of the grid that the second pass walks; enlarged latents want 0.5 and more.
        hires_steps: of the second pass's grid; by default `steps`.
        hires_upscaler: how what was drawn is enlarged.
        hires_options: what is another in the second pass: `prompt` and `negative_prompt` (a text, which is taken as it
            stands), `sampler`, `grid`, their options, `guidance_scale`.
        **settings: see `Settings`; the picture with index k is drawn with seed + k.

    Returns:
        Pictures: a sequence of PIL images, with their seeds and latents.
    """
    from safelight.pipeline.controlling import size_like
    from safelight.pipeline.developing import develop

    size = size_like(model, width, height, settings["control_image"])
    if hires is None:
        if hires_options:
            raise InputError("hires_options, and no second pass", remedy="ask for one: hires=2")
        return develop(model, prompt, settings, size=size)
    from safelight.pipeline.hires import SecondPass, draw_larger

    options = {"steps": hires_steps or settings["steps"], **(hires_options or {})}
    second = SecondPass.of(hires, hires_upscaler, hires_strength, settings, options)
    return draw_larger(model, prompt, settings, size, second)


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
def edit(
    model: "LatentDiffusion",
    prompt: Instruction,
    image: ImagePath,
    *,
    image_guidance_scale: ImageGuidance = 1.5,
    width: Width = None,
    height: Height = None,
    **settings: Unpack[Settings],
) -> "Pictures":
    """Change a picture as the words say: "make it snow".

    For models that were trained on instructions (InstructPix2Pix, Brooks et al. 2023): the U-Net sees the picture
    beside the latent, and the words and the picture have a guidance each.

    Args:
        model: what `safelight.load` returns.
        prompt: what to do; a string, or several.
        image: path, PIL image, uint8 array (H, W, 3) or float tensor (3, H, W) in [-1, 1].
        image_guidance_scale: the more, the closer to the picture; mostly 1 to 2.5. 1 saves a third of the work.
        width: the picture is first resized to this width; by default it keeps its size.
        height: likewise.
        **settings: see `Settings`; without guidance (`guidance_scale` 1) `image_guidance_scale` has no effect.
    """
    from safelight.pipeline.conditions import edited
    from safelight.pipeline.developing import crop, develop, encode
    from safelight.pipeline.pictures import load_picture, pad

    picture = load_picture(image, width, height)
    latent = encode(model, pad(picture, model.autoencoder.config.factor), settings["tile"])
    beside = edited(model, latent, settings, image_guidance_scale)
    h, w = latent.shape[-2:]
    return crop(develop(model, prompt, settings, size=(h, w), beside=beside), picture)


@task
def depth_to_image(
    model: "LatentDiffusion",
    prompt: Prompt,
    image: ImagePath,
    depth: DepthMap,
    *,
    strength: Strength = 0.8,
    **settings: Unpack[Settings],
) -> "Pictures":
    """Redraw a picture, in the depths that it has.

    For Stable Diffusion 2's depth model: the U-Net sees a map of depths beside the latent, and the picture is noised
    part of the way, as in `image_to_image`. The map is any estimator's (MiDaS, Depth Anything); none is here.

    Args:
        model: what `safelight.load` returns.
        prompt: a string, or several; every prompt is drawn `count` times.
        image: path, PIL image, uint8 array (H, W, 3) or float tensor (3, H, W) in [-1, 1].
        depth: path, PIL image, array or tensor (H, W) of the picture's shape, in any size and unit: the nearer, the
            larger (lighter).
        strength: the share of the grid that is walked; with 1 nearly nothing but the depths is left of the picture.
        **settings: see `Settings`.
    """
    from safelight.pipeline.conditions import depth_channel, load_depth
    from safelight.pipeline.developing import crop, develop, encode
    from safelight.pipeline.pictures import load_picture, pad

    picture = load_picture(image)
    concat = depth_channel(model, load_depth(depth), picture).to(model.device)
    latent = encode(model, pad(picture, model.autoencoder.config.factor), settings["tile"])
    return crop(develop(model, prompt, settings, latent=latent, strength=strength, concat=concat), picture)
