"""Contact sheets: many pictures on one, with words beside them. Everything on a sheet is a small picture first."""

from collections.abc import Sequence
from functools import lru_cache
from math import ceil, sqrt
from typing import Literal

from PIL import Image, ImageDraw, ImageFont

from safelight.errors import InputError

PAPER, INK, GREY = "#eeeeee", "#1b1b1b", "#666666"  # not white, on which a white picture would have no edge
SIDE = 256  # pixels, about what small pictures are enlarged to
LARGEST = 8192  # pixels, about what the pictures of a sheet may take from side to side
# Pillow's own font has the letters of English alone; for others, the first of these that is there and has them all.
FONTS = ("DejaVuSans.ttf", "NotoSans-Regular.ttf", "NotoSansCJK-Regular.ttc", "Arial Unicode.ttf", "arial.ttf",
         "msgothic.ttc", "PingFang.ttc")  # fmt: skip

Align = Literal["left", "center", "right"]
Font = ImageFont.FreeTypeFont | ImageFont.ImageFont


def contact_sheet(
    images: Sequence[Image.Image],
    *,
    columns: int | None = None,
    captions: Sequence[str] = (),
    column_labels: Sequence[str] = (),
    row_labels: Sequence[str] = (),
    title: str = "",
    notes: str = "",
    margin: bool = True,
    largest: int = LARGEST,
) -> Image.Image:
    """Lay pictures out on paper, in rows from the left to the right.

    Small pictures are enlarged by a whole factor, pixel by pixel.

    Args:
        images: of any sizes; each stands in the middle of a box that all of them fit into.
        columns: pictures in a row; by default one for each column label, else as many as make about a square.
        captions: words under each picture.
        column_labels: words over each column.
        row_labels: words left of each row.
        title: words at the top.
        notes: smaller words below the title.
        margin: whether paper shows around it.
        largest: the width and height in pixels above which the pictures are shrunk, by a whole factor.

    Raises:
        InputError: for no pictures, or labels that are not as many as there are columns, rows or pictures.
    """
    columns = columns or len(column_labels) or ceil(sqrt(len(images))) or 1
    rows = ceil(len(images) / columns)
    _check(len(images), captions=(captions, len(images)), column_labels=(column_labels, columns),
           row_labels=(row_labels, rows))  # fmt: skip
    box, scale = _box(images, columns, rows, largest)
    size = letters(box[0])
    cells = [_cell(image, box, scale) for image in images]
    if captions:
        below = [words(text, size, box[0], align="center") for text in captions]
        cells = [table([[cell], [caption]], size // 3) for cell, caption in zip(cells, below, strict=True)]
    lines = [cells[start : start + columns] for start in range(0, len(cells), columns)]
    if column_labels:
        lines.insert(0, [words(text, size, box[0], align="center") for text in column_labels])
    if row_labels:
        over = [_blank(1, 1)] if column_labels else []
        beside = [*over, *(words(text, size, box[0], align="right") for text in row_labels)]
        lines = [[label, *line] for label, line in zip(beside, lines, strict=True)]
    return headed(table(lines, size // 2), title, notes, size, margin=margin)


def headed(sheet: Image.Image, title: str, notes: str, size: int = 18, *, margin: bool = True) -> Image.Image:
    """A sheet with a title and smaller notes over it, and a margin around all, in letters of a size in pixels."""
    width = max(sheet.width, 24 * size)
    heading = [words(title, size * 6 // 5, width, lines=8)] if title else []
    heading += [words(notes, max(size * 4 // 5, 12), width, ink=GREY, lines=8)] if notes else []
    whole = column([column(heading, size // 3), sheet], size) if heading else sheet
    if not margin:
        return whole
    framed = _blank(whole.width + 2 * size, whole.height + 2 * size)
    framed.paste(whole, (size, size))
    return framed


def letters(width: int) -> int:
    """The size in pixels of the letters beside pictures of some width."""
    return min(max(width // 13, 14), 26)


def column(pieces: Sequence[Image.Image], gap: int) -> Image.Image:
    """Pieces one under another, from the left."""
    whole = _blank(max(piece.width for piece in pieces), sum(p.height for p in pieces) + gap * (len(pieces) - 1))
    top = 0
    for piece in pieces:
        whole.paste(piece, (0, top))
        top += piece.height + gap
    return whole


def table(lines: Sequence[Sequence[Image.Image]], gap: int) -> Image.Image:
    """Pieces in rows and columns, each in the middle of its place. The last row may be shorter."""
    widths = [max(line[k].width for line in lines if k < len(line)) for k in range(max(map(len, lines)))]
    heights = [max(piece.height for piece in line) for line in lines]
    whole = _blank(sum(widths) + gap * (len(widths) - 1), sum(heights) + gap * (len(heights) - 1))
    top = 0
    for line, height in zip(lines, heights, strict=True):
        left = 0
        for piece, width in zip(line, widths, strict=False):
            whole.paste(piece, (left + (width - piece.width) // 2, top + (height - piece.height) // 2))
            left += width + gap
        top += height + gap
    return whole


def words(text: str, size: int, width: int, *, ink: str = INK, align: Align = "left", lines: int = 4) -> Image.Image:
    """Words in letters of a size, broken into lines of a width in pixels; what takes more lines ends in "...".

    The piece is as wide as its longest line.
    """
    font = font_for(text, size)
    broken = _broken(text, font, width)
    if len(broken) > lines:
        broken = [*broken[: lines - 1], _shortened(broken[lines - 1], font, width)]
    taken = max(ceil(font.getlength(line)) for line in broken)
    height = size * 5 // 4
    piece = _blank(max(taken, 1), height * len(broken))
    draw = ImageDraw.Draw(piece)
    for number, line in enumerate(broken):
        spare = taken - font.getlength(line)
        left = {"left": 0.0, "center": spare / 2, "right": spare}[align]
        draw.text((left, number * height + height // 2), line, ink, font, anchor="lm")
    return piece


def _broken(text: str, font: Font, width: int) -> list[str]:
    """Lines of at most a width, broken at spaces where there are any."""
    lines = [""]
    for word in text.split():
        joined = f"{lines[-1]} {word}".strip()
        if font.getlength(joined) <= width:
            lines[-1] = joined
            continue
        lines += [""] if lines[-1] else []
        for letter in word:
            if lines[-1] and font.getlength(lines[-1] + letter) > width:
                lines.append("")
            lines[-1] += letter
    return lines


def _shortened(line: str, font: Font, width: int) -> str:
    while line and font.getlength(line + "...") > width:
        line = line[:-1]
    return line + "..."


def font_for(text: str, size: int) -> Font:
    """A font of a size in pixels that has all letters of a text, if there is one."""
    fonts = (ImageFont.load_default(size), *(font for name in FONTS if (font := _installed(name, size))))
    letters = {letter for letter in text if not letter.isspace()}
    return min(fonts, key=lambda font: sum(_missing(font, letter) for letter in letters))


@lru_cache
def _installed(name: str, size: int) -> Font | None:
    try:
        return ImageFont.truetype(name, size)
    except OSError:
        return None


def _missing(font: Font, letter: str) -> bool:
    return bytes(font.getmask(letter)) == bytes(font.getmask("\uffff"))  # a box, which stands for what is not there


def _box(images: Sequence[Image.Image], columns: int, rows: int, largest: int) -> tuple[tuple[int, int], float]:
    """The box (width, height) that all pictures fit into, and by what they are enlarged or shrunk."""
    width, height = (max(image.size[axis] for image in images) for axis in (0, 1))
    much = max(width * columns, height * rows) / largest
    scale = 1 / ceil(much) if much > 1 else float(max(1, min(round(SIDE / max(width, height)), int(1 / much))))
    return (ceil(width * scale), ceil(height * scale)), scale


def _cell(image: Image.Image, box: tuple[int, int], scale: float) -> Image.Image:
    size = (max(1, round(image.width * scale)), max(1, round(image.height * scale)))
    how = Image.Resampling.NEAREST if scale >= 1 else Image.Resampling.BOX
    cell = _blank(*box)
    cell.paste(image.convert("RGB").resize(size, how), ((box[0] - size[0]) // 2, (box[1] - size[1]) // 2))
    return cell


def _blank(width: int, height: int) -> Image.Image:
    return Image.new("RGB", (width, height), PAPER)


def _check(pictures: int, **given: tuple[Sequence[str], int]) -> None:
    if not pictures:
        raise InputError("a contact sheet needs pictures", remedy="give at least one")
    for name, (labels, wanted) in given.items():
        if labels and len(labels) != wanted:
            raise InputError(f"{name}: {len(labels)} for {wanted}", remedy=f"give {wanted} of them, or none")
