"""Folders, zips and tars of captioned pictures, and everything that can be wrong with them."""

import csv
import io
import json
import pickle
import tarfile
import zipfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from safelight.training.data.collections import CollectionError, open_collection
from safelight.training.data.decoding import decode, header_size
from safelight.training.data.stores import BrokenFile, is_safe


def png(color="red", size=(8, 6), mode="RGB", **options):
    file = io.BytesIO()
    Image.new(mode, size, color).save(file, "PNG", **options)
    return file.getvalue()


FILES = {
    "a/cat.png": png("red"), "a/cat.txt": b"a cat\n\na tabby cat \n",
    "b.dots/dog.v2.jpg": png("blue"), "b.dots/dog.v2.txt": "\ufeffa d\u00f6g".encode(),
}  # fmt: skip


def write(folder: Path, files=FILES):
    for name, data in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(data)
    return folder


def zipped(path: Path, files, method=zipfile.ZIP_DEFLATED):
    with zipfile.ZipFile(path, "w", method) as file:
        for name, data in files.items():
            file.writestr(name, data)
    return path


def tarred(path: Path, files):
    with tarfile.open(path, "w") as file:
        for name, data in files.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            file.addfile(info, io.BytesIO(data))
    return path


def seen(collection):
    return {e.name: (e.captions, collection.picture(i).getpixel((0, 0))) for i, e in enumerate(collection)}


def test_folder_and_zip_give_the_same(tmp_path):
    folder = open_collection(write(tmp_path / "folder"))
    assert seen(folder) == {
        "a/cat.png": (("a cat", "a tabby cat"), (255, 0, 0)),
        "b.dots/dog.v2.jpg": (("a d\u00f6g",), (0, 0, 255)),
    }
    for method in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
        assert seen(open_collection(zipped(tmp_path / f"{method}.zip", FILES, method))) == seen(folder)
    assert seen(pickle.loads(pickle.dumps(folder))) == seen(folder)


def test_tables_of_every_kind_name_files_relative_to_themselves(tmp_path):
    rows = [{"file_name": "x.png", "text": "an x", "label": 3, "split": "train"}, {"file_name": "y.png", "text": "a y"}]
    lines = "\n".join(map(json.dumps, rows)).encode()
    sheet = io.StringIO()
    writer = csv.DictWriter(sheet, ["file_name", "text", "label", "split"])
    writer.writeheader()
    writer.writerows(rows)
    for name, data in {
        "metadata.jsonl": lines,
        "captions.jsonl": lines,
        "metadata.csv": sheet.getvalue().encode(),
    }.items():
        files = {f"deep/{name}": data, "deep/x.png": png("red"), "deep/y.png": png("lime")}
        c = open_collection(write(tmp_path / name, files))
        assert seen(c) == {"deep/x.png": (("an x",), (255, 0, 0)), "deep/y.png": (("a y",), (0, 255, 0))}
        assert (c[0].label, c[0].split) == ("3", "train")
        assert open_collection(tmp_path / name, label="folder").labels == ("deep",)


def test_several_captions_and_another_column(tmp_path):
    row = {"file": "x.png", "captions": ["one", " two\nlines "], "alt": "other", "text": ""}
    folder = write(tmp_path, {"captions.jsonl": json.dumps(row).encode(), "x.png": png()})
    assert open_collection(folder)[0].captions == ("one", "two lines")
    assert open_collection(folder, caption_field="alt")[0].captions == ("other",)


def test_webdataset_shards(tmp_path):
    first = {
        "000.a.png": png("red"),
        "000.json": b'{"caption": "red"}',
        "001.png": png("lime"),
        "001.txt": b"g",
        "001.cls": b"7",
    }
    tarred(tmp_path / "s-0.tar", first)
    tarred(tmp_path / "s-1.tar", {"000.png": png("blue"), "000.txt": b"blue"})
    wanted = {
        "s-0.tar/000.a.png": (("red",), (255, 0, 0)),
        "s-0.tar/001.png": (("g",), (0, 255, 0)),
        "s-1.tar/000.png": (("blue",), (0, 0, 255)),
    }
    for path in (tmp_path, tmp_path / "s-*.tar", [tmp_path / "s-0.tar", tmp_path / "s-1.tar"]):
        c = open_collection(path)
        assert seen(c) == wanted
        assert c[1].label == "7"
    assert len(open_collection(tmp_path / "s-1.tar")) == 1


def test_archives_with_names_that_lead_outside_are_never_followed(tmp_path):
    evil = FILES | {"../evil.png": png(), "/etc/evil.png": png(), "C:\\evil.png": png()}
    for path in (zipped(tmp_path / "z.zip", evil), tarred(tmp_path / "t.tar", evil)):
        with pytest.raises(CollectionError, match="leads outside"):
            open_collection(path)
        c = open_collection(path, max_broken=0.7)
        assert {e.name.split("/")[-1] for e in c} <= {"cat.png", "dog.v2.jpg"}
        assert len(c.faults.found) == 3
    assert not list(tmp_path.parent.glob("evil.png"))
    row = b'{"file_name": "../secret.png", "text": "x"}\n{"file_name": "ok.png", "text": "y"}'
    (tmp_path / "secret.png").write_bytes(png())
    folder = write(tmp_path / "f", {"metadata.jsonl": row, "ok.png": png()})
    with pytest.raises(CollectionError, match="is in a table, but not there"):
        open_collection(folder)
    assert not is_safe("a/../../b") and is_safe("a..b/c")


