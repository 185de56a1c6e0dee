"""CLIP's text encoder: a causal transformer over token embeddings (Radford et al. 2021, arXiv 2103.00020, section 2.4).

Stable Diffusion 1 reads the last hidden state of ViT-L/14 (12 layers, 768 wide, quick GELU); Stable Diffusion 2 that
of OpenCLIP's ViT-H (1024 wide, GELU), whose 24th layer its checkpoints leave out, so that the last hidden state is the
penultimate one. Parameter names are those of the checkpoints: `text_model.encoder.layers.0.self_attn.q_proj.weight`.
"""

import copy
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields, replace
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from safelight.errors import InputError
from safelight.kernels import attention
from safelight.models.config import check_choice, check_types
from safelight.models.layers import Linear

# Until 2023 every CLIP config said eos_token_id 2, which no CLIP vocabulary means: the end of text is its highest id.
LEGACY_EOS = 2


@dataclass(frozen=True, kw_only=True)
class TextConfig:
    """The shape of a text encoder; names, meanings and defaults are those of transformers' `CLIPTextConfig`.

    `projection` says whether there is a `text_projection` (transformers' `CLIPTextModelWithProjection`), a linear map
    of the pooled feature to `projection_dim`; config files state a `projection_dim` either way.
    """

    vocab_size: int = 49408
    hidden_size: int = 512
    intermediate_size: int = 2048
    num_hidden_layers: int = 12
    num_attention_heads: int = 8
    max_position_embeddings: int = 77
    hidden_act: str = "quick_gelu"
    layer_norm_eps: float = 1e-5
    projection_dim: int = 512
    projection: bool = False
    bos_token_id: int = 49406
    eos_token_id: int = 49407
    pad_token_id: int = 1

    def __post_init__(self) -> None:
        check_types(self, may_be_zero=("bos_token_id", "eos_token_id", "pad_token_id"))
        check_choice("hidden_act", self.hidden_act, ["quick_gelu", "gelu"])
        if self.hidden_size % self.num_attention_heads:
            raise InputError(
                f"hidden_size {self.hidden_size} is not a multiple of num_attention_heads {self.num_attention_heads}",
                remedy="choose a width that divides into equal heads",
            )

    @classmethod
    def from_transformers(cls, data: Mapping[str, Any]) -> "TextConfig":
        """Read a text encoder's config.json, passing over keys that do not shape the network (dropout, dtype, ...)."""
        known = {field.name for field in fields(cls)} - {"projection"}
        projection = "CLIPTextModelWithProjection" in (data.get("architectures") or ())
        given = {key: value for key, value in data.items() if key in known and value is not None}
        return cls(**given, projection=projection)

    def to_transformers(self) -> dict[str, Any]:
        """Give the content of a config.json that transformers reads back as the same network."""
        data = asdict(self)
        architecture = "CLIPTextModelWithProjection" if data.pop("projection") else "CLIPTextModel"
        return {"architectures": [architecture], "model_type": "clip_text_model", **data}


@dataclass(frozen=True, eq=False)
class TextFeatures:
    """What a text encoder says about B texts of L tokens, D wide.

    `last_hidden_state` (B, L, D) is after the final layer norm: the context of Stable Diffusion's U-Net.
    `hidden_states` holds the first layer's input (token plus position embeddings) and the output of each layer, all
    before the final norm, (B, L, D) each. `pooled` (B, D) is the last hidden state at the end-of-text token and
    `projected` (B, projection_dim) its projection; None where ids were not given or there is no projection.
    """

    last_hidden_state: Tensor
    hidden_states: tuple[Tensor, ...]
    pooled: Tensor | None = None
    projected: Tensor | None = None


class Reading(NamedTuple):
    """What a U-Net is told of B texts: the context of its cross-attention (B, L, D), and perhaps one vector a text."""

    context: Tensor
    pooled: Tensor | None = None


