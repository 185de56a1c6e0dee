"""Choices, wildcards and the prompt matrix."""

import time
from collections import Counter
from contextlib import suppress

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from safelight.errors import InputError
from safelight.text.dynamic import combinations, expand
from safelight.text.grammar import PromptError


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "colour.txt").write_text("# warm and cold\nred\n\n  blue \n{light|dark} green\n", encoding="utf-8")
    (tmp_path / "animals").mkdir()
    (tmp_path / "animals" / "cat.txt").write_text("a __colour__ cat\n")
    (tmp_path / "loop.txt").write_text("a __loop__\n")
    (tmp_path / "empty.txt").write_text("# nothing\n")
    return tmp_path


def test_a_seed_draws_the_same_text_and_seeds_draw_them_all():
    text = "a {red|green|blue} {fox|{big|small} wolf}"
    drawn = Counter(expand(text, seed) for seed in range(600))
    assert set(drawn) == set(combinations(text)) and len(drawn) == 9
    assert expand(text, 5) == expand(text, 5)
    assert 60 < drawn["a red fox"] < 140  # 1/3 · 1/2 of 600, within five standard deviations


def test_shares_and_numbers():
    drawn = Counter(expand("{3::a|b|0::c}", seed) for seed in range(400))
    assert set(drawn) == {"a", "b"} and 250 < drawn["a"] < 350
    assert set(combinations("{2$$a|b|c}")) == {"a, b", "a, c", "b, a", "b, c", "c, a", "c, b"}
    assert {expand("{2$$a|b|c}", seed) for seed in range(200)} == set(combinations("{2$$a|b|c}"))
    assert set(combinations("{1-2$$ and $$a|b}")) == {"a", "b", "a and b", "b and a"}
    assert {expand("{-1$$a|b}", seed) for seed in range(50)} == {"", "a", "b"}
    assert combinations("{0$$a|b}") == [""] and set(combinations("{2-$$a|b}")) == {"a, b", "b, a"}


def test_wildcards_come_from_files_and_their_choices_are_made(folder):
    lines = {"a red cat", "a blue cat", "a light green cat", "a dark green cat"}
    assert {expand("__animals/cat__", seed, folder) for seed in range(100)} == lines
    assert set(combinations("__animals/cat__", folder)) == lines


def test_marks_of_the_other_grammars_stay_as_they_are():
    for text in ("a (b:1.2) [c|d] [e:f:0.5] <lora:g:1> AND h", "snake_case __init", r"a \(b\)", "a|b", ""):
        assert expand(text, 0) == text and combinations(text) == [text]
    assert expand(r"\{a|b\} \__c__", 0) == "{a|b} __c__"


@pytest.mark.parametrize(
    "text, position, what",
    [
        ("a {b|c", 2, "never closed"),
        ("a b} c", 3, "closes none"),
        ("a {3$$b|c}", 2, "cannot draw 3 of 2"),
        ("a __color__", 2, "there is no wildcard 'color'"),
        ("a __../secret__", None, None),
        ("__empty__", 0, "has no lines"),
        ("x __loop__", 2, "without end"),
        ("{" * 200 + "}" * 200, 100, "nest deeper"),
    ],
)
def test_errors_point(folder, text, position, what):
    if what is None:
        assert expand(text, 0, folder) == text  # no name leads out of the folder
        return
    with pytest.raises(PromptError, match=what) as caught:
        expand(text, 0, folder)
    assert caught.value.position == position
    with pytest.raises(InputError):
        combinations(text, folder)


def test_the_nearest_wildcards_are_named(folder):
    with pytest.raises(PromptError, match="did you mean colour"):
        expand("__color__", 0, folder)
    with pytest.raises(PromptError, match="give a folder of wildcards"):
        expand("__color__", 0)
    with pytest.raises(InputError, match="no folder"):
        expand("a", 0, folder / "nowhere")


def test_combinations_stop_at_a_limit():
    assert len(combinations("{a|b|c|d}" * 20, limit=50)) == 50
    with pytest.raises(InputError, match="more than 100 choices"):
        combinations("{a|b}" * 101)


@settings(max_examples=300, deadline=None)
@given(
    st.lists(st.one_of(st.sampled_from(["{", "}", "|", "2$$", "$$", "0.5::", "\\", "__", "a"]), st.text(max_size=3)))
    .map("".join),
    st.integers(0, 2**64),
)  # fmt: skip
def test_no_text_crashes(text, seed):
    try:
        expand(text, seed)
    except PromptError as error:
        assert "^" in str(error)


@pytest.mark.parametrize("unit", ["{", "__", "__a", "__a -", "{a}", "{a|b}", "{2$$", "\\", "_"])
def test_a_hundred_thousand_characters_take_no_time(unit):
    start = time.process_time()
    with suppress(PromptError):
        expand(unit * (100_000 // len(unit)), 0)
    assert time.process_time() - start < 60
