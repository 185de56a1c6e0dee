"""`safelight info` and `safelight again` as a user meets them."""

import json
from functools import partial

import command_line
import pytest
from PIL import Image, PngImagePlugin


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("pictures")


@pytest.fixture(scope="module")
def run(folder):
    return partial(command_line.run, cwd=folder)


@pytest.fixture(scope="module")
def drawn(run):
    made = run("a fox", "--steps", 2, "--seed", 4, "--count", 2, "--width", 64, "--height", 64, "--noise", "cuda")
    assert made.returncode == 0, made.stderr
    return "outputs/a-fox-5.png"


def test_info_for_people_and_programs(run, drawn):
    shown = run("info", drawn)
    assert shown.returncode == 0 and "Safelight" in shown.stdout and "a fox" in shown.stdout
    said = json.loads(run("info", drawn, "--json").stdout)
    assert (said["program"], said["task"], said["kept"]) == ("Safelight", "text_to_image", {})
    assert said["request"] | {"seed": 5, "noise": "cuda", "steps": 2, "prompt": "a fox"} == said["request"]
    assert said["model"]["name"] == "default"


def test_again_gives_the_same_pixels(run, drawn, folder):
    made = run("again", drawn, "--out", "again")
    assert made.returncode == 0, made.stderr
    assert "the pixels are identical" in made.stderr
    assert Image.open(folder / made.stdout.strip()).tobytes() == Image.open(folder / drawn).tobytes()
    other = json.loads(run("again", drawn, "--seed", 8, "--out", "other.png", "--no-metadata", "--json").stdout)
    assert other["path"] == "other.png"
    once_more = run("again", drawn, "--out", "other.png")
    assert once_more.stdout.strip() == "other-2.png"
    assert Image.open(folder / other["path"]).info == {}
    assert Image.open(folder / other["path"]).tobytes() != Image.open(folder / drawn).tobytes()


def test_image_to_image_again_with_its_picture(run, folder):
    Image.linear_gradient("L").resize((64, 64)).save(folder / "in.png")
    made = run("image2image", "a hat", "in.png", "--steps", 3, "--seed", 1, "--format", "webp")
    assert made.returncode == 0 and made.stdout.strip().endswith(".webp")
    refused = run("again", made.stdout.strip())
    assert refused.returncode == 2 and "--image" in refused.stderr
    assert run("again", made.stdout.strip(), "--image", "in.png").returncode == 0


def test_no_metadata(run, folder):
    made = run("a fox", "--steps", 1, "--width", 64, "--height", 64, "--no-metadata", "--out", "plain")
    assert Image.open(folder / made.stdout.strip()).info == {}
    told = run("info", made.stdout.strip())
    assert told.returncode == 2 and "says nothing of how it was made" in told.stderr


def test_a_strangers_text_does_not_move_the_cursor(run, folder):
    info = PngImagePlugin.PngInfo()
    info.add_text(
        "parameters", "\x1b[2J\x07fox " + "x" * 5000 + "\nSteps: 3, Sampler: Euler, Seed: 1, Mystery: \x1b[31m"
    )
    Image.new("RGB", (8, 8)).save(folder / "bad.png", pnginfo=info)
    shown = run("info", "bad.png")
    assert shown.returncode == 0
    assert "\x1b" not in shown.stdout and "\x07" not in shown.stdout
    assert "kept, but not understood" in shown.stdout and "Mystery" in shown.stdout


@pytest.fixture
def a1111(folder):
    """A picture that says it was drawn by a model nobody has."""
    info = PngImagePlugin.PngInfo()
    info.add_text("parameters", "a fox\nSteps: 3, Sampler: Euler, Seed: 1, Model: wonder, Model hash: 0123456789")
    Image.new("RGB", (8, 8)).save(folder / "a1111.png", pnginfo=info)
    return "a1111.png"


def test_errors_are_clear(run, folder, a1111):
    (folder / "broken.png").write_bytes(b"\x89PNG\r\n\x1a\n\0\0\0")
    for arguments, code, words in (
        (("info", "nowhere.png"), 2, "no file nowhere.png"),
        (("again", "broken.png"), 2, "broken PNG"),
        (("again", a1111), 1, "'wonder' is not known on this machine (0123456789)"),
    ):
        failed = run(*arguments)
        assert failed.returncode == code and words in failed.stderr, failed.stderr
        assert "Traceback" not in failed.stderr


def test_again_tells_what_it_leaves_out(run, folder):
    info = PngImagePlugin.PngInfo()
    text = "a fox <lora:ink:0.6> <hypernet:x:1>\nSteps: 2, Sampler: Euler, Schedule type: Wonder, Seed: 1, Size: 64x64"
    info.add_text("parameters", f"{text}, Mystery: 3")
    Image.new("RGB", (64, 64)).save(folder / "ink.png", pnginfo=info)
    refused = run("again", "ink.png", "--model", "random", "--out", "theirs")
    assert refused.returncode == 1 and "'ink' by 0.6" in refused.stderr and "--without-loras" in refused.stderr
    made = run("again", "ink.png", "--model", "random", "--out", "theirs", "--without-loras")
    assert made.returncode == 0, made.stderr
    for left_out in ("'ink' was left out", "<hypernet:x:1> was left out", "left out: Schedule type, Mystery"):
        assert left_out in " ".join(made.stderr.split()), left_out


def test_again_from_a1111_with_a_model_that_is_given(run, a1111):
    made = run("again", a1111, "--model", "random", "--out", "theirs")
    assert made.returncode == 0, made.stderr
    assert "AUTOMATIC1111's recipe in our words" in made.stderr
