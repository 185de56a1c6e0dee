"""What weights do to contexts, against the formulas written row by row; and that every text is encoded once."""

import math

import pytest
import torch

from safelight.errors import InputError
from safelight.models.clip import TextConfig, TextEncoder
from safelight.text.encoding import encode_plans, frame_passage
from safelight.text.prompt import encode_ids, encode_prompt, prompt_ids
from safelight.text.schedule import SYNTAXES, plan_prompt
from safelight.text.tokenizer import Tokenizer
from safelight.text.weights import EMPHASES, OF_SYNTAX

CLIP = Tokenizer.clip()
SHAPE = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 3, "num_attention_heads": 4}


@pytest.fixture(scope="module")
def encoder():
    torch.manual_seed(1)
    encoder = TextEncoder(TextConfig(**SHAPE)).requires_grad_(False)
    encoder.final_layer_norm.bias += 0.1
    return encoder


def context(encoder, text, **options):
    emphasis = options.pop("emphasis", "original")
    encoded = encode_plans(CLIP, encoder, [plan_prompt(text, 1, **options)], emphasis=emphasis)
    assert len(encoded.contexts) == 1
    return encoded.contexts[0]


@pytest.mark.parametrize("syntax", SYNTAXES)
def test_a_prompt_without_marks_is_the_same_bit_by_bit(encoder, syntax):
    texts = ["A photo of a red fox, 8k", "", "blurry"]
    plain = encode_prompt(CLIP, encoder, texts)
    plans = [plan_prompt(text, 20, syntax=syntax) for text in texts]
    for emphasis in EMPHASES:
        encoded = encode_plans(CLIP, encoder, plans, emphasis=emphasis)
        assert torch.equal(encoded.contexts, plain)
        assert [courses[0].rows for courses in encoded.courses] == [((20, 0),), ((20, 1),), ((20, 2),)]


def test_comfyui_moves_tokens_from_the_empty_prompt(encoder):
    found = context(encoder, "a (red:1.4) (fox:0.3)", syntax="comfyui", emphasis="comfyui")
    z, empty = encode_prompt(CLIP, encoder, ["a red fox", ""])
    for place, weight in ((1, 1), (2, 1.4), (3, 0.3), (4, 1), (50, 1)):
        torch.testing.assert_close(found[place], empty[place] + weight * (z[place] - empty[place]))
    assert torch.equal(found[1], z[1])


def test_compel_strengthens_from_the_empty_prompt_and_hides_what_is_weak(encoder):
    strong = context(encoder, "a red+ fox", syntax="compel", emphasis="compel")
    z, empty = encode_prompt(CLIP, encoder, ["a red fox", ""])
    torch.testing.assert_close(strong[2], empty[2] + 1.1 * (z[2] - empty[2]))
    found = context(encoder, "a (red)0.4 fox", syntax="compel", emphasis="compel")
    ids = prompt_ids(CLIP, "a red fox")
    seen = torch.ones(1, 1, 77, dtype=torch.bool)
    seen[0, 0, 2] = False
    hidden = encode_ids(encoder, ids, mask=seen)[0]
    torch.testing.assert_close(hidden[:2], z[:2], atol=1e-5, rtol=1e-5)  # nothing before it has looked at it
    assert (hidden[3] - z[3]).abs().max() > 1e-3
    weights = torch.ones(77, 1)
    weights[2] = 0.4
    share = math.tan(0.6 * math.pi / 2)
    weighed = [empty + weights * (y - empty) for y in (z, hidden)]
    torch.testing.assert_close(found, (weighed[0] + share * weighed[1]) / (1 + share), atol=1e-5, rtol=1e-5)


def test_a_mask_that_hides_nothing_changes_nothing(encoder):
    ids = prompt_ids(CLIP, "a red fox " * 40)
    everything = torch.ones_like(ids, dtype=torch.bool)
    masked, free = encode_ids(encoder, ids, mask=everything), encode_ids(encoder, ids)
    torch.testing.assert_close(masked, free, atol=1e-5, rtol=1e-5)


def test_original_keeps_the_mean_of_each_chunk_and_leaves_other_chunks_alone(encoder):
    long = "(cat:1.5) " + "dog " * 100
    found, plain = context(encoder, long), encode_prompt(CLIP, encoder, "cat " + "dog " * 100)[0]
    torch.testing.assert_close(found[:77].mean(), plain[:77].mean())
    assert not torch.allclose(found[:77], plain[:77], atol=1e-3)
    assert torch.equal(found[77:], plain[77:])
    scaled = context(encoder, long, emphasis="no_norm")
    torch.testing.assert_close(scaled[1], 1.5 * plain[1])
    assert torch.equal(scaled[2:], plain[2:]) and torch.equal(context(encoder, long, emphasis="ignore"), plain)


def test_original_survives_a_mean_of_nothing():
    torch.manual_seed(0)
    untrained = TextEncoder(TextConfig(**SHAPE)).requires_grad_(False)  # its final norm gives each token the mean 0
    found = context(untrained, "a (cat:1.5)")
    torch.testing.assert_close(found, context(untrained, "a (cat:1.5)", emphasis="no_norm"))


def test_each_text_is_encoded_once(encoder):
    seen = []
    hook = encoder.register_forward_hook(lambda module, inputs, output: seen.append(inputs[0].shape[0]))
    plans = [plan_prompt("[a|b] (c:1.2) AND [a|b]", 50), plan_prompt("", 50), plan_prompt("[a|b] (c:1.3)", 50)]
    encoded = encode_plans(CLIP, encoder, plans)
    hook.remove()
    assert sum(seen) == 5  # "a c", "b c", "a", "b", ""
    assert len(encoded.contexts) == 7
    courses = encoded.courses[0]
    assert [courses[0].row(step) for step in (1, 2, 3, 50, 99)] == [0, 1, 0, 1, 1]


def test_breaks_begin_chunks_and_lengths_are_filled(encoder):
    framed = frame_passage(CLIP, plan_prompt("a BREAK (b:1.5) BREAK").tracks[0].entries[0].passage)
    assert [[token.id for token in chunk[:3]] for chunk in framed] == [[49406, 320, 49407], [49406, 321, 49407]]
    assert framed[1][1].weight == 1.5
    encoded = encode_plans(CLIP, encoder, [plan_prompt("a BREAK b"), plan_prompt("c")])
    assert encoded.contexts.shape == (2, 154, 32)
    torch.testing.assert_close(encoded.contexts[1, 77:], encode_prompt(CLIP, encoder, "")[0], atol=1e-5, rtol=1e-5)


def test_clip_skip_and_long_prompts_go_through(encoder):
    plans = [plan_prompt("a (cat:1.2)")]
    skipped = encode_plans(CLIP, encoder, plans, emphasis="no_norm", clip_skip=1).contexts
    state = encode_prompt(CLIP, encoder, "a cat", clip_skip=1)
    torch.testing.assert_close(skipped[0, 2], 1.2 * state[0, 2])
    with pytest.raises(InputError, match="more than fit"):
        encode_plans(CLIP, encoder, [plan_prompt("(cat) " * 80)], long_prompts="error")
    with pytest.warns(UserWarning, match="were cut"):
        encode_plans(CLIP, encoder, [plan_prompt("(cat) " * 80)], long_prompts="truncate")
    with pytest.raises(InputError, match="emphasis 'orignal' is unknown"):
        encode_plans(CLIP, encoder, plans, emphasis="orignal")
    assert set(OF_SYNTAX) == set(SYNTAXES) and set(OF_SYNTAX.values()) <= set(EMPHASES)
