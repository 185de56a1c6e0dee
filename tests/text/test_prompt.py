"""Prompts become diffusers' and transformers' contexts; long ones are split as AUTOMATIC1111 splits them, never cut."""

import warnings
from itertools import chain, pairwise

import pytest
import torch
from diffusers import StableDiffusionPipeline
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

from safelight.errors import InputError
from safelight.models.clip import TextConfig, TextEncoder
from safelight.text.prompt import (
    PromptCutWarning,
    encode_embeddings,
    encode_ids,
    encode_prompt,
    prompt_ids,
    split_ids,
)
from safelight.text.tokenizer import Tokenizer

CLIP = Tokenizer.clip()
SHAPE = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 4, "num_attention_heads": 4}
COMMA = 267
PROMPTS = ["an otter in watercolour", "", "it's a cat!! " * 10]


@pytest.fixture(scope="module")
def encoder():
    torch.manual_seed(0)
    return TextEncoder(TextConfig(**SHAPE)).requires_grad_(False)


@pytest.fixture(scope="module")
def pipe(encoder, clip_files):
    """diffusers' own encode_prompt, on the same weights."""
    theirs = CLIPTextModel(CLIPTextConfig(**SHAPE, bos_token_id=49406, eos_token_id=49407)).eval()
    own, names = encoder.state_dict(), theirs.state_dict()
    theirs.load_state_dict({name: own[name if name in own else f"text_model.{name}"] for name in names})
    # diffusers 0.42 looks for the final norm where transformers 4 had it; not as a submodule of itself, though.
    object.__setattr__(theirs, "text_model", theirs)
    tokenizer = CLIPTokenizer.from_pretrained(clip_files, model_max_length=77)
    return StableDiffusionPipeline(None, theirs, tokenizer, None, None, None, None, requires_safety_checker=False)


def diffusers_context(pipe, texts, clip_skip):
    with torch.no_grad():
        return pipe.encode_prompt(texts, "cpu", 1, False, clip_skip=clip_skip)[0]


@pytest.mark.parametrize("clip_skip", [None, 0, 1, 2])
def test_short_prompts_are_encoded_as_diffusers_does(encoder, pipe, clip_skip):
    ours = encode_prompt(CLIP, encoder, PROMPTS, clip_skip=clip_skip)
    theirs = diffusers_context(pipe, PROMPTS, clip_skip)
    assert ours.shape == (3, 77, 32)
    assert (ours - theirs).abs().max() <= 1e-5 * theirs.abs().max()


def test_clip_skip_leaves_layers_out(encoder):
    states = [encode_prompt(CLIP, encoder, "a cat", clip_skip=skip) for skip in range(4)]
    assert all(not torch.allclose(a, b, atol=1e-3) for a, b in pairwise(states))
    features = encoder(torch.tensor([CLIP.ids("a cat")]))
    assert torch.equal(states[1], encoder.final_layer_norm(features.hidden_states[-2]))
    with pytest.raises(InputError, match="4 of 4 layers"):
        encode_prompt(CLIP, encoder, "a cat", clip_skip=4)


def test_a_long_prompt_is_its_chunks_end_to_end(encoder):
    words = ["cat", "dog"] * 60  # 120 tokens, no comma
    context = encode_prompt(CLIP, encoder, " ".join(words))
    apart = [encode_prompt(CLIP, encoder, " ".join(part)) for part in (words[:75], words[75:])]
    torch.testing.assert_close(context, torch.cat(apart, dim=1), atol=1e-5, rtol=1e-5)


