"""Stable Diffusion XL's two text encoders as one, against transformers' two."""

from dataclasses import replace

import pytest
import torch
from test_clip import SMALL, peer_and_ours, relative_error

from safelight.errors import InputError
from safelight.models.clip import TextEncoder
from safelight.models.text_pair import TextEncoderPair, second_ids

SECOND = replace(SMALL, hidden_size=48, hidden_act="gelu", num_hidden_layers=4, projection=True)
END = 98


@pytest.fixture(scope="module")
def pairs(tmp_path_factory):
    first = peer_and_ours(SMALL, tmp_path_factory.mktemp("first"))
    second = peer_and_ours(SECOND, tmp_path_factory.mktemp("second"))
    return (first[0], second[0]), TextEncoderPair(first[1], second[1])


def framed():
    """Texts of 0, 3 and as many words as fit, padded with the end of text."""
    ids = torch.full((3, 16), END)
    ids[:, 0] = 97
    ids[1, 1:4] = torch.tensor([5, 96, 0])
    ids[2, 1:15] = torch.arange(10, 24)
    return ids


def test_the_second_is_padded_with_zeros():
    expected = framed()
    expected[0, 2:], expected[1, 5:] = 0, 0
    assert torch.equal(second_ids(framed()), expected)
    assert framed()[0, 2] == END  # what was given is as it was
    word = framed()
    word[1, 2] = END  # written in the text itself, it is no padding
    assert second_ids(word)[1, 2:6].tolist() == [END, 0, END, 0]


@pytest.mark.parametrize("clip_skip", [0, 1])
@torch.no_grad()
def test_what_the_unet_is_told_is_what_diffusers_tells_it(pairs, clip_skip):
    """`hidden_states[-2]` of both side by side, and `text_embeds` of the second (pipeline_stable_diffusion_xl.py)."""
    (first, second), ours = pairs
    ids = framed()
    a, b = first(ids, output_hidden_states=True), second(second_ids(ids), output_hidden_states=True)
    expected = torch.cat([a.hidden_states[-2 - clip_skip], b.hidden_states[-2 - clip_skip]], -1)
    found = ours.reading(ours(ids), clip_skip)
    assert relative_error(found.context, expected) < 1e-6
    assert relative_error(found.pooled, b.text_embeds) < 1e-6
    assert (ours.width, ours.pooled_width, ours.vocab_size) == (80, 24, 99)


@torch.no_grad()
def test_a_mask_that_hides_nothing_changes_nothing(pairs):
    _, ours = pairs
    causal = torch.ones(16, 16, dtype=torch.bool).tril().expand(3, 1, 16, 16)
    plain, masked = (ours.reading(features) for features in (ours(framed()), ours.features(framed(), causal)))
    assert relative_error(masked.context, plain.context) < 1e-6
    hidden = causal.clone()
    hidden[:, :, 2:, 1] = False
    assert relative_error(ours.reading(ours.features(framed(), hidden)).context, plain.context) > 1e-3


def test_what_makes_no_pair_is_told(pairs):
    _, ours = pairs
    with pytest.raises(InputError, match="no text_projection"):
        TextEncoderPair(ours.text_encoder, TextEncoder(SMALL))
    with pytest.raises(InputError, match="99 and 100 words"):
        TextEncoderPair(ours.text_encoder, TextEncoder(replace(SECOND, vocab_size=100)))
    with pytest.raises(InputError, match="skip 0 to 1"):
        ours.reading(ours(framed()), 2)
