"""Ids are transformers' ids, on every kind of string; nothing that is a string makes it stumble."""

import copy
import pickle
import time
from itertools import pairwise

import pytest
import tokenizers
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Regex, decoders, models, normalizers, pre_tokenizers
from transformers import CLIPTokenizer

from safelight.errors import InputError
from safelight.text.bpe import Vocabulary
from safelight.text.tokenizer import Tokenizer

CLIP = Tokenizer.clip()


def hf_ids(tokenizer, text):
    return tokenizer(text, add_special_tokens=False, verbose=False).input_ids


def test_ids_of_ten_thousand_strings_are_those_of_transformers(strings, clip_files):
    theirs = CLIPTokenizer.from_pretrained(clip_files)
    assert len(strings) >= 10_000
    assert not [text for text in strings if CLIP.encode(text) != hf_ids(theirs, text)]


def test_ids_of_every_word_in_the_vocabulary_are_those_of_transformers(clip_files):
    theirs = CLIPTokenizer.from_pretrained(clip_files)
    texts = [CLIP.decode(range(start, start + 32)) for start in range(0, len(CLIP), 32)]
    assert not [text for text in texts if CLIP.encode(text) != hf_ids(theirs, text)]
    covered = {i for text in texts for i in CLIP.encode(text)}
    assert len(covered) > 38_000


