"""Files of textual inversions -> words that a model knows (see `safelight.text.embeddings`)."""

import base64
import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from safelight.checkpoint.files import open_file
from safelight.checkpoint.parts import Parts
from safelight.errors import CheckpointError, InputError
from safelight.text.embeddings import NAMELESS, TextualInversion, add_textual_inversions, read_textual_inversions

BROKEN = (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError)  # what reading such text raises
AUTOMATIC = "string_to_param."  # what AUTOMATIC1111's .pt files begin names with


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
    state, name = _of_picture(path) if path.suffix.lower() == ".png" else _of_weights(path)
    try:
        return read_textual_inversions(state, token=token or name)
    except InputError as error:
        raise CheckpointError(error.what, path=path, remedy=error.remedy) from error


def _of_weights(path: Path) -> tuple[dict[str, Any], str | None]:
    file = open_file(path)
    theirs = {key.removeprefix(AUTOMATIC): file[key].clone() for key in file if key.startswith(AUTOMATIC)}
    if theirs:
        return {"string_to_param": theirs}, path.stem
    return {key: tensor.clone() for key, tensor in file.items()}, path.stem if NAMELESS & set(file) else None


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


def with_words(parts: Parts, files: Sequence[tuple[str | Path, str | None]]) -> Parts:
    """The same parts, whose tokenizer and text encoder know the words of these files, each with a name or None.

    Raises InputError for words of another width, or that are known already, and for a model without a text encoder.
    """
    for name, token in files:
        if parts.tokenizer is None or parts.text_encoder is None:
            raise InputError("this model reads no words", remedy="leave the embeddings out, or load another model")
        path = Path(name).expanduser()
        words = read_words(path, token)
        tokenizer, encoder = add_textual_inversions(parts.tokenizer, parts.text_encoder, words)
        label = f"embedding: {', '.join(word.token for word in words)}"
        parts = replace(parts, tokenizer=tokenizer, text_encoder=encoder, weights={**parts.weights, label: path})
    return parts
