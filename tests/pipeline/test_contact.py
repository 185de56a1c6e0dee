"""Contact sheets: where the pictures lie, and that no pixel of them is lost or invented."""

import numpy as np
import pytest
from PIL import Image

from safelight.errors import InputError
from safelight.pipeline.contact import contact_sheet, font_for, words

COLOURS = ("red", "lime", "blue", "cyan", "magenta", "gold")


def plain(size, colours=COLOURS):
    return [Image.new("RGB", size, colour) for colour in colours]


def regions(sheet, colours=COLOURS):
    """The box (left, top, right, bottom) of each colour."""
    pixels = np.asarray(sheet)
    boxes = []
    for colour in colours:
        ys, xs = np.nonzero((pixels == Image.new("RGB", (1, 1), colour).getpixel((0, 0))).all(-1))
        boxes.append((xs.min(), ys.min(), xs.max() + 1, ys.max() + 1))
        assert len(xs) == (xs.max() + 1 - xs.min()) * (ys.max() + 1 - ys.min())  # a full rectangle
    return boxes


@pytest.mark.parametrize(("side", "shown"), [(64, 256), (512, 512), (100, 300), (128, 256)])
def test_pictures_lie_in_rows_at_a_whole_scale(side, shown):
    sheet = contact_sheet(plain((side, side)), column_labels=["1", "2", "3"], row_labels=["a", "b"], title="words")
    boxes = regions(sheet)
    assert all(x2 - x1 == y2 - y1 == shown for x1, y1, x2, y2 in boxes)
    assert boxes[0][0] < boxes[1][0] < boxes[2][0] and boxes[0][1] == boxes[1][1] == boxes[2][1]
    assert boxes[3][0] == boxes[0][0] and boxes[3][1] >= boxes[0][3]
    assert boxes[0][0] > 10 and boxes[0][1] > 10 and sheet.getpixel((0, 0)) == (0xEE, 0xEE, 0xEE)


def test_enlarged_pictures_keep_their_pixels():
    pixels = np.random.default_rng(0).integers(0, 255, (64, 64, 3), dtype=np.uint8)
    sheet = np.asarray(contact_sheet([Image.fromarray(pixels)]))
    enlarged = pixels.repeat(4, 0).repeat(4, 1)
    margin = (sheet.shape[0] - 256) // 2
    assert np.array_equal(sheet[margin : margin + 256, margin : margin + 256], enlarged)


def test_a_large_sheet_is_shrunk():
    sheet = contact_sheet(plain((600, 200)), columns=3, largest=1000)
    assert all((x2 - x1, y2 - y1) == (300, 100) for x1, y1, x2, y2 in regions(sheet))


def test_pictures_of_several_sizes_stand_in_the_middle():
    images = [Image.new("RGB", size, colour) for size, colour in (((128, 64), "red"), ((64, 128), "lime"))]
    (x1, y1, x2, y2), (u1, v1, u2, v2) = regions(contact_sheet(images, columns=2), ("red", "lime"))
    assert (x2 - x1, y2 - y1, u2 - u1, v2 - v1) == (256, 128, 128, 256)
    assert y1 - v1 == v2 - y2 == 64


def test_captions_and_odd_numbers_of_pictures():
    sheet = contact_sheet(plain((64, 64), COLOURS[:5]), captions=list("abcde"))
    boxes = regions(sheet, COLOURS[:5])
    assert boxes[3][1] - boxes[0][3] > 20 and boxes[3][0] == boxes[0][0]


def test_long_words_are_broken_and_end():
    for text in ("word " * 200, "w" * 900):
        piece = words(text, 16, 200, lines=3)
        assert piece.width <= 200 + 1 and piece.height == 3 * 20
    assert words("", 16, 200).height == 20


def test_letters_that_the_own_font_lacks_are_looked_for_elsewhere():
    assert font_for("plain", 16).getname()[0] == "Aileron"
    piece = words("été Жук 狐", 16, 200)
    assert len(piece.getcolors(10_000)) > 1  # something is written, if only boxes where no font has the letters


def test_bad_labels_are_named():
    with pytest.raises(InputError, match="column_labels: 2 for 3"):
        contact_sheet(plain((8, 8)), columns=3, column_labels=["a", "b"])
    with pytest.raises(InputError, match="row_labels: 1 for 2"):
        contact_sheet(plain((8, 8)), columns=3, row_labels=["a"])
    with pytest.raises(InputError, match="needs pictures"):
        contact_sheet([])
