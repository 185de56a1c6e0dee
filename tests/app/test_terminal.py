"""Previews in the terminal, read back from what is written to it."""

import base64
import io
import re

import numpy as np
import pytest
import torch
from PIL import Image

from safelight.app import terminal
from safelight.app.console import Progress, onlooker
from safelight.app.terminal import Preview, half_blocks, iterm2, kitty, protocol
from safelight.pipeline.seeing.preview import previewer
from safelight.pipeline.standin import random_model
from safelight.pipeline.tasks import text_to_image


class Terminal(io.StringIO):
    def isatty(self):
        return True


def picture(width, height):
    levels = np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8)
    return Image.fromarray(levels)


def pixels(lines):
    """The colours that lines of half blocks show."""
    cells = [re.findall(r"38;2;(\d+);(\d+);(\d+);48;2;(\d+);(\d+);(\d+)m▀", line) for line in lines]
    colours = np.array(cells, dtype=np.uint8)
    return np.stack([colours[..., :3], colours[..., 3:]], 1).reshape(-1, colours.shape[1], 3)


def test_half_blocks_hold_every_pixel():
    even, odd = picture(7, 6), picture(5, 3)
    assert (pixels(half_blocks(even)) == np.asarray(even)).all()
    assert (pixels(half_blocks(odd))[:3] == np.asarray(odd)).all()


def test_kitty_and_iterm2_get_the_picture_whole():
    image = picture(90, 60)  # more than one chunk of 4096 characters
    sent = kitty(image, 9, 3)
    chunks = re.findall(r"\x1b_G([^;]*);([^\x1b]*)\x1b\\", sent)
    assert "".join(f"\x1b_G{keys};{data}\x1b\\" for keys, data in chunks) == sent and len(chunks) > 1
    assert all(len(data) <= 4096 for _, data in chunks)
    assert [keys.split(",")[-1] for keys, _ in chunks] == ["m=1"] * (len(chunks) - 1) + ["m=0"]
    data = "".join(data for _, data in chunks)
    assert Image.open(io.BytesIO(base64.b64decode(data))).tobytes() == image.tobytes()
    data = re.fullmatch(r"\x1b]1337;File=inline=1;width=9;height=3;.*:(.*)\a", iterm2(image, 9, 3))[1]
    assert Image.open(io.BytesIO(base64.b64decode(data))).tobytes() == image.tobytes()


@pytest.mark.parametrize(
    ("environ", "expected"),
    [
        ({"TERM": "xterm-256color"}, "blocks"),
        ({}, "blocks"),
        ({"TERM": "xterm-kitty", "KITTY_WINDOW_ID": "1"}, "kitty"),
        ({"TERM": "xterm-ghostty"}, "kitty"),
        ({"TERM_PROGRAM": "iTerm.app"}, "iterm2"),
        ({"TERM_PROGRAM": "WezTerm"}, "iterm2"),
        ({"TERM": "xterm-kitty", "TMUX": "/tmp/tmux"}, "blocks"),
        ({"TERM": "screen.xterm", "LC_TERMINAL": "iTerm2"}, "blocks"),
        ({"TERM": "dumb"}, ""),
        ({"NO_COLOR": "1", "TERM": "xterm-kitty"}, ""),
    ],
)
def test_the_protocol_is_the_one_that_the_terminal_says_it_has(environ, expected):
    assert protocol(environ) == expected


@pytest.mark.parametrize("kind", ["blocks", "kitty", "iterm2"])
def test_pictures_take_each_others_place_and_vanish(kind, monkeypatch):
    monkeypatch.setattr(terminal.shutil, "get_terminal_size", lambda: (40, 14))
    stream = Terminal()
    with Preview(stream, {}) as preview:
        preview.protocol = kind
        preview.show([picture(8, 8)] * 2, "step 1")
        first = stream.getvalue()
        preview.show([picture(8, 8)] * 2, "step 2")
        second = stream.getvalue()[len(first) :]
    written = stream.getvalue()
    assert first.startswith("\n" * 11) and f"\x1b[{11}A\r" in first  # 14 lines: room for 11 of picture
    assert second.startswith(f"\x1b[{11}A\r")
    if kind == "blocks":
        assert second.count("\n") == 11  # back on the line below the picture
        shown = pixels([line for line in second.split("\n") if "▀" in line])
        assert shown.shape == (16, 33, 3)  # two pictures of 16 x 16, each pixel a square of 2, and a gap
        assert (shown[::2, :16:2] == np.asarray(picture(8, 8))).all()
    else:
        assert "\x1b7" in second and f"\x1b8\x1b[{11}B" in second
    assert written.endswith("\x1b[11A\r\x1b[J\x1b[?25h")


def test_a_run_is_shown_by_the_watcher_that_a_task_takes(monkeypatch):
    monkeypatch.setattr(terminal, "PAUSE", 0)
    monkeypatch.setattr(terminal.shutil, "get_terminal_size", lambda: (80, 40))
    model = random_model()
    shown = []
    monkeypatch.setattr(Preview, "show", lambda self, images, line: shown.append((images, line)))
    with Preview(Terminal(), {"TERM": "xterm"}) as preview:
        drawn = text_to_image(
            model, "a fox", steps=3, seed=1, width=64, height=64, sampler="euler", watch=preview.watching(model)
        )
    assert [line.split("  ")[0] for _, line in shown] == ["step 1/3", "step 2/3", "step 3/3"]
    (last,) = shown[-1][0]  # Euler's last step goes to x0 itself
    assert last.tobytes() == previewer(model)(drawn.latents)[0].tobytes()


def test_nothing_is_computed_where_nobody_can_see_it(monkeypatch):
    stream = io.StringIO()
    with Preview(stream, {"TERM": "xterm-kitty"}) as preview:
        preview.watching(torch.nn.Identity())(None)  # no model is asked, no step looked at
    assert stream.getvalue() == ""


def test_without_a_terminal_a_bar_takes_the_place_of_previews(capsys):
    assert isinstance(onlooker(True, "loading"), Progress)
    assert "no previews" in capsys.readouterr().err
