"""The sheets of a first stage and of a tiny decoder: pictures, and beneath each what is made of it."""

from collections.abc import Sequence

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
    x, y = pictures, reconstructions.clamp(-1, 1)
    rows = [(x, []), (y, decibels(x, y)), ((STRONGER * (y - x) / 2).clamp(-1, 1), [])][: 3 if difference else 2]
    return sheet_of_rows(rows, "picture, reconstruction" + (f", difference x{STRONGER}" if difference else ""))


def decoder_sheet(pictures: Tensor, decoded: Tensor, made: Tensor) -> Image.Image:
    """Pictures, what an autoencoder decodes and what a tiny decoder makes of their latents, (B, 3, H, W): three rows.

    Under what is decoded stands its PSNR to the picture, under what is made that to what is decoded.
    """
    decoded, made = decoded.clamp(-1, 1), made.clamp(-1, 1)
    rows = [(pictures, []), (decoded, decibels(pictures, decoded)), (made, decibels(decoded, made))]
    return sheet_of_rows(rows, "picture; decoded (dB to the picture); by the tiny decoder (dB to what is decoded)")


def decibels(x: Tensor, y: Tensor) -> list[str]:
    """The PSNR of each of the pictures, in words."""
    return [f"{value:.1f} dB" for value in psnr(x, y).tolist()]


def sheet_of_rows(rows: Sequence[tuple[Tensor, Sequence[str]]], title: str) -> Image.Image:
    """Rows of B pictures each, (B, 3, H, W) in [-1, 1] with their labels, if any: beneath each other, in eights."""
    count, _, height, width = rows[0][0].shape
    columns = min(COLUMNS, count)
    tiles: list[Image.Image] = []
    labels: list[str] = []
    for start in range(0, count, columns):
        for pictures, words in rows:
            row = [as_image(picture) for picture in pictures[start : start + columns]]
            blank = columns - len(row)
            tiles += row + [Image.new("RGB", (width, height), "white")] * blank
            labels += [*(words[start : start + columns] or [""] * len(row)), *[""] * blank]
    return contact_sheet(tiles, labels, columns=columns, title=title)


def as_image(picture: Tensor) -> Image.Image:
    """(3, H, W) in [-1, 1] -> 8-bit RGB."""
    levels = ((picture.float() + 1) * 127.5).round().clamp(0, 255).to("cpu", torch.uint8)
    return Image.fromarray(levels.movedim(0, -1).numpy())
