"""The sheet of a first stage: pictures, and beneath each what the autoencoder makes of it."""

import torch
from PIL import Image
from torch import Tensor

from safelight.training.evaluation.metrics import psnr
from safelight.training.loop.sheets import contact_sheet

COLUMNS = 8
STRONGER = 4  # how much a difference is enlarged, so that it can be seen


def reconstruction_sheet(pictures: Tensor, reconstructions: Tensor, *, difference: bool = False) -> Image.Image:
    """Pictures and reconstructions, both (B, 3, H, W) in [-1, 1]: a row of one above a row of the other, in eights.

    With `difference` a third row shows grey + 4·(reconstruction - picture). Under each reconstruction stands its PSNR.
    """
    reconstructions = reconstructions.clamp(-1, 1)
    tiles: list[Image.Image] = []
    labels: list[str] = []
    columns = min(COLUMNS, len(pictures))
    for x, y in zip(pictures.split(columns), reconstructions.split(columns), strict=True):
        rows = [x, y, (STRONGER * (y - x) / 2).clamp(-1, 1)][: 3 if difference else 2]
        words = [[""] * len(x), [f"{value:.1f} dB" for value in psnr(x, y).tolist()], [""] * len(x)]
        for row, label in zip(rows, words, strict=False):
            blank = [Image.new("RGB", (x.shape[3], x.shape[2]), "white")] * (columns - len(x))
            tiles += [as_image(picture) for picture in row] + blank
            labels += label + [""] * len(blank)
    title = "picture, reconstruction" + (f", difference x{STRONGER}" if difference else "")
    return contact_sheet(tiles, labels, columns=columns, title=title)


def as_image(picture: Tensor) -> Image.Image:
    """(3, H, W) in [-1, 1] -> 8-bit RGB."""
    levels = ((picture.float() + 1) * 127.5).round().clamp(0, 255).to("cpu", torch.uint8)
    return Image.fromarray(levels.movedim(0, -1).numpy())
