"""What is around what is repainted: a mask's soft edge, the part of a picture that a model draws best, a wider canvas.

To repaint a part at the model's own size, what is around the mask is cut out and laid back; diffusers calls it
`padding_mask_crop`, A1111 "inpaint only masked".
"""

from dataclasses import replace

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image, ImageFilter
from torch import Tensor

from safelight.errors import InputError
from safelight.pipeline.pictures import Pictures, to_pil

Box = tuple[int, int, int, int]  # left, top, right, bottom, in pixels


def surroundings(white: Box | None, size: tuple[int, int], shape: float, padding: int) -> Box:
    """The box around a mask's white box, `padding` pixels wider, grown to the `shape` width / height where it fits.

    `size` is the picture's (width, height). Raises InputError where there is no white.
    """
    if white is None:
        raise InputError("the mask is black everywhere", remedy="paint white what shall be drawn anew")
    left, top = max(white[0] - padding, 0), max(white[1] - padding, 0)
    right, bottom = min(white[2] + padding, size[0]), min(white[3] + padding, size[1])
    if (right - left) / (bottom - top) > shape:
        top, bottom = _grown(top, bottom, int((right - left) / shape - (bottom - top)), size[1])
    else:
        left, right = _grown(left, right, int((bottom - top) * shape - (right - left)), size[0])
    return left, top, right, bottom


def white_box(mask: Tensor) -> Box | None:
    """The box of all that is above 0 in a mask (1, 1, H, W), if anything is."""
    rows, columns = (mask[0, 0] > 0).any(1).nonzero().flatten(), (mask[0, 0] > 0).any(0).nonzero().flatten()
    return (int(columns[0]), int(rows[0]), int(columns[-1]) + 1, int(rows[-1]) + 1) if len(rows) else None


def cut(picture: Tensor, box: Box, size: tuple[int, int], *, smooth: bool = True) -> Tensor:
    """The part (1, C, h, w) of a picture or mask in a box, scaled to fit into `size` (height, width), shape kept."""
    left, top, right, bottom = box
    part = picture[..., top:bottom, left:right]
    scale = min(size[0] / (bottom - top), size[1] / (right - left))
    fitting = [max(1, round(n * scale)) for n in part.shape[-2:]]
    if not smooth:
        return F.interpolate(part, fitting, mode="nearest-exact")
    return F.interpolate(part, fitting, mode="bicubic", antialias=True).clamp(-1, 1)


def laid_back(drawn: Pictures, picture: Tensor, box: Box) -> Pictures:
    """The whole picture (1, 3, H, W), once for each that was drawn, with that one in the box."""
    left, top, right, bottom = box
    images = []
    for image in drawn.images:
        whole = to_pil(picture[0])
        whole.paste(image.resize((right - left, bottom - top), Image.Resampling.LANCZOS), (left, top))
        images.append(whole)
    return replace(drawn, images=tuple(images))


def softened(mask: Tensor, blur: float) -> Tensor:
    """A mask (1, 1, H, W) whose edge is a Gaussian's of `blur` pixels, in steps of 1/255 (Pillow's, as diffusers')."""
    if not blur:
        return mask
    grey = Image.fromarray((mask[0, 0] * 255).round().to(torch.uint8).numpy()).filter(ImageFilter.GaussianBlur(blur))
    return torch.from_numpy(np.array(grey))[None, None].float() / 255


def wider(picture: Tensor, margins: tuple[int, int, int, int]) -> tuple[Tensor, Tensor]:
    """A picture (1, 3, H, W) with its edge drawn out by (left, right, top, bottom) pixels, and the mask of those."""
    known = torch.zeros_like(picture[:, :1])
    return F.pad(picture, margins, mode="replicate"), F.pad(known, margins, value=1.0)


def _grown(low: int, high: int, by: int, limit: int) -> tuple[int, int]:
    """Widen [low, high) by `by` to both sides, moved into [0, limit) and cut where it does not fit."""
    low, high = low - by // 2, high + by - by // 2
    if high >= limit:
        low, high = low - (high - limit), limit
    if low < 0:
        low, high = 0, high - low
    return low, min(high, limit)
