"""Files of textual inversions -> words that a model knows (see `safelight.text.embeddings`)."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from safelight.checkpoint.files import open_file
from safelight.checkpoint.parts import Parts
from safelight.errors import CheckpointError, InputError
from safelight.text.embeddings import TextualInversion, add_textual_inversions, read_textual_inversions

AUTOMATIC = "string_to_param."  # what AUTOMATIC1111's .pt files begin names with


def named(text: str | Path | tuple[str | Path, str | None]) -> tuple[str | Path, str | None]:
    """`word=FILE`, or FILE alone, or a pair already: the file, and the word or None."""
    if isinstance(text, tuple):
        return text
    word, sign, file = str(text).partition("=")
    return (file, word) if sign and not Path(text).expanduser().exists() else (text, None)


def read_words(path: Path, token: str | None = None) -> tuple[TextualInversion, ...]:
    """The learned words of a file, which is never unpickled in this process.

    Without `token` diffusers' files name the word themselves; in AUTOMATIC1111's the name of the file is the word, as
    its users know it. Raises CheckpointError where the file holds none.
    """
    file = open_file(path)
    state: dict[str, Any] = {key: tensor.clone() for key, tensor in file.items() if not key.startswith(AUTOMATIC)}
    theirs = {key.removeprefix(AUTOMATIC): file[key].clone() for key in file if key.startswith(AUTOMATIC)}
    if theirs:
        state = {"string_to_param": theirs}
    named = token or (path.stem if theirs or "emb_params" in state else None)
    try:
        return read_textual_inversions(state, token=named)
    except InputError as error:
        raise CheckpointError(error.what, path=path, remedy=error.remedy) from error


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
