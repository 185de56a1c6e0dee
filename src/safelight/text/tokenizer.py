"""CLIP's tokenizer: text to token ids and back.

Whose ids? Pictures are repeatable only if a prompt gives the ids it gave before. The law here is transformers' fast
CLIP tokenizer, which diffusers uses: NFC, whitespace collapsed, lower case, CLIP's split into words, byte-pair
encoding. transformers 4's slow tokenizer, with which older pictures were made, and OpenAI's give the same ids for plain
text; where text holds curly quotes, HTML entities and the like, `clean="openai"` is nearer to them (see `cleaning`).
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Literal

import tokenizers
from tokenizers import AddedToken

from safelight.errors import InputError, nearest
from safelight.text.bpe import BOS, END_OF_WORD, EOS, Vocabulary, character_bytes, clip_vocabulary
from safelight.text.cleaning import openai_clean, well_formed

Clean = Literal["hf", "openai"]
CLEANS: tuple[Clean, ...] = ("hf", "openai")
MAX_LENGTH = 77


@dataclass(frozen=True, eq=False, kw_only=True)
class Tokenizer:
    """A byte-pair vocabulary with its special tokens. Immutable: what changes it gives a new one.

    `added` are the tokens cut out of a text before it is split into words: the special tokens (whose strings inside a
    text mean the tokens, as in transformers) and names of textual inversions. `max_length` counts the whole sequence,
    begin and end of text included. `clean` is "hf" or "openai". Raises InputError if a special token is in neither
    table.
    """

    vocabulary: Vocabulary = field(repr=False)
    bos_token: str = BOS
    eos_token: str = EOS
    unk_token: str = EOS
    pad_token: str = EOS
    added: tuple[AddedToken, ...] = ()
    max_length: int = MAX_LENGTH
    clean: Clean = "hf"

    def __post_init__(self) -> None:
        if self.clean not in CLEANS:
            raise InputError(f"clean={self.clean!r} is not known", remedy=nearest(str(self.clean), CLEANS))
        if self.max_length < 3:
            raise InputError(f"max_length {self.max_length} leaves no room for a word", remedy="give at least 3")
        known = {token.content for token in self.added}
        for token in dict.fromkeys(self.special_tokens):
            if token not in known:  # transformers' rule for a token of which nothing but the name is said
                added = AddedToken(token, special=True, normalized=False)
                object.__setattr__(self, "added", (*self.added, added))
        for token in (self.bos_token, self.eos_token, self.unk_token):
            if token not in self.vocabulary.ids and token not in known:
                raise InputError(
                    f"the special token {token!r} is not in the vocabulary",
                    remedy="name the vocabulary's own with bos_token=, eos_token= and unk_token=",
                )

    @classmethod
    def clip(cls, *, pad_token: str = EOS, max_length: int = MAX_LENGTH, clean: Clean = "hf") -> "Tokenizer":
        """CLIP's tokenizer from the packaged vocabulary. SD 1 pads with `<|endoftext|>`, SD 2 with "!" (id 0).

        With `pad_token="!"`, a "!" in a text is id 0 too and not "!</w>", because to transformers it is a special
        token.
        """
        return cls(vocabulary=clip_vocabulary(), pad_token=pad_token, max_length=max_length, clean=clean)

    @classmethod
    def from_files(
        cls, vocab: str | Path, merges: str | Path, *, pad_token: str = EOS, max_length: int = MAX_LENGTH
    ) -> "Tokenizer":
        """Read `vocab.json` and `merges.txt`. Raises CheckpointError if they are missing or malformed."""
        return cls(vocabulary=Vocabulary.from_files(vocab, merges), pad_token=pad_token, max_length=max_length)

    @classmethod
    def from_json(cls, path: str | Path, *, pad_token: str = EOS, max_length: int = MAX_LENGTH) -> "Tokenizer":
        """Read a `tokenizer.json`, vocabulary and added tokens; the rules of splitting are CLIP's, whatever it says."""
        from safelight.text.folder import added_tokens

        added = tuple(added_tokens(path).values())
        return cls(vocabulary=Vocabulary.from_json(path), added=added, pad_token=pad_token, max_length=max_length)

    @classmethod
    def load(cls, folder: str | Path, *, clean: Clean = "hf") -> "Tokenizer":
        """Read a tokenizer folder of any age: `tokenizer.json`, or `vocab.json` and `merges.txt`, and their configs.

        Raises CheckpointError naming the file that is missing or malformed.
        """
        from safelight.text.folder import load

        return load(folder, clean=clean)

    def save(self, folder: str | Path) -> None:
        """Write a folder that `load`, transformers (4, 5) and diffusers read with equal ids. `clean` is not in it."""
        from safelight.text.folder import save

        save(self, folder)

    def same_ids(self, other: "Tokenizer") -> bool:
        """Whether another tokenizer gives every text the same ids, however either was stored."""
        one, two = (
            (t.special_tokens, t.max_length, {token.content: t.id(token.content) for token in t.added}, t.clean)
            for t in (self, other)
        )
        ids, merges = self.vocabulary.ids, self.vocabulary.merges
        same = dict(ids) == dict(other.vocabulary.ids) and list(merges) == list(other.vocabulary.merges)
        return one == two and same

    def __len__(self) -> int:
        """Count the ids, added tokens included: the rows that a text encoder's token table must have."""
        return max(self._names) + 1

    @property
    def special_tokens(self) -> tuple[str, str, str, str]:
        """The tokens that begin and end a text, stand for what is unknown, and pad."""
        return self.bos_token, self.eos_token, self.unk_token, self.pad_token

    @property
    def bos(self) -> int:
        """The id that begins a text."""
        return self.id(self.bos_token)

    @property
    def eos(self) -> int:
        """The id that ends a text."""
        return self.id(self.eos_token)

    @property
    def pad(self) -> int:
        """The id that fills a sequence up to `max_length`."""
        return self.id(self.pad_token)

    @cached_property
    def runs(self) -> Mapping[int, tuple[int, ...]]:
        """The ids of each added name that stands for several: `<cat>`, `<cat>_1`, `<cat>_2` ... (diffusers' names)."""
        ids = {token.content: self.id(token.content) for token in self.added if not token.special}
        runs = {}
        for name, first in ids.items():
            run = [first]
            while (following := ids.get(f"{name}_{len(run)}")) is not None:
                run.append(following)
            if len(run) > 1:
                runs[first] = tuple(run)
        return runs

    def id(self, piece: str) -> int:
        """Look up the id of a piece, such as "cat</w>", or of an added token. Raises InputError if there is none."""
        id = self._backend.token_to_id(piece)
        if id is None:
            raise InputError(f"the vocabulary has no piece {piece!r}", remedy="`pieces(encode(text))` shows a text's")
        return id

    def encode(self, text: str) -> list[int]:
        """Split a text of any length into ids, without begin and end. A name of several vectors gives all of them.

        Any string will do: lone surrogates count as U+FFFD. Time grows with the length only.
        """
        if not isinstance(text, str):
            raise InputError(f"a text must be a string, not {type(text).__name__}", remedy="give one string")
        text = openai_clean(text) if self.clean == "openai" else well_formed(text)
        return self._expand(self._backend.encode(text, add_special_tokens=False).ids)

    def ids(self, text: str, *, truncate: bool = False) -> list[int]:
        """Give the `max_length` ids of a text: begin, content, end, padding; transformers' `padding="max_length"`.

        A longer text raises InputError, or with `truncate` loses its end. `prompt.encode_prompt` takes any length.
        """
        content, room = self.encode(text), self.max_length - 2
        if len(content) > room and not truncate:
            raise InputError(
                f"the text has {len(content)} tokens, {len(content) - room} more than fit into {self.max_length}",
                remedy="shorten it, pass truncate=True, or use encode_prompt, which takes texts of any length",
            )
        return self.frame(content[:room])

    def frame(self, content: Sequence[int]) -> list[int]:
        """Put up to `max_length` - 2 ids between begin and end of text, and pad to `max_length`."""
        framed = [self.bos, *content, self.eos]
        if len(framed) > self.max_length:
            raise InputError(
                f"{len(content)} ids do not fit into {self.max_length}", remedy=f"give up to {self.max_length - 2}"
            )
        return framed + [self.pad] * (self.max_length - len(framed))

    def decode(self, ids: Sequence[int]) -> str:
        """Give the text of ids as transformers does: lower case, and a space behind each word."""
        self._check(ids)
        return self._backend.decode(list(ids), skip_special_tokens=False).replace(END_OF_WORD, " ").strip()

    def pieces(self, ids: Sequence[int]) -> list[str]:
        r"""Give the readable piece of each id: "cat</w>", "caf" and "é</w>"; bytes that are no character as "\xe9"."""
        self._check(ids)
        added = {token.content for token in self.added}
        return [piece if piece in added else _readable(piece) for piece in (self._names[i] for i in ids)]

    def add_tokens(self, tokens: Sequence[str]) -> "Tokenizer":
        """Give a tokenizer with new tokens, such as "<birb-style>", behind the last id. Upper and lower case are one.

        A name that begins or ends with a letter or digit only matches as a whole word ("bar" not within "barn"). Raises
        InputError if a token is empty, given twice or there already.
        """
        known = {*self.vocabulary.ids, *(token.content.lower() for token in self.added)}
        for token in tokens:
            if not token.strip():
                raise InputError("a token must have a name", remedy="give something like '<my-style>'")
            if token.lower() in known:
                raise InputError(f"the token {token!r} is in the vocabulary already", remedy="give it another name")
            known.add(token.lower())
        new = [
            AddedToken(token, special=False, normalized=True, single_word=token[0].isalnum() or token[-1].isalnum())
            for token in tokens
        ]
        return replace(self, added=(*self.added, *new))

    @cached_property
    def _backend(self) -> "tokenizers.Tokenizer":
        added = self.added
        if self.clean == "openai":  # OpenAI's tokenizer knows begin and end of text, and pads without a special token
            frame = (self.bos_token, self.eos_token)
            added = tuple(token for token in added if not token.special or token.content in frame)
        return self.vocabulary.backend(unk_token=self.unk_token, clean=self.clean, added=added)

    @cached_property
    def _names(self) -> Mapping[int, str]:
        return {i: piece for piece, i in self._backend.get_vocab().items()}

    def _expand(self, ids: list[int]) -> list[int]:
        """Write out the runs, except those that the text has written out already."""
        if not self.runs:
            return ids
        expanded: list[int] = []
        for i, token in enumerate(ids):
            run = self.runs.get(token, (token,))
            expanded += (token,) if tuple(ids[i : i + len(run)]) == run else run
        return expanded

    def _check(self, ids: Sequence[int]) -> None:
        unknown = [i for i in ids if i not in self._names]
        if unknown:
            raise InputError(f"the vocabulary has no id {unknown[0]}", remedy=f"its ids are 0 to {len(self) - 1}")


def _readable(piece: str) -> str:
    """Write a byte-level piece as the text it stands for."""
    word, end = (piece[: -len(END_OF_WORD)], END_OF_WORD) if piece.endswith(END_OF_WORD) else (piece, "")
    table = character_bytes()
    if any(character not in table for character in word):
        return piece  # a special token of a foreign vocabulary
    return bytes(table[character] for character in word).decode("utf-8", "backslashreplace") + end
