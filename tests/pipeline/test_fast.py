"""The preset `fast`: what it chooses, what the caller's words win over, and what a picture says of it."""

import json

import pytest
from PIL import Image
from typer.testing import CliRunner

import safelight
from safelight.app.cli import app
from safelight.errors import InputError
from safelight.pipeline.fields import FAST, parameters, validate
from safelight.pipeline.tasks import TASKS


@pytest.mark.parametrize("task", TASKS.values(), ids=TASKS)
def test_fast_is_a_choice_of_fields_that_every_task_has(task):
    needed = dict.fromkeys(("prompt", "image", "mask", "label", "boxes", "class_map", "depth"), "x")
    given = {name: value for name, value in needed.items() if name in parameters(task)}
    plain, fast = validate(task, given), validate(task, {**given, "fast": True})
    assert {name for name in plain if fast[name] != plain[name]} == {"fast", *FAST} - {
        name for name in FAST if plain[name] == FAST[name]
    }
    assert all(fast[name] == value for name, value in FAST.items())


def test_what_the_caller_says_wins_and_the_recipe_holds_what_was_settled(model):
    drawn = safelight.text_to_image(model, "a fox", fast=True, steps=3, seed=1)
    request = drawn.recipes[0].request
    assert request["steps"] == 3 and "fast" not in request
    assert {name: request[name] for name in FAST if name != "steps"} == {k: v for k, v in FAST.items() if k != "steps"}
    again = safelight.text_to_image(model, **request)
    assert again[0].tobytes() == drawn[0].tobytes()


def test_the_command_line_knows_what_was_said(tmp_path):
    def drawn(*words):
        done = CliRunner().invoke(
            app, ["text2image", "a fox", "--seed", "1", "-m", "random", "-o", str(tmp_path), "--width", "64",
                  "--height", "64", *words, "--json"])  # fmt: skip
        assert done.exit_code == 0, done.output
        path = json.loads(done.stdout.strip().splitlines()[-1])["pictures"][0]["path"]
        return json.loads(Image.open(path).text["safelight"])["request"]

    fast, said = drawn("--fast", "--steps", "2"), drawn("--fast", "--steps", "2", "--guidance-end", "1")
    assert fast["steps"] == 2 and fast["guidance_end"] == FAST["guidance_end"]
    assert said["guidance_end"] == 1 and said["feature_cache"] == FAST["feature_cache"]


def test_fast_is_no_axis():
    with pytest.raises(InputError, match="several fields"):
        safelight.explore(None, "a fox", x="fast=true,false")
