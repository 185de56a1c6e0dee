"""Byte-pair vocabularies in CLIP's form, and the machine that splits text by them.

Byte-pair encoding (Sennrich et al. 2016, arXiv 1508.07909) over the bytes of UTF-8, as in GPT-2: each byte is written
as one printable character, the last piece of a word ends in `</w>`, and pieces are joined in the order in which the
merges were learned. Any text can be written with the 512 first pieces, so nothing is unknown to a whole vocabulary.
"""

import gzip
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from itertools import islice
from pathlib import Path
from types import MappingProxyType
from typing import Any

import tokenizers
from tokenizers import AddedToken, Regex, models, normalizers, pre_tokenizers

from safelight.errors import CheckpointError

BOS, EOS = "<|startoftext|>", "<|endoftext|>"
END_OF_WORD = "</w>"
CLIP_MERGES = 49152 - 256 - 2  # CLIP reads this many merges of a file that holds 262,144

# A word is a contraction's tail, a run of letters, one digit, or a run of anything else that is not space.
WORDS = r"""'s|'t|'re|'ve|'m|'ll|'d|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+"""
# transformers 5 also keeps the special tokens together where they were not cut out before (upper case).
HF_WORDS = rf"""<\|startoftext\|>|<\|endoftext\|>|{WORDS}"""
# OpenAI matches regardless of case; in lower-cased text that leaves the long s, whose capital is S.
OPENAI_WORDS = WORDS.replace("'s", "'[sſ]")


@cache
def byte_characters() -> tuple[str, ...]:
    """Give the character that stands for each byte: itself if it is printable in Latin-1, else one from U+0100 on."""
    printable = {*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)}
    spare = iter(range(0x100, 0x200))
    return tuple(chr(byte if byte in printable else next(spare)) for byte in range(256))


@cache
def character_bytes() -> Mapping[str, int]:
    """Give the byte that each character of `byte_characters` stands for."""
    return MappingProxyType({character: byte for byte, character in enumerate(byte_characters())})


@dataclass(frozen=True, eq=False)
class Vocabulary:
    """A byte-pair vocabulary: `ids` from piece to id, and `merges`, the pairs of pieces to join, best first."""

    ids: Mapping[str, int]
    merges: Sequence[tuple[str, str]]

    @classmethod
    def from_merges(cls, merges: Iterable[tuple[str, str]], specials: Sequence[str] = (BOS, EOS)) -> "Vocabulary":
        """Number the pieces as CLIP does: 256 bytes, 256 bytes that end a word, the merges, the special tokens."""
        merges = tuple(merges)
        # CLIP puts the printable bytes first and those with a stand-in behind them: the order of the characters.
        alphabet = sorted(byte_characters())
        pieces = [*alphabet, *(c + END_OF_WORD for c in alphabet), *(a + b for a, b in merges), *specials]
        return cls({piece: i for i, piece in enumerate(pieces)}, merges)

    @classmethod
    def from_files(cls, vocab: str | Path, merges: str | Path) -> "Vocabulary":
        """Read a `vocab.json` and its `merges.txt`. Raises CheckpointError if either is missing or malformed."""
        return _united(_ids(read_json(vocab), vocab), _pairs(_read(merges).split("\n"), merges), merges)

    @classmethod
    def from_json(cls, path: str | Path) -> "Vocabulary":
        """Read the vocabulary of a `tokenizer.json`. Raises CheckpointError if it is not made like CLIP's."""
        model = read_json(path).get("model")
        if not isinstance(model, dict):
            raise CheckpointError("holds no tokenizer model", path=path, key="model", remedy="is it a tokenizer.json?")
        kind = model.get("type", "BPE" if "merges" in model else "unknown")
        if kind != "BPE" or model.get("end_of_word_suffix") != END_OF_WORD:
            found = f"{kind} with end_of_word_suffix {model.get('end_of_word_suffix')!r}"
            raise CheckpointError(
                f"is not a tokenizer like CLIP's, but {found}",
                path=path,
                key="model",
                remedy=f"give the tokenizer of a CLIP text encoder: BPE with end_of_word_suffix {END_OF_WORD!r}",
            )
        return _united(_ids(model.get("vocab"), path), _pairs(model.get("merges"), path), path)

    def backend(self, *, unk_token: str, clean: str, added: Sequence[AddedToken]) -> "tokenizers.Tokenizer":
        """Build the machine that splits text: `clean` "hf" normalises in it, "openai" expects cleaned text."""
        model = models.BPE(
            vocab=dict(self.ids),
            merges=list(self.merges),
            unk_token=unk_token,
            continuing_subword_prefix="",
            end_of_word_suffix=END_OF_WORD,
        )
        machine = tokenizers.Tokenizer(model)
        lower = normalizers.Lowercase()
        if clean == "hf":
            machine.normalizer = normalizers.Sequence(
                [normalizers.NFC(), normalizers.Replace(Regex(r"\s+"), " "), lower]
            )
        else:
            machine.normalizer = lower  # of added tokens; the text is in lower case already
        words = pre_tokenizers.Split(
            Regex(HF_WORDS if clean == "hf" else OPENAI_WORDS), behavior="removed", invert=True
        )
        to_bytes = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=clean == "hf")
        machine.pre_tokenizer = pre_tokenizers.Sequence([words, to_bytes])
        machine.decoder = tokenizers.decoders.ByteLevel()
        machine.add_tokens(list(added))
        return machine