def test_texts_of_a_call_get_equally_many_chunks(encoder):
    long, short = "cat " * 200, "a dog"
    context = encode_prompt(CLIP, encoder, [long, short, ""], chunks=2)
    assert context.shape == (3, 3 * 77, 32)
    empty = encode_prompt(CLIP, encoder, "")
    alone = encode_prompt(CLIP, encoder, short)
    torch.testing.assert_close(context[1:2], torch.cat([alone, empty, empty], 1), atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(context[2:], empty.repeat(1, 3, 1), atol=1e-5, rtol=1e-5)
    assert encode_prompt(CLIP, encoder, short, chunks=2).shape == (1, 154, 32)


def test_padding_is_the_tokenizers(encoder):
    ids = prompt_ids(Tokenizer.clip(pad_token="!"), ["cat", "cat " * 80])
    assert ids.shape == (2, 2, 77)
    assert ids[0, 0].tolist() == [49406, 2368, 49407, *[0] * 74]
    assert ids[0, 1].tolist() == [49406, 49407, *[0] * 75]
    assert ids[1, 1].tolist() == [49406, *[2368] * 5, 49407, *[0] * 70]


def test_truncating_is_said_and_done_as_diffusers_does(encoder, pipe):
    long = "a cat, " * 30 + "and a small dog"
    with pytest.warns(PromptCutWarning, match=r"94 tokens; the last 19 were cut: .*and a small dog"):
        ours = encode_prompt(CLIP, encoder, long, long_prompts="truncate")
    theirs = diffusers_context(pipe, [long], None)
    assert (ours - theirs).abs().max() <= 1e-5 * theirs.abs().max()
    with pytest.raises(InputError, match=r"94 tokens, 19 more than fit: .*and a small dog"):
        encode_prompt(CLIP, encoder, long, long_prompts="error")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for mode in ("chunk", "error", "truncate"):
            encode_prompt(CLIP, encoder, "cat " * 75, long_prompts=mode)
    with pytest.raises(InputError, match=r"long_prompts='cut' is not known"):
        encode_prompt(CLIP, encoder, "cat", long_prompts="cut")
    with pytest.raises(InputError, match="no text"):
        encode_prompt(CLIP, encoder, [])


def test_entry_from_ids_and_from_embeddings(encoder):
    """Swap and mix tokens, as people do: puppy for cat, and half a puppy, half a skunk."""
    ids = prompt_ids(CLIP, "a picture of a puppy")
    swapped = torch.where(ids == 6829, 2368, ids)
    cat = encode_prompt(CLIP, encoder, "a picture of a cat")
    torch.testing.assert_close(encode_ids(encoder, swapped), cat)
    embeddings = encoder.embed(ids.flatten(0, 1)).unflatten(0, (1, 1))
    puppy = encode_prompt(CLIP, encoder, "a picture of a puppy", clip_skip=1)
    torch.testing.assert_close(encode_embeddings(encoder, embeddings, clip_skip=1), puppy)
    halves = encoder.embed(torch.tensor([[6829, 42194]])).mean(1)
    mixed = encode_embeddings(encoder, torch.where((ids == 6829).unsqueeze(-1), halves, embeddings))
    skunk = encode_prompt(CLIP, encoder, "a picture of a skunk")
    place = CLIP.ids("a picture of a puppy").index(6829)
    assert torch.equal(mixed[:, :place], cat[:, :place])  # causal: what stands before does not see it
    assert all(not torch.allclose(mixed[:, place], other[:, place], atol=1e-3) for other in (cat, skunk))
    with pytest.raises(InputError, match=r"\(1, 77\)"):
        encode_ids(encoder, ids[0])
    with pytest.raises(InputError, match=r"\(1, 77, 32\)"):
        encode_embeddings(encoder, embeddings[0])


def test_gradients_reach_the_embeddings(encoder):
    ids = prompt_ids(CLIP, "cat " * 100)
    embeddings = encoder.embed(ids.flatten(0, 1)).unflatten(0, (1, 2)).requires_grad_()
    encode_embeddings(encoder, embeddings).sum().backward()
    assert embeddings.grad.isfinite().all() and embeddings.grad.abs().sum() > 0


@pytest.mark.parametrize(
    "ids, chunks",
    [
        ([], [[]]),
        ([1, 2, 3, 4], [[1, 2, 3, 4]]),
        ([1, 2, 3, 4, 5, 6], [[1, 2, 3, 4, 5], [6]]),  # no comma
        ([1, 2, 3, 0, 4, 5], [[1, 2, 3, 0], [4, 5]]),  # the clause moves on
        ([1, 2, 0, 3, 4, 5], [[1, 2, 0], [3, 4, 5]]),  # three from the end: just near enough
        ([1, 0, 2, 3, 4, 5], [[1, 0, 2, 3, 4], [5]]),  # too far
        ([1, 2, 3, 4, 0, 5], [[1, 2, 3, 4, 0], [5]]),  # the comma is the last
        ([1, 2, 3, 0, 4, 0, 5], [[1, 2, 3, 0, 4], [0, 5]]),  # the next is a comma: the clause is whole
        ([0] * 11, [[0] * 5, [0] * 5, [0]]),
    ],
)
def test_split_at_commas(ids, chunks):
    assert split_ids(ids, 5, comma=0, backtrack=3) == chunks


def windows(ids, size, backtrack):
    """AUTOMATIC1111's rule as a definition: look at a full window and at the id behind it."""
    while len(ids) > size:
        commas = [i for i in range(max(0, size - backtrack), size) if ids[i] == COMMA]
        end = commas[-1] + 1 if commas and ids[size] != COMMA else size
        yield ids[:end]
        ids = ids[end:]
    yield ids


@settings(max_examples=500, deadline=None)
@given(st.lists(st.sampled_from([COMMA, 1, 2, 3, 4, 5, 6, 7]), max_size=400), st.sampled_from([0, 5, 20, 74]))
def test_splitting_keeps_every_token_and_the_rule(ids, backtrack):
    chunks = split_ids(ids, 75, comma=COMMA, backtrack=backtrack)
    assert list(chain(*chunks)) == ids
    assert all(len(chunk) <= 75 for chunk in chunks)
    assert chunks == list(windows(ids, 75, backtrack))


def test_a_word_of_several_vectors_stays_in_one_chunk():
    runs = {7: (7, 8, 9)}
    assert split_ids([1, 1, 1, 7, 8, 9], 5, runs=runs) == [[1, 1, 1], [7, 8, 9]]
    assert split_ids([1, 1, 7, 8, 9, 1], 5, runs=runs) == [[1, 1, 7, 8, 9], [1]]
    assert split_ids([1, 1, 1, 1, 7, 1], 5, runs=runs) == [[1, 1, 1, 1, 7], [1]]  # not the whole run
    assert split_ids([1, 7, 8, 9], 2, runs=runs) == [[1, 7], [8, 9]]  # too long for any chunk


def test_a_hundred_thousand_tokens_are_split_in_linear_time():
    import time

    start = time.perf_counter()
    assert len(split_ids([1, COMMA] * 50_000, 75, comma=COMMA)) > 1300
    assert time.perf_counter() - start < 60
