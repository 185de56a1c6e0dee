"""Pictures side by side, with words under them."""

from collections.abc import Sequence
from math import ceil

from PIL import Image, ImageDraw, ImageFont

MARGIN = 8
LINE = 14  # height of a line of text
SMALLEST = 96  # side of a shown picture; smaller ones are enlarged by whole factors, so that their pixels show


def contact_sheet(
    pictures: Sequence[Image.Image], labels: Sequence[str] = (), *, columns: int | None = None, title: str = ""
) -> Image.Image:
    """Lay pictures of one size out in rows, each with its label beneath it, on white."""
    columns = columns or ceil(len(pictures) ** 0.5)
    rows = ceil(len(pictures) / columns)
    factor = max(1, ceil(SMALLEST / min(pictures[0].size)))
    width, height = (side * factor for side in pictures[0].size)
    lines = 2 if any(labels) else 0
    top = MARGIN + (LINE if title else 0)
    across, down = width + MARGIN, height + LINE * lines + MARGIN
    sheet = Image.new("RGB", (MARGIN + columns * across, top + rows * down), "white")
    pen, font = ImageDraw.Draw(sheet), ImageFont.load_default(LINE - 4)
    pen.text((MARGIN, 2), title, fill="black", font=font)
    for i, picture in enumerate(pictures):
        x, y = MARGIN + i % columns * across, top + i // columns * down
        sheet.paste(picture.convert("RGB").resize((width, height), Image.Resampling.NEAREST), (x, y))
        label = labels[i] if i < len(labels) else ""
        for k, line in enumerate(wrapped(label, width, font)[:lines]):
            pen.text((x, y + height + 1 + k * LINE), line, fill="black", font=font)
    return sheet


def wrapped(text: str, width: int, font: ImageFont.FreeTypeFont | ImageFont.ImageFont) -> list[str]:
    """Break a text into lines of at most `width` pixels, at spaces."""
    lines: list[str] = []
    for word in text.split():
        longer = f"{lines[-1]} {word}" if lines else word
        if lines and font.getlength(longer) <= width:
            lines[-1] = longer
        else:
            lines.append(word)
    return lines
