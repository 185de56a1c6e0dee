"""Grids of pictures: each cell is the picture that its request draws alone, whatever was shared, stopped or found."""

import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image

import safelight
from safelight.errors import InputError
from safelight.pipeline.exploring import explore
from safelight.pipeline.pictures import to_pil
from safelight.pipeline.recipes.reading import read_picture
from safelight.pipeline.recipes.redraw import redraw
from safelight.pipeline.remembering import Memory, Remembering, remembering

QUICK = {"steps": 4, "seed": 5, "width": 64, "height": 64, "sampler": "euler"}


def alone(model, cell):
    task = safelight.inpaint if "mask" in cell.request else safelight.text_to_image
    task = safelight.image_to_image if "image" in cell.request and "mask" not in cell.request else task
    return task(model, **cell.request)[0]


def check_each_alone(model, exploration):
    for cell in exploration.cells:
        assert np.array_equal(np.asarray(cell.image), np.asarray(alone(model, cell))), cell.place
    assert len({cell.image.tobytes() for cell in exploration.cells}) > 1


@pytest.mark.parametrize(
    ("axes", "asked", "made"),
    [
        # of 4 steps: guidance ends after 1, 2, 3 or 4, and until then nothing differs
        ({"x": "guidance_end=0.25,0.5,0.75,1"}, 16, 4 + 3 + 2 + 1),
        # all scales but 1 ask for the same two answers at the first step
        ({"x": "guidance_scale=1,4,7.5,12"}, 16, 4 + 4 + 3 + 3),
        # the prompt changes after step 3
        ({"x": ("prompt", ["a [fox:hat:3]", "a [fox:boat:3]"])}, 8, 4 + 1),
        ({"x": "tile=always,never", "y": "batch_index=0"}, 8, 4),
        # 4, 7 and 7 evaluations; samplers share the first, prompts and seeds nothing
        ({"x": "sampler=euler,dpmpp_sde,heun", "y": "replace=fox,hat", "z": "seed=1,2"}, 4 * 18, 4 * 16),
        ({"x": "styles=none,none", "y": "guidance_rescale=0,0"}, 16, 4),
    ],
    ids=str,
)
def test_cells_are_the_pictures_drawn_alone_and_what_they_share_is_computed_once(model, axes, asked, made):
    drawn = explore(model, "a fox", **axes, **QUICK)
    assert (drawn.asked, drawn.made) == (asked, made)
    if made > 4:
        check_each_alone(model, drawn)


def test_words_are_encoded_once_for_each_distinct_prompt(model):
    rows = []

    class Counting(torch.nn.Module):
        def __init__(self, encoder):
            super().__init__()
            self.encoder = encoder

        def forward(self, ids):
            rows.append(tuple(map(tuple, ids.tolist())))
            return self.encoder(ids)

        def __getattr__(self, name):
            try:
                return super().__getattr__(name)
            except AttributeError:
                return getattr(super().__getattr__("encoder"), name)

    counted = replace(model, text_encoder=Counting(model.text_encoder))
    explore(counted, "a fox", x="steps=1,2", y="replace=fox,hat", z="guidance_scale=2,3", **QUICK | {"steps": 3})
    assert len(rows) == len(set(rows)) == 2


def test_pictures_and_masks_can_be_on_axes(model, picture):
    images = [to_pil(picture), to_pil(-picture)]
    drawn = explore(model, "a fox", x=("image", images), y="strength=0.5,1", steps=2, seed=1)
    assert drawn.axes[0].names == ("image no. 1", "image no. 2")
    check_each_alone(model, drawn)
    mask = Image.new("L", images[0].size, 255)
    check_each_alone(model, explore(model, "", x="guidance_scale=1,3", image=images[0], mask=mask, steps=2, seed=1))


