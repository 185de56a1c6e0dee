"""From a batch to the `Condition` that steers the network, with a share of it dropped for guidance.

text   `batch.context` (B, L, D) if it was precomputed, else what the text encoder says to `batch.ids` or the captions
class  `batch.labels` (B,), with one more class for "none"
layout `batch.boxes` (B, K, 4) and `batch.box_labels` (B, K), which an embedder trained along makes a context of
none   nothing

and, beside the noisy latent (`Condition.concat`):

low_resolution   the picture, shrunk to the latent's size (Rombach et al. 2022, section 4.4)
mask             where to paint, and the latent of the picture without that part (section 4.5; Stable Diffusion's order)
class_map        the class at each pixel, which an embedder trained along shrinks to a few channels (section 4.3.2)
"""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from safelight.diffusion.noise import sent
from safelight.errors import InputError
from safelight.models.conditioners import NO_OBJECT
from safelight.text.tokenizer import Tokenizer
from safelight.training.stages.noise import BatchNoise

NULL_CAPTION = ""
MASK_AREA = (0.1, 0.9)  # shares of height and width that a random mask's rectangle has
FULL_MASKS = 0.25  # share of masks that cover everything (Stable Diffusion's inpainting models)


def dropped(noise: BatchNoise, share: float) -> Tensor:
    """Which samples get the null condition: (B,) bool, on the CPU."""
    return noise.uniform() < share


def token_ids(tokenizer: Tokenizer, captions: Sequence[str]) -> Tensor:
    """The ids (B, max_length) of captions; what does not fit is cut off, as every text-to-image model was trained."""
    return torch.tensor([tokenizer.ids(caption, truncate=True) for caption in captions])


def text_ids(batch: Any, tokenizer: Tokenizer | None, null: Tensor, drop: Tensor) -> Tensor:
    """The ids (B, L) of a batch's captions, those that are dropped replaced by `null` (L,), on null's device."""
    ids = getattr(batch, "ids", None)
    if ids is None:
        if tokenizer is None or not getattr(batch, "captions", None):
            raise InputError("the data has no captions", remedy="train with --conditioning class or none")
        ids = token_ids(tokenizer, batch.captions)
    ids = sent(ids.flatten(1), null.device)
    return torch.where(sent(drop, null.device)[:, None], null, ids)


def class_labels(batch: Any, classes: int, drop: Tensor, device: torch.device) -> Tensor:
    """The classes (B,) of a batch; number `classes` means none: dropped, or unknown (-1)."""
    labels = getattr(batch, "labels", None)
    if labels is None:
        raise InputError("the data has no class labels", remedy="name them in a column `label`, or condition on text")
    labels = sent(labels, device)
    none = sent(drop, device) | (labels < 0)
    return torch.where(none, torch.full_like(labels, classes), labels)


def layout(batch: Any, drop: Tensor, device: torch.device) -> tuple[Tensor, Tensor]:
    """The boxes (B, K, 4) and classes (B, K) of a batch; where dropped, every place is empty."""
    boxes, labels = getattr(batch, "boxes", None), getattr(batch, "box_labels", None)
    if boxes is None or labels is None:
        raise InputError("the data has no boxes", remedy="train on sprites, with --scenes")
    boxes, labels = sent(boxes, device), sent(labels.to(torch.int64), device)
    return boxes, labels.masked_fill(sent(drop, device)[:, None], NO_OBJECT)


def class_maps(batch: Any, device: torch.device) -> Tensor:
    """The maps of classes (B, H, W) of a batch."""
    maps = getattr(batch, "class_maps", None)
    if maps is None:
        raise InputError("the data has no maps of classes", remedy="train on sprites, with --scenes")
    return sent(maps.to(torch.int64), device)


def channels_beside(concat: str, latent: int) -> int:
    """How many channels a U-Net sees beside a latent of `latent` channels."""
    return {"none": 0, "low_resolution": 3, "mask": 1 + latent, "class_map": 3}[concat]


def low_resolution(pictures: Tensor, size: Sequence[int]) -> Tensor:
    """Pictures (B, 3, H, W) shrunk to (h, w): (B, 3, h, w)."""
    return F.interpolate(pictures, size=tuple(size), mode="bicubic", antialias=True)


def mask_and_rest(
    pictures: Tensor, size: Sequence[int], encode: Callable[[Tensor], Tensor], noise: BatchNoise
) -> Tensor:
    """Masks (B, 1, h, w), 1 where to paint, on top of the latents of what is left of the pictures: (B, 1 + C, h, w).

    A mask is a random rectangle, or, in a quarter of the samples, everything.
    """
    mask = rectangles(noise, pictures.shape[-2], pictures.shape[-1]).to(pictures)
    rest = encode(pictures * (mask < 0.5))
    return torch.cat([F.interpolate(mask, size=tuple(size)), rest], dim=1)


def rectangles(noise: BatchNoise, height: int, width: int) -> Tensor:
    """Masks (B, 1, height, width) of one random rectangle each, or of 1 everywhere; on the CPU."""
    full = noise.uniform() < FULL_MASKS
    low, high = MASK_AREA
    spans = []
    for length in (height, width):
        size = low + (high - low) * noise.uniform()
        start = noise.uniform() * (1 - size)
        place = (torch.arange(length, dtype=torch.float64) + 0.5) / length
        spans.append((place >= start[:, None]) & (place < (start + size)[:, None]))
    inside = spans[0][:, None, :, None] & spans[1][:, None, None, :]
    return (inside | full[:, None, None, None]).float()
