"""Pictures outside and tensors inside: reading, sizing, masking and writing them."""

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, overload

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image, ImageOps, UnidentifiedImageError
from torch import Tensor

from safelight.diffusion.noise import Origin
from safelight.errors import InputError
from safelight.pipeline.files import write_new

if TYPE_CHECKING:
    from safelight.pipeline.recipes.recipe import Recipe

# The rare decoders of an imaging library are where its holes are; these three are what people have.
FORMATS = ("PNG", "JPEG", "WEBP")
ENDINGS = {".png": "PNG", ".jpg": "JPEG", ".jpeg": "JPEG", ".webp": "WEBP"}
OTHER_ENDINGS = (".gif", ".bmp", ".tif", ".tiff", ".avif", ".jxl", ".heic")  # of pictures as well, hence of no folder
QUALITY = 95  # of JPEG and WebP, of 100


@dataclass(frozen=True)
class Pictures(Sequence[Image.Image]):
    """What a task returns: PIL images, each with the seed, the latent and the words that it was developed from.

    Attributes:
        images: RGB images.
        seeds: one for each image; the same seed alone gives the same picture.
        latents: (B, C, h, w), scaled, float32, on the CPU.
        prompts: one for each image, with its styles around it and its choices made; None where it was a `Condition`.
        negative_prompts: likewise.
        origins: what the noise of each image grew from: its seed, sub-seed and place in a ComfyUI batch.
        batches: with how many images each was drawn together, and its place among them; the last bits depend on it.
        recipes: what draws each image again; a task notes them, and `save` writes them into the files.
    """

    images: tuple[Image.Image, ...]
    seeds: tuple[int, ...]
    latents: Tensor
    prompts: tuple[str | None, ...] = ()
    negative_prompts: tuple[str | None, ...] = ()
    origins: tuple[Origin, ...] = ()
    batches: tuple[tuple[int, int], ...] = ()
    recipes: tuple["Recipe", ...] = ()

    @overload
    def __getitem__(self, index: int) -> Image.Image: ...
    @overload
    def __getitem__(self, index: slice) -> tuple[Image.Image, ...]: ...
    def __getitem__(self, index: int | slice) -> Image.Image | tuple[Image.Image, ...]:
        return self.images[index]

    def __len__(self) -> int:
        return len(self.images)

    def __iter__(self) -> Iterator[Image.Image]:
        return iter(self.images)

    def save(
        self, place: str | Path, stem: str = "picture", *, format: str = "png", metadata: bool = True
    ) -> tuple[Path, ...]:
        """Write the pictures with their recipes unless `metadata` is False, and return the files' paths.

        Args:
            place: a folder, where they are called `stem-seed.png`; or a name that ends in .png, .jpg, .jpeg or .webp,
                which is the picture's, or with the seeds behind it (`name-seed.png`) that of several.
            stem: see there.
            format: in a folder, "png", or "jpeg" or "webp", which lose a little.
            metadata: whether their recipes are written into them.

        No file is written over: a number is added to the name. A JPEG without room for its recipe becomes a PNG.
        Raises InputError where the folder may not be written to.
        """
        place = Path(place)
        check_folder(folder_of(place))
        if names_picture(place):
            beside = [place.with_stem(f"{place.stem}-{seed}") for seed in self.seeds]
            names = beside if len(self) > 1 else [place]
        else:
            names = [place / f"{stem}-{seed}.{format}" for seed in self.seeds]
        recipes = self.recipes if metadata and self.recipes else (None,) * len(self)
        return tuple(_save_with_room(*one) for one in zip(self.images, names, recipes, strict=True))


def load_picture(picture: Any, width: int | None = None, height: int | None = None) -> Tensor:
    """Read a picture as a float32 tensor (1, 3, H, W) in [-1, 1], resized (Lanczos) if a size is given.

    `picture` is a path, a PIL image, a uint8 array (H, W, 3), or a float tensor (3, H, W) or (1, 3, H, W) in [-1, 1].
    A rotation noted by the camera is applied, and transparency is laid on white.
    """
    if isinstance(picture, Tensor):
        tensor = _checked(picture.detach().cpu().float())
        return _resized(tensor, width, height) if width or height else tensor
    image = open_picture(picture, "image")
    if width or height:
        image = image.resize((width or image.width, height or image.height), Image.Resampling.LANCZOS)
    return torch.from_numpy(np.array(image)).permute(2, 0, 1)[None].float() / 127.5 - 1


