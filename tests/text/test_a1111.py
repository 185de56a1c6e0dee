"""More than two hundred prompts mean what AUTOMATIC1111's rules say: texts, tokens, weights, contexts, step by step."""

import random

import a1111
import pytest
import torch

from safelight.models.clip import TextConfig, TextEncoder
from safelight.text.encoding import encode_plans, frame_passage
from safelight.text.schedule import plan_prompt
from safelight.text.tokenizer import Tokenizer

CLIP = Tokenizer.clip()
SHAPE = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4}
BY_HAND = [
    "",
    " ",
    "a cat",
    "an (important) word",
    "(unbalanced",
    "unbalanced)",
    "[unbalanced",
    "unbalanced]",
    r"\(literal\]",
    r"a \(b\) (c\):1.2) \\(d)",
    r"C:\path\to [x]",
    "(unnecessary)(parens)",
    "a (((house:1.3)) [on] a (hill:0.5), sun, (((sky))).",
    "((a)) (b:1.21) (c:1.1)(d)",
    "(a:1.5) (b:-0.5) (c:+2) (d:.5) (e:0)",
    "(a: 1.5 ) (b :1.5) (c:1.5 x)",
    "[[a]] [b [c]] (([d]))",
    "(a [b) c]",
    "(note: this) is text",
    "ratio 16:9, 12:30",
    "a (b:c:1.2) d",
    "fantasy landscape with a [mountain:lake:0.25] and [an oak:a christmas tree:0.75][ in foreground::0.6]"
    "[: in background:0.25] [shoddy:masterful:0.5]",
    "a [b:3]",
    "a [b: 3]",
    "a [[[b]]:2]",
    "[(a:2):3]",
    "a [b : c : 1] d",
    "a[b:[c:d:2]:1]e",
    "a [b:.5] c",
    "a [{b|d{:.5] c",
    "((a][:b:c [d:3]",
    "[a|(b:1.1)]",
    "[fe|]male",
    "[fe|||]male",
    "[a|b|c] and [d|e]",
    "[a|[b:c:4]] x",
    "[[a|b]:[c|d]:0.5]",
    "[a:b:0] [c:d:-1] [e:f:99] [g:h:1.0] [i:j:0.99] [k:l:1e1]",
    "(fox:[1.1:1.4:5])",
    "([red:blue:3] ball:1.3) on (grass)",
    "[a:b:x] [c:d:5:6] [:e:5] [f::5] [::5] [:5] []",
    "a | b [c:d:5]",
    "[c:d:5] trailing \\",
    r"[a\:b:c\|d:5] \[e:f:5\]",
    "a BREAK b",
    "BREAK",
    "BREAK a",
    "a BREAK",
    "a BREAK BREAK b",
    "a (b) BREAK [c:d:5], eBREAK, BREAKf",
    "a photo, " * 30 + "(the end:1.4)",
    "word " * 74 + ", (and:1.2) then, some more",
    "(word, word:1.1) " * 26 + "last",
    "word " * 80 + "BREAK " + "other, " * 45,
    "a cat AND a dog",
    "a cat :1.2 AND a dog:0.5 AND a (bird:1.3):-0.25",
    "a [cat:dog:0.5] AND [x|y] :2",
    "bANDage AND sAND",
    "[a AND b:5] :.5",
    "a\nb AND c\n:2\n",
    "Ünïcödé (日本語:1.2) 👍🏽 [é:è:0.5]",
]
ATOMS = ["a ", "red", " fox", ", ", "snow ", *"()()[]()[]:|", "[a:b:3]", "[x|y]", "(z:1.3)", ":0.5]", ":3]", ":1.2)"]
ATOMS += [":.7)", " AND ", " 2", "0.5", r"\(", r"\]", "\\", "[c:", "::", "-1", *"[(])"]


def random_prompts(count, seed=6):
    draw = random.Random(seed)
    return ["".join(draw.choices(ATOMS, k=draw.randint(2, 16))) for _ in range(count)]


PROMPTS = [*BY_HAND, *random_prompts(240)]
STEPS = 10


@pytest.fixture(scope="module")
def encoder():
    torch.manual_seed(0)
    encoder = TextEncoder(TextConfig(**SHAPE)).requires_grad_(False)
    encoder.final_layer_norm.bias += 0.1  # untrained, every token's mean would be 0, and "original" divides by it
    return encoder


def rule_branches(prompt):
    """AUTOMATIC1111 reads a weight from the end of a prompt without AND, too: "16:9" guides nine times. We do not."""
    found = list(a1111.branches(prompt))
    return found if len(found) > 1 else [(prompt, 1.0)]


def test_there_are_enough_prompts_and_they_say_something():
    assert len(set(PROMPTS)) >= 200
    plans = [plan_prompt(prompt, STEPS) for prompt in PROMPTS]
    assert sum(len(plan.changes) > 1 for plan in plans) > 60
    assert sum(len(plan.tracks) > 1 for plan in plans) > 40
    assert sum(any(span.weight != 1 for _, p in plan.at(1) for s in p for span in s) for plan in plans) > 100


def test_every_step_of_every_prompt_reads_the_rules_tokens_and_weights():
    for prompt in PROMPTS:
        plan = plan_prompt(prompt, STEPS)
        rules = rule_branches(prompt)
        assert [track.weight for track in plan.tracks] == [weight for _, weight in rules], prompt
        for track, (text, _) in zip(plan.tracks, rules, strict=True):
            theirs = a1111.schedule(text, STEPS)
            assert [entry.last for entry in track.entries] == [last for last, _ in theirs], prompt
            for entry, (_, words) in zip(track.entries, theirs, strict=True):
                ours = [
                    ([token.id for token in chunk], pytest.approx([token.weight for token in chunk], rel=1e-12))
                    for chunk in frame_passage(CLIP, entry.passage)
                ]
                assert a1111.chunks(words, CLIP.encode) == ours, prompt


@pytest.mark.parametrize("ours, theirs", [("original", "Original"), ("no_norm", "No norm"), ("ignore", "Ignore")])
def test_contexts_are_the_rules(encoder, ours, theirs):
    for prompt in PROMPTS if ours == "original" else PROMPTS[::4]:
        encoded = encode_plans(CLIP, encoder, [plan_prompt(prompt, STEPS)], emphasis=ours)
        for course, (text, _) in zip(encoded.courses[0], rule_branches(prompt), strict=True):
            expected = a1111.contexts(text, STEPS, CLIP.encode, encoder, theirs)
            for last, row in expected:
                found = encoded.contexts[course.row(last)][: len(row)]
                torch.testing.assert_close(found, row, rtol=1e-4, atol=1e-4 * row.abs().max().item())


def test_steps_between_the_entries_see_the_next_one():
    plan = plan_prompt("[a:b:0.3] [c:d:7]", 10)
    seen = ["".join(span.text for span in plan.at(step)[0][1][0]) for step in range(1, 11)]
    assert seen == ["a c"] * 3 + ["b c"] * 4 + ["b d"] * 3
    assert plan.changes == (1, 4, 8)
