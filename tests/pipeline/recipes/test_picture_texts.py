"""Texts in picture files, as programs write them and as strangers may make them."""

import random
import zlib

import pytest
from PIL import Image, PngImagePlugin

from safelight.errors import InputError
from safelight.pipeline.recipes.reading import read_picture
from safelight.pipeline.recipes.texts import PNG_MAGIC, TEXT_LIMIT, printable, read_texts


def chunk(kind, data, crc=None):
    crc = zlib.crc32(kind + data) if crc is None else crc
    return len(data).to_bytes(4, "big") + kind + data + crc.to_bytes(4, "big")


def png(tmp_path, *chunks):
    path = tmp_path / "a.png"
    header = chunk(b"IHDR", bytes([0, 0, 0, 1, 0, 0, 0, 1, 8, 0, 0, 0, 0]))
    pixels = chunk(b"IDAT", zlib.compress(b"\0\0"))
    path.write_bytes(PNG_MAGIC + header + b"".join(chunks) + pixels + chunk(b"IEND", b""))
    return path


def test_every_kind_of_text_chunk_as_pillow_writes_them(tmp_path):
    info = PngImagePlugin.PngInfo()
    info.add_text("plain", "café")
    info.add_text("packed", "x" * 5000, zip=True)
    info.add_itxt("international", "漢字", lang="ja", tkey="国際")
    info.add_itxt("both", "🦊" * 999, zip=True)
    Image.new("L", (1, 1)).save(tmp_path / "a.png", pnginfo=info)
    texts = read_texts(tmp_path / "a.png")
    assert texts.found == {"plain": "café", "packed": "x" * 5000, "international": "漢字", "both": "🦊" * 999}
    assert texts.remarks == []


def test_texts_behind_the_pixels_are_found_and_the_first_of_two_counts(tmp_path):
    path = png(tmp_path, chunk(b"tEXt", b"a\0one"), chunk(b"tEXt", b"a\0two"))
    path.write_bytes(path.read_bytes()[:-12] + chunk(b"tEXt", b"late\0yes") + chunk(b"IEND", b""))
    texts = read_texts(path)
    assert texts.found == {"a": "one", "late": "yes"}
    assert "second text 'a'" in texts.remarks[0]


@pytest.mark.parametrize(
    "bomb",
    [
        chunk(b"zTXt", b"bomb\0\0" + zlib.compress(bytes(TEXT_LIMIT + 1), 9)),
        chunk(b"iTXt", b"bomb\0\1\0\0\0" + zlib.compress(bytes(TEXT_LIMIT + 1), 9)),
        chunk(b"iTXt", b"bomb\0\1\0\0\0" + zlib.compress(b"cut short")[:-3]),
        chunk(b"zTXt", b"bomb\0\0not zlib at all"),
        chunk(b"tEXt", b"bomb\0" + bytes(TEXT_LIMIT)),
        chunk(b"tEXt", b"bomb\0x", crc=1),
        chunk(b"eXIf", b"no TIFF at all"),
    ],
)
def test_bombs_and_damage_are_left_out_and_the_rest_is_read(tmp_path, bomb):
    texts = read_texts(png(tmp_path, bomb, chunk(b"tEXt", b"parameters\0a fox")))
    assert texts.found == {"parameters": "a fox"}
    assert len(texts.remarks) == 1 and "left out" in texts.remarks[0]


def test_many_large_texts_stop_at_a_total(tmp_path):
    texts = read_texts(
        png(tmp_path, *(chunk(b"zTXt", b"%d\0\0" % k + zlib.compress(bytes(TEXT_LIMIT))) for k in range(6)))
    )
    assert len(texts.found) == 4 and len(texts.remarks) == 2


@pytest.mark.parametrize("cut", [8, 20, 40, 60, -1, -13])
def test_a_broken_png_is_named(tmp_path, cut):
    path = png(tmp_path, chunk(b"tEXt", b"parameters\0a fox"))
    path.write_bytes(path.read_bytes()[:cut])
    with pytest.raises(InputError, match="broken PNG"):
        read_picture(path)


def test_a_length_beyond_the_file_is_not_believed(tmp_path):
    path = tmp_path / "a.png"
    path.write_bytes(PNG_MAGIC + (2**31).to_bytes(4, "big") + b"tEXt" + b"a\0b")
    with pytest.raises(InputError, match="broken PNG"):
        read_texts(path)


@pytest.mark.parametrize("content", [b"", b"hello", b"\xff\xd8\xff", b"RIFF\0\0\0\0WEBP", b"GIF89a" + bytes(50)])
def test_what_is_no_picture_is_refused(tmp_path, content):
    (tmp_path / "a").write_bytes(content)
    with pytest.raises(InputError, match="no PNG, JPEG or WebP"):
        read_texts(tmp_path / "a")
    with pytest.raises(InputError, match="no file"):
        read_texts(tmp_path / "b")
    with pytest.raises(InputError, match="cannot be read"):
        read_texts(tmp_path)


@pytest.mark.parametrize("form", ["png", "jpeg", "webp"])
def test_flipped_bytes_end_in_a_reading_or_a_clear_error(tmp_path, form):
    """Three hundred damaged copies of a real file each: nothing but InputError comes out."""
    from safelight.pipeline.pictures import save_picture
    from safelight.pipeline.recipes.recipe import Recipe

    recipe = Recipe("text_to_image", {"prompt": "a fox", "steps": 3, "seed": 1})
    whole = save_picture(Image.new("RGB", (16, 16)), tmp_path / f"whole.{form}", recipe).read_bytes()
    rng, path = random.Random(0), tmp_path / f"a.{form}"
    outcomes = set()
    for _ in range(300):
        damaged = bytearray(whole)
        for _ in range(rng.choice((1, 3, 30))):
            damaged[rng.randrange(len(damaged))] = rng.randrange(256)
        path.write_bytes(damaged[: rng.choice((len(damaged), rng.randrange(len(damaged))))])
        try:
            read_picture(path)
            outcomes.add("read")
        except InputError:
            outcomes.add("refused")
    assert outcomes == {"read", "refused"}


@pytest.mark.parametrize(("code", "order"), [(b"UNICODE\0", "utf-16-be"), (b"UNICODE\0", "utf-16-le"),
                                             (b"ASCII\0\0\0", "ascii"), (b"", "utf-8")])  # fmt: skip
def test_user_comments_in_every_byte_order(tmp_path, code, order):
    exif = Image.Exif()
    exif.get_ifd(0x8769)[0x9286] = code + "a fox, sitting on a long wall".encode(order)
    Image.new("RGB", (8, 8)).save(tmp_path / "a.jpg", exif=exif.tobytes())
    assert read_texts(tmp_path / "a.jpg").found == {"parameters": "a fox, sitting on a long wall"}


def test_comfyuis_webp_has_its_graph_in_exif(tmp_path):
    exif = Image.Exif()
    exif[0x0110], exif[0x010F] = 'prompt:{"1": {}}', 'workflow:{"nodes": []}'
    Image.new("RGB", (8, 8)).save(tmp_path / "a.webp", exif=exif.tobytes())
    assert read_texts(tmp_path / "a.webp").found == {"prompt": '{"1": {}}', "workflow": '{"nodes": []}'}


def test_printable():
    assert printable("a\0b\ud800c🦊\n") == "a\ufffdb\ufffdc🦊\n"