def load_mask(mask: Any, picture: Tensor) -> Tensor:
    """Read a mask as a float32 tensor (1, 1, H, W) in [0, 1], of the size of `picture`; 1 is where to repaint.

    A rotation noted by the camera is applied, and transparency is laid on black. Raises InputError for another size,
    for numbers outside, and where there is nothing to repaint.
    """
    if isinstance(mask, Tensor):
        if mask.dim() < 2 or mask.numel() != mask.shape[-2] * mask.shape[-1]:
            raise InputError(f"mask: a tensor must be (H, W), not {tuple(mask.shape)}", remedy="give one mask")
        tensor = mask.detach().cpu().float().reshape(1, 1, *mask.shape[-2:])
        if not (tensor.amin() >= 0 and tensor.amax() <= 1):
            raise InputError("mask: a tensor must lie in [0, 1]", remedy="1 marks what is repainted, 0 what stays")
    else:
        grey = open_picture(mask, "mask")
        tensor = torch.from_numpy(np.array(grey))[None, None].float() / 255
    if tensor.shape[-2:] != picture.shape[-2:]:
        (h, w), (H, W) = tensor.shape[-2:], picture.shape[-2:]
        raise InputError(f"mask: it is {w}x{h} and the image is {W}x{H}", remedy="give both the same size")
    if not tensor.any():
        raise InputError("mask: it is black everywhere", remedy="paint white what shall be drawn anew")
    return tensor


def open_picture(picture: Any, name: str) -> Image.Image:
    """A picture's file, image or array as an RGB image; grey if it is called "mask", as it is if a map."""
    image = ImageOps.exif_transpose(opened(picture, name))
    if name in ("class_map", "depth"):
        return image
    image = _eight_bits(image, name)
    return _on(image, "black").convert("L") if name == "mask" else _on(image, "white").convert("RGB")


def pad(picture: Tensor, multiple: int) -> Tensor:
    """Extend a picture at its right and lower edges, by repeating them, to a multiple of `multiple` pixels."""
    height, width = picture.shape[-2:]
    return F.pad(picture, (0, -width % multiple, 0, -height % multiple), mode="replicate")


def to_pil(picture: Tensor) -> Image.Image:
    """Round a (3, H, W) picture in [-1, 1] to a PIL image, as diffusers does."""
    array = ((picture / 2 + 0.5).clamp(0, 1) * 255).round().to(torch.uint8)
    return Image.fromarray(array.permute(1, 2, 0).cpu().numpy())


def check_folder(path: Path) -> None:
    """Raise InputError where pictures cannot be written into `path`, before they are drawn. It is not made yet."""
    there = next(one for one in (path, *path.absolute().parents) if one.exists())
    if not (there.is_dir() and os.access(there, os.W_OK)):
        reason = "may not be written to" if there.is_dir() else "is a file"
        raise InputError(f"no pictures can be written into {path}: {there} {reason}", remedy="name another folder")


def names_picture(path: Path) -> bool:
    """Whether a path means a picture, as its ending says, and not a folder that is there."""
    return path.suffix.lower() in ENDINGS and not path.is_dir()


def folder_of(path: Path) -> Path:
    """Where pictures go: a folder itself, or that of the picture which `path` names.

    Raises InputError where it names a picture of a kind that is not written.
    """
    if path.suffix.lower() in OTHER_ENDINGS and not path.is_dir():
        raise _unwritten(path)
    return path.parent if names_picture(path) else path


def save_png(image: Image.Image, path: Path) -> Path:
    """`save_picture` without a recipe."""
    return save_picture(image, path)


