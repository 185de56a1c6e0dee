"""Textual inversion (Gal et al. 2022, arXiv 2208.01618): words learned from pictures, as rows of the token table.

The files are read by the checkpoint room, `.bin` and `.pt` without running what a pickle may hold; here comes what was
in them. A word of several vectors takes several tokens, named as diffusers names them: `<cat>`, `<cat>_1`, `<cat>_2`;
the tokenizer writes them all where the text says `<cat>`.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
from torch import Tensor

from safelight.errors import InputError, MissingPartError
from safelight.models.clip import TextEncoder
from safelight.models.text_pair import TextEncoderPair
from safelight.text.tokenizer import Tokenizer

Encoder = TypeVar("Encoder", bound=TextEncoder | TextEncoderPair)

# The vectors' name in files that do not name their word: AUTOMATIC1111's, and ComfyUI's for SD 1 and SD 2.
NAMELESS = {"emb_params", "clip_l", "clip_h"}


@dataclass(frozen=True, eq=False)
class TextualInversion:
    """A learned word: its `token` in texts, and its `vectors` (n, D). Raises InputError if they are not such.

    One for Stable Diffusion XL has `vectors_2` (n, D') for its second text encoder.
    """

    token: str
    vectors: Tensor
    vectors_2: Tensor | None = None

    def __post_init__(self) -> None:
        if not self.token.strip():
            raise InputError("a learned word must have a name", remedy="pass token='<my-style>'")
        self._check(self.vectors)
        if self.vectors_2 is not None:
            self._check(self.vectors_2)
            if len(self.vectors) != len(self.vectors_2):
                what = f"{self.token!r} has {len(self.vectors)} vectors for one text encoder, {len(self.vectors_2)}"
                raise InputError(f"{what} for the other", remedy="the file is damaged; fetch it again")

    def _check(self, vectors: Tensor) -> None:
        if (
            not isinstance(vectors, Tensor)
            or vectors.ndim != 2
            or not vectors.numel()
            or not vectors.is_floating_point()
        ):
            found = tuple(vectors.shape) if isinstance(vectors, Tensor) else type(vectors).__name__
            raise InputError(
                f"the vectors of {self.token!r} are {found}", remedy="a learned word is a float tensor of shape (n, D)"
            )
        if not vectors.isfinite().all():
            raise InputError(
                f"the vectors of {self.token!r} are not finite", remedy="the file is damaged; fetch it again"
            )

    @property
    def tokens(self) -> tuple[str, ...]:
        """One token for each vector."""
        return (self.token, *(f"{self.token}_{i}" for i in range(1, len(self.vectors))))


def read_textual_inversions(state: Mapping[str, Any], *, token: str | None = None) -> tuple[TextualInversion, ...]:
    """Find the learned words in what a file held.

    Known are: `learned_embeds.bin` or `.safetensors` of diffusers, {"<token>": (D,) or (n, D), ...}; AUTOMATIC1111's
    `.pt`, {"string_to_param": {"*": (n, D)}, "name": ...}; and, without a name, `.safetensors` with one of `NAMELESS`.
    `token` names the word anew, and must be given where the file does not (people take the file's name).

    Files for Stable Diffusion XL hold `clip_l` and `clip_g`.

    Raises InputError for anything else, MissingPartError for words of later models.
    """
    if state.keys() == {"clip_l", "clip_g"}:
        if token is None:
            raise InputError("the file does not say the word's name", remedy="pass token=, such as the file's name")
        return (TextualInversion(token, _matrix(state["clip_l"]), _matrix(state["clip_g"])),)
    named = _named_vectors(state)
    if token is not None:
        if len(named) > 1:
            raise InputError(
                f"one name, {token!r}, was given for {len(named)} words: {', '.join(map(str, named))}",
                remedy="leave token away to keep their own names",
            )
        named = {token: next(iter(named.values()))}
    if None in named:
        raise InputError("the file does not say the word's name", remedy="pass token=, such as the file's name")
    return tuple(TextualInversion(str(name), _matrix(vectors)) for name, vectors in named.items())


def add_textual_inversions(
    tokenizer: Tokenizer, text_encoder: Encoder, words: Sequence[TextualInversion]
) -> tuple[Tokenizer, Encoder]:
    """Give a tokenizer and a text encoder that know the words. The old ones stay as they are, and share their weights.

    Raises InputError if a word is known already, its vectors are of another width, or tokenizer and encoder are no
    pair.
    """
    rows = text_encoder.vocab_size
    if len(tokenizer) != rows:
        raise InputError(
            f"the tokenizer has {len(tokenizer)} ids, but the text encoder's token table {rows} rows",
            remedy="give a tokenizer and a text encoder that belong together",
        )
    widths = table_widths(text_encoder)
    for word in words:
        given = [vectors.shape[1] for vectors in (word.vectors, word.vectors_2) if vectors is not None]
        if given != widths:
            raise InputError(
                f"the vectors of {word.token!r} are {_and(given)} wide, but the text encoder {_and(widths)}",
                remedy="use a word learned for this model (768: Stable Diffusion 1, 1024: 2, 768 and 1280: XL)",
            )
    if not words:
        return tokenizer, text_encoder
    tokens = [token for word in words for token in word.tokens]
    vectors = [torch.cat([word.vectors.float() for word in words])]
    if isinstance(text_encoder, TextEncoderPair):
        vectors.append(torch.cat([word.vectors_2.float() for word in words if word.vectors_2 is not None]))
    return tokenizer.add_tokens(tokens), text_encoder.extended(*vectors)  # type: ignore[return-value]


def table_widths(text_encoder: TextEncoder | TextEncoderPair) -> list[int]:
    """How wide the token tables are: one, or two."""
    if isinstance(text_encoder, TextEncoderPair):
        return [*table_widths(text_encoder.text_encoder), *table_widths(text_encoder.text_encoder_2)]
    return [text_encoder.config.hidden_size]


def _and(numbers: Sequence[int]) -> str:
    return " and ".join(map(str, numbers))


def _named_vectors(state: Mapping[str, Any]) -> dict[str | None, Any]:
    """Tell the forms apart: name (None where the file has none) to vectors."""
    if "clip_g" in state or "t5xxl" in state:
        raise MissingPartError(
            "these words were learned for SDXL, of which half of them is missing, or for a later model",
            remedy="use words learned for Stable Diffusion 1, 2 or XL",
        )
    if "string_to_param" in state:
        parameters = dict(state["string_to_param"].items())  # a dict, or torch's ParameterDict in old files
        if len(parameters) != 1:
            raise InputError(f"string_to_param holds {len(parameters)} words", remedy="AUTOMATIC1111's files hold one")
        return {state.get("name"): next(iter(parameters.values()))}
    if nameless := NAMELESS & state.keys():
        return {None: state[min(nameless)]}
    if state and all(isinstance(value, Tensor) and value.ndim in (1, 2) for value in state.values()):
        return {str(name): vectors for name, vectors in state.items()}
    raise InputError(
        f"this is no textual inversion; it holds {', '.join(map(str, list(state)[:5])) or 'nothing'}",
        remedy="known are learned_embeds.bin, AUTOMATIC1111's .pt and .png, and .safetensors with emb_params or clip_l",
    )


def _matrix(vectors: Any) -> Any:
    """Write one vector (D,) as (1, D), cut from whatever graph it was learned in."""
    if not isinstance(vectors, Tensor):
        return vectors
    return vectors.detach().unsqueeze(0) if vectors.ndim == 1 else vectors.detach()
