"""`CLIPTextModel`, in transformers' call shapes, over `safelight.models.clip.TextEncoder`.

Notebooks enter it at every stage: the token table, the positions, the stack of layers, the last norm. transformers 4
has these under `text_model`, transformers 5 in the model itself; here they are in both places.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from safelight.checkpoint.build import Plan
from safelight.checkpoint.folders import plan_text_encoder
from safelight.compat.faces import Face, Pretrained
from safelight.compat.outputs import BaseModelOutput, BaseModelOutputWithPooling, CLIPTextModelOutput, Config, Output
from safelight.errors import CheckpointError, InputError, MissingPartError
from safelight.models.clip import TextConfig, TextEmbeddings, TextEncoder, TextLayers, TextTransformer


class CLIPTextConfig(Config):
    """A text encoder's config, with transformers' names and defaults."""

    def __init__(self, data: Mapping[str, Any] | None = None, native: Any = None, **values: Any) -> None:
        native = TextConfig.from_transformers({**(data or {}), **values}) if native is None else native
        super().__init__({**native.to_transformers(), **(data or {}), **values}, native)


class CLIPTextEmbeddings(Face):
    """Token table and positions: `embeddings(ids)` (B, L, D)."""

    net: TextEmbeddings

    @property
    def position_ids(self) -> Tensor:
        """(1, L): 0 to the last position."""
        table = self.position_embedding.weight
        return torch.arange(len(table), device=table.device)[None]

    def forward(
        self,
        input_ids: Tensor | None = None,
        position_ids: Tensor | None = None,
        inputs_embeds: Tensor | None = None,
    ) -> Tensor:
        """Embed ids (B, L), or take token embeddings (B, L, D), and add positions."""
        if inputs_embeds is None:
            if input_ids is None:
                raise InputError("nothing to embed", remedy="give input_ids or inputs_embeds")
            inputs_embeds = self.token_embedding(input_ids)
        if position_ids is None:
            return self.net(inputs_embeds)
        return inputs_embeds + self.position_embedding(position_ids)


class CLIPEncoder(Face):
    """The stack of layers, from embeddings with positions (B, L, D)."""

    net: TextLayers

    def forward(
        self,
        inputs_embeds: Tensor,
        attention_mask: Tensor | None = None,
        causal_attention_mask: Tensor | None = None,
        output_attentions: bool | None = None,
        output_hidden_states: bool | None = None,
        return_dict: bool | None = None,
        is_causal: bool = False,
    ) -> Any:
        """Run all layers; the last norm is not applied.

        Masks are added up: (B or 1, 1, L, L), of numbers to add before the softmax or True where attention may look.
        As in transformers, without any mask every token sees every other, unless `is_causal`.
        """
        if output_attentions:
            raise MissingPartError("attention maps are not kept here", remedy="leave output_attentions away")
        if attention_mask is None and causal_attention_mask is None and is_causal:
            mask = None
        else:
            mask = sum(
                (_additive(m, inputs_embeds.dtype) for m in (attention_mask, causal_attention_mask) if m is not None),
                start=inputs_embeds.new_zeros(1, 1, 1, inputs_embeds.shape[1]),
            )
        states = self.net(inputs_embeds, mask)
        output = BaseModelOutput(states[-1], states if output_hidden_states else None)
        return output.to_tuple() if return_dict is False else output


class Stages(Face):
    """The stages of a text encoder that scripts enter by name; `net` is the transformer that holds them."""

    @property
    def transformer(self) -> TextTransformer:
        """The network with the stages."""
        raise NotImplementedError

    @property
    def embeddings(self) -> CLIPTextEmbeddings:
        """Token table and positions."""
        return CLIPTextEmbeddings(self.transformer.embeddings)

    @property
    def encoder(self) -> CLIPEncoder:
        """The layers."""
        return CLIPEncoder(self.transformer.encoder)

    @property
    def final_layer_norm(self) -> nn.LayerNorm:
        """The norm behind the last layer."""
        return self.transformer.final_layer_norm

    def _build_causal_attention_mask(self, bsz: int, seq_len: int, dtype: torch.dtype) -> Tensor:
        """Give (B, 1, L, L): the dtype's lowest number where a token would see a later one, else 0 (transformers 4)."""
        mask = torch.full((seq_len, seq_len), torch.finfo(dtype).min, dtype=dtype, device=self.device).triu(1)
        return mask.expand(bsz, 1, seq_len, seq_len)


class CLIPTextTransformer(Stages):
    """What `text_encoder.text_model` is: called with ids, it gives what the text encoder gives, unprojected."""

    def __init__(self, owner: TextEncoder) -> None:
        super().__init__(owner.text_model)
        object.__setattr__(self, "owner", owner)

    @property
    def transformer(self) -> TextTransformer:
        """The network with the stages."""
        return self.net  # type: ignore[return-value]

    def forward(self, input_ids: Tensor, **options: Any) -> Any:
        """As `CLIPTextModel`."""
        return encode(self.__dict__["owner"], input_ids, **options)