def _save_with_room(image: Image.Image, path: Path, recipe: "Recipe | None") -> Path:
    try:
        return save_picture(image, path, recipe)
    except InputError:
        if recipe is None or ENDINGS.get(path.suffix.lower()) != "JPEG":
            raise
        return save_picture(image, path.with_suffix(".png"), recipe)


def save_picture(image: Image.Image, path: Path, recipe: "Recipe | None" = None) -> Path:
    """Write a picture whole or not at all, never over an existing file: a number is added to the name instead.

    The name's ending says the format: .png, .jpg, .jpeg or .webp. With a recipe the file says how it was made. Raises
    InputError for another ending, or where a JPEG has no room for the recipe.
    """
    form = ENDINGS.get(path.suffix.lower())
    if form is None:
        raise _unwritten(path)
    options: dict[str, Any] = {} if form == "PNG" else {"quality": QUALITY}
    if recipe is not None:
        from safelight.pipeline.recipes.texts import save_options

        options |= save_options(form, *recipe.texts())
    return write_new(path, lambda file: image.save(file, format=form, **options))


def _unwritten(path: Path) -> InputError:
    return InputError(f"pictures are not written as {path.suffix!r}", remedy="use .png, .jpeg or .webp")


def opened(picture: Any, what: str) -> Image.Image:
    """A picture of any kind as a PIL image in whatever mode it has; `what` it is called in errors."""
    if isinstance(picture, Image.Image):
        return picture
    if isinstance(picture, np.ndarray):
        if picture.dtype != np.uint8:
            raise InputError(f"{what}: an array must be uint8, not {picture.dtype}", remedy="scale it to 0..255")
        try:
            return Image.fromarray(picture)
        except (TypeError, ValueError):
            shape = f"(H, W), (H, W, 3) or (H, W, 4), not {picture.shape}"
            raise InputError(f"{what}: an array must be {shape}", remedy="give one picture, channels last") from None
    if not isinstance(picture, str | Path):
        raise InputError(
            f"{what}: cannot use a {type(picture).__name__}", remedy="give a path, a PIL image, an array or a tensor"
        )
    try:
        image = Image.open(picture, formats=FORMATS)
        image.load()
        return image
    except FileNotFoundError:
        raise InputError(f"{what}: no file {picture}", remedy="check the path") from None
    except (UnidentifiedImageError, Image.DecompressionBombError, OSError, SyntaxError, ValueError) as error:
        raise InputError(f"{what}: cannot read {picture}: {error}", remedy=f"use {', '.join(FORMATS)}") from error


def _eight_bits(image: Image.Image, what: str) -> Image.Image:
    """A picture of 16-bit grey in 8 bits. Pillow would cut all that is lighter than 255 of 65,535 to white."""
    if image.mode in ("I", "F"):
        raise InputError(f"{what}: numbers of mode {image.mode!r} have no white", remedy="scale them to 8 bits, 0..255")
    if not image.mode.startswith("I;16"):
        return image
    return Image.fromarray((np.asarray(image) / 257).round().astype(np.uint8))


def _on(image: Image.Image, ground: str) -> Image.Image:
    """A picture laid on a ground of one colour, if it can be seen through."""
    if not image.has_transparency_data:
        return image
    return Image.alpha_composite(Image.new("RGBA", image.size, ground), image.convert("RGBA"))


def _checked(tensor: Tensor) -> Tensor:
    tensor = tensor[None] if tensor.dim() == 3 else tensor
    if tensor.dim() != 4 or tensor.shape[:2] != (1, 3):
        raise InputError(f"image: a tensor must be (3, H, W), not {tuple(tensor.shape)}", remedy="give one RGB picture")
    if not (tensor.amin() >= -1 and tensor.amax() <= 1):
        raise InputError("image: a tensor must lie in [-1, 1]", remedy="scale it: x / 127.5 - 1 for 0..255")
    return tensor


def _resized(tensor: Tensor, width: int | None, height: int | None) -> Tensor:
    size = (height or tensor.shape[-2], width or tensor.shape[-1])
    return F.interpolate(tensor, size, mode="bicubic", antialias=True).clamp(-1, 1)