class TextEncoder(nn.Module):
    """The text encoder. Call it with token ids; or `embed` them, change the embeddings, and `forward_embeddings`."""

    def __init__(self, config: TextConfig) -> None:
        super().__init__()
        self.config = config
        self.check_ids = True  # off in training: to look at ids is to wait for the device
        self.text_model = TextTransformer(config)
        self.text_projection = (
            nn.Linear(config.hidden_size, config.projection_dim, bias=False) if config.projection else None
        )

    def forward(self, ids: Tensor) -> TextFeatures:
        """Encode token ids (B, L), 1 <= L <= max_position_embeddings, with begin and end of text where they belong."""
        return self.features(ids)

    def features(self, ids: Tensor, mask: Tensor | None = None) -> TextFeatures:
        """As `forward`; where a mask (B, 1, L, L) is given, it says which tokens a token looks at."""
        return self.forward_embeddings(self.embed(ids), ids, mask)

    def reading(self, features: TextFeatures, clip_skip: int = 0) -> Reading:
        """What the U-Net is told of features, without the last `clip_skip` layers (see `skip_layers`)."""
        return Reading(self.skip_layers(features, clip_skip))

    def embed(self, ids: Tensor) -> Tensor:
        """Look token ids (B, L) up in the token table: (B, L, D), without positions.

        Ids outside the table are an InputError, unless `check_ids` is False.
        """
        if ids.ndim != 2 or not ids.numel():
            raise InputError(f"token ids of shape {tuple(ids.shape)}", remedy="give a tensor of shape (batch, length)")
        if self.check_ids:
            self._check_ids(ids)
        return self.text_model.embeddings.token_embedding(ids)

    def _check_ids(self, ids: Tensor) -> None:
        low, high = (int(end) for end in ids.aminmax())
        last = self.text_model.embeddings.token_embedding.num_embeddings - 1
        if low < 0 or high > last:
            raise InputError(
                f"token ids from {low} to {high} were given, but the token table has rows 0 to {last}",
                remedy="use the tokenizer this encoder was trained with, or append the missing rows with `extended`",
            )

    def forward_embeddings(
        self, token_embeddings: Tensor, ids: Tensor | None = None, mask: Tensor | None = None
    ) -> TextFeatures:
        """Encode token-level embeddings (B, L, D) as `embed` gives them; positions are added here.

        `ids` (B, L) only say where the end of text is; without them `pooled` and `projected` are None. Attention is
        causal unless a `mask` (B, 1, L, L) says otherwise.
        Raises InputError if L exceeds the position table or D is not the encoder's width.
        """
        hidden_states = self.text_model.encoder(self.text_model.embeddings(token_embeddings), mask)
        last = self.final_layer_norm(hidden_states[-1])
        if ids is None:
            return TextFeatures(last, hidden_states)
        pooled = last[torch.arange(len(last), device=last.device), self.end_of_text(ids).to(last.device)]
        projected = self.text_projection(pooled) if self.text_projection is not None else None
        return TextFeatures(last, hidden_states, pooled, projected)

    def end_of_text(self, ids: Tensor) -> Tensor:
        """Find the position (B,) of the first end-of-text token in ids (B, L); 0 in a text without one."""
        if self.config.eos_token_id == LEGACY_EOS:
            return ids.argmax(-1)
        return (ids == self.config.eos_token_id).int().argmax(-1)

    @property
    def width(self) -> int:
        """How wide the context is."""
        return self.config.hidden_size

    @property
    def vocab_size(self) -> int:
        """How many ids there are."""
        return self.config.vocab_size

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return self.final_layer_norm.weight.device

    @property
    def final_layer_norm(self) -> nn.LayerNorm:
        """The norm between the last layer and `last_hidden_state`."""
        return self.text_model.final_layer_norm

    def skip_layers(self, features: TextFeatures, layers: int) -> Tensor:
        """The last hidden state (B, L, D) as if the last `layers` layers were not there, finally normed ("clip skip").

        `layers` counts as diffusers' `clip_skip` does: 0 is the usual output. AUTOMATIC1111's "Clip skip" is one more.
        """
        depth = len(features.hidden_states) - 1
        if not 0 <= layers < depth:
            raise InputError(f"{layers} of {depth} layers cannot be skipped", remedy=f"skip 0 to {depth - 1} layers")
        return self.final_layer_norm(features.hidden_states[depth - layers])

    def extended(self, vectors: Tensor) -> "TextEncoder":
        """A text encoder with `vectors` (n, D) appended to its token table, as ids vocab_size to vocab_size + n - 1.

        This encoder stays as it is. All other parameters are shared by both, not copied. (Textual inversion, Gal et al.
        2022, arXiv 2208.01618, learns such vectors.)
        """
        table = self.text_model.embeddings.token_embedding.weight
        if vectors.ndim != 2 or vectors.shape[1] != table.shape[1]:
            raise InputError(
                f"token vectors of shape {tuple(vectors.shape)} do not fit a table {table.shape[1]} wide",
                remedy=f"give a tensor of shape (n, {table.shape[1]}), learned for this text encoder",
            )
        longer = copy.deepcopy(self, {id(parameter): parameter for parameter in self.parameters()})
        rows = torch.cat([table.detach(), vectors.detach().to(table)])
        longer.text_model.embeddings.token_embedding = nn.Embedding.from_pretrained(rows, freeze=False)
        # The legacy rule "the highest id ends the text" would take an appended token for the end: name the true one.
        legacy = self.config.eos_token_id == LEGACY_EOS
        eos = self.config.vocab_size - 1 if legacy else self.config.eos_token_id
        longer.config = replace(self.config, vocab_size=len(rows), eos_token_id=eos)
        return longer


