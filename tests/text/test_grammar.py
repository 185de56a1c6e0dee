"""The grammar: every text has a tree, a tree prints its text, and nothing takes longer than its length allows."""

import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from safelight.errors import InputError
from safelight.text.grammar import (
    MAX_DEPTH,
    Alternating,
    Emphasis,
    Network,
    PromptError,
    Scheduled,
    Text,
    Weight,
    networks,
    parse,
    pointer,
)

MARKS = ["(", ")", "[", "]", ":", "|", "\\", "AND", " AND ", "BREAK", "0.5", ":3]", "<lora:a:1>", "<", ">", "\n", "\0"]
WORDS = st.one_of(st.sampled_from([*MARKS, "a ", "red", "\ud800", "日"]), st.text(max_size=5))
TEXTS = st.lists(WORDS, max_size=30).map("".join)


def nodes(text):
    (branch,) = parse(text).branches
    return list(branch.parts)


def test_each_mark_is_a_node_with_its_position():
    assert nodes("a (b:1.2)[c|][d:e:0.5][f: 3 ]<lora:ink:0.8:x>") == [
        Text("a "),
        Emphasis("(", (Text("b"),), (Text("1.2"),)),
        Alternating(((Text("c"),), ())),
        Scheduled((Text("d"),), (Text("e"),), "0.5"),
        Scheduled(None, (Text("f"),), " 3 "),
        Network("lora", ("ink", "0.8", "x")),
    ]
    assert [node.start for node in nodes("a (b)[c|d]<x:y>")] == [0, 2, 5, 10]
    inner = nodes("((a [b:c:5]))")[0].parts[0].parts[1]
    assert inner == Scheduled((Text("b"),), (Text("c"),), "5") and inner.start == 4


@pytest.mark.parametrize(
    "text",
    [
        "(a",
        "a)",
        "(a]",
        "[a:b]",
        "[a:b:c:5]",
        "(a:b:c)",
        "[a|b:c]",
        "a | b [c:5]",
        "[c:5] \\",
        r"\[a:5\]",
        "[a:5",
        ":::",
    ],
)
def test_what_is_no_structure_is_text(text):
    assert nodes(text) == [Text(text)]


def test_what_is_broken_does_not_hide_what_is_whole():
    assert nodes("((a] [b:3]") == [Text("((a] "), Scheduled(None, (Text("b"),), "3")]
    assert parse("x | [a:5] <lora:b:1>").branches[0].unscheduled == 2
    assert networks(parse("x | [a:5] <lora:b:1>").branches[0].parts) == [Network("lora", ("b", "1"))]


def test_branches_and_their_weights():
    prompt = parse("a AND b :0.5 AND c:-2 <lora:x:1> AND [d AND e:5]")
    assert [branch.weight for branch in prompt.branches] == [1.0, 0.5, -2.0, 1.0, 1.0]
    assert Weight(":-2 ") in prompt.branches[2].parts
    assert parse("16:9").branches[0].weight == 1  # nothing to weigh against
    assert [branch.weight for branch in parse(r"16\:9 AND b").branches] == [1, 1]
    assert len(parse(r"a \AND b bANDage").branches) == 1
    assert len(parse("a AND b", composable=False).branches) == 1


def test_networks_are_found_however_deep():
    found = networks(parse("<a:1>(<b:2>:<c:3>)[<d:4>|[<e:5>:<f:6>:2]]").branches[0].parts)
    assert [network.kind for network in found] == list("abcdef")
    assert nodes(r"\<lora:x:1> < lora:x:1> <lora>") == [Text(r"\<lora:x:1> < lora:x:1> <lora>")]


@settings(max_examples=1000, deadline=None)
@given(TEXTS)
def test_parse_and_print_are_inverses(text):
    prompt = parse(text)
    assert str(prompt) == text
    assert parse(str(prompt)) == prompt
    assert str(parse(text, composable=False)) == text


@settings(max_examples=300, deadline=None)
@given(TEXTS)
def test_positions_are_where_the_nodes_were_written(text):
    def check(parts):
        for node in parts:
            assert text.startswith(str(node), node.start)
            if isinstance(node, Emphasis):
                check([*node.parts, *(node.argument or ())])
            elif isinstance(node, Scheduled):
                check([*(node.before or ()), *node.after])
            elif isinstance(node, Alternating):
                check([inner for option in node.options for inner in option])

    for branch in parse(text).branches:
        assert text.startswith(str(branch), branch.start)
        check(branch.parts)


@pytest.mark.parametrize(
    "text",
    [
        "(" * 100_000,
        ")" * 100_000,
        "(a" * 50_000,
        "[a:" * 33_000,
        "(a)" * 33_000,
        "[a:b:3]" * 15_000,
        "((a)" * 25_000,
        "<a:" * 33_000,
        ":" * 100_000,
        " " * 100_000,
        "\\" * 99_999,
        "\0" * 100_000,
        "\ud800" * 100_000,
        "a AND " * 16_000,
        "1" * 99_000 + " AND a:" + "1" * 1000,
        "(" * 50 + "a [b:" * 15_000,
    ],
    ids=lambda text: text[:6].encode("unicode_escape").decode(),
)
def test_a_hundred_thousand_characters_take_no_time(text):
    start = time.process_time()
    try:
        assert str(parse(text)) == text
    except PromptError as error:
        assert "nest deeper" in error.what
    assert time.process_time() - start < 60


def test_errors_say_where():
    deep = "(" * (MAX_DEPTH + 5) + "a" + ")" * (MAX_DEPTH + 5)
    with pytest.raises(PromptError, match="nest deeper than 100") as caught:
        parse("cat " + deep)
    assert caught.value.position == 4 + MAX_DEPTH
    assert str(parse("(" * 100 + "a" + ")" * 100)) == "(" * 100 + "a" + ")" * 100
    with pytest.raises(InputError, match="10,000,000 characters"):
        parse("a" * 10_000_000)
    with pytest.raises(InputError, match="must be a string, not int"):
        parse(3)


def test_the_caret_stands_below_the_character():
    for text, position in (("abc", 1), ("x" * 500 + "!" + "y" * 500, 500), ("a\n\tb\0c", 5), ("abc", 3)):
        above, below = pointer(text, position).split("\n")
        column = below.index("^")
        assert above[column : column + 1] == text[position : position + 1]
        assert len(above) < 80
