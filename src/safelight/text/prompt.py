"""From prompts of any length to the context that a U-Net attends to.

CLIP reads 77 tokens, begin and end of text included. A longer prompt is not cut: it is split into chunks of 75 tokens,
each is framed and encoded by itself, and the contexts are laid end to end (AUTOMATIC1111's way; attention over the
context takes any length). A chunk that would end within a clause gives the clause to the next chunk.

    text --Tokenizer.encode--> ids --split_ids--> chunks --prompt_ids--> (B, k, 77) --encode_ids--> (B, 77·k, D)

Each arrow can be entered alone: with ids of one's own, or with token embeddings that were swapped or mixed.
"""

import warnings
from collections.abc import Mapping, Sequence
from typing import Literal

import torch
from torch import Tensor

from safelight.errors import InputError, nearest
from safelight.models.clip import Reading, TextEncoder
from safelight.models.text_pair import TextEncoderPair
from safelight.text.bpe import END_OF_WORD
from safelight.text.tokenizer import Tokenizer

LongPrompts = Literal["chunk", "error", "truncate"]
LONG_PROMPTS: tuple[LongPrompts, ...] = ("chunk", "error", "truncate")
COMMA_BACKTRACK = 20  # tokens; AUTOMATIC1111's default


class PromptCutWarning(UserWarning):
    """A prompt was cut because the caller asked for `long_prompts="truncate"`."""


def encode_prompt(
    tokenizer: Tokenizer,
    text_encoder: TextEncoder | TextEncoderPair,
    texts: str | Sequence[str],
    *,
    clip_skip: int | None = 0,
    long_prompts: LongPrompts = "chunk",
    comma_backtrack: int = COMMA_BACKTRACK,
    chunks: int = 1,
) -> Tensor:
    """Encode B texts to one context (B, 77·k, D), in the text encoder's dtype and on its device.

    k is the same for all texts of a call, at least `chunks`; shorter texts are filled with empty chunks. So encode a
    prompt together with its negative prompt. Gradients flow if they are enabled.

    `clip_skip` counts the layers that are left out, as diffusers counts: 1 takes the penultimate layer's output, then
    the final layer norm. AUTOMATIC1111's "Clip skip" is one more: its 2 is 1 here, its 1 is 0. The text encoder of
    Stable Diffusion 2 comes with 23 of its 24 layers, so that 0 there is already the penultimate one.

    `long_prompts` says what becomes of a text over 75 tokens: "chunk" as above, where the tokens behind a comma that
    stands among the last `comma_backtrack` of a full chunk move to the next one (0: never); "error" raises InputError;
    "truncate" does as diffusers does, and warns with what was cut.
    """
    ids = prompt_ids(tokenizer, texts, long_prompts=long_prompts, comma_backtrack=comma_backtrack, chunks=chunks)
    return encode_ids(text_encoder, ids, clip_skip=clip_skip)


def prompt_ids(
    tokenizer: Tokenizer,
    texts: str | Sequence[str],
    *,
    long_prompts: LongPrompts = "chunk",
    comma_backtrack: int = COMMA_BACKTRACK,
    chunks: int = 1,
) -> Tensor:
    """Give the token ids (B, k, 77) of B texts, each chunk framed and padded. Options as in `encode_prompt`."""
    texts = [texts] if isinstance(texts, str) else list(texts)
    if not texts:
        raise InputError("there is no text to encode", remedy='give at least one, "" for none')
    split = [split_text(tokenizer, text, long_prompts=long_prompts, comma_backtrack=comma_backtrack) for text in texts]
    count = max(chunks, *map(len, split))
    return torch.tensor([[tokenizer.frame(c) for c in text + [[]] * (count - len(text))] for text in split])


def encode_ids(
    text_encoder: TextEncoder | TextEncoderPair, ids: Tensor, *, clip_skip: int | None = 0, mask: Tensor | None = None
) -> Tensor:
    """Encode framed token ids (B, k, L) to (B, k·L, D), each chunk by itself.

    `mask` (B, k, L), where it is False no token looks at that token; by default each looks at all before it.
    """
    return read_ids(text_encoder, ids, clip_skip=clip_skip, mask=mask).context


def read_ids(
    text_encoder: TextEncoder | TextEncoderPair, ids: Tensor, *, clip_skip: int | None = 0, mask: Tensor | None = None
) -> Reading:
    """As `encode_ids`; `pooled` (B, P) is what the first chunk says as a whole, where the text encoder has that."""
    if ids.ndim != 3:
        raise InputError(f"token ids of shape {tuple(ids.shape)}", remedy="give (batch, chunks, length)")
    chunks = ids.flatten(0, 1).to(text_encoder.device)
    if mask is None:
        features = text_encoder(chunks)
    else:
        past = torch.ones(ids.shape[2], ids.shape[2], dtype=torch.bool, device=chunks.device).tril()
        seen = past & mask.flatten(0, 1).to(chunks.device)[:, None, None, :]  # (B·k, 1, L, L)
        features = text_encoder.features(chunks, seen)
    context, pooled = text_encoder.reading(features, 0 if clip_skip is None else clip_skip)
    context = context.unflatten(0, ids.shape[:2]).flatten(1, 2)
    return Reading(context, None if pooled is None else pooled.unflatten(0, ids.shape[:2])[:, 0])