@pytest.mark.parametrize("share", [0.02, 0.3, 0.6, 0.97])
def test_truncated_archives_are_refused(tmp_path, share):
    rng = np.random.default_rng(0)
    files = {f"{i}.png": rng.bytes(700) for i in range(5)} | {f"{i}.txt": b"x" for i in range(5)}
    tar, zip_ = tarred(tmp_path / "t.tar", files), zipped(tmp_path / "z.zip", files)
    with tarfile.open(tar) as file:
        end = sum(512 + -(-info.size // 512) * 512 for info in file)
    for path, size in ((tar, end), (zip_, zip_.stat().st_size)):
        path.write_bytes(path.read_bytes()[: int(size * share)])
        with pytest.raises(CollectionError, match=r"cut short|no sound"):
            open_collection(path)


def test_a_packed_tar_says_what_to_do(tmp_path):
    with tarfile.open(tmp_path / "t.tar.gz", "w:gz") as file:
        file.addfile(tarfile.TarInfo("a.txt"), io.BytesIO(b""))
    with pytest.raises(CollectionError, match="unpack it"):
        open_collection(tmp_path / "t.tar.gz")


def test_a_damaged_member_is_a_broken_file(tmp_path):
    path = zipped(tmp_path / "z.zip", FILES, zipfile.ZIP_STORED)
    data = bytearray(path.read_bytes())
    data[data.index(FILES["a/cat.png"]) + 40] ^= 1
    path.write_bytes(data)
    with pytest.raises(BrokenFile, match="checksum"):
        open_collection(path).picture(0)


def test_nothing_there(tmp_path):
    with pytest.raises(CollectionError, match="no pictures"):
        open_collection(tmp_path)
    with pytest.raises(CollectionError, match="does not exist"):
        open_collection(tmp_path / "nowhere")


def test_missing_captions(tmp_path):
    files = {f"{i}.png": png() for i in range(10)} | {f"{i}.txt": b"word" for i in range(8)} | {"8.txt": b" \n"}
    write(tmp_path, files)
    with pytest.raises(CollectionError, match=r"(?s)2 of 10|1 of 10.*NAME.txt"):
        open_collection(tmp_path)
    skipping = open_collection(tmp_path, max_broken=0.2)
    assert len(skipping) == 8 and set(skipping.faults.found) == {"8.png", "9.png"}
    assert len(open_collection(tmp_path, captions="optional")) == 10


@pytest.mark.parametrize(
    ("name", "data", "match"),
    [
        ("metadata.jsonl", b"{", "line 1 of metadata.jsonl is not JSON"),
        ("metadata.jsonl", b'{"text": "x"}', "names no file"),
        ("metadata.jsonl", b"[1]", "holds a list"),
        ("x.txt", b"\xff\xfe", "not UTF-8"),
    ],
)
def test_bad_tables(tmp_path, name, data, match):
    write(tmp_path, {"x.png": png(), name: data})
    with pytest.raises(CollectionError, match=match):
        open_collection(tmp_path)


def test_broken_pictures_are_counted_and_skipped_up_to_the_share(tmp_path):
    files = {f"{i}.png": png((i, 0, 0)) for i in range(10)} | {f"{i}.txt": b"x" for i in range(10)}
    files["3.png"] = files["3.png"][:40]
    files["4.png"] = b"<html>no picture</html>"
    write(tmp_path, files)
    c = open_collection(tmp_path, max_broken=0.2)
    assert [c.intact(i)[0] for i in range(10)] == [0, 1, 2, 5, 5, 5, 6, 7, 8, 9]
    assert set(c.faults.found) == {"3.png", "4.png"} == set(c.verify())
    assert [open_collection(tmp_path, max_broken=0.2).intact(4)[0]] == [5]  # whatever was read before
    with pytest.raises(CollectionError, match=r"(?s)1 of 10 pictures.*3.png"):
        open_collection(tmp_path).verify()


def test_absurd_sizes_are_broken():
    for size in ((20_000, 20_000), (4, 400)):
        with pytest.raises(BrokenFile, match="than any training picture"):
            decode(png(1, size, "1"), "x.png")


@pytest.mark.parametrize(
    ("mode", "color", "form", "options", "wanted"),
    [
        ("L", 77, "PNG", {}, (77, 77, 77)),
        ("1", 1, "PNG", {}, (255, 255, 255)),
        ("LA", (77, 9), "PNG", {}, (77, 77, 77, 9)),
        ("RGBA", (1, 2, 3, 4), "PNG", {}, (1, 2, 3, 4)),
        ("CMYK", (0, 255, 255, 0), "TIFF", {}, (255, 0, 0)),
        ("I;16", 257 * 50, "PNG", {}, (50, 50, 50)),
        ("P", 0, "PNG", {}, (0, 0, 0)),
        ("P", 0, "PNG", {"transparency": 0}, (0, 0, 0, 0)),
        ("F", 12.0, "TIFF", {}, (12, 12, 12)),
    ],
)
def test_every_mode_becomes_rgb_or_rgba(mode, color, form, options, wanted):
    file = io.BytesIO()
    Image.new(mode, (8, 8), color).save(file, form, **options)
    assert decode(file.getvalue(), "x").getpixel((3, 3)) == wanted


def test_pictures_stand_upright():
    picture = Image.new("RGB", (10, 4), "red")
    exif = picture.getexif()
    exif[0x0112] = 6
    file = io.BytesIO()
    picture.save(file, "JPEG", exif=exif)
    assert decode(file.getvalue(), "x").size == (4, 10) == header_size(file.getvalue(), "x")


def test_where_keeps_what_is_asked_for(tmp_path):
    c = open_collection(write(tmp_path))
    assert [e.name for e in c.where(lambda e: "dog" in e.name)] == ["b.dots/dog.v2.jpg"]
    with pytest.raises(CollectionError, match="no pictures"):
        c.where(lambda e: False)
