"""Recipes: what is written, what is not, and that a thousand of them come back from files as they were."""

import getpass
import json
import socket
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from random_requests import random_request

import safelight
from safelight.errors import InputError
from safelight.pipeline.pictures import Pictures, save_picture
from safelight.pipeline.recipes.reading import read_picture
from safelight.pipeline.recipes.recipe import ModelCard, Recipe, fingerprint, public_name
from safelight.pipeline.recipes.texts import SOURCE_TYPE
from safelight.pipeline.tasks import TASKS

QUICK = {"steps": 1, "seed": 5, "width": 64, "height": 64}
DOT = Image.new("RGB", (1, 1))


def test_a_thousand_requests_come_back_from_files(tmp_path):
    """Every third each as PNG, JPEG and WebP: task, request, model, inputs and batch are equal, whatever the texts."""
    for k in range(1000):
        task, request = random_request(k)
        card = ModelCard("m.safetensors", "sd1", "epsilon", "float16", "cuda", weights={"m.safetensors": f"{k:064x}"})
        recipe = Recipe(task, request, card, (64, k), {"image": {"sha256": "ab", "width": 1, "height": k}}, (4, k % 4))
        reading = read_picture(save_picture(DOT, tmp_path / f"{k}{('.png', '.jpeg', '.webp')[k % 3]}", recipe))
        assert reading.recipe == recipe
        assert (reading.task, reading.request, reading.kept, reading.remarks) == (task, request, {}, ())


def test_every_picture_carries_its_own_request(model):
    drawn = safelight.text_to_image(model, ["a fox", "a hat"], negative_prompt=["x", "y"], count=2, **QUICK)
    assert [recipe.request["seed"] for recipe in drawn.recipes] == [5, 6, 7, 8]
    assert [recipe.request["prompt"] for recipe in drawn.recipes] == ["a fox", "a fox", "a hat", "a hat"]
    assert [recipe.request["negative_prompt"] for recipe in drawn.recipes] == ["x", "x", "y", "y"]
    assert [recipe.batch for recipe in drawn.recipes] == [(4, 0), (4, 1), (4, 2), (4, 3)]
    assert all(recipe.size == (64, 64) and recipe.task == "text_to_image" for recipe in drawn.recipes)
    assert drawn.recipes[0].versions == {"safelight": safelight.__version__, "torch": torch.__version__}
    assert drawn.recipes[0].model == ModelCard.of(model)


def test_the_native_size_and_a_fresh_seed_are_written_out(model):
    recipe = safelight.text_to_image(model, "a fox", steps=1).recipes[0]
    assert (recipe.request["width"], recipe.request["height"]) == (256, 256)
    assert isinstance(recipe.request["seed"], int)


def test_dynamic_prompts_leave_their_words_alone(model, tmp_path):
    (tmp_path / "animal.txt").write_text("fox\nowl\n")
    drawn = safelight.text_to_image(model, "a __animal__ {one|two}", wildcards=tmp_path, count=3, **QUICK)
    for recipe, prompt in zip(drawn.recipes, drawn.prompts, strict=True):
        assert recipe.request["prompt"] == prompt and "__" not in prompt
        assert str(tmp_path) not in recipe.to_json() and "wildcards" not in recipe.request


def test_hooks_and_conditions_are_named_as_lost(model):
    condition = model.condition(["a fox"])
    recipe = safelight.text_to_image(model, condition, wrap=lambda denoise: denoise, **QUICK).recipes[0]
    assert set(recipe.unrecorded) == {"wrap", "prompt"}
    assert "prompt" not in recipe.request
    seen = safelight.text_to_image(model, "a fox", watch=lambda step: None, **QUICK).recipes[0]
    assert seen.unrecorded == ()


@pytest.mark.parametrize("form", ["png", "jpeg", "webp"])
def test_no_paths_no_names_and_the_source_type(model, tmp_path, form):
    home = tmp_path / "secret-home"
    home.mkdir()
    Image.new("RGB", (64, 64), "teal").save(home / "private-name.png")
    there = replace(
        model, name=str(home / "model.safetensors"), weights={"model.safetensors": home / "private-name.png"}
    )
    drawn = safelight.image_to_image(there, "a fox", home / "private-name.png", steps=2, seed=1)
    (file,) = drawn.save(tmp_path / "out", format=form)
    written = file.read_bytes().replace(b"\0", b"")
    assert SOURCE_TYPE.encode() in written
    assert b"model.safetensors" in written
    for private in ("secret-home", "private-name", str(tmp_path), str(Path.home()), socket.gethostname()):
        assert private.encode() not in written
    if len(getpass.getuser()) > 4:
        assert getpass.getuser().encode() not in written