def encode_embeddings(text_encoder: TextEncoder, embeddings: Tensor, *, clip_skip: int | None = 0) -> Tensor:
    """Encode token embeddings (B, k, L, D), as `text_encoder.embed` gives them for each chunk, to (B, k·L, D)."""
    if embeddings.ndim != 4:
        raise InputError(f"embeddings of shape {tuple(embeddings.shape)}", remedy="give (batch, chunks, length, width)")
    features = text_encoder.forward_embeddings(embeddings.flatten(0, 1))
    state = text_encoder.skip_layers(features, 0 if clip_skip is None else clip_skip)  # (B·k, L, D)
    return state.unflatten(0, embeddings.shape[:2]).flatten(1, 2)


def split_text(
    tokenizer: Tokenizer,
    text: str,
    *,
    long_prompts: LongPrompts = "chunk",
    comma_backtrack: int = COMMA_BACKTRACK,
) -> list[list[int]]:
    """Split a text into chunks of ids, unframed; one empty chunk for an empty text. Options as in `encode_prompt`."""
    return split_tokens(tokenizer, tokenizer.encode(text), long_prompts=long_prompts, comma_backtrack=comma_backtrack)


def split_tokens(
    tokenizer: Tokenizer,
    ids: list[int],
    *,
    long_prompts: LongPrompts = "chunk",
    comma_backtrack: int = COMMA_BACKTRACK,
) -> list[list[int]]:
    """Split the ids of a text into chunks, as `split_text` does."""
    if long_prompts not in LONG_PROMPTS:
        raise InputError(f"long_prompts={long_prompts!r} is not known", remedy=nearest(str(long_prompts), LONG_PROMPTS))
    room = tokenizer.max_length - 2
    if len(ids) <= room:
        return [ids]
    if long_prompts == "chunk":
        comma = tokenizer.vocabulary.ids.get("," + END_OF_WORD)
        return split_ids(ids, room, comma=comma, backtrack=comma_backtrack, runs=tokenizer.runs)
    rest = tokenizer.decode(ids[room:])
    if long_prompts == "error":
        raise InputError(
            f"the prompt has {len(ids)} tokens, {len(ids) - room} more than fit: {_excerpt(rest)!r}",
            remedy='shorten it, or pass long_prompts="chunk"',
        )
    warnings.warn(
        f"the prompt has {len(ids)} tokens; the last {len(ids) - room} were cut: {_excerpt(rest)!r}",
        PromptCutWarning,
        stacklevel=2,
    )
    return [ids[:room]]


def split_ids(
    ids: Sequence[int],
    size: int,
    *,
    comma: int | None = None,
    backtrack: int = COMMA_BACKTRACK,
    runs: Mapping[int, tuple[int, ...]] | None = None,
) -> list[list[int]]:
    """Split ids into chunks of at most `size`, by the rules of AUTOMATIC1111 1.10 (modules/sd_hijack_clip.py).

    When a chunk is full and a `comma` is among its last `backtrack` ids, what follows the comma moves to the next
    chunk; a comma that would itself begin a chunk is no such comma. The ids of a run (a word of several learned
    vectors) stay in one chunk if they fit into one.
    """
    chunks: list[list[int]] = []
    chunk: list[int] = []
    last_comma: int | None = None  # its place in the chunk
    position = 0
    while position < len(ids):
        length = _run_length(ids, position, size, runs or {})
        if ids[position] == comma:
            last_comma = len(chunk)
        elif len(chunk) == size and last_comma is not None and size - last_comma <= backtrack:
            chunks.append(chunk[: last_comma + 1])
            chunk, last_comma = chunk[last_comma + 1 :], None
        if len(chunk) + length > size:
            chunks.append(chunk)
            chunk, last_comma = [], None
        chunk += ids[position : position + length]
        position += length
    return [*chunks, chunk] if chunk or not chunks else chunks


def _run_length(ids: Sequence[int], position: int, size: int, runs: Mapping[int, tuple[int, ...]]) -> int:
    run = runs.get(ids[position], ())
    whole = 1 < len(run) <= size and tuple(ids[position : position + len(run)]) == run
    return len(run) if whole else 1


def _excerpt(text: str, length: int = 200) -> str:
    return text if len(text) <= length else text[:length] + "…"