def test_ids_are_those_of_transformers_4s_fast_tokenizer(strings, clip_files):
    """Its split into words did not know the special tokens; that matters for their names in capitals alone."""
    vocabulary, merges = models.BPE.read_file(str(clip_files / "vocab.json"), str(clip_files / "merges.txt"))
    theirs = tokenizers.Tokenizer(
        models.BPE(vocabulary, merges, end_of_word_suffix="</w>", unk_token="<|endoftext|>", fuse_unk=False)
    )
    theirs.normalizer = normalizers.Sequence(
        [normalizers.NFC(), normalizers.Replace(Regex(r"\s+"), " "), normalizers.Lowercase()]
    )
    words = Regex(r"""'s|'t|'re|'ve|'m|'ll|'d|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+""")
    theirs.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Split(words, behavior="removed", invert=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    theirs.decoder = decoders.ByteLevel()
    theirs.add_special_tokens(["<|startoftext|>", "<|endoftext|>"])
    capitals = ("<|ENDOFTEXT|>", "<|STARTOFTEXT|>")
    compared = [text for text in strings if not any(name in text for name in capitals)]
    assert len(compared) > 8_000
    assert not [text for text in compared if CLIP.encode(text) != theirs.encode(text).ids]
    assert CLIP.encode(capitals[0] + "!") != theirs.encode(capitals[0] + "!").ids


def test_decoding_is_that_of_transformers(strings, clip_files):
    theirs = CLIPTokenizer.from_pretrained(clip_files)
    for text in strings[:1000]:
        ids = CLIP.encode(text)
        assert CLIP.decode(ids) == theirs.decode(ids)


@pytest.mark.parametrize("pad, pad_id", [("<|endoftext|>", 49407), ("!", 0)])
def test_padding_is_that_of_transformers(strings, clip_files, pad, pad_id):
    theirs = CLIPTokenizer.from_pretrained(clip_files, pad_token=pad)
    ours = Tokenizer.clip(pad_token=pad)
    assert (ours.bos, ours.eos, ours.pad, ours.max_length) == (49406, 49407, pad_id, 77)
    for text in strings[:500]:
        expected = theirs(text, padding="max_length", max_length=77, truncation=True).input_ids
        assert ours.ids(text, truncate=True) == expected


def test_known_ids():
    """From the notebooks people learn with: puppy 6829, cat 2368, skunk 42194."""
    assert CLIP.encode("puppy cat skunk") == [6829, 2368, 42194]
    assert CLIP.encode("A watercolor painting of an otter") == CLIP.encode("a  watercolor\npainting of an OTTER")
    assert CLIP.pieces(CLIP.encode("Flooble café")) == ["floo", "ble</w>", "café</w>"]
    assert CLIP.pieces(CLIP.encode("本")) == [r"\xe6\x9c", r"\xac</w>"]
    assert len(CLIP) == 49408


def test_a_text_that_does_not_fit_is_not_cut_in_silence():
    text = " ".join(["cat"] * 76)
    with pytest.raises(InputError, match="76 tokens, 1 more than fit into 77"):
        CLIP.ids(text)
    assert CLIP.ids(text, truncate=True) == [CLIP.bos, *[2368] * 75, CLIP.eos]
    assert CLIP.ids(text[4:]) == CLIP.ids(text, truncate=True)
    with pytest.raises(InputError, match="76 ids do not fit"):
        CLIP.frame([1] * 76)


HOSTILE = {
    "one word": "a",
    "brackets": "(",
    "words": "ab ",
    "lone surrogates": "\ud800",
    "swapped surrogates": "\udc00\ud800",
    "NULs": "\0",
    "combining marks": "\u0301",
    "spaces": " ",
    "entities": "&amp;",
    "nested entities": "amp;&",
    "special tokens": "<|endoftext|>",
    "emoji": "👩‍👩‍👧",
}


@pytest.mark.parametrize("clean", ["hf", "openai"])
@pytest.mark.parametrize("unit", HOSTILE.values(), ids=HOSTILE)
def test_a_hundred_thousand_characters_take_linear_time(unit, clean):
    tokenizer = Tokenizer.clip(clean=clean)
    tokenizer.encode("warm up")

    text = (unit * 100_000)[:100_000]
    start = time.perf_counter()
    tokenizer.encode(text)
    assert time.perf_counter() - start < 60  # 0.2 s here; what is quadratic takes minutes


def test_lone_surrogates_count_as_replacement_characters():
    assert CLIP.encode("a\ud800b") == CLIP.encode("a\ufffdb")
    assert CLIP.encode("\ud83d\ude00") == CLIP.encode("😀")


@settings(max_examples=300, deadline=None)
@given(st.text(st.characters(exclude_categories=())))
def test_any_string_has_ids_pieces_and_text(text):
    for tokenizer in (CLIP, OPENAI):
        ids = tokenizer.encode(text)
        assert all(0 <= i < 49408 for i in ids)
        assert len(tokenizer.pieces(ids)) == len(ids)
        tokenizer.decode(ids).encode("utf-8")  # well-formed


OPENAI = Tokenizer.clip(clean="openai")


def test_the_openai_rule_splits_as_its_reference_does(strings, clip_files):
    """Byte-pair encoding in twenty plain lines, with OpenAI's pattern in Python's `regex`, on the same cleaned text."""
    import json

    import regex

    from safelight.text.cleaning import openai_clean

    vocabulary = json.loads((clip_files / "vocab.json").read_text())
    lines = (clip_files / "merges.txt").read_text().split("\n")[1:-1]
    ranks = {tuple(line.split()): rank for rank, line in enumerate(lines)}
    alphabet = [piece for piece in vocabulary if len(piece) == 1][:256]
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    character = dict(zip([*printable, *(b for b in range(256) if b not in printable)], alphabet, strict=True))
    words = regex.compile(r"""'s|'t|'re|'ve|'m|'ll|'d|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+""", regex.IGNORECASE)

    def reference(text):
        for word in words.findall(openai_clean(text)):
            pieces = [character[byte] for byte in word.encode()]
            pieces[-1] += "</w>"
            while pairs := [pair for pair in pairwise(pieces) if pair in ranks]:
                best, merged = min(pairs, key=ranks.get), []
                for piece in pieces:
                    if merged and (merged[-1], piece) == best:
                        merged[-1] += piece
                    else:
                        merged.append(piece)
                pieces = merged
            yield from (vocabulary[piece] for piece in pieces)

    # Left out: special tokens; planes where `regex` has letters that Unicode has not; U+0345, a mark whose capital is a
    # letter, which `regex` finds to be neither.
    compared = [t for t in strings if "<|" not in t and len(t) < 150 and max(t, default=" ") < "\U00020000"]
    compared = [text for text in compared if "\u0345" not in text and "ͅ" not in openai_clean(text)]
    assert len(compared) > 4_000
    assert not [text for text in compared if OPENAI.encode(text) != list(reference(text))]
    assert OPENAI.encode("it’s &amp; Οδός") != CLIP.encode("it’s &amp; Οδός")


def test_added_names_stand_for_their_ids():
    tokenizer = CLIP.add_tokens(["<Birb>", "<Birb>_1", "birbstyle"])
    assert len(CLIP) == 49408 and len(tokenizer) == 49411  # the old one is as it was
    assert tokenizer.encode("a <birb>") == [320, 49408, 49409]
    assert tokenizer.encode("a <BIRB>x") == [320, 49408, 49409, 343]
    assert tokenizer.encode("<birb> <birb>_1") == [49408, 49409]  # written out already, as diffusers writes it
    assert tokenizer.encode("birbstyle") == [49410] and 49410 not in tokenizer.encode("birbstyles")
    assert tokenizer.pieces([49408, 49410]) == ["<Birb>", "birbstyle"]
    assert tokenizer.add_tokens(["<x>"]).encode("<x>") == [49411]
    openai = Tokenizer.clip(clean="openai").add_tokens(["<Birb>"])
    assert openai.encode("A <Birb>") == [320, 49408]


def test_added_names_must_be_new():
    for tokens in (["cat</w>"], ["<x>", "<X>"], ["<|endoftext|>"]):
        with pytest.raises(InputError, match="in the vocabulary already"):
            CLIP.add_tokens(tokens)
    with pytest.raises(InputError, match="must have a name"):
        CLIP.add_tokens([" "])


def test_a_small_vocabulary_of_other_size_works():
    vocabulary = Vocabulary.from_merges([("c", "a"), ("ca", "t</w>")], specials=("<s>", "</s>"))
    small = Tokenizer(
        vocabulary=vocabulary, bos_token="<s>", eos_token="</s>", unk_token="</s>", pad_token="</s>", max_length=16
    )
    assert len(small) == 512 + 2 + 2
    assert small.pieces(small.encode("Cat, cap")) == ["cat</w>", ",</w>", "ca", "p</w>"]
    assert small.ids("cat") == [514, 513, 515, *[515] * 13]
    assert small.decode(small.encode("日本 cat")) == "日本 cat"
    assert small.encode("a<s>b") == [*small.encode("a"), 514, *small.encode("b")]


def test_what_lacks_a_byte_gives_the_unknown_token():
    tiny = Tokenizer(vocabulary=Vocabulary({"a": 0, "a</w>": 1, "<|startoftext|>": 2, "<|endoftext|>": 3}, ()))
    assert tiny.encode("aab") == [0, 0, 3]


def test_bad_arguments_are_named():
    with pytest.raises(InputError, match=r"clean='open' is not known\n  -> .*openai"):
        Tokenizer.clip(clean="open")
    with pytest.raises(InputError, match="max_length 2"):
        Tokenizer.clip(max_length=2)
    with pytest.raises(InputError, match="no id 49408"):
        CLIP.decode([49408])
    with pytest.raises(InputError, match="no id -1"):
        CLIP.pieces([-1])
    with pytest.raises(InputError, match="no piece 'flooble'"):
        CLIP.id("flooble")
    with pytest.raises(InputError, match="must be a string, not list"):
        CLIP.encode(["a"])
    with pytest.raises(InputError, match=r"'<s>' is not in the vocabulary"):
        Tokenizer(vocabulary=CLIP.vocabulary, bos_token="<s>")


def test_it_can_be_copied_and_sent_to_another_process():
    tokenizer = CLIP.add_tokens(["<birb>"])
    for twin in (copy.deepcopy(tokenizer), pickle.loads(pickle.dumps(tokenizer))):
        assert twin.encode("a <birb>") == [320, 49408]
