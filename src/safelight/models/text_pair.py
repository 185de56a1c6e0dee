"""Stable Diffusion XL's text encoder, which is two that read the same words (Podell et al. 2023, arXiv 2307.01952,
section 2.1).

    ids --+-- CLIP ViT-L/14 ---- penultimate layer (B, L, 768) ---+
          |                                                       +-- context (B, L, 2048)
          +-- OpenCLIP ViT-bigG -- penultimate layer (B, L, 1280) +
                     +-- last layer, at the end of text -- projection -- pooled (B, 1280)

Parameter names are those of the parts in diffusers' folders: `text_encoder.`, `text_encoder_2.`.
"""

import torch
from torch import Tensor, nn

from safelight.errors import InputError
from safelight.models.clip import Reading, TextEncoder, TextFeatures

Both = tuple[TextFeatures, TextFeatures]
PAD = 0  # what open_clip fills up with; CLIP fills up with the end of text


class TextEncoderPair(nn.Module):
    """Two text encoders as one. Ids are the first's: behind the end of text the second is given its own padding.

    So "!" in a text is the word "!</w>" to both, as for Stability's own code, AUTOMATIC1111 and ComfyUI. To diffusers,
    whose second tokenizer pads with "!", it is padding.
    Raises InputError where the encoders have different vocabularies, or the second has no projection.
    """

    def __init__(self, text_encoder: TextEncoder, text_encoder_2: TextEncoder) -> None:
        super().__init__()
        first, second = text_encoder.config, text_encoder_2.config
        if first.vocab_size != second.vocab_size or first.max_position_embeddings != second.max_position_embeddings:
            what = f"two text encoders of {first.vocab_size} and {second.vocab_size} words cannot read one text"
            raise InputError(what, remedy="give two that belong together")
        if text_encoder_2.text_projection is None:
            raise InputError("the second text encoder has no text_projection", remedy="load it with its projection")
        self.text_encoder = text_encoder
        self.text_encoder_2 = text_encoder_2

    @property
    def width(self) -> int:
        """How wide the context is."""
        return self.text_encoder.config.hidden_size + self.text_encoder_2.config.hidden_size

    @property
    def pooled_width(self) -> int:
        """How wide the vector is that tells of a whole text."""
        return self.text_encoder_2.config.projection_dim

    @property
    def vocab_size(self) -> int:
        """How many ids there are."""
        return self.text_encoder.config.vocab_size

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return self.text_encoder.device

    def forward(self, ids: Tensor) -> Both:
        """What each says about token ids (B, L)."""
        return self.text_encoder(ids), self.text_encoder_2(second_ids(ids))

    def features(self, ids: Tensor, mask: Tensor | None = None) -> Both:
        """As `forward`; where a mask (B, 1, L, L) is given, it says which tokens a token looks at."""
        return self.text_encoder.features(ids, mask), self.text_encoder_2.features(second_ids(ids), mask)

    def reading(self, features: Both, clip_skip: int = 0) -> Reading:
        """What the U-Net is told of both. `clip_skip` counts as in diffusers: 0 is the penultimate layer."""
        context = torch.cat([_penultimate(one, clip_skip) for one in features], dim=-1)
        return Reading(context, features[1].projected)

    def extended(self, vectors: Tensor, vectors_2: Tensor) -> "TextEncoderPair":
        """A pair that knows n words more, by vectors (n, D) and (n, D') for its two token tables."""
        return TextEncoderPair(self.text_encoder.extended(vectors), self.text_encoder_2.extended(vectors_2))


def second_ids(ids: Tensor) -> Tensor:
    """Framed ids (B, L), padded with the end of text, as the second encoder knows them: padded with zeros."""
    filling = (ids == ids[:, -1:]).long().flip(1).cumprod(1).flip(1).bool()  # the end of text, and all behind it
    filling[:, 1:] &= filling[:, :-1].clone()
    filling[:, 0] = False
    return ids.masked_fill(filling, PAD)


def _penultimate(features: TextFeatures, clip_skip: int) -> Tensor:
    """The penultimate layer's output (B, L, D), or that of `clip_skip` layers before; without the final norm."""
    depth = len(features.hidden_states) - 1
    if not 0 <= clip_skip < depth - 1:
        raise InputError(f"{clip_skip} of {depth - 1} layers cannot be skipped", remedy=f"skip 0 to {depth - 2} layers")
    return features.hidden_states[depth - 1 - clip_skip]
