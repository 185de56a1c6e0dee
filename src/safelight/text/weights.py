"""What a weight does to a context: the emphasis of AUTOMATIC1111, ComfyUI and compel.

z is the text encoder's output for a chunk of 77 tokens, one row a token; w its weights, 1 for begin, end and padding; e
the output for an empty chunk; · multiplies row by row.

    original   w·z, then times mean(z) / mean(w·z)                               AUTOMATIC1111 1.10, "Original"
    no_norm    w·z                                                               AUTOMATIC1111, "No norm"
    ignore     z                                                                 AUTOMATIC1111, "Ignore"
    comfyui    e + w·(z - e)                                                     ComfyUI, comfy/sd1_clip.py
    compel     (y + Σ t_i y_i) / (1 + Σ t_i),  t_i = tan((1 - w_i) π/2)           compel, embeddings_provider.py
               with y = e + w·(z - e), and y_i the same for the text of which no token may look at words i, for all
               words i with w_i < 1

Where all weights of a chunk are 1, z stays as it is, bit by bit. The mean of "original" is one number for a chunk of
all the texts of a schedule, each counted as often as it has an entry: AUTOMATIC1111 encodes them as one batch.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from math import pi, tan
from typing import Literal

import torch
from torch import Tensor

Emphasis = Literal["original", "no_norm", "ignore", "comfyui", "compel"]
EMPHASES: tuple[Emphasis, ...] = ("original", "no_norm", "ignore", "comfyui", "compel")
OF_SYNTAX: dict[str, Emphasis] = {"a1111": "original", "comfyui": "comfyui", "compel": "compel", "plain": "ignore"}

ROUNDING = 1e-6  # a mean below this share of the spread of z is what float32 rounds


@dataclass(frozen=True, eq=False)
class Encoded:
    """The n texts of a schedule as a text encoder gave them, k chunks each.

    z: (n, k, L, D). weights: (n, k, L). counts: (n,), how many entries each text has. empty: (L, D). without: for
    compel alone, of each text its weakened words: the weight, and z (k, L, D) where they are hidden.
    """

    z: Tensor
    weights: Tensor
    counts: Tensor
    empty: Tensor
    without: Sequence[Sequence[tuple[float, Tensor]]] = ()


def emphasize(texts: Encoded, emphasis: Emphasis) -> Tensor:
    """Apply the weights: (n, k, L, D), in z's dtype; computed in float32."""
    if emphasis == "ignore" or bool((texts.weights == 1).all()):
        return texts.z
    z = {"original": original, "no_norm": scaled, "comfyui": from_empty, "compel": compel}[emphasis](texts)
    return z.to(texts.z.dtype)


def scaled(texts: Encoded) -> Tensor:
    """w·z."""
    return texts.z.float() * texts.weights.unsqueeze(-1)


def original(texts: Encoded) -> Tensor:
    """w·z, with the mean of z; where that is nothing but rounding, as it is for an untrained text encoder, w·z."""
    z, weighted = texts.z.float(), scaled(texts)
    before, after = _chunk_means(z, texts.counts), _chunk_means(weighted, texts.counts)
    ratio = torch.where((before.abs() < ROUNDING * z.std()) | (after == 0), 1.0, before / after)
    emphasized = (texts.weights != 1).any(2).any(0)  # (k,)
    return torch.where(emphasized[:, None, None], weighted * ratio[:, None, None], z)


def _chunk_means(z: Tensor, counts: Tensor) -> Tensor:
    """The mean of each chunk over texts, tokens and channels: (k,). MPS has no float64, so that the CPU adds for it."""
    means = (z.cpu() if z.device.type == "mps" else z).double().mean((2, 3))
    counts = counts.to(means.device)
    return ((counts[:, None] * means).sum(0) / counts.sum()).to(z)


def from_empty(texts: Encoded) -> Tensor:
    """e + w·(z - e), and exactly z where w is 1."""
    return _from_empty(texts.z.float(), texts.weights, texts.empty.float())


def _from_empty(z: Tensor, weights: Tensor, empty: Tensor) -> Tensor:
    w = weights.unsqueeze(-1)
    return torch.where(w == 1, z, empty + w * (z - empty))


def compel(texts: Encoded) -> Tensor:
    """Like `from_empty`, and weakened words fade: the weaker, the nearer to the text where nothing looks at them."""
    rows = []
    for z, w, hidden in zip(from_empty(texts), texts.weights, texts.without, strict=True):
        shares = [tan((1 - max(weight, 1e-5)) * pi / 2) for weight, _ in hidden]
        total = z + sum(
            share * _from_empty(other.float(), w, texts.empty.float())
            for share, (_, other) in zip(shares, hidden, strict=True)
        )
        rows.append(total / (1 + sum(shares)))
    return torch.stack(rows)
