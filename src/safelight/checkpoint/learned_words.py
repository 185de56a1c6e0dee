"""Files of textual inversions -> words that a model knows (see `safelight.text.embeddings`)."""

import base64
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from safelight.checkpoint.files import Tensors, in_folder, open_file
from safelight.checkpoint.parts import Parts
from safelight.errors import CheckpointError, InputError
from safelight.text.embeddings import NAMELESS, TextualInversion, add_textual_inversions, read_textual_inversions

BROKEN = (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError)  # what reading such text raises
AUTOMATIC = "string_to_param."  # what AUTOMATIC1111's .pt files begin names with
WORDS = ("learned_embeds.safetensors", "learned_embeds.bin")  # what diffusers writes into a folder
BUNDLED = "bundle_emb."  # so do the names of words that a LoRA brings along, as kohya's trainer and AUTOMATIC1111 do


def named(text: str | Path | tuple[str | Path, str | None]) -> tuple[str | Path, str | None]:
    """`word=FILE`, or FILE alone, or a pair already: the file, and the word or None."""
    if isinstance(text, tuple):
        return text
    word, sign, file = str(text).partition("=")
    return (file, word) if sign and not Path(text).expanduser().exists() else (text, None)


def read_words(path: Path, token: str | None = None) -> tuple[TextualInversion, ...]:
    """The learned words of a file, which is never unpickled in this process.

    Without `token` diffusers' files and pictures name the word themselves; in AUTOMATIC1111's others the name of the
    file is the word, as its users know it. Raises CheckpointError where the file holds none.
    """
    if path.suffix.lower() == ".png":
        state, name = _of_picture(path)
        return _words(state, token or name, path)
    state, theirs = _of_weights(open_file(path))
    unnamed = theirs or (NAMELESS | {"clip_g"}) & state.keys()
    return _words(state, token or (path.stem if unnamed else None), path)


def bundled_words(file: Tensors) -> tuple[TextualInversion, ...]:
    """The words that a LoRA's file brings along: tensors called bundle_emb.WORD.string_to_param.*, or .emb_params.

    Raises CheckpointError where they are not such.
    """
    tokens = dict.fromkeys(key.split(".")[1] for key in file if key.startswith(BUNDLED))
    states = {token: _of_weights(file.under(f"{BUNDLED}{token}."))[0] for token in tokens}
    return tuple(word for token, state in states.items() for word in _words(state, token, file.path))


def _words(state: Mapping[str, Any], token: str | None, path: Path) -> tuple[TextualInversion, ...]:
    try:
        return read_textual_inversions(state, token=token)
    except InputError as error:
        raise CheckpointError(error.what, path=path, remedy=error.remedy) from error


def _of_weights(file: Tensors) -> tuple[dict[str, Any], bool]:
    """What a file holds, and whether it is AUTOMATIC1111's."""
    theirs = {key.removeprefix(AUTOMATIC): file[key].clone() for key in file if key.startswith(AUTOMATIC)}
    if theirs:
        return {"string_to_param": theirs}, True
    return {key: tensor.clone() for key, tensor in file.items()}, False


def _of_picture(path: Path) -> tuple[dict[str, Any], str]:
    """AUTOMATIC1111's word in a PNG's text: JSON in base64, with lists for tensors (`image_embedding.py` there)."""
    from PIL import Image

    try:
        with Image.open(path) as picture:
            said = json.loads(base64.b64decode(picture.info["sd-ti-embedding"]))
        theirs = {key: torch.tensor(value["TORCHTENSOR"]) for key, value in said["string_to_param"].items()}
    except (*BROKEN, Image.DecompressionBombError) as error:
        remedy = "use the word's .pt or .safetensors file; words that are hidden in the pixels alone are not read"
        raise CheckpointError("is no picture with a learned word in its text", path=path, remedy=remedy) from error
    return {"string_to_param": theirs}, str(said.get("name") or path.stem)


def with_words(
    parts: Parts, files: Sequence[tuple[str | Path, str | None]], find: Callable[[str | Path], Path]
) -> Parts:
    """The same parts, whose tokenizer and text encoder know the words of these files, each with a name or None.

    `find` tells where a file's name lies.
    Raises InputError for words of another width, or that are known already, and for a model without a text encoder.
    """
    for name, token in files:
        path = in_folder(find(name), WORDS)
        words = read_words(path, token)
        label = f"embedding: {', '.join(word.token for word in words)}"
        parts = replace(taught(parts, words), weights={**parts.weights, label: path})
    return parts


def taught(parts: Parts, words: Sequence[TextualInversion]) -> Parts:
    """The same parts, whose tokenizer and text encoder know these words. Raises InputError as `with_words` does."""
    if not words:
        return parts
    if parts.tokenizer is None or parts.text_encoder is None:
        raise InputError("this model reads no words", remedy="leave the embeddings out, or load another model")
    tokenizer, encoder = add_textual_inversions(parts.tokenizer, parts.text_encoder, words)
    return replace(parts, tokenizer=tokenizer, text_encoder=encoder)
