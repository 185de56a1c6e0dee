"""Arithmetic with prompts."""

import pytest
import torch

from safelight.errors import InputError
from safelight.models.clip import TextConfig, TextEncoder
from safelight.text.mixing import blend_words, interpolate, lerp, mix, slerp, swap_word, word_vectors
from safelight.text.prompt import encode_embeddings, encode_prompt
from safelight.text.tokenizer import Tokenizer

CLIP = Tokenizer.clip()
SHAPE = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4}


@pytest.fixture(scope="module")
def encoder():
    torch.manual_seed(0)
    return TextEncoder(TextConfig(**SHAPE)).requires_grad_(False)


def test_mixing_by_weight(encoder):
    contexts = encode_prompt(CLIP, encoder, ["a cat", "a dog", "a fox"])
    a, b, c = contexts
    torch.testing.assert_close(mix(contexts, [1, 1, 2])[0], (a + b + 2 * c) / 4)
    torch.testing.assert_close(mix([a[None], b[None]], [2, -1], normalize=False)[0], 2 * a - b)
    torch.testing.assert_close(mix(contexts, [0, 3, 0])[0], b)
    assert mix(contexts.half(), [1, 1, 2]).dtype == torch.float16
    with pytest.raises(InputError, match="2 weights for 3 contexts"):
        mix(contexts, [1, 1])
    with pytest.raises(InputError, match="sum to 0"):
        mix(contexts, [1, -1, 0])
    with pytest.raises(InputError, match="cannot be mixed"):
        mix([a[None], encode_prompt(CLIP, encoder, "a " * 100)], [1, 1])


def test_slerp_keeps_lengths_and_turns_evenly():
    a, b = torch.tensor([[3.0, 0, 0]]), torch.tensor([[0.0, 3, 0]])
    for t in (0.0, 0.25, 0.5, 1.0):
        angle = torch.tensor(t * torch.pi / 2)
        expected = 3 * torch.stack([angle.cos(), angle.sin(), torch.tensor(0.0)])
        torch.testing.assert_close(slerp(a, b, t)[0], expected)
    torch.testing.assert_close(slerp(a, 2 * a, 0.5), 1.5 * a)  # parallel: the line
    torch.testing.assert_close(slerp(a, torch.zeros_like(a), 0.5), a / 2)
    assert slerp(a, -a, 0.3).isfinite().all()


def test_between_two_noises_the_variance_stays():
    noise = torch.randn(2, 4, 64, 64, generator=torch.Generator().manual_seed(0))
    frames = interpolate(noise[:1], noise[1:], 5, dim=(1, 2, 3))
    assert torch.allclose(frames.std((1, 2, 3)), torch.ones(5), atol=0.02)
    straight = interpolate(noise[:1], noise[1:], 5, curve="lerp")
    assert straight[2].std() < 0.75
    torch.testing.assert_close(straight[2], (noise[0] + noise[1]) / 2)
    assert torch.equal(frames[0], noise[0]) and torch.equal(frames[-1], noise[1])


def test_interpolation_says_what_is_wrong():
    a, b = torch.ones(1, 3), torch.zeros(1, 3)
    with pytest.raises(InputError, match="1 frames"):
        interpolate(a, b, 1)
    with pytest.raises(InputError, match="did you mean slerp"):
        interpolate(a, b, 2, curve="slrp")
    with pytest.raises(InputError, match="differ"):
        lerp(a, b[:, :2], 0.5)


def test_swapping_and_blending_words(encoder):
    swapped = swap_word(CLIP, encoder, "a picture of a puppy, puppy", "puppy", "cat")
    context = encode_embeddings(encoder, swapped)
    torch.testing.assert_close(context, encode_prompt(CLIP, encoder, "a picture of a cat, cat"), atol=1e-5, rtol=1e-5)
    half = blend_words(CLIP, encoder, {"puppy": 0.5, "skunk": 0.5})
    puppy, skunk = (word_vectors(CLIP, encoder, word) for word in ("puppy", "skunk"))
    torch.testing.assert_close(half, (puppy + skunk) / 2)
    mixed = swap_word(CLIP, encoder, "a puppy", "puppy", half)
    torch.testing.assert_close(mixed[0, 0, 2], half[0])
    torch.testing.assert_close(swap_word(CLIP, encoder, "a puppy", "puppy", half[0]), mixed)
    before = encoder.embed(torch.tensor([CLIP.ids("a puppy")]))
    torch.testing.assert_close(swap_word(CLIP, encoder, "a puppy", "puppy", "puppy")[0], before)


def test_words_that_do_not_fit(encoder):
    with pytest.raises(InputError, match=r"no word 'dog'.*\n.*a puppy"):
        swap_word(CLIP, encoder, "a puppy", "dog", "cat")
    with pytest.raises(InputError, match="'puppy' has 1 tokens, but 2 vectors"):
        swap_word(CLIP, encoder, "a puppy", "puppy", "flooble")
    with pytest.raises(InputError, match="'cat' 1, 'flooble' 2"):
        blend_words(CLIP, encoder, {"cat": 1, "flooble": 1})
    with pytest.raises(InputError, match="has no tokens"):
        word_vectors(CLIP, encoder, " ")
