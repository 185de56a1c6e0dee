"""`safelight grid` and `safelight morph` as a user meets them."""

import json
from functools import partial

import command_line
import pytest
from PIL import Image

from safelight.pipeline.recipes.reading import read_picture

QUICK = ("--steps", 2, "--seed", 1, "--width", 64, "--height", 64, "--model", "random")


@pytest.fixture
def run(tmp_path):
    return partial(command_line.run, cwd=tmp_path)


def test_a_grid_is_drawn_once_and_found_again(run, tmp_path):
    asked = ("grid", "a red fox", "--x", "guidance_scale=1,4", "--y", "replace=red,sky blue", *QUICK)
    first, second = (run(*asked) for _ in range(2))
    sheet = "outputs/grid-a-red-fox/sheet.png"
    assert first.stdout.split() == second.stdout.split() == [sheet], first.stderr + second.stderr
    assert "4 pictures, 0 of them from before" in first.stderr
    assert "4 pictures, 4 of them from before; 0 of 0" in second.stderr
    pictures = sorted((tmp_path / "outputs" / "grid-a-red-fox").glob("*.png"))
    assert len(pictures) == 5 and Image.open(tmp_path / sheet).width > 2 * 256
    (said,) = (read_picture(path).request for path in pictures if "4-sky" in path.name)
    assert (said["prompt"], said["guidance_scale"], said["seed"]) == ("a sky blue fox", 4.0, 1)


def test_a_matrix_of_parts_in_json(run, tmp_path):
    drawn = run("grid", "a fox|at night|in rain", "--matrix", "--json", *QUICK, "--out", "here")
    assert drawn.returncode == 0, drawn.stderr
    told = json.loads(drawn.stdout)
    assert [cell["place"] for cell in told["cells"]] == [[0, 0], [1, 0], [0, 1], [1, 1]]
    prompts = [read_picture(tmp_path / cell["path"]).request["prompt"] for cell in told["cells"]]
    assert prompts == ["a fox", "a fox, at night", "a fox, in rain", "a fox, at night, in rain"]
    assert told["axes"][0]["labels"] == ["none", "at night"] and Image.open(tmp_path / told["sheet"]).height > 512


def test_a_way_is_written_as_its_name_says(run, tmp_path):
    asked = ("morph", "a fox", "a hat", "--to-seed", 5, "--frames", 3, *QUICK)
    moving = run(*asked, "--out", "way.webp")
    assert moving.stdout == "way.webp\n", moving.stderr
    with Image.open(tmp_path / "way.webp") as film:
        assert film.n_frames == 3
    assert "from a fox, seed 1 to a hat, seed 5" in moving.stderr
    apart = run(*asked, "--out", "way")
    assert apart.stdout == "way\n" and len(list((tmp_path / "way").glob("frame-*.png"))) == 3


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("grid", "a fox"), "there is no axis"),
        (("grid", "a fox", "--x", "guidance=1,2"), "there is no axis 'guidance'"),
        (("grid", "a fox", "--x", "steps"), "it has no values"),
        (("grid", "a fox", "--x", "replace=hat,cap"), "'hat' is not in the prompt"),
        (("grid", "a fox", "--x", "seed=1..9999"), "9999 values"),
        (("grid", "a fox", "--x", "seed=1", "--out", __file__), "is a file"),
        (("morph", "a fox"), "both ends are the same"),
        (("morph", "a fox", "a hat", "--out", "a.avi"), ".gif, .webp, .mp4"),
        (("morph", "a fox", "a hat", "--fps", "0"), "fps=0"),
        (("morph", "a fox", "a hat", "--frames", "1"), "frames=1"),
    ],
)
def test_wrong_words_are_refused_before_a_model_is_loaded(arguments, words, run, tmp_path):
    failed = run(*arguments, "--model", "/nowhere/at/all")
    assert failed.returncode == 2 and words in failed.stderr and "nowhere" not in failed.stderr
    assert not list(tmp_path.iterdir())
