"""Pictures as diffusers' pipelines take and give them: `VaeImageProcessor`, and the small helpers scripts import.

Ranges: PIL and arrays (B, H, W, C) or tensors (B, C, H, W) in [0, 1] outside; tensors in [-1, 1] inside.
"""

from collections.abc import Callable, Sequence
from io import BytesIO
from pathlib import Path
from typing import Any
from urllib.request import urlopen

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image, ImageFilter, ImageOps
from torch import Tensor
from torch.nn import functional as F

from safelight.compat.outputs import Config
from safelight.errors import InputError, nearest
from safelight.pipeline.surroundings import Box, surroundings

Array = NDArray[Any]

RESAMPLING = {
    "linear": Image.Resampling.BILINEAR,
    "bilinear": Image.Resampling.BILINEAR,
    "bicubic": Image.Resampling.BICUBIC,
    "lanczos": Image.Resampling.LANCZOS,
    "nearest": Image.Resampling.NEAREST,
}
OUTPUT_TYPES = ("pil", "np", "pt", "latent")


class VaeImageProcessor:
    """Pictures to the tensors an autoencoder takes, and back. Arguments have diffusers' names and defaults."""

    def __init__(
        self,
        do_resize: bool = True,
        vae_scale_factor: int = 8,
        vae_latent_channels: int = 4,
        resample: str = "lanczos",
        do_normalize: bool = True,
        do_binarize: bool = False,
        do_convert_rgb: bool = False,
        do_convert_grayscale: bool = False,
    ) -> None:
        if resample not in RESAMPLING:
            raise InputError(f"resample {resample!r} is not known", remedy=nearest(resample, RESAMPLING))
        self.config = Config({name: value for name, value in locals().items() if name not in ("self", "__class__")})

    def preprocess(
        self,
        image: Any,
        height: int | None = None,
        width: int | None = None,
        resize_mode: str = "default",
        crops_coords: Box | None = None,
    ) -> Tensor:
        """Give (B, C, H, W) in [-1, 1], or in [0, 1] for a mask, of the size asked for or the nearest one below.

        `image` is one or a list of PIL images, arrays or tensors. A tensor with the latent's channels is a latent and
        comes back as it is. `resize_mode` is "default" (stretch), "fill" or "crop" (PIL images only).
        """
        pictures = image if isinstance(image, list) else [image]
        if pictures and isinstance(pictures[0], Image.Image):
            x = self._from_pil(pictures, height, width, resize_mode, crops_coords)
        elif pictures and isinstance(pictures[0], Tensor | np.ndarray):
            x = self._from_numbers(pictures)
            if self._is_latent(x, pictures[0]):
                return x
            x = self._resized(x, *self.get_default_height_width(x, height, width))
        else:
            given = type(pictures[0]).__name__ if pictures else "an empty list"
            raise InputError(f"a picture cannot be {given}", remedy="give PIL images, NumPy arrays or tensors")
        if self.config.do_normalize and x.min() >= 0:  # a picture that is in [-1, 1] already is left there
            x = self.normalize(x)
        return (x >= 0.5).to(x.dtype) if self.config.do_binarize else x

    def _from_pil(
        self, pictures: list[Image.Image], height: int | None, width: int | None, resize_mode: str, box: Box | None
    ) -> Tensor:
        if box is not None:
            pictures = [picture.crop(box) for picture in pictures]
        if self.config.do_resize:
            height, width = self.get_default_height_width(pictures[0], height, width)
            pictures = [self.resize(picture, height, width, resize_mode) for picture in pictures]
        mode = "RGB" if self.config.do_convert_rgb else "L" if self.config.do_convert_grayscale else None
        return self.numpy_to_pt(self.pil_to_numpy([p.convert(mode) if mode else p for p in pictures]))

    def _from_numbers(self, pictures: list[Any]) -> Tensor:
        """Join arrays (H, W, C) or (B, H, W, C), or tensors (C, H, W) or (B, C, H, W), to (B, C, H, W)."""
        if self.config.do_convert_grayscale and pictures[0].ndim == 3:
            pictures = [_with_channel(picture) for picture in pictures]
        if isinstance(pictures[0], np.ndarray):
            return self.numpy_to_pt(np.concatenate(pictures) if pictures[0].ndim == 4 else np.stack(pictures))
        x = torch.cat(pictures) if pictures[0].ndim == 4 else torch.stack(pictures)
        return x[:, None] if x.ndim == 3 else x

    def _is_latent(self, x: Tensor, given: Any) -> bool:
        return isinstance(given, Tensor) and x.shape[1] == self.config.vae_latent_channels

    def _resized(self, x: Tensor, height: int, width: int) -> Tensor:
        return F.interpolate(x, size=(height, width)) if self.config.do_resize else x

    def postprocess(self, image: Tensor, output_type: str = "pil", do_denormalize: Sequence[bool] | None = None) -> Any:
        """Give (B, C, H, W) in [-1, 1] as `output_type`: "pil", "np", "pt", or "latent" (untouched)."""
        if output_type not in OUTPUT_TYPES:
            raise InputError(f"output_type {output_type!r} is not known", remedy=nearest(output_type, OUTPUT_TYPES))
        if output_type == "latent":
            return image
        wanted = [self.config.do_normalize] * len(image) if do_denormalize is None else do_denormalize
        image = torch.stack([self.denormalize(x) if yes else x for x, yes in zip(image, wanted, strict=True)])
        if output_type == "pt":
            return image
        array = self.pt_to_numpy(image)
        return array if output_type == "np" else self.numpy_to_pil(array)

    def get_default_height_width(
        self, image: Any, height: int | None = None, width: int | None = None
    ) -> tuple[int, int]:
        """Give the (height, width) asked for, or the picture's own, cut to multiples of the autoencoder's factor."""
        own = (image.height, image.width) if isinstance(image, Image.Image) else image.shape[-2:]
        sides = (own[0] if height is None else height, own[1] if width is None else width)
        factor = self.config.vae_scale_factor
        return sides[0] - sides[0] % factor, sides[1] - sides[1] % factor

    def resize(self, image: Any, height: int, width: int, resize_mode: str = "default") -> Any:
        """Resize a picture. "fill" fits a PIL image in and stretches its edge rows over the rest; "crop" covers."""
        if isinstance(image, Tensor):
            return F.interpolate(image, size=(height, width))
        if isinstance(image, np.ndarray):
            return self.pt_to_numpy(F.interpolate(self.numpy_to_pt(image), size=(height, width)))
        resample = RESAMPLING[self.config.resample]
        if resize_mode == "default":
            return image.resize((width, height), resample=resample)
        if resize_mode in ("fill", "crop"):
            return _framed(image, width, height, resample, cover=resize_mode == "crop")
        raise InputError(f"resize_mode {resize_mode!r} is not known", remedy="choose 'default', 'fill' or 'crop'")

    def apply_overlay(
        self, mask: Image.Image, init_image: Image.Image, image: Image.Image, crop_coords: Box | None = None
    ) -> Image.Image:
        """Lay the original over the inpainted picture (put back where it was cropped), but where the mask is white."""
        kept = Image.new("RGBa", init_image.size)
        kept.paste(init_image.convert("RGBA").convert("RGBa"), mask=ImageOps.invert(mask.convert("L")))
        if crop_coords is not None:
            left, top, right, bottom = crop_coords
            canvas = Image.new("RGBA", init_image.size)
            canvas.paste(self.resize(image, bottom - top, right - left, "crop"), (left, top))
            image = canvas.convert("RGB")
        image = image.convert("RGBA")
        image.alpha_composite(kept.convert("RGBA"))
        return image.convert("RGB")

    @staticmethod
    def get_crop_region(mask_image: Image.Image, width: int, height: int, pad: int = 0) -> Box:
        """Find the box around the mask's white, `pad` pixels wider, grown to the shape width : height where it fits."""
        grey = mask_image.convert("L")
        return surroundings(grey.getbbox(), grey.size, width / height, pad)

    @staticmethod
    def blur(image: Image.Image, blur_factor: int = 4) -> Image.Image:
        """Blur a PIL image by a Gaussian of this radius in pixels."""
        return image.filter(ImageFilter.GaussianBlur(blur_factor))

    @staticmethod
    def normalize(images: Any) -> Any:
        """[0, 1] -> [-1, 1]."""
        return 2.0 * images - 1.0

    @staticmethod
    def denormalize(images: Any) -> Any:
        """[-1, 1] -> [0, 1], cut off outside."""
        return (images * 0.5 + 0.5).clip(0, 1)

    @staticmethod
    def pil_to_numpy(images: Image.Image | list[Image.Image]) -> Array:
        """PIL images of one size -> (B, H, W[, C]) in [0, 1]."""
        images = images if isinstance(images, list) else [images]
        return np.stack([np.asarray(image).astype(np.float32) / 255.0 for image in images])

    @staticmethod
    def numpy_to_pil(images: Array) -> list[Image.Image]:
        """(B, H, W, C) or (H, W, C) in [0, 1] -> PIL images."""
        return numpy_to_pil(images)

    @staticmethod
    def numpy_to_pt(images: Array) -> Tensor:
        """(B, H, W[, C]) -> (B, C, H, W)."""
        images = images[..., None] if images.ndim == 3 else images
        return torch.from_numpy(np.ascontiguousarray(images.transpose(0, 3, 1, 2)))

    @staticmethod
    def pt_to_numpy(images: Tensor) -> Array:
        """(B, C, H, W) -> (B, H, W, C) in float32."""
        return images.detach().cpu().permute(0, 2, 3, 1).float().numpy()