@cache
def clip_vocabulary() -> Vocabulary:
    """CLIP's vocabulary, 49,408 pieces; it ships with the package."""
    packed = files("safelight.text").joinpath("vocabulary", "bpe_simple_vocab_16e6.txt.gz")
    with packed.open("rb") as file, gzip.open(file, "rt", encoding="utf-8") as lines:
        next(lines)  # the file's own title
        return Vocabulary.from_merges(_pairs(islice(lines, CLIP_MERGES), str(packed)))


def read_json(path: str | Path) -> dict[str, Any]:
    """Read a JSON file that holds one object. Raises CheckpointError if it does not."""
    try:
        data = json.loads(_read(path))
    except (ValueError, RecursionError) as error:
        raise CheckpointError(f"is not JSON: {error}", path=path, remedy="fetch the file again") from error
    if not isinstance(data, dict):
        raise CheckpointError(f"holds a {type(data).__name__}, not an object", path=path, remedy="fetch the file again")
    return data


def _read(path: str | Path) -> str:
    try:
        return Path(path).read_text(encoding="utf-8")
    except FileNotFoundError as error:
        raise CheckpointError("does not exist", path=path, remedy="give the path of an existing file") from error
    except (OSError, UnicodeDecodeError) as error:
        raise CheckpointError(f"cannot be read: {error}", path=path, remedy="fetch the file again") from error


def _ids(data: object, path: str | Path) -> dict[str, int]:
    if not isinstance(data, dict) or not data or not all(type(i) is int and i >= 0 for i in data.values()):
        raise CheckpointError("holds no table of pieces and ids", path=path, remedy="fetch the file again")
    if len(set(data.values())) < len(data):
        raise CheckpointError("gives one id to two pieces", path=path, remedy="fetch the file again")
    return data


def _united(ids: dict[str, int], merges: Sequence[tuple[str, str]], path: str | Path) -> Vocabulary:
    for pair in merges:
        for piece in (*pair, "".join(pair)):
            if piece not in ids:
                raise CheckpointError(
                    f"merges {pair[0]!r} and {pair[1]!r}, but the vocabulary has no piece {piece!r}",
                    path=path,
                    key="merges",
                    remedy="vocabulary and merges must come from one tokenizer",
                )
    return Vocabulary(ids, merges)


def _pairs(lines: object, path: str | Path) -> tuple[tuple[str, str], ...]:
    """Read merges, written "a b" or ["a", "b"]; blank lines and the version line are no merges."""
    if not isinstance(lines, Iterable) or isinstance(lines, str):
        raise CheckpointError("holds no list of merges", path=path, key="merges", remedy="fetch the file again")
    pairs = []
    for number, line in enumerate(lines):
        pair = line.rstrip("\r\n").split(" ") if isinstance(line, str) else line
        if isinstance(line, str) and (not line.strip() or line.startswith("#version")):
            continue
        if not isinstance(pair, list) or len(pair) != 2 or not all(isinstance(piece, str) and piece for piece in pair):
            raise CheckpointError(
                f"merge {number} is {line!r}, not two pieces", path=path, key="merges", remedy="fetch the file again"
            )
        pairs.append((pair[0], pair[1]))
    return tuple(pairs)
