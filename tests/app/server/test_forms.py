"""Requests over the network: the command line's fields, no paths, and pictures by their bytes or by their names."""

import base64
import io
import json
from pathlib import Path

import pytest
from PIL import Image

from safelight.app.server.forms import fields, picture, request_of, schema
from safelight.app.server.gallery import Gallery
from safelight.errors import InputError
from safelight.pipeline.fields import parameters
from safelight.pipeline.tasks import TASKS


def data(image, kind="PNG"):
    file = io.BytesIO()
    image.save(file, format=kind)
    return base64.b64encode(file.getvalue()).decode()


@pytest.fixture
def gallery(tmp_path):
    Image.new("RGB", (64, 64), "red").save(tmp_path / "red.png")
    return Gallery(tmp_path)


def test_every_option_of_a_command_is_a_field_but_paths_and_functions():
    for task, function in TASKS.items():
        left_out = set(parameters(function)) - set(fields(task))
        assert left_out == {"wildcards", "styles_file", "sampler_options", "grid_options", "watch", "edit", "wrap"} | (
            {"hires_options"} if task == "text_to_image" else set()
        )


def test_schemas_are_json_with_bounds_defaults_and_choices():
    for task in TASKS:
        json.dumps(schema(task))
    about = schema("image_to_image")["properties"]
    assert (about["strength"]["minimum"], about["strength"]["maximum"], about["strength"]["default"]) == (0, 1, 0.8)
    assert about["image"]["format"] == "picture" and "mask" not in about
    assert {"value": "dpmpp_2m", "label": "DPM++ 2M"} in about["sampler"]["choices"]
    assert schema("inpaint")["required"] == ["prompt", "image", "mask"]


def test_a_request_is_checked_and_its_pictures_are_opened(gallery):
    body = {"prompt": "a fox", "image": "red.png", "strength": 0.5}
    request, asked = request_of("image_to_image", body, gallery, {})
    assert request["image"].size == (64, 64) and request["strength"] == 0.5
    assert asked == {"prompt": "a fox", "strength": 0.5}
    with pytest.raises(InputError, match=r"strength=2.*less than or equal to 1"):
        request_of("image_to_image", body | {"strength": 2}, gallery, {})
    with pytest.raises(InputError, match="unknown field 'strenght'"):
        request_of("image_to_image", body | {"strenght": 1}, gallery, {})
    with pytest.raises(InputError, match="image is missing"):
        request_of("image_to_image", {"prompt": "a fox"}, gallery, {})
    with pytest.raises(InputError, match="unknown task"):
        request_of("text_to_imagine", {}, gallery, {})


def test_no_field_takes_a_path(gallery, tmp_path):
    for name in ("wildcards", "styles_file", "watch", "edit", "sampler_options"):
        with pytest.raises(InputError, match="unknown field"):
            request_of("text_to_image", {"prompt": "a fox", name: "/etc"}, gallery, {})
    outside = tmp_path.parent / "outside.png"
    Image.new("RGB", (64, 64)).save(outside)
    for path in (str(outside), "../outside.png", "..%2foutside.png", "/etc/passwd", ".", "red.png/../../outside.png"):
        with pytest.raises(InputError):
            picture(path, "image", gallery)


def test_pictures_come_as_base64_or_as_data_urls(gallery):
    image = Image.new("RGB", (8, 16), "blue")
    for value in (data(image), f"data:image/webp;base64,{data(image, 'WEBP')}"):
        assert picture(value, "image", gallery).size == (8, 16)
    for value in ("nonsense!", data(image)[:40], base64.b64encode(b"GIF89a").decode(), 7, ["a"], "data:,"):
        with pytest.raises(InputError, match="image"):
            picture(value, "image", gallery)


def test_pictures_of_too_many_pixels_are_not_decoded(gallery, monkeypatch):
    monkeypatch.setattr("safelight.app.server.forms.MOST_PIXELS", 100)
    with pytest.raises(InputError, match="16x16 pixels"):
        picture(data(Image.new("RGB", (16, 16))), "image", gallery)


def test_the_servers_own_folders_are_given_where_they_are_wanted(gallery):
    fixed = {"wildcards": Path("words"), "styles_file": Path("mine.csv")}
    request, _ = request_of("text_to_image", {"prompt": "a fox"}, gallery, fixed)
    assert request == {"prompt": "a fox", "styles_file": Path("mine.csv")}
    request, asked = request_of("text_to_image", {"prompt": "a {b|c}", "dynamic_prompts": True}, gallery, fixed)
    assert request["wildcards"] == Path("words") and "wildcards" not in asked


@pytest.mark.parametrize("words", [7, {"a": 1}, ["a", 7], "x" * 9000])
def test_words_are_words(gallery, words):
    with pytest.raises(InputError, match="prompt"):
        request_of("text_to_image", {"prompt": words}, gallery, {})


@pytest.mark.parametrize("task", TASKS)
def test_whatever_stands_in_a_field_it_is_taken_or_refused_by_name(gallery, task):
    strange = [None, True, -1, 0, 2**70, 1e308, -0.5, "", "x", "nan", "1", [], [None], ["a", "b"], [[1]], {}, {"a": {}}]
    whole = {
        "prompt": "a fox",
        "image": "red.png",
        "mask": "red.png",
        "class_map": "red.png",
        "depth": "red.png",
        "label": 1,
        "boxes": "a 0 0 1 1",
    }
    whole = {name: value for name, value in whole.items() if name in fields(task)}
    taken = 0
    for name in fields(task):
        for value in strange:
            try:
                request_of(task, whole | {name: value}, gallery, {})
                taken += 1
            except InputError as error:
                assert error.what and error.remedy
    assert taken > len(fields(task))
