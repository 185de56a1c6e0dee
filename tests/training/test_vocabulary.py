"""A vocabulary trained on captions: in CLIP's format, and read alike by transformers."""

import json

import pytest

from safelight.errors import InputError
from safelight.text.tokenizer import Tokenizer
from safelight.training.data.vocabulary import train_tokenizer

CAPTIONS = [
    f"{a} {style} of {b} {color} {thing} {place}, on a {color} background"
    for style in ("3D render", "flat emoji", "pixel art sprite")
    for a, b, thing in (("a", "a", "dog"), ("a", "an", "owl"), ("the", "some", "grapes"))
    for color in ("red", "green", "light blue")
    for place in ("at the left", "at the top right", "in the middle")
]
STRANGE = ["Ünïcode ☃ and 日本語", "it's 42!", "  A  DOG\nat the LEFT ", "<|endoftext|> x", ""]


@pytest.fixture(scope="module")
def tokenizer():
    return train_tokenizer(CAPTIONS, size=580)


def test_the_format_is_clips(tokenizer):
    ids = dict(tokenizer.vocabulary.ids)
    pieces = sorted(ids, key=ids.get)
    assert sorted(ids.values()) == list(range(580)) and len(tokenizer) == 580
    clip = Tokenizer.clip().vocabulary.ids
    assert pieces[:512] == sorted(clip, key=clip.get)[:512]
    assert pieces[-2:] == ["<|startoftext|>", "<|endoftext|>"]
    assert [a + b for a, b in tokenizer.vocabulary.merges] == pieces[512:-2]


def test_common_words_become_one_piece(tokenizer):
    assert len(tokenizer.encode("background")) == 1 and len(tokenizer.encode("at the left")) == 3
    assert sum(len(tokenizer.encode(c)) for c in CAPTIONS) < 0.4 * sum(len(c.replace(" ", "")) for c in CAPTIONS)


def test_any_text_survives(tokenizer):
    for text in CAPTIONS[:5] + STRANGE:
        assert tokenizer.decode(tokenizer.encode(text)).replace(" ", "") == "".join(text.lower().split())


def test_training_twice_gives_the_same(tokenizer):
    for captions in (iter(CAPTIONS), CAPTIONS[::-1], CAPTIONS):
        assert train_tokenizer(captions, size=580).vocabulary.merges == tokenizer.vocabulary.merges


def test_files_are_read_alike_by_both(tokenizer, tmp_path):
    tokenizer.save(tmp_path)
    ours = Tokenizer.from_files(tmp_path / "vocab.json", tmp_path / "merges.txt")
    from transformers import CLIPTokenizer

    theirs = CLIPTokenizer.from_pretrained(tmp_path)
    bare = CLIPTokenizer(json.loads((tmp_path / "vocab.json").read_text()), _pairs(tmp_path / "merges.txt"))
    for text in CAPTIONS + STRANGE:
        wanted = tokenizer.ids(text, truncate=True)
        assert ours.ids(text, truncate=True) == wanted == Tokenizer.load(tmp_path).ids(text, truncate=True)
        for other in (theirs, bare):
            assert other(text, padding="max_length", max_length=77, truncation=True)["input_ids"] == wanted


def _pairs(path):
    return [tuple(line.split()) for line in path.read_text().splitlines()[1:]]


def test_few_captions_give_a_small_vocabulary():
    assert 514 < len(train_tokenizer(["red red red apple apple"], size=5000)) < 530
    assert len(train_tokenizer(["abc"], size=5000, min_frequency=2)) == 514


def test_what_cannot_be_trained_is_refused():
    with pytest.raises(InputError, match="cannot write every text"):
        train_tokenizer(CAPTIONS, size=500)
    with pytest.raises(InputError, match="no words"):
        train_tokenizer(["", "  "])
