"""A tokenizer's folder, as transformers writes and reads it, in all its ages.

Old: `vocab.json`, `merges.txt`, `special_tokens_map.json`, `added_tokens.json`. Then `tokenizer_config.json` took
`added_tokens_decoder`, which alone counts where it is there; since transformers 5 only `tokenizer.json` stands beside
it.
"""

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from tokenizers import AddedToken, processors

from safelight.errors import CheckpointError
from safelight.text.bpe import BOS, EOS, Vocabulary, read_json
from safelight.text.tokenizer import MAX_LENGTH, Clean, Tokenizer
from safelight.writing import replacing

SPECIALS = {"bos_token": BOS, "eos_token": EOS, "unk_token": EOS, "pad_token": EOS}
FLAGS = ("single_word", "lstrip", "rstrip", "normalized")
WHOLE = ("vocab.json", "merges.txt", "tokenizer_config.json")  # of the files, those that say everything
UNLIMITED = 1_000_000  # transformers writes 10^30 where nobody ever said a model_max_length


def load(folder: str | Path, *, clean: Clean = "hf") -> Tokenizer:
    """Read a folder as transformers 5's CLIPTokenizer.from_pretrained does. See `Tokenizer.load`."""
    folder = Path(folder)
    vocabulary = _vocabulary(folder)
    config = _optional(folder / "tokenizer_config.json")
    if "added_tokens_decoder" in config:
        listed = _decoder(config["added_tokens_decoder"], folder / "tokenizer_config.json")
    else:
        config |= _optional(folder / "special_tokens_map.json")
        listed = _legacy(folder, config)
    specials = {key: _added(config.get(key) or default, folder, special=True) for key, default in SPECIALS.items()}
    length = config.get("model_max_length")
    tokenizer = Tokenizer(
        vocabulary=vocabulary,
        added=_united(listed.values(), specials.values()),
        max_length=length if isinstance(length, int) and length < UNLIMITED else MAX_LENGTH,
        clean=clean,
        bos_token=specials["bos_token"].content,
        eos_token=specials["eos_token"].content,
        unk_token=specials["unk_token"].content,
        pad_token=specials["pad_token"].content,
    )
    for i, token in listed.items():
        if (true := tokenizer.id(token.content)) != i:
            raise CheckpointError(
                f"gives the added token {token.content!r} the id {i}, but by the vocabulary it is {true}",
                path=folder,
                key=token.content,
                remedy="ids of added tokens follow the vocabulary's last id without a gap",
            )
    return tokenizer


def save(tokenizer: Tokenizer, folder: str | Path) -> None:
    """Write every file that transformers 4 and 5 look for. See `Tokenizer.save`."""
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    for name, text in contents(tokenizer).items():
        _write(folder / name, text)


def contents(tokenizer: Tokenizer) -> dict[str, str]:
    """What stands in each of those files, by its name."""
    names = {key: getattr(tokenizer, key) for key in SPECIALS}
    added = {tokenizer.id(token.content): token for token in tokenizer.added}
    beyond = {token.content: i for i, token in added.items() if token.content not in tokenizer.vocabulary.ids}
    config = {
        "add_prefix_space": False,
        "added_tokens_decoder": {str(i): _record(added[i]) for i in sorted(added)},
        "do_lower_case": True,
        "errors": "replace",
        "model_max_length": tokenizer.max_length,
        "tokenizer_class": "CLIPTokenizer",
        **names,
    }
    merges = "".join(f"{a} {b}\n" for a, b in tokenizer.vocabulary.merges)
    return {
        "vocab.json": json.dumps(dict(tokenizer.vocabulary.ids), ensure_ascii=False),
        "merges.txt": f"#version: 0.2\n{merges}",
        "tokenizer_config.json": json.dumps(config, indent=2),
        "tokenizer.json": _machine_json(tokenizer),
        "special_tokens_map.json": json.dumps(names, indent=2),
        "added_tokens.json": json.dumps(beyond, indent=2),
    }


