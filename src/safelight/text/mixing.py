"""Arithmetic with prompts: contexts mixed and interpolated, words swapped and blended before the text encoder.

    context = encode_prompt(tokenizer, text_encoder, ["a cat", "a dog"])     # (2, 77·k, D), of one length
    mix(context, [0.7, 0.3])                                                 # (1, 77·k, D)
    interpolate(context[:1], context[1:], 8)                                 # (8, 77·k, D), one context a frame
    skuppy = blend_words(tokenizer, text_encoder, {"puppy": 0.5, "skunk": 0.5})
    embeddings = swap_word(tokenizer, text_encoder, "a picture of a puppy", "puppy", skuppy)
    encode_embeddings(text_encoder, embeddings)                              # (1, 77·k, D)

Any of the contexts goes into `Condition(context=...)`, and that in place of a prompt.
"""

from collections.abc import Mapping, Sequence
from typing import Literal

import torch
from torch import Tensor

from safelight.errors import InputError, nearest
from safelight.models.clip import TextEncoder
from safelight.models.text_pair import TextEncoderPair
from safelight.text.prompt import prompt_ids
from safelight.text.tokenizer import Tokenizer

Curve = Literal["lerp", "slerp"]
PARALLEL = 0.9995  # the cosine above which an arc is as good as a line


def mix(contexts: Tensor | Sequence[Tensor], weights: Sequence[float], *, normalize: bool = True) -> Tensor:
    """Mix n contexts (n, L, D), or n times (1, L, D), by weight: Σ w_i c_i / Σ w_i, (1, L, D); compel's `.blend()`.

    With `normalize=False`, Σ w_i c_i. Raises InputError where numbers or shapes do not suit each other.
    """
    stacked = contexts if isinstance(contexts, Tensor) else _stacked(contexts)
    if len(weights) != len(stacked):
        raise InputError(f"{len(weights)} weights for {len(stacked)} contexts", remedy="give one for each")
    total = sum(weights) if normalize else 1.0
    if total == 0:
        raise InputError(
            f"the weights {list(weights)} sum to 0", remedy="pass normalize=False to keep them as they are"
        )
    shares = torch.tensor([weight / total for weight in weights], dtype=torch.float32, device=stacked.device)
    return (shares[:, None, None] * stacked.float()).sum(0, keepdim=True).to(stacked.dtype)


def _stacked(contexts: Sequence[Tensor]) -> Tensor:
    shapes = sorted({tuple(context.shape) for context in contexts})
    if len(shapes) != 1 or shapes[0][0] != 1:
        remedy = "encode the prompts in one call, which gives them one length"
        raise InputError(f"contexts of shapes {shapes} cannot be mixed", remedy=remedy)
    return torch.cat(list(contexts))


def lerp(a: Tensor, b: Tensor, t: float) -> Tensor:
    """The point t of the way along the line from a to b: (1 - t) a + t b."""
    _check_alike(a, b)
    return (1 - t) * a + t * b


def slerp(a: Tensor, b: Tensor, t: float, *, dim: int | tuple[int, ...] = -1) -> Tensor:
    """The point t of the way along the arc from a to b (Shoemake 1985): (sin((1-t)θ) a + sin(tθ) b) / sin θ.

    θ is the angle between the vectors that lie along `dim`: each row of a context, by default; for noise (B, C, H, W)
    take dim=(1, 2, 3), so that what lies between keeps the variance of both. Nearly parallel vectors, and those of
    length 0, take the line.
    """
    _check_alike(a, b)
    norm = torch.linalg.vector_norm
    lengths = norm(a, dim=dim, keepdim=True) * norm(b, dim=dim, keepdim=True)
    cosine = ((a * b).sum(dim, keepdim=True) / lengths.clamp_min(1e-12)).clamp(-1, 1)
    angle = torch.acos(cosine)
    arc = (torch.sin((1 - t) * angle) * a + torch.sin(t * angle) * b) / torch.sin(angle)
    return torch.where((cosine.abs() > PARALLEL) | (lengths == 0), lerp(a, b, t), arc)


