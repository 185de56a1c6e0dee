"""Emphasis as ComfyUI and compel write it, errors in weights, and texts of every kind."""

import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from safelight.errors import MissingPartError
from safelight.text.grammar import PromptError
from safelight.text.marks import READERS, Span, Written
from safelight.text.schedule import SYNTAXES, plan_prompt

SIGNS = [
    "(",
    ")",
    "[",
    "]",
    ":",
    "|",
    "\\",
    "+",
    "-",
    "1.2",
    ":1.2)",
    '"',
    ",",
    ".",
    "BREAK",
    "AND",
    "\0",
    "\ud800",
    "{",
]
TEXTS = st.lists(st.one_of(st.sampled_from([*SIGNS, "a ", "red"]), st.text(max_size=4)), max_size=30).map("".join)


def read(syntax, text):
    return READERS[syntax](Written([(0, text)], text))


def weights(syntax, text):
    return [(span.text, round(span.weight, 6)) for section in read(syntax, text) for span in section]


@pytest.mark.parametrize(
    "text, expected",
    [  # the examples of ComfyUI's own documentation of its function, and how it reads what does not pair
        ("(foo)", [("foo", 1.1)]),
        ("(foo)(bar)", [("foo", 1.1), ("bar", 1.1)]),
        ("(foo:2.0)", [("foo", 2.0)]),
        ("((foo))", [("foo", 1.21)]),
        ("((foo):1.1)", [("foo", 1.21)]),
        ("((foo:1.1))", [("foo", 1.1)]),
        ("(foo:0.0)", [("foo", 0.0)]),
        ("((foo:1.0):0.0)", [("foo", 1.0)]),
        (
            "foo ((((lol (cat:666) attack:100)))) baz",
            [("foo ", 1), ("lol ", 100), ("cat", 666), (" attack", 100), (" baz", 1)],
        ),
        (
            "foo ((((lol (cat:666) attack):100))) baz",
            [("foo ", 1), ("lol ", 110), ("cat", 666), (" attack", 110), (" baz", 1)],
        ),
        (r"\(foo\) (b\):1.2)", [("(foo) ", 1), ("b)", 1.2)]),
        ("[a] BREAK b AND c", [("[a] BREAK b AND c", 1)]),
        ("(a: b)", [("a: b", 1.1)]),
        ("(a", [("(a", 1)]),
        ("a) (b)", [("a) (b)", 1)]),
        ("()", []),
        ("in embedding:cat, embedding:dog", [("in cat, dog", 1)]),
    ],
)
def test_comfyui(text, expected):
    assert weights("comfyui", text) == expected


@pytest.mark.parametrize(
    "text, expected",
    [
        ("a man picking apricots+", [("a man picking ", 1), ("apricots", 1.1)]),
        ("apricots-- here", [("apricots", 0.81), (" here", 1)]),
        ("a (picking apricots+)++, yes", [("a ", 1), ("picking ", 1.21), ("apricots", 1.331), (", yes", 1)]),
        ("(apricots)1.3 (pears)0.5 (plums)", [("apricots", 1.3), (" ", 1), ("pears", 0.5), (" plums", 1)]),
        ("mid-century - well-known+", [("mid-century - ", 1), ("well-known", 1.1)]),
        (r"C\+\+ \(a\)", [("C++ (a)", 1)]),
        ("(a b", [("(a b", 1)]),
        ("a) b", [("a) b", 1)]),
    ],
)
def test_compel(text, expected):
    assert weights("compel", text) == expected


def test_compel_says_what_it_does_not_read():
    with pytest.raises(MissingPartError, match=r"\.blend\(\) is not read") as caught:
        read("compel", '("a", "b").blend(1, 0.8)')
    assert "safelight.text.mixing" in caught.value.remedy


def test_a_prompt_without_marks_is_one_span_in_every_syntax():
    text = "A photo of a red-haired fox, 8k; it's 5 o'clock!"
    assert {read(syntax, text) for syntax in SYNTAXES} == {((Span(text, 1.0, 0),),)}


def test_a1111_escapes_and_breaks():
    assert read("a1111", r"\AND \BREAK a") == ((Span("AND BREAK a"),),)
    assert weights("a1111", "(a BREAK b:1.5) c") == [("a", 1.5), ("b", 1.5), (" c", 1)]
    assert [len(section) for section in read("a1111", "BREAK (a) b BREAK")] == [0, 2, 0]


def test_spans_know_where_they_stand():
    plan = plan_prompt("ab [(c:1.5)|x](d)", 2)
    assert [(span.text, span.start) for span in plan.tracks[0].at(1)[0]] == [("ab ", 0), ("c", 5), ("d", 15)]
    assert [(span.text, span.start) for span in plan.tracks[0].at(2)[0]] == [("ab x", 0), ("d", 15)]


@pytest.mark.parametrize(
    "syntax, text, position, what",
    [
        ("a1111", "a (cat:1.2.3) b", 7, "'1.2.3' is not a number"),
        ("a1111", "[x|a] (cat:.)", 11, "'.' is not a number"),
        ("a1111", "a (cat:9999999)", 3, "the weight of these words is 1e"),
        ("comfyui", "a (cat:nan)", 7, "'nan' is no weight"),
        ("compel", "x (cat)9999999", 3, "the weight of these words"),
    ],
)
def test_bad_weights_are_pointed_at(syntax, text, position, what):
    with pytest.raises(PromptError, match=what) as caught:
        plan_prompt(text, 4, syntax=syntax)
    assert caught.value.position == position
    assert str(caught.value).split("\n")[2].endswith("^")


@settings(max_examples=400, deadline=None)
@given(TEXTS, st.sampled_from(SYNTAXES), st.integers(1, 12))
def test_no_text_crashes_any_syntax(text, syntax, steps):
    try:
        plan = plan_prompt(text, steps, syntax=syntax, extra_networks="ignore")
    except (PromptError, MissingPartError) as error:
        assert "^" in str(error)
        return
    for step in range(1, steps + 1):
        for _, passage in plan.at(step):
            assert passage and all(span.text and 0 <= span.start <= len(text) for part in passage for span in part)


@pytest.mark.parametrize("syntax", SYNTAXES)
@pytest.mark.parametrize("unit", ["(", ")", "(a)", "a:", "\\", " ", "a+", "-", "a-b", "(a b)+", "[", "BREAK ", "((a)"])
def test_every_syntax_is_linear(syntax, unit):
    text = unit * (100_000 // len(unit))
    start = time.process_time()
    try:
        plan_prompt(text, 20, syntax=syntax)
    except PromptError as error:
        assert "nest deeper" in error.what
    assert time.process_time() - start < 60
