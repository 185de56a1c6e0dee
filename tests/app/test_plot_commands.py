"""`safelight plot …` as a user meets it."""

import pytest
from command_line import run
from PIL import Image

pytest.importorskip("matplotlib")


@pytest.fixture
def folder(tmp_path):
    Image.new("RGB", (64, 48), "teal").save(tmp_path / "in.png")
    return tmp_path


@pytest.mark.parametrize(
    ("arguments", "name"),
    [
        (("schedule",), "schedule.png"),
        (("sigmas", "--grids", "karras, beta", "--steps", 9, "--out", "new/a.svg"), "new/a.svg"),
        (("latents", "in.png"), "latents.png"),
        (("roundtrip", "in.png", "--width", 80), "roundtrip.png"),
        (("guidance", "a fox", "--steps", 2, "--width", 64, "--height", 64), "guidance.png"),
        (("attention", "a fox", "--steps", 2, "--width", 64, "--height", 64), "attention.png"),
    ],
)
def test_each_figure_has_its_command(folder, arguments, name):
    drawn = run("plot", *arguments, cwd=folder)
    assert drawn.returncode == 0, drawn.stderr
    assert drawn.stdout == f"{name}\n" and (folder / name).stat().st_size > 5000


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("shedule",), "schedule"),
        (("sigmas", "--grids", "karas"), "karras"),
        (("latents", "nowhere.png"), "nowhere.png"),
        (("schedule", "--out", "a.bmp"), ".svg"),
        (("attention", "a", "--steps", "0"), "steps"),
        (("in.png",), "config.json"),  # a path is a run, and this one is none
        (("no/such/run",), "config.json"),
    ],
)
def test_what_is_wrong_is_named_and_nothing_is_written(folder, arguments, words):
    failed = run("plot", *arguments, cwd=folder)
    assert failed.returncode == 2, failed.stderr
    assert words in failed.stderr and "Traceback" not in failed.stderr
    assert [file.name for file in folder.iterdir()] == ["in.png"]
