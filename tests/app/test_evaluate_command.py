"""`safelight evaluate` and `safelight train classifier` as a user meets them."""

import json
import sys
from pathlib import Path

import pytest
from command_line import run
from PIL import Image

sys.path.append(str(Path(__file__).parent.parent / "training"))
from sprite_sets import write_sprites

SMALL = ("--count", 6, "--size", 64, "--steps", 1, "--variety", 0, "--neighbours", 6, "--device", "cpu")


@pytest.fixture(scope="module")
def sprites(tmp_path_factory):
    return write_sprites(tmp_path_factory.mktemp("sprites") / "set")


def test_train_a_classifier_and_evaluate_with_it(sprites, tmp_path):
    shape = ("--size", 32, "--channels", 8, "--channels", 8, "--features", 8, "--steps", 2, "--batch-size", 2)
    trained = run("train", "classifier", sprites, "--run", tmp_path / "run", *shape, "--device", "cpu")
    assert trained.returncode == 0, trained.stderr
    folder = Path(trained.stdout.strip())
    assert (folder / "model.safetensors").exists()
    asked = json.loads((tmp_path / "run" / "config.json").read_text())["recipe"]
    assert asked["channels"] == [8, 8]  # as if it were "8,8"
    done = run(
        "evaluate", "random", "--data", sprites, "--classifier", folder, *SMALL, "--out", tmp_path / "out", "--json"
    )
    assert done.returncode == 0, done.stderr
    report = json.loads(done.stdout)
    assert report == json.loads((tmp_path / "out" / "report.json").read_text())
    assert report["model"] == "random" and report["data"] == "set"  # and no path of this machine
    asked = {"prompts", "new_pairs", "other_names"}
    assert {figure["section"] for figure in report["figures"]} == {"reconstruction", "samples", *asked}


def test_a_folder_of_pictures_as_a_table(sprites, tmp_path):
    for i in range(6):
        Image.new("RGB", (32, 32), (40 * i, 99, 9)).save(tmp_path / f"{i}.png")
    done = run("evaluate", tmp_path, "--data", sprites, "--count", 6, "--neighbours", 0, "--out", tmp_path / "out")
    assert done.returncode == 0, done.stderr
    assert "FD-dct" in done.stdout and "coverage" in done.stdout and "report" in done.stderr


def test_what_cannot_be_measured(sprites, tmp_path):
    empty = tmp_path / "empty"
    empty.mkdir()
    for arguments, code, words in [
        ((empty, "--data", sprites), 1, "holds no pictures"),
        (("random",), 2, "--data"),
        (("random", "--data", sprites, "--count", 0), 2, "count"),
        (("random", "--data", sprites, "--classifier", empty), 1, "config.json"),
    ]:
        done = run("evaluate", *arguments, "--out", tmp_path / "out")
        assert done.returncode == code, done.stderr
        assert words in done.stderr and "Traceback" not in done.stderr
    assert not (tmp_path / "out").exists()