class CLIPTextModel(Pretrained, Stages):
    """The text encoder: `CLIPTextModel(ids)[0]` is the context (B, L, D) of Stable Diffusion's U-Net."""

    net: TextEncoder
    stem = "model"
    projection = False

    def __init__(self, config: Mapping[str, Any] | None = None) -> None:
        config = CLIPTextConfig(dict(config or {}), architectures=[type(self).__name__])
        super().__init__(TextEncoder(config.native).eval(), config)

    @classmethod
    def describe(cls, net: TextEncoder) -> dict[str, Any]:
        """Write the network's config in the words of config.json."""
        return net.config.to_transformers()

    @classmethod
    def plan(cls, folder: Path, variant: str | None) -> Plan[TextEncoder]:
        """Find the weights in a folder and check them against the network."""
        plan = plan_text_encoder(folder, variant)
        if cls.projection and plan.network.text_projection is None:
            raise CheckpointError("has no text projection", path=folder, remedy="load it with CLIPTextModel")
        return plan

    @property
    def transformer(self) -> TextTransformer:
        """The network with the stages."""
        return self.net.text_model

    @property
    def text_model(self) -> CLIPTextTransformer:
        """The network with the stages, where transformers 4 has it."""
        return CLIPTextTransformer(self.net)

    def forward(self, input_ids: Tensor, **options: Any) -> Any:
        """Encode ids (B, L): `last_hidden_state` (B, L, D), finally normed, and `pooler_output` (B, D).

        Options: `attention_mask` (B, L), 0 where no token may look; `position_ids`; `output_hidden_states`;
        `return_dict`.
        """
        return encode(self.net, input_ids, **options)

    def get_input_embeddings(self) -> nn.Embedding:
        """The token table."""
        return self.transformer.embeddings.token_embedding

    def set_input_embeddings(self, value: nn.Embedding) -> None:
        """Put another token table in place."""
        self.transformer.embeddings.token_embedding = value

    def resize_token_embeddings(self, new_num_tokens: int | None = None, *_: Any, **__: Any) -> nn.Embedding:
        """Give the token table so many rows. New ones are the mean of the old (transformers draws them around it)."""
        table = self.get_input_embeddings().weight
        n = len(table) if new_num_tokens is None else new_num_tokens
        if n < len(table):
            raise InputError(f"the token table has {len(table)} rows already", remedy="it can only grow here")
        if n > len(table):
            self.take(self.net.extended(table.detach().mean(0).expand(n - len(table), -1)))
        return self.get_input_embeddings()

    def take(self, extended: TextEncoder) -> None:
        """Take the token table of an encoder that is this one with more words."""
        self.set_input_embeddings(extended.text_model.embeddings.token_embedding)
        self.net.config = extended.config
        config = Config({**self.config, "vocab_size": extended.config.vocab_size}, extended.config)
        object.__setattr__(self, "_config", config)


class CLIPTextModelWithProjection(CLIPTextModel):
    """The text encoder with its projection: `text_embeds` (B, P) comes first."""

    projection = True

    def forward(self, input_ids: Tensor, *, return_dict: bool | None = None, **options: Any) -> Any:
        """Encode ids (B, L), and project the feature at the end of text."""
        out = encode(self.net, input_ids, **options)
        assert self.net.text_projection is not None  # loading has seen to it
        embeds = self.net.text_projection(out.pooler_output)
        output = CLIPTextModelOutput(embeds, out.last_hidden_state, out.hidden_states)
        return output.to_tuple() if return_dict is False else output


def encode(
    net: TextEncoder,
    input_ids: Tensor,
    attention_mask: Tensor | None = None,
    position_ids: Tensor | None = None,
    output_attentions: bool | None = None,
    output_hidden_states: bool | None = None,
    return_dict: bool | None = None,
) -> Any:
    """Run a text encoder on ids (..., L), the way CLIPTextModel is called."""
    if output_attentions:
        raise MissingPartError("attention maps are not kept here", remedy="leave output_attentions away")
    ids = input_ids.reshape(-1, input_ids.shape[-1])
    x = CLIPTextEmbeddings(net.text_model.embeddings)(position_ids=position_ids, inputs_embeds=net.embed(ids))
    states = net.text_model.encoder(x, _causal_with(attention_mask))
    last = net.final_layer_norm(states[-1])
    pooled = last[torch.arange(len(last), device=last.device), net.end_of_text(ids)]
    output: Output = BaseModelOutputWithPooling(last, pooled, states if output_hidden_states else None)
    return output.to_tuple() if return_dict is False else output


def _causal_with(attention_mask: Tensor | None) -> Tensor | None:
    """Join causality and a mask of padding (B, L) to (B, 1, L, L), True where a token may look; None: causal alone."""
    if attention_mask is None or bool(attention_mask.all()):
        return None
    length = attention_mask.shape[-1]
    causal = torch.ones(length, length, dtype=torch.bool, device=attention_mask.device).tril()
    return causal & attention_mask.bool()[:, None, None, :]


def _additive(mask: Tensor, dtype: torch.dtype) -> Tensor:
    """Write a mask of True and False as numbers to add before the softmax."""
    if mask.dtype != torch.bool:
        return mask.to(dtype)
    return torch.zeros(mask.shape, dtype=dtype, device=mask.device).masked_fill(~mask, torch.finfo(dtype).min)
