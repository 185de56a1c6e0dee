"""`CLIPTokenizer`, in transformers' call shapes, over `safelight.text.Tokenizer`, whose ids are the same."""

from collections.abc import Iterable, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, Self

import numpy as np
import torch

from safelight.compat.loading import folder_of
from safelight.compat.notes import explain
from safelight.errors import InputError
from safelight.text.bpe import EOS
from safelight.text.tokenizer import MAX_LENGTH, Tokenizer

Ids = list[int]
PADDINGS = (False, True, "longest", "max_length", "do_not_pad", None)


class BatchEncoding(dict[str, Any]):
    """What a tokenizer returns: `input_ids` and `attention_mask`, by name or by attribute."""

    def __getattr__(self, name: str) -> Any:
        try:
            return self[name]
        except KeyError:
            raise AttributeError(f"the encoding has no {name!r}; it has {', '.join(self)}") from None

    def to(self, device: torch.device | str) -> Self:
        """Move the tensors to a device, in place."""
        self.update({name: x.to(device) for name, x in self.items() if isinstance(x, torch.Tensor)})
        return self


class CLIPTokenizer:
    """Text to token ids and back. Unlike the tokenizer behind it, it grows in place: `add_tokens` adds to this one."""

    model_input_names = ("input_ids", "attention_mask")
    padding_side = truncation_side = "right"
    is_fast = True

    def __init__(
        self,
        vocab_file: str | Path | None = None,
        merges_file: str | Path | None = None,
        *,
        pad_token: str = EOS,
        model_max_length: int = MAX_LENGTH,
        tokenizer: Tokenizer | None = None,
    ) -> None:
        if tokenizer is None and (vocab_file is None) != (merges_file is None):
            raise InputError("a vocabulary needs its merges", remedy="give both vocab_file and merges_file, or neither")
        if tokenizer is None and vocab_file is not None and merges_file is not None:
            tokenizer = Tokenizer.from_files(vocab_file, merges_file, pad_token=pad_token, max_length=model_max_length)
        self.take(tokenizer or Tokenizer.clip(pad_token=pad_token, max_length=model_max_length))
        self.name_or_path = ""

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path: str | Path, **options: Any) -> Self:
        """Load a tokenizer's folder, or the `subfolder=` of a model's; also `revision=` and `local_files_only=`."""
        tokenizer = cls(tokenizer=Tokenizer.load(folder_of(pretrained_model_name_or_path, **options)))
        tokenizer.name_or_path = str(pretrained_model_name_or_path)
        return tokenizer

    def save_pretrained(self, save_directory: str | Path, **_: Any) -> None:
        """Write a folder that transformers reads too."""
        self.native.save(save_directory)

    def take(self, tokenizer: Tokenizer) -> None:
        """Be this tokenizer from now on."""
        self.native = tokenizer
        self.model_max_length = tokenizer.max_length
        for name in ("_ids", "_pieces"):
            self.__dict__.pop(name, None)

    @cached_property
    def _ids(self) -> dict[str, int]:
        return {**self.native.vocabulary.ids, **self.added_tokens_encoder}

    @cached_property
    def _pieces(self) -> dict[int, str]:
        return {i: piece for piece, i in self._ids.items()}

    # Text to ids

    def __call__(
        self,
        text: str | Sequence[str],
        *,
        padding: bool | str | None = False,
        truncation: bool | str | None = False,
        max_length: int | None = None,
        return_tensors: str | None = None,
        add_special_tokens: bool = True,
        return_attention_mask: bool = True,
        **_: Any,
    ) -> BatchEncoding:
        """Encode one text or a list: `input_ids` and `attention_mask` (1 where a token is no padding).

        `padding` is "max_length", "longest" (or True) or False; `truncation` cuts to `max_length`, by default
        `model_max_length`. `return_tensors` "pt" or "np" gives (B, L); else lists come back, a flat one for one text.
        """
        texts = [text] if isinstance(text, str) else list(text)
        limit = max_length if max_length is not None else self.model_max_length
        rows = [
            self._row(one, limit if truncation in (True, "longest_first") else None, add_special_tokens)
            for one in texts
        ]
        if return_tensors is None and isinstance(text, str) and padding in (False, None, "do_not_pad"):
            masks = {"attention_mask": [1] * len(rows[0])} if return_attention_mask else {}
            return BatchEncoding(input_ids=rows[0], **masks)
        encoding = self.pad({"input_ids": rows}, padding, limit, return_tensors, return_attention_mask)
        if return_tensors is None and isinstance(text, str):
            return BatchEncoding({name: values[0] for name, values in encoding.items()})
        return encoding

    def _row(self, text: str, limit: int | None, frame: bool) -> Ids:
        ids = self.native.encode(text)
        room = None if limit is None else max(limit - (2 if frame else 0), 0)
        if room is None and len(ids) + 2 * frame > self.model_max_length:
            explain(f"A text has more tokens than the {self.model_max_length} that the text encoder reads.")
        return [self.bos_token_id, *ids[:room], self.eos_token_id] if frame else ids[:room]

    def pad(
        self,
        encoded_inputs: Mapping[str, Any] | Sequence[Mapping[str, Any]],
        padding: bool | str | None = True,
        max_length: int | None = None,
        return_tensors: str | None = None,
        return_attention_mask: bool = True,
    ) -> BatchEncoding:
        """Fill rows of ids up to one length: a mapping {"input_ids": rows}, or a list of such with one row each."""
        if padding not in PADDINGS:
            raise InputError(f"padding={padding!r} is not known", remedy='choose "max_length", "longest" or False')
        given = (
            encoded_inputs["input_ids"]
            if isinstance(encoded_inputs, Mapping)
            else [e["input_ids"] for e in encoded_inputs]
        )
        rows = [[int(i) for i in row] for row in given]
        length = 0
        if padding == "max_length":
            length = max_length if max_length is not None else self.model_max_length
        elif padding in (True, "longest"):
            length = max(map(len, rows), default=0)
        encoding = BatchEncoding(input_ids=[row + [self.pad_token_id] * (length - len(row)) for row in rows])
        if return_attention_mask:
            encoding["attention_mask"] = [[1] * len(row) + [0] * (length - len(row)) for row in rows]
        return _as_tensors(encoding, return_tensors)

    def encode(self, text: str, *, return_tensors: str | None = None, **options: Any) -> Any:
        """Give the ids alone, as a list, or (1, L) as a tensor. Options as in calling the tokenizer."""
        return self(text, return_tensors=return_tensors, **options)["input_ids"]

    def tokenize(self, text: str, **_: Any) -> list[str]:
        """Split a text into the vocabulary's pieces, without begin and end."""
        return [self._pieces[i] for i in self.native.encode(text)]

    # Ids to text

    def decode(self, token_ids: Any, skip_special_tokens: bool = False, **_: Any) -> Any:
        """Give the text of ids (an int, a list or a tensor), or the list of texts of rows of ids."""
        ids = token_ids.tolist() if hasattr(token_ids, "tolist") else token_ids
        if isinstance(ids, int):
            ids = [ids]
        if ids and isinstance(ids[0], list | torch.Tensor):
            return [self.decode(row, skip_special_tokens) for row in ids]
        special = set(self.all_special_ids) if skip_special_tokens else set()
        return self.native.decode([int(i) for i in ids if int(i) not in special])

    def batch_decode(self, sequences: Iterable[Any], skip_special_tokens: bool = False, **_: Any) -> list[str]:
        """Give the text of each row of ids."""
        return [self.decode(row, skip_special_tokens) for row in sequences]

    def convert_ids_to_tokens(self, ids: Any) -> Any:
        """Give the vocabulary's piece of an id, or of each id in a list or tensor."""
        ids = ids.tolist() if hasattr(ids, "tolist") else ids
        return self._pieces[ids] if isinstance(ids, int) else [self._pieces[int(i)] for i in ids]

    def convert_tokens_to_ids(self, tokens: str | Sequence[str]) -> Any:
        """Give the id of a piece, or of each; that of the unknown token where there is none."""
        if isinstance(tokens, str):
            return self._ids.get(tokens, self.unk_token_id)
        return [self._ids.get(token, self.unk_token_id) for token in tokens]

    # What it knows

    def add_tokens(self, new_tokens: Any, special_tokens: bool = False) -> int:
        """Add tokens behind the last id, and say how many were new. `resize_token_embeddings` gives them vectors."""
        given = [new_tokens] if isinstance(new_tokens, str) or not isinstance(new_tokens, Iterable) else new_tokens
        names = dict.fromkeys(getattr(token, "content", token) for token in given)
        new = [name for name in names if name not in self._ids]
        if new:
            self.take(self.native.add_tokens(new))
        return len(new)

    def get_vocab(self) -> dict[str, int]:
        """Give every piece and its id."""
        return dict(self._ids)

    def __len__(self) -> int:
        return len(self.native)

    @property
    def vocab_size(self) -> int:
        """The number of ids, without those added."""
        return len(self.native.vocabulary.ids)

    @property
    def encoder(self) -> dict[str, int]:
        """The vocabulary, piece to id, without what was added."""
        return dict(self.native.vocabulary.ids)

    @property
    def decoder(self) -> dict[int, str]:
        """The vocabulary, id to piece, without what was added."""
        return {i: piece for piece, i in self.native.vocabulary.ids.items()}

    @property
    def added_tokens_encoder(self) -> dict[str, int]:
        """The special and the added tokens, name to id."""
        return {token.content: self.native.id(token.content) for token in self.native.added}

    @property
    def special_tokens_map(self) -> dict[str, str]:
        """The names of the special tokens, by what they are for."""
        return {name: getattr(self, name) for name in ("bos_token", "eos_token", "unk_token", "pad_token")}

    @property
    def all_special_tokens(self) -> list[str]:
        """The names of the special tokens, each once."""
        return list(dict.fromkeys(self.native.special_tokens))

    @property
    def all_special_ids(self) -> list[int]:
        """The ids of the special tokens, each once."""
        return [self.native.id(token) for token in self.all_special_tokens]

    @property
    def bos_token(self) -> str:
        """The token that begins a text."""
        return self.native.bos_token

    @property
    def eos_token(self) -> str:
        """The token that ends a text."""
        return self.native.eos_token

    @property
    def unk_token(self) -> str:
        """The token for what the vocabulary lacks."""
        return self.native.unk_token

    @property
    def pad_token(self) -> str:
        """The token that fills a row."""
        return self.native.pad_token

    @property
    def bos_token_id(self) -> int:
        """The id that begins a text."""
        return self.native.bos

    @property
    def eos_token_id(self) -> int:
        """The id that ends a text."""
        return self.native.eos

    @property
    def unk_token_id(self) -> int:
        """The id for what the vocabulary lacks."""
        return self.native.id(self.native.unk_token)

    @property
    def pad_token_id(self) -> int:
        """The id that fills a row."""
        return self.native.pad


CLIPTokenizerFast = CLIPTokenizer


def _as_tensors(encoding: BatchEncoding, kind: str | None) -> BatchEncoding:
    if kind is None:
        return encoding
    if kind not in ("pt", "np"):
        raise InputError(f"return_tensors={kind!r} is not known", remedy='choose "pt" or "np"')
    if len({len(row) for row in encoding["input_ids"]}) > 1:
        raise InputError(
            "texts of different lengths make no tensor", remedy='pass padding=True or padding="max_length"'
        )
    make = torch.tensor if kind == "pt" else np.array
    return BatchEncoding({name: make(rows) for name, rows in encoding.items()})