def test_seeds_are_equal_unless_asked_otherwise(model):
    options = {**QUICK, "steps": 1}
    free = options | {"seed": None}
    assert len({cell.request["seed"] for cell in explore(model, "a", x="clip_skip=0,1", **free).cells}) == 1
    counted = explore(model, "a", x="clip_skip=0,1", y="guidance_rescale=0,1", seeds="consecutive", **options)
    assert [cell.request["seed"] for cell in counted.cells] == [5, 6, 7, 8]
    assert [cell.place for cell in counted.cells] == [(0, 0), (1, 0), (0, 1), (1, 1)]
    varied = explore(model, "a", x="clip_skip=0,1", subseed_strength=0.3, **free)
    assert (
        len({cell.request["subseed"] for cell in varied.cells}) == 1 and varied.cells[0].request["subseed"] is not None
    )


def test_words_are_replaced_whatever_the_order_of_the_axes(model):
    options = {**QUICK, "steps": 1}
    drawn = explore(model, "", x="replace=red,blue", y="prompt=a red fox,a red hat", **options)
    prompts = [cell.request["prompt"] for cell in drawn.cells]
    assert prompts == ["a red fox", "a blue fox", "a red hat", "a blue hat"]
    matrix = explore(model, "a city|at night|in rain", matrix=True, x="seed=1,2", **options)
    assert [cell.request["prompt"] for cell in matrix.cells[:4]] == [
        "a city", "a city, at night", "a city, in rain", "a city, at night, in rain"]  # fmt: skip
    assert len(matrix.cells) == 8


def test_sheets_have_a_place_for_every_picture(model):
    options = {**QUICK, "steps": 1}
    for axes in (
        {"x": "seed=1..3"},
        {"x": "seed=1..12"},
        {"x": "seed=1..3", "y": "guidance_rescale=0,1", "z": "clip_skip=0,1"},
    ):
        drawn = explore(model, "a fox", **axes, **options)
        sheet = np.asarray(drawn.sheet())
        for cell in drawn.cells:
            corner = np.asarray(cell.image).repeat(4, 0).repeat(4, 1)[:40, :40]
            places = np.lib.stride_tricks.sliding_window_view(sheet[..., 0], (40, 40))
            rough = (places[:, :, ::13, ::13] == corner[::13, ::13, 0]).all((2, 3))
            assert any((sheet[y : y + 40, x : x + 40] == corner).all() for y, x in zip(*rough.nonzero(), strict=True))


def test_what_was_stopped_goes_on(model, tmp_path):
    axes = {"x": "guidance_scale=1,4", "y": "steps=1,2"}
    options = QUICK | {"seed": None}

    def stop(cell, total):
        assert total == 4
        if cell.place == (0, 1):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        explore(model, "a fox", **axes, **options, folder=tmp_path, each=stop)
    assert len(list(tmp_path.glob("*.png"))) == 3
    drawn = explore(model, "a fox", **axes, **options, folder=tmp_path)
    assert [cell.found for cell in drawn.cells] == [True, True, True, False]
    check_each_alone(model, drawn)
    assert len({cell.request["seed"] for cell in drawn.cells}) == 1
    fresh = explore(model, "a fox", **axes, **options, folder=tmp_path)  # all were there: new seeds are wanted
    assert not any(cell.found for cell in fresh.cells) and len(list(tmp_path.glob("*.png"))) == 8


def test_found_is_what_the_same_request_drew_and_nobody_changed(model, tmp_path):
    options = QUICK | {"steps": 1, "folder": tmp_path}

    def found(prompt="a fox", x="guidance_scale=1,4", by=model, **more):
        return [cell.found for cell in explore(by, prompt, x=x, **options | more).cells]

    assert found() == [False, False] and found() == [True, True]
    for path in tmp_path.glob("*.png"):
        assert np.array_equal(np.asarray(redraw(read_picture(path), model).pictures[0]), np.asarray(Image.open(path)))
    assert found(x="guidance_scale=4,5") == [True, False]
    assert found("a hat") == [False, False]
    assert found(negative_prompt="blurry") == [False, False]
    assert found(batch_size=1) == [True, True]
    other = replace(model, prediction_type="v_prediction")
    assert found(by=other) == [False, False]
    (tmp_path / "styles.csv").write_text("name,prompt\nred,red\n")
    styled = {"styles": ["red"], "styles_file": tmp_path / "styles.csv"}
    assert found(**styled) == [False, False] and found(**styled) == [True, True]
    (tmp_path / "styles.csv").write_text("name,prompt\nred,blue\n")
    assert found(**styled) == [False, False]
    assert found(wrap=lambda denoise: denoise) == found(wrap=lambda denoise: denoise) == [False, False]

    lines = [json.loads(line) for line in (tmp_path / "cells.jsonl").read_bytes().splitlines()]
    Image.new("RGB", (64, 64)).save(tmp_path / lines[0]["file"])
    (tmp_path / lines[1]["file"]).write_bytes(b"\x89PNG\r\n")
    assert found() == [False, False] and found() == [True, True]
    with (tmp_path / "cells.jsonl").open("ab") as file:
        file.write(b'{"file": "half')
    assert found(x="guidance_scale=1,6") == [True, False] and found(x="guidance_scale=1,6") == [True, True]


