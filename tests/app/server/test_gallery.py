"""The folder of pictures: its own files, by their names, and nothing else."""

import os

import pytest
from PIL import Image

from safelight.app.server.gallery import Gallery
from safelight.errors import InputError


@pytest.fixture
def folder(tmp_path):
    inner = tmp_path / "pictures"
    (inner / "deeper").mkdir(parents=True)
    for k, name in enumerate(("a.png", "b.jpeg", "c (2).webp")):
        Image.new("RGB", (8, 8)).save(inner / name)
        os.utime(inner / name, (k, k))
    Image.new("RGB", (8, 8)).save(inner / "deeper" / "d.png")
    Image.new("RGB", (8, 8)).save(tmp_path / "outside.png")
    (inner / "notes.txt").write_text("secret")
    (inner / "link.png").symlink_to(tmp_path / "outside.png")
    (inner / ".hidden.png").write_bytes((inner / "a.png").read_bytes())
    return inner


def test_the_latest_come_first_and_pages_go_on(folder):
    gallery = Gallery(folder)
    names = gallery.names()
    assert names[-3:] == ["c (2).webp", "b.jpeg", "a.png"] and "link.png" not in names and "notes.txt" not in names
    assert gallery.names("c (2).webp", 1) == ["b.jpeg"]
    assert gallery.names("b.jpeg") == ["a.png"]
    assert Gallery(folder / "none").names() == []


def test_names_are_of_this_folder_alone(folder):
    gallery = Gallery(folder)
    assert gallery.path("c (2).webp") == folder / "c (2).webp"
    for name in ("../outside.png", "deeper/d.png", "link.png", "notes.txt", ".hidden.png", "", ".", "..", "a.png\0",
                 str(folder / "a.png"), "a.png/", "x" * 300 + ".png", "none.png"):  # fmt: skip
        with pytest.raises(InputError, match="there is no picture"):
            gallery.path(name)


def test_a_picture_that_says_nothing_tells_no_place(folder):
    with pytest.raises(InputError) as raised:
        Gallery(folder).recipe("a.png")
    assert str(folder) not in str(raised.value) and "a.png" in str(raised.value)