def added_tokens(path: str | Path) -> dict[int, AddedToken]:
    """Read the added tokens of a `tokenizer.json`, in the order of their ids."""
    listed = read_json(path).get("added_tokens") or []
    if not isinstance(listed, list) or not all(
        isinstance(token, dict) and type(token.get("id")) is int for token in listed
    ):
        raise CheckpointError("holds no list of added tokens", path=path, key="added_tokens", remedy="fetch it again")
    return _decoder({token["id"]: token for token in listed}, path)


def _vocabulary(folder: Path) -> Vocabulary:
    fast, vocab, merges = (folder / name for name in ("tokenizer.json", "vocab.json", "merges.txt"))
    if fast.exists():
        return Vocabulary.from_json(fast)
    if not vocab.exists() and not merges.exists():
        raise CheckpointError(
            "holds no tokenizer",
            path=folder,
            remedy="a tokenizer folder has vocab.json and merges.txt, or tokenizer.json",
        )
    return Vocabulary.from_files(vocab, merges)


def _optional(path: Path) -> dict[str, Any]:
    return read_json(path) if path.exists() else {}


def _decoder(tokens: object, path: str | Path) -> dict[int, AddedToken]:
    try:
        numbered = {int(i): token for i, token in dict(tokens).items()}  # type: ignore[call-overload]
    except (TypeError, ValueError) as error:
        raise CheckpointError(
            f"lists added tokens without ids: {error}", path=path, key="added_tokens_decoder", remedy="fetch it again"
        ) from error
    return {i: _added(numbered[i], path) for i in sorted(numbered)}


def _legacy(folder: Path, config: Mapping[str, Any]) -> dict[int, AddedToken]:
    """Read the added tokens that `added_tokens.json` or `tokenizer.json` list; what the latter says counts."""
    path = folder / "added_tokens.json"
    names = {_added(config[key], folder).content for key in SPECIALS if config.get(key)}
    records = {}
    for content, i in _optional(path).items():
        records[i] = {"content": content, "special": content in names}
    fast = folder / "tokenizer.json"
    return _decoder(records, path) | (added_tokens(fast) if fast.exists() else {})


def _added(token: object, path: str | Path, *, special: bool = False) -> AddedToken:
    """Read an added token from its record, or from its name alone."""
    record = {"content": token, "special": True} if isinstance(token, str) else token
    if not isinstance(record, dict) or not isinstance(record.get("content"), str) or not record["content"]:
        raise CheckpointError(f"holds {token!r} for a token", path=path, remedy="fetch the file again")
    flags = {flag: bool(record[flag]) for flag in FLAGS if flag in record}
    return AddedToken(record["content"], special=special or bool(record.get("special")), **flags)


def _united(listed: Iterable[AddedToken], specials: Iterable[AddedToken]) -> tuple[AddedToken, ...]:
    """Unite them by content: the list counts, and of two specials of one content the later, as in transformers."""
    tokens = {token.content: token for token in listed}
    tokens |= {token.content: token for token in specials if token.content not in tokens}
    return tuple(tokens.values())


def _record(token: AddedToken) -> dict[str, Any]:
    return {"content": token.content, **{flag: getattr(token, flag) for flag in (*FLAGS, "special")}}


def _machine_json(tokenizer: Tokenizer) -> str:
    """Write the whole machine, with the frame around a text, as the tokenizers library stores it."""
    machine = tokenizer.vocabulary.backend(unk_token=tokenizer.unk_token, clean="hf", added=tokenizer.added)
    machine.post_processor = processors.RobertaProcessing(
        (tokenizer.eos_token, tokenizer.eos),
        (tokenizer.bos_token, tokenizer.bos),
        trim_offsets=False,
        add_prefix_space=False,
    )
    return machine.to_str()


def _write(path: Path, text: str) -> None:
    with replacing(path) as file:
        file.write(text.encode())