class TextTransformer(nn.Module):
    """Embeddings, layers, final norm: the `text_model.` of the checkpoints."""

    def __init__(self, config: TextConfig) -> None:
        super().__init__()
        self.embeddings = TextEmbeddings(config)
        self.encoder = TextLayers(config)
        self.final_layer_norm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)


class TextEmbeddings(nn.Module):
    """The token table, and learned positions added to what comes out of it."""

    def __init__(self, config: TextConfig) -> None:
        super().__init__()
        self.token_embedding = nn.Embedding(config.vocab_size, config.hidden_size)
        self.position_embedding = nn.Embedding(config.max_position_embeddings, config.hidden_size)
        nn.init.normal_(self.token_embedding.weight, std=0.02)
        nn.init.normal_(self.position_embedding.weight, std=0.01)

    def forward(self, token_embeddings: Tensor) -> Tensor:
        """Add positions 0..L-1 to token embeddings (B, L, D)."""
        positions = self.position_embedding.weight  # (max L, D)
        if token_embeddings.ndim != 3 or token_embeddings.shape[2] != positions.shape[1]:
            raise InputError(
                f"token embeddings of shape {tuple(token_embeddings.shape)} do not fit this text encoder",
                remedy=f"give a tensor of shape (batch, length, {positions.shape[1]})",
            )
        length, longest = token_embeddings.shape[1], positions.shape[0]
        if length > longest:
            raise InputError(
                f"a text of {length} tokens is longer than the text encoder's {longest} positions",
                remedy=f"encode it in pieces of at most {longest} tokens, begin and end of text included",
            )
        return token_embeddings + positions[:length]


class TextLayers(nn.Module):
    """The stack of transformer layers; every layer's output is kept."""

    def __init__(self, config: TextConfig) -> None:
        super().__init__()
        self.layers = nn.ModuleList(TextLayer(config) for _ in range(config.num_hidden_layers))

    def forward(self, x: Tensor, mask: Tensor | None = None) -> tuple[Tensor, ...]:
        """(B, L, D) -> the input and each layer's output, num_hidden_layers + 1 tensors (B, L, D).

        Attention is causal, as CLIP was trained, unless a `mask` says otherwise (see `kernels.attention`).
        """
        hidden_states = [x]
        for layer in self.layers:
            hidden_states.append(layer(hidden_states[-1], mask))
        return tuple(hidden_states)


class TextLayer(nn.Module):
    """Causal self-attention, then an MLP, each on the layer-normed input and added to it."""

    def __init__(self, config: TextConfig) -> None:
        super().__init__()
        self.self_attn = CausalSelfAttention(config)
        self.layer_norm1 = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.mlp = TextMLP(config)
        self.layer_norm2 = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        """(B, L, D) -> (B, L, D)."""
        x = x + self.self_attn(self.layer_norm1(x), mask)
        return x + self.mlp(self.layer_norm2(x))


class CausalSelfAttention(nn.Module):
    """Multi-head attention of each token to itself and those before it, or to those that a mask allows."""

    fast = False

    def __init__(self, config: TextConfig) -> None:
        super().__init__()
        width = config.hidden_size
        self.heads = config.num_attention_heads
        self.q_proj = Linear(width, width)
        self.k_proj = Linear(width, width)
        self.v_proj = Linear(width, width)
        self.out_proj = Linear(width, width)

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        """(B, L, D) -> (B, L, D)."""
        q, k, v = (self.split(projection(x)) for projection in (self.q_proj, self.k_proj, self.v_proj))
        y = attention(q, k, v, causal=mask is None, mask=mask, fast=self.fast)
        return self.out_proj(y.transpose(1, 2).flatten(2))

    def split(self, x: Tensor) -> Tensor:
        """(B, L, heads·d) -> (B, heads, L, d)."""
        return x.unflatten(2, (self.heads, -1)).transpose(1, 2)


class TextMLP(nn.Module):
    """Two linear layers with the config's activation between them."""

    def __init__(self, config: TextConfig) -> None:
        super().__init__()
        self.act = config.hidden_act
        self.fc1 = Linear(config.hidden_size, config.intermediate_size)
        self.fc2 = Linear(config.intermediate_size, config.hidden_size)

    def forward(self, x: Tensor) -> Tensor:
        """(B, L, D) -> (B, L, D)."""
        return self.fc2(self.fc1(x, act=self.act))