def interpolate(
    a: Tensor, b: Tensor, frames: int, *, curve: Curve = "slerp", dim: int | tuple[int, ...] = -1
) -> Tensor:
    """Steps of equal size from a (1, ...) to b (1, ...), both included: (frames, ...).

    `curve` is "slerp" or "lerp", `dim` as in `slerp`. For contexts of prompts, and for noise of two seeds.
    """
    if curve not in ("lerp", "slerp"):
        raise InputError(f"curve {curve!r} is unknown", remedy=nearest(str(curve), ["lerp", "slerp"]))
    if frames < 2:
        raise InputError(f"{frames} frames do not lead from one to the other", remedy="give at least 2")
    return torch.cat([between(a, b, i / (frames - 1), curve=curve, dim=dim) for i in range(frames)])


def between(a: Tensor, b: Tensor, t: float, *, curve: Curve = "slerp", dim: int | tuple[int, ...] = -1) -> Tensor:
    """The point t of the way from a to b, by `slerp` or `lerp`; the ends are a and b to the last bit."""
    _check_alike(a, b)
    if t in (0, 1):
        return b if t else a
    return lerp(a, b, t) if curve == "lerp" else slerp(a, b, t, dim=dim)


def _check_alike(a: Tensor, b: Tensor) -> None:
    if a.shape != b.shape:
        what = f"shapes {tuple(a.shape)} and {tuple(b.shape)} differ"
        raise InputError(what, remedy="encode both prompts in one call, which gives them one length")


def word_vectors(tokenizer: Tokenizer, text_encoder: TextEncoder, word: str) -> Tensor:
    """The rows (n, D) of the token table that a word's n tokens look up."""
    _check_single(text_encoder)
    ids = tokenizer.encode(word)
    if not ids:
        raise InputError(f"{word!r} has no tokens", remedy="give a word")
    device = text_encoder.device
    return text_encoder.embed(torch.tensor([ids], device=device))[0]


def _check_single(text_encoder: object) -> None:
    if isinstance(text_encoder, TextEncoderPair):
        what = "words are swapped and blended in one token table, and this model has two text encoders"
        raise InputError(what, remedy="mix what they say: `mix`, `interpolate`")


def blend_words(tokenizer: Tokenizer, text_encoder: TextEncoder, shares: Mapping[str, float]) -> Tensor:
    """A word between words, (n, D): Σ share · vectors. Raises InputError if their numbers of tokens differ."""
    vectors = {word: word_vectors(tokenizer, text_encoder, word) for word in shares}
    if len({len(rows) for rows in vectors.values()}) != 1:
        counts = ", ".join(f"{word!r} {len(rows)}" for word, rows in vectors.items())
        raise InputError(f"words of different numbers of tokens: {counts or 'none'}", remedy="`safelight tokens` shows")
    return torch.stack([share * vectors[word] for word, share in shares.items()]).sum(0)


def swap_word(tokenizer: Tokenizer, text_encoder: TextEncoder, text: str, word: str, vectors: Tensor | str) -> Tensor:
    """The token embeddings (1, k, 77, D) of a text in which a word, wherever it stands, has other vectors.

    `vectors` is another word, or (n, D) with n the word's number of tokens, or (D,) for each of them. What follows is
    `encode_embeddings`. Raises InputError if the text has no such word, or the numbers of tokens differ.
    """
    _check_single(text_encoder)
    device = text_encoder.device
    ids = prompt_ids(tokenizer, text).to(device)
    sought = tokenizer.encode(word)
    rows = word_vectors(tokenizer, text_encoder, vectors) if isinstance(vectors, str) else vectors
    rows = rows.expand(len(sought), -1) if rows.ndim == 1 else rows
    if len(rows) != len(sought):
        what = f"{word!r} has {len(sought)} tokens, but {len(rows)} vectors were given"
        raise InputError(what, remedy="give as many, or a single vector (D,)")
    embeddings = text_encoder.embed(ids.flatten(0, 1)).unflatten(0, ids.shape[:2]).clone()
    places = [
        (chunk, start)
        for chunk, row in enumerate(ids[0].tolist())
        for start in range(len(row) - len(sought) + 1)
        if row[start : start + len(sought)] == sought
    ]
    if not places:
        raise InputError(
            f"the text has no word {word!r}", remedy=f"it reads {tokenizer.decode(tokenizer.encode(text))!r}"
        )
    for chunk, start in places:
        embeddings[0, chunk, start : start + len(sought)] = rows.to(embeddings)
    return embeddings
