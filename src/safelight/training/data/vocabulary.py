"""A byte-pair vocabulary in CLIP's format, trained on captions: for text encoders that are trained from the start.

The words are CLIP's words and the bytes CLIP's bytes (see `safelight.text.bpe`); only which pairs are joined is learned
(Sennrich et al. 2016, arXiv 1508.07909). Any text can be written with it, as with CLIP's own.
"""

import json
from collections.abc import Iterable

from tokenizers import Tokenizer as Machine
from tokenizers import models, trainers

from safelight.errors import InputError
from safelight.text.bpe import END_OF_WORD, EOS, Vocabulary, byte_characters
from safelight.text.tokenizer import MAX_LENGTH, Tokenizer

FIXED = 256 + 256 + 2  # bytes, bytes that end a word, begin and end of text


def train_tokenizer(
    captions: Iterable[str], *, size: int = 4096, min_frequency: int = 2, max_length: int = MAX_LENGTH
) -> Tokenizer:
    """Train a tokenizer whose vocabulary has at most `size` pieces: fewer if the captions have no more pairs to join.

    A pair is joined if it occurs `min_frequency` times. Save it with `Tokenizer.save`: `Tokenizer.load` and
    transformers then give equal ids. Raises InputError for a size below 514, which the fixed pieces need, and for
    captions without a word.
    """
    if size < FIXED:
        raise InputError(
            f"a vocabulary of {size} pieces cannot write every text", remedy=f"give a size of {FIXED} or more"
        )
    bare = Tokenizer(vocabulary=Vocabulary.from_merges(()), max_length=max_length)
    merges = _merges(bare, captions, size, min_frequency)
    if not merges and not any(bare.encode(caption) for caption in captions):
        raise InputError("the captions hold no words to train on", remedy="is the caption column the right one?")
    return Tokenizer(vocabulary=Vocabulary.from_merges(merges), max_length=max_length)


def _merges(bare: Tokenizer, captions: Iterable[str], size: int, min_frequency: int) -> list[tuple[str, str]]:
    """Learn which pairs to join, best first."""
    split = bare.vocabulary.backend(unk_token=EOS, clean="hf", added=())
    machine = Machine(models.BPE(end_of_word_suffix=END_OF_WORD))
    machine.normalizer, machine.pre_tokenizer = split.normalizer, split.pre_tokenizer
    alphabet = list(byte_characters())
    trainer = trainers.BpeTrainer(
        vocab_size=size,
        min_frequency=min_frequency,
        initial_alphabet=alphabet,
        # Named here, letters that end a word have fixed numbers, by which ties are broken: else every run breaks them
        # in another way.
        special_tokens=[character + END_OF_WORD for character in alphabet],
        end_of_word_suffix=END_OF_WORD,
        show_progress=False,
    )
    machine.train_from_iterator(captions, trainer)
    learned = [(a, b) for a, b in json.loads(machine.to_str())["model"]["merges"]]
    first = {a + b: (a, b) for a, b in reversed(learned)}  # two pairs may give one piece: the better one is kept
    return [pair for pair in learned if first[pair[0] + pair[1]] == pair][: size - FIXED]
