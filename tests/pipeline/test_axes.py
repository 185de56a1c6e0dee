"""Axes as people write them."""

import pytest

from safelight.errors import InputError
from safelight.pipeline.axes import Axis, as_axis, checked, matrix_axes, parse_axis
from safelight.pipeline.fields import validate
from safelight.pipeline.tasks import TASKS

DRAW = TASKS["text_to_image"]
BASE = validate(DRAW, {"prompt": "a red fox on a red hill", "negative_prompt": "redness"})


def values(text):
    return checked(parse_axis(text, DRAW), BASE, DRAW).values


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("guidance_scale=1,4,7.5", (1.0, 4.0, 7.5)),
        ("--guidance-scale = 1, 4", (1.0, 4.0)),
        ("seed=1..4", (1, 2, 3, 4)),
        ("seed=1-3,9", (1, 2, 3, 9)),
        ("steps=10..50..20", (10, 30, 50)),
        ("steps=10-50 (+20)", (10, 30, 50)),
        ("steps=50..10..20", (50, 30, 10)),
        ("guidance_scale=0.1..0.4..0.1", (0.1, 0.2, 0.3, 0.4)),
        ("guidance_rescale=0..1[5]", (0, 0.25, 0.5, 0.75, 1)),
        ("guidance_rescale=0.2..0.8 [4]", (0.2, 0.4, 0.6, 0.8)),
        ("eta=none,0,1", (None, 0, 1)),
        ("sampler=euler, dpmpp_2m", ("euler", "dpmpp_2m")),
        ('prompt=a fox,"a fox, sleeping"', ("a fox", "a fox, sleeping")),
        ("negative_prompt=,blurry", ("", "blurry")),
        ("styles=none,ink,ink+dark", (None, ["ink"], ["ink", "dark"])),
        ("clip_skip=0,1", (0, 1)),
    ],
)
def test_values(text, expected):
    assert values(text) == expected


@pytest.mark.parametrize(
    ("text", "what"),
    [
        ("guidance=1,2", "no axis 'guidance'.*\n.*guidance_scale"),
        ("cfg_scale=1,2", "here it is called guidance_scale"),
        ("steps", "has no values"),
        ("steps=0,10", "steps='?0'?: input should be greater than or equal to 1"),
        ("steps=2.5", "steps"),
        ("steps=1..2000000", "2000000 values"),
        ("steps=1..5..0", "0 values"),
        ("guidance_scale=fast", "guidance_scale='fast'"),
        ("noise=gpu", "noise='gpu'"),
        ('prompt="a', "cannot be read"),
    ],
)
def test_errors_name_field_limit_and_the_nearest(text, what):
    with pytest.raises(InputError, match=what):
        values(text)


def test_words_are_replaced_in_both_prompts():
    axis = parse_axis("replace=red,deep blue", DRAW)
    assert [axis.applied(BASE, k)["prompt"] for k in (0, 1)] == [BASE["prompt"], "a deep blue fox on a deep blue hill"]
    assert axis.applied(BASE, 1)["negative_prompt"] == "deep blueness"
    assert axis.names == ("red", "deep blue")


def test_axes_of_python_values():
    axis = as_axis(("eta", [None, 0.5]), DRAW)
    assert axis == Axis("eta", (None, 0.5)) and axis.names == ("eta none", "eta 0.5")
    for bad, what in ((("etta", [1]), "no axis"), (("eta", []), "no values"), (("replace", [1]), "words")):
        with pytest.raises(InputError, match=what):
            as_axis(bad, DRAW)


@pytest.mark.parametrize("count", [1, 2, 3])
def test_the_matrix_lays_out_all_prompts_of_a1111s(count):
    parts = ["at night", "in rain", "from above"][:count]
    start, axes = matrix_axes("|".join(["a city", *parts]))
    request = {"prompt": start}
    for axis in axes:
        assert axis.values[0] == ()
    first, *others = axes
    rows = others[0] if others else Axis("parts", ((),))
    drawn = [rows.applied(first.applied(request, i), j)["prompt"] for j in range(len(rows)) for i in range(len(first))]
    its = [[part for i, part in enumerate(parts) if number >> i & 1] for number in range(2**count)]  # in its order
    assert drawn == [", ".join(["a city", *some]) for some in its]


def test_a_matrix_needs_parts():
    for text, what in (("a city", "0 parts"), ("|".join("abcdefghijkl"), "11 parts")):
        with pytest.raises(InputError, match=what):
            matrix_axes(text)
