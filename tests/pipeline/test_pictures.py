"""Pictures as people have them: whatever their mode, they come in as they look."""

import numpy as np
import pytest
import torch
from PIL import Image

from safelight.errors import InputError
from safelight.pipeline.pictures import Pictures, load_mask, load_picture

RAMP = np.tile(np.linspace(0, 65_535, 256).round().astype(np.uint16), (8, 1))


@pytest.fixture
def deep(tmp_path):
    """A PNG of 16-bit grey, from black to white."""
    Image.fromarray(RAMP).save(tmp_path / "deep.png")
    return tmp_path / "deep.png"


def test_grey_of_16_bits_keeps_its_tones(deep):
    picture = load_picture(deep)
    wanted = torch.from_numpy(RAMP.astype(np.float32) / 65_535 * 2 - 1)
    torch.testing.assert_close(picture[0], wanted.expand(3, -1, -1), atol=1 / 255, rtol=0)


def test_a_mask_of_16_bits_as_well(deep):
    mask = load_mask(deep, load_picture(deep))
    torch.testing.assert_close(mask[0, 0], torch.from_numpy(RAMP.astype(np.float32) / 65_535), atol=0.5 / 255, rtol=0)


def test_a_mask_is_turned_as_its_picture_is(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6  # lies on its side
    grey = Image.fromarray(np.tile(np.arange(32, dtype=np.uint8) * 8, (16, 1)))
    grey.save(tmp_path / "mask.png", exif=exif)
    grey.convert("RGB").save(tmp_path / "picture.png", exif=exif)
    picture = load_picture(tmp_path / "picture.png")
    mask = load_mask(tmp_path / "mask.png", picture)
    assert mask.shape[2:] == (32, 16)
    torch.testing.assert_close(mask[0, 0] * 2 - 1, picture[0, 0])


def test_what_is_painted_on_a_transparent_layer_is_the_mask():
    layer = Image.new("RGBA", (32, 16))
    layer.paste("white", (8, 4, 16, 8))
    mask = load_mask(layer, torch.zeros(1, 3, 16, 32))
    assert mask.sum() == 32 and mask[0, 0, 4:8, 8:16].eq(1).all()


@pytest.mark.parametrize("mode", ["I", "F"])
def test_numbers_without_a_white_are_refused(mode):
    with pytest.raises(InputError, match=f"mode '{mode}' have no white"):
        load_picture(Image.new(mode, (16, 16)))


def test_a_mask_with_nothing_to_repaint_is_refused():
    with pytest.raises(InputError, match="black everywhere"):
        load_mask(Image.new("L", (32, 16)), torch.zeros(1, 3, 16, 32))


@pytest.mark.parametrize("ending", ["png", "jpg", "jpeg", "webp"])
def test_a_picture_takes_the_name_it_is_given(tmp_path, ending):
    pictures = Pictures((Image.new("RGB", (8, 8), "teal"),) * 2, (4, 5), torch.zeros(2, 4, 1, 1))
    one = Pictures(pictures.images[:1], (4,), torch.zeros(1, 4, 1, 1))
    name = tmp_path / "new" / f"fox.{ending}"
    assert one.save(name) == (name,) and name.stat().st_size
    assert one.save(name) == (name.with_stem("fox-2"),)  # what is there is not written over
    assert pictures.save(name) == (name.with_stem("fox-4"), name.with_stem("fox-5"))


def test_elsewhere_pictures_are_named_by_stem_and_seed(tmp_path):
    one = Pictures((Image.new("RGB", (8, 8), "teal"),), (4,), torch.zeros(1, 4, 1, 1))
    folder = tmp_path / "album.png"
    folder.mkdir()
    for place in (folder, tmp_path / "v1.5"):
        assert one.save(place, "fox") == (place / "fox-4.png",)


def test_what_is_not_written_makes_no_folder(tmp_path):
    one = Pictures((Image.new("RGB", (8, 8), "teal"),), (4,), torch.zeros(1, 4, 1, 1))
    with pytest.raises(InputError, match=r"not written as '\.gif'") as raised:
        one.save(tmp_path / "fox.gif")
    assert ".png" in raised.value.remedy and not list(tmp_path.iterdir())