def test_no_metadata_means_none(model, tmp_path):
    drawn = safelight.text_to_image(model, "a fox", **QUICK)
    plain, told = drawn.save(tmp_path, metadata=False)[0], drawn.save(tmp_path)[0]
    assert Image.open(plain).info == {} and {"parameters", "safelight"} <= Image.open(told).info.keys()
    assert Image.open(plain).tobytes() == Image.open(told).tobytes()
    assert b"iTXt" not in plain.read_bytes() and b"tEXt" not in plain.read_bytes()
    with pytest.raises(InputError, match="says nothing"):
        read_picture(plain)


def test_other_programs_find_the_texts_where_they_look(model, tmp_path):
    """A1111 takes PNG's `parameters`; from JPEG and WebP the EXIF's UserComment, as UTF-16 behind the word UNICODE."""
    drawn = safelight.text_to_image(model, "a füchsin 🦊", **QUICK)
    assert (
        Image.open(drawn.save(tmp_path)[0]).text["parameters"].startswith("a füchsin 🦊\nSteps: 1, Sampler: DPM++ 2M,")
    )
    for form in ("jpeg", "webp"):
        exif = Image.open(drawn.save(tmp_path, format=form)[0]).getexif()
        comment = exif.get_ifd(0x8769)[0x9286]
        assert comment[:8] == b"UNICODE\0" and comment[8:].decode("utf-16-be").startswith("a füchsin 🦊\nSteps: 1,")
        assert json.loads(exif[0x010E])["task"] == "text_to_image"


def test_a_fingerprint_is_of_pixels_whatever_holds_them(tmp_path):
    image = Image.effect_noise((9, 7), 90).convert("RGB")
    image.save(tmp_path / "a.png")
    image.save(tmp_path / "b.webp", lossless=True)
    prints = [fingerprint(one, "image") for one in (image, np.asarray(image), tmp_path / "a.png", tmp_path / "b.webp")]
    assert all(one == prints[0] for one in prints)
    assert (prints[0]["width"], prints[0]["height"]) == (9, 7)
    assert fingerprint(image.transpose(Image.Transpose.ROTATE_180), "image") != prints[0]


@pytest.mark.parametrize(
    ("source", "name", "revision"),
    [
        ("random", "random", ""),
        ("owner/model", "owner/model", ""),
        ("/home/me/models/sd15.safetensors", "sd15.safetensors", ""),
        ("C:\\Users\\me\\sd15.ckpt", "sd15.ckpt", ""),
        ("~/models/mine", "mine", ""),
        ("../mine/here", "here", ""),
        ("/x/hub/models--owner--model/snapshots/0a1b", "owner/model", "0a1b"),
        (
            "/x/hub/models--owner--my-model/snapshots/0a1b/v1/file.safetensors",
            "owner/my-model/v1/file.safetensors",
            "0a1b",
        ),
    ],
)
def test_a_models_public_name(source, name, revision):
    assert public_name(source) == (name, revision)


def test_a_relative_path_that_exists_is_no_hub_id(tmp_path, monkeypatch):
    (tmp_path / "people" / "jane").mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    assert public_name("people/jane") == ("jane", "")


EMPTY = {"safelight": "1", "torch": "2", "task": "inpaint", "request": {}, "model": {}, "size": [1, 1],
         "batch": [1, 0], "inputs": {}, "unrecorded": []}  # fmt: skip
WRONG = [{"request": []}, {"size": [1e999, 1]}, {"size": 3}, {"batch": ["a", 0]}, {"inputs": None}, {"model": "m"}]


@pytest.mark.parametrize(
    "text", ["", "{", "[]", "null", '{"safelight": "1"}', "[" * 100_000, *(json.dumps(EMPTY | one) for one in WRONG)]
)
def test_damaged_recipes_are_refused(text):
    assert Recipe.from_json(json.dumps(EMPTY)).task == "inpaint"
    with pytest.raises(InputError, match="recipe is damaged"):
        Recipe.from_json(text)


def test_a_jpeg_without_room_says_so_and_writes_nothing(tmp_path):
    recipe = Recipe("text_to_image", {"prompt": "fox " * 20_000})
    with pytest.raises(InputError, match="JPEG"):
        save_picture(DOT, tmp_path / "a.jpeg", recipe)
    assert not list(tmp_path.iterdir())
    (kept,) = Pictures((DOT,), (1,), torch.zeros(1), recipes=(recipe,)).save(tmp_path, format="jpeg")
    assert kept.name == "picture-1.png" and read_picture(kept).recipe == recipe  # a picture that was drawn is not lost
    assert read_picture(save_picture(DOT, tmp_path / "a.webp", recipe)).recipe == recipe
    with pytest.raises(InputError, match=r"\.gif"):
        save_picture(DOT, tmp_path / "a.gif", recipe)


def test_all_tasks_are_recorded():
    assert set(TASKS) >= {"text_to_image", "image_to_image", "inpaint", "variations"}
    for seed in range(60):
        task, request = random_request(seed)
        assert set(request) >= {"seed", "sampler", "steps"} and task in TASKS
