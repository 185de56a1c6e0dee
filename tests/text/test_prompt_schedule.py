"""Plans: what each step sees, with which notes and errors."""

import pytest

from safelight.errors import InputError, MissingPartError
from safelight.text.schedule import plan_prompt
from safelight.text.table import step_table, written_passage


def seen(text, steps, **options):
    plan = plan_prompt(text, steps, **options)
    return [" AND ".join(f"{w:g}*{written_passage(p)}" for w, p in plan.at(step)) for step in range(1, steps + 1)]


def test_switching_alternating_and_both():
    assert seen("[a:b:0.5]", 4) == ["1*a", "1*a", "1*b", "1*b"]
    assert seen("[a:b:3]", 4) == ["1*a", "1*a", "1*a", "1*b"]
    assert seen("[a::1][b:3]", 4) == ["1*a", "1*", "1*", "1*b"]
    assert seen("[a|b|c]", 4) == ["1*a", "1*b", "1*c", "1*a"]
    assert seen("[[a|b]:c:0.5]", 4) == ["1*a", "1*b", "1*c", "1*c"]
    assert seen("([a|b]:1.5)", 2) == ["1*(a:1.5)", "1*(b:1.5)"]
    assert seen("(a:[1.2:1.4:0.5])", 2) == ["1*(a:1.2)", "1*(a:1.4)"]


def test_branches_change_apart():
    assert seen("[a:b:1] AND [c|d]:0.5", 3) == ["1*a AND 0.5*c", "1*b AND 0.5*d", "1*b AND 0.5*c"]
    plan = plan_prompt("[a:b:1] AND c:0.5", 3)
    assert [tuple(row) for row in step_table(plan)] == [
        (1, 1, 1, 1.0, "a"),
        (1, 1, 2, 0.5, "c"),
        (2, 3, 1, 1.0, "b"),
        (2, 3, 2, 0.5, "c"),
    ]


def test_equal_texts_are_one_passage():
    plan = plan_prompt("[a|b]" * 3 + " rest", 1000)
    assert len({entry.passage for entry in plan.tracks[0].entries}) == 2
    assert len(plan.changes) == 1000 and plan.changes[0] == 1


def test_adapters_are_asked_for_by_name_or_left_out():
    with pytest.raises(MissingPartError, match=r"<lora:ink:0.8> asks for an adapter\n.*\n +\^"):
        plan_prompt("a [b<lora:ink:0.8>:c:5]", 10)
    plan = plan_prompt("a<lora:ink:0.8> b", 10, extra_networks="ignore")
    assert seen("a<lora:ink:0.8> b", 1, extra_networks="ignore") == ["1*a b"]
    assert [(network.kind, network.arguments) for network in plan.networks] == [("lora", ("ink", "0.8"))]


def test_notes_tell_why_there_is_no_schedule():
    ((position, note),) = plan_prompt("a | b [c:d:5]", 10).notes
    assert position == 2 and "backslash" in note
    assert plan_prompt(r"a \| b [c:d:5]", 10).notes == () and len(set(seen(r"a \| b [c:d:5]", 10))) == 2


def test_errors_name_the_nearest():
    with pytest.raises(InputError, match="prompt syntax 'a111' is unknown"):
        plan_prompt("a", syntax="a111")
    with pytest.raises(InputError, match="0 steps"):
        plan_prompt("a", 0)
    for syntax in ("plain", "compel", "comfyui"):
        with pytest.raises(InputError, match="characters; the most is"):
            plan_prompt("a" * 2_000_000, syntax=syntax)
