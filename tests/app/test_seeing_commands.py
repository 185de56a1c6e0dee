"""`safelight film` and its neighbours as a user meets them."""

import json

import pytest
from command_line import run
from PIL import Image

from safelight.checkpoint.save import save_autoencoder
from safelight.pipeline.standin import random_model


def test_film_writes_what_moves_and_never_overwrites(tmp_path):
    asked = ("film", "a red fox", "--steps", 3, "--seed", 1, "--width", 64, "--height", 64)
    first, second = (run(*asked, cwd=tmp_path) for _ in range(2))
    assert (first.stdout, second.stdout) == ("film.gif\n", "film-2.gif\n"), first.stderr + second.stderr
    assert (tmp_path / "film.gif").read_bytes() == (tmp_path / "film-2.gif").read_bytes()
    with Image.open(tmp_path / "film.gif") as film:
        assert film.is_animated and film.width > 2 * 256
    strip = run(*asked, "--out", "a/strip.png", "--columns", 2, cwd=tmp_path)
    assert strip.returncode == 0, strip.stderr
    assert Image.open(tmp_path / "a" / "strip.png").width < 400


@pytest.mark.parametrize(
    ("option", "words"),
    [
        (("--out", "a.avi"), ".gif, .webp, .mp4"),
        (("--fps", "0"), "fps=0"),
        (("--out", "a.png", "--columns", "1"), "columns=1"),
    ],
)
def test_bad_films_are_refused_before_the_model_is_loaded(option, words, tmp_path):
    failed = run("film", "a", "--model", "/nowhere/at/all", *option, cwd=tmp_path)
    assert failed.returncode == 2 and words in failed.stderr and "nowhere" not in failed.stderr
    assert not list(tmp_path.iterdir())


def test_latent_rgb_stores_its_table(tmp_path):
    save_autoencoder(random_model().autoencoder, tmp_path / "vae")
    shown = run("latent-rgb", tmp_path)
    assert shown.returncode == 0, shown.stderr
    table = json.loads((tmp_path / "vae" / "config.json").read_text())["_latent_rgb"]
    for number in (value for row in table for value in row):
        assert str(number) in shown.stdout
    failed = run("latent-rgb", tmp_path / "nothing")
    assert failed.returncode == 1 and "autoencoder" in failed.stderr