@pytest.mark.parametrize(
    ("options", "what"),
    [
        ({}, "no axis"),
        ({"x": "guidance=1"}, "no axis 'guidance'"),
        ({"x": "sampler=euler,eulr"}, "sampler 'eulr' is unknown"),
        ({"x": "grid=karras,karas"}, "karas"),
        ({"x": "steps=1,2", "y": "steps=3"}, "two axes are both steps"),
        ({"x": "seed=1..50", "y": "guidance_scale=0..50"}, "2550 pictures"),
        ({"x": "seed=1,2", "seeds": "consecutive"}, "axis of seeds"),
        ({"x": "seed=1,2", "seeds": "some"}, "seeds='some'"),
        ({"x": "seed=-1,2"}, "fresh seed"),
        ({"x": "seed=1,2", "count": 2}, "one picture"),
        ({"x": "count=1,2"}, "one picture"),
        ({"x": "replace=hat,cap"}, "'hat' is not in the prompt"),
        ({"x": "prompt=a (b:1.2.3)"}, "not a number"),
        ({"x": "strength=0.1,0.2"}, "strength: there is no picture"),
        ({"x": "seed=1", "image": "nowhere.png"}, "nowhere.png"),
        ({"x": "eta=0,0.5", "sampler": "heun"}, "eta"),
        ({"x": "seed=1", "folder": __file__}, "is a file"),
        ({"x": "seed=1", "y": "seed=2", "matrix": True}, "0 parts|two axes already"),
    ],
    ids=str,
)
def test_bad_input_is_named_before_anything_is_drawn(model, options, what):
    def draw(step):
        raise AssertionError("something was drawn")

    with pytest.raises(InputError, match=what):
        explore(model, "a fox", **{"steps": 2, "width": 64, "height": 64, "watch": draw} | options)


def test_a_memory_forgets_what_is_longest_unused_and_stays_exact():
    calls = []

    def double(x, by=2):
        calls.append(x)
        return x * by

    memory = Memory(limit=2 * 4000)
    remembered, numbers = memory.of(double), [torch.full((1000,), float(k)) for k in range(3)]
    with torch.no_grad():
        for k in (0, 1, 0, 2, 0, 1):  # 2 drives 1 out, which has been unused for longer than 0
            assert torch.equal(remembered(numbers[k]), numbers[k] * 2)
        assert len(calls) == memory.answered == 4 and memory.asked == 6
        assert torch.equal(remembered(numbers[1], by=3), numbers[1] * 3)
        assert not torch.equal(remembered(numbers[0].half()), numbers[0].half() + 1)
    assert len(calls) == 6
    leaf = torch.ones(3, requires_grad=True)
    remembered(leaf).sum().backward()
    remembered(leaf).sum().backward()
    assert torch.equal(leaf.grad, torch.full((3,), 4.0))


def test_a_remembering_network_is_otherwise_the_network(model):
    twin = remembering(model)
    assert isinstance(twin.unet, Remembering) and twin.unet.config is model.unet.config
    assert twin.device == model.device and twin.dtype == model.dtype
    with pytest.raises(AttributeError, match="nonsense"):
        twin.unet.nonsense