def numpy_to_pil(images: Array) -> list[Image.Image]:
    """Round arrays (B, H, W, C) or (H, W, C) in [0, 1] to PIL images."""
    images = images[None] if images.ndim == 3 else images
    rounded = (images * 255).round().astype("uint8")
    return [Image.fromarray(image[..., 0] if image.shape[-1] == 1 else image) for image in rounded]


def load_image(
    image: str | Path | Image.Image, convert_method: Callable[[Image.Image], Image.Image] | None = None
) -> Image.Image:
    """Open a file or a URL as an RGB picture, the right way up. Raises InputError where there is none."""
    if isinstance(image, str) and image.startswith(("http://", "https://")):
        image = _downloaded(image)
    if not isinstance(image, Image.Image):
        if not Path(image).is_file():
            raise InputError(f"no file {image}", remedy="check the path")
        image = Image.open(image)
    image = ImageOps.exif_transpose(image)
    return image.convert("RGB") if convert_method is None else convert_method(image)


def _downloaded(url: str) -> Image.Image:
    try:
        with urlopen(url, timeout=30) as response:
            return Image.open(BytesIO(response.read()))
    except (OSError, ValueError) as error:
        raise InputError(f"{url}: {error}", remedy="save the picture to a file and give its path") from error


def make_image_grid(images: list[Image.Image], rows: int, cols: int, resize: int | None = None) -> Image.Image:
    """Lay rows·cols pictures, each the size of the first (or resize x resize), side by side on one."""
    if len(images) != rows * cols:
        raise InputError(f"{len(images)} pictures do not fill {rows} rows of {cols}", remedy="give rows * cols of them")
    if resize is not None:
        images = [image.resize((resize, resize)) for image in images]
    width, height = images[0].size
    sheet = Image.new("RGB", (cols * width, rows * height))
    for i, image in enumerate(images):
        sheet.paste(image, (i % cols * width, i // cols * height))
    return sheet


def _with_channel(mask: Any) -> Any:
    """Give a mask of three axes its fourth: tensors (B or 1, H, W) and arrays (B, H, W) or (H, W, 1)."""
    if isinstance(mask, Tensor):
        return mask[:, None]
    return mask[None] if mask.shape[-1] == 1 else mask[..., None]


def _framed(image: Image.Image, width: int, height: int, resample: Image.Resampling, *, cover: bool) -> Image.Image:
    """Scale a picture, shape kept, to cover a frame or to lie inside it, centred."""
    wider, narrower = image.width * height > width * image.height, image.width * height < width * image.height
    if narrower if cover else wider:
        w, h = width, image.height * width // image.width
    else:
        w, h = image.width * height // image.height, height
    scaled = image.resize((w, h), resample=resample)
    left, top = width // 2 - w // 2, height // 2 - h // 2
    frame = Image.new("RGB", (width, height))
    frame.paste(scaled, (left, top))
    if not cover and wider and top > 0:
        frame.paste(scaled.resize((width, top), box=(0, 0, width, 0)), (0, 0))
        frame.paste(scaled.resize((width, top), box=(0, h, width, h)), (0, top + h))
    if not cover and narrower and left > 0:
        frame.paste(scaled.resize((left, height), box=(0, 0, 0, height)), (0, 0))
        frame.paste(scaled.resize((left, height), box=(w, 0, w, height)), (left + w, 0))
    return frame
