"""The denoising U-Net of latent diffusion and Stable Diffusion: one class, drawn from the levels of its config.

    x -- conv_in --+                                                    +-- conv_out -- output
                   | Res [Attention] ×n --------- skip --------- Res [Attention] ×(n+1) |
                   +-- down                                                     up -----+
                        | Res [Attention] ×n ---- skip ---- Res [Attention] ×(n+1) |
                        +-- down                                           up -----+
                                  ...   Res Attention Res   ...

The shape is that of Ronneberger et al. 2015 (arXiv 1505.04597), Ho et al. 2020 (arXiv 2006.11239) and Dhariwal & Nichol
2021 (arXiv 2105.05233); attention to a context is that of Rombach et al. 2022 (arXiv 2112.10752, section 3.3).
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from itertools import pairwise, zip_longest
from typing import Literal, NamedTuple, cast

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from safelight.errors import InputError
from safelight.models.attention import AttentionBlock, Transformer
from safelight.models.embedding import TimestepEmbedding, check_pooled, make_add_embedding, make_class_embedding, wave
from safelight.models.layers import Downsample, GroupNorm, ResBlock, Upsample, zero_init
from safelight.models.once import Once, fan_out
from safelight.models.unet_config import Level, UNetConfig

__all__ = ["UNet", "UNetConfig"]


class UNet(nn.Module):
    """Predicts, from a noisy latent, its timestep and a context, what the parameterization asks for (noise, or v).

    A new net predicts zero and each of its branches adds nothing: the second convolution of every residual block, the
    output projection of every attention and transformer, and `conv_out` begin at zero, as in the papers' code.
    Set `gradient_checkpointing` to compute activations again in the backward pass instead of keeping them.
    """

    def __init__(self, config: UNetConfig) -> None:
        super().__init__()
        self.config = c = config
        self.min_size = c.min_size
        self.gradient_checkpointing = False
        channels = c.block_out_channels[0]
        self.conv_in = nn.Conv2d(c.in_channels, channels, 3, padding=1)
        self.time_embedding = TimestepEmbedding(channels, c.emb_channels, c.outer_act_fn)
        self.class_embedding = make_class_embedding(c)
        self.add_embedding = make_add_embedding(c)

        self.down_blocks, skips = make_down(c)
        self.mid_block = make_mid(c)

        channels = skips[-1]
        self.up_blocks = nn.ModuleList()
        for level in c.up:
            widths = [channels] + [level.channels] * level.layers
            joined = [(a + skips.pop(), b) for a, b in pairwise(widths)]
            self.up_blocks.append(Block(c, level, joined))
            channels = level.channels

        self.conv_norm_out = GroupNorm(c.norm_num_groups, channels, c.norm_eps, act=c.outer_act_fn)
        self.conv_out = nn.Conv2d(channels, c.out_channels, 3, padding=1)
        self._zero_init()

    def forward(
        self,
        x: Tensor,
        timesteps: Tensor | float,
        context: Tensor | None = None,
        *,
        class_labels: Tensor | None = None,
        pooled: Tensor | None = None,
        added: "Added | None" = None,
    ) -> Tensor:
        """x (B, in_channels, H, W) in the net's dtype, any H and W -> (B, out_channels, H, W).

        `timesteps` is a number, a scalar tensor or (B,); fractions are welcome. `context` (B, L, cross_attention_dim)
        is for conditional nets, `class_labels` for nets with a class embedding: (B,) class numbers or timesteps, or
        (B, width) vectors, `pooled` (B, width) what Stable Diffusion XL is told beside the words (see `beside_words`);
        `added` is a ControlNet's. What is missing, too much or of the wrong size is an InputError.
        """
        self.check_inputs(x, context)
        emb = self.embed_time(timesteps, class_labels, pooled)
        if emb.shape[0] not in (1, x.shape[0]):
            raise InputError(
                f"There are {emb.shape[0]} timesteps, class labels or pooled vectors for a batch of {x.shape[0]}.",
                remedy="give one per picture, or one for all",
            )
        return self.forward_embedded(x, emb, context, added)

    def embed_time(
        self, timesteps: Tensor | float, class_labels: Tensor | None = None, pooled: Tensor | None = None
    ) -> Tensor:
        """Timesteps () or (B,), and what the net is told beside them -> embedding (1 or B, emb_channels).

        The same for every picture of a step, so a sampler may compute it ahead for all its steps.
        """
        if (class_labels is None) != (self.class_embedding is None):
            raise InputError(
                f"This U-Net {'needs' if class_labels is None else 'knows no'} class labels.",
                remedy="pass class_labels exactly when the config names a class embedding",
            )
        check_pooled(pooled, self.config)
        emb = self.time_embedding(self._wave(timesteps))
        if self.class_embedding is not None and class_labels is not None:
            if self.config.class_embed_type == "timestep":
                class_labels = self._wave(class_labels)
            elif self.config.class_embed_type is not None:
                class_labels = class_labels.to(self.dtype)
            emb = emb + self.class_embedding(class_labels)
        if self.add_embedding is not None and pooled is not None:
            emb = emb + self.add_embedding(pooled.to(self.dtype))
        return emb

    def embed_steps(self, timesteps: Sequence[float]) -> list[Once]:
        """For each timestep of a run what `forward_embedded` takes, and what every block takes from it, all at once."""
        emb = self.embed_time(torch.tensor(timesteps, dtype=torch.float32))
        return embed_steps(self, emb)

    def forward_embedded(
        self, x: Tensor, emb: Tensor | Once, context: Tensor | Once | None = None, added: "Added | None" = None
    ) -> Tensor:
        """The net proper: x (B, in_channels, H, W), emb from `embed_time`, context -> (B, out_channels, H, W).

        With a context of n·B rows each x is seen in n contexts, x after x: the result has n·B rows. Until the first
        cross-attention they agree, and are computed once if one emb is for all. `added` is a ControlNet's.
        """
        if context is not None and not isinstance(emb, Once) and len(emb) > 1:
            x, emb = fan_out(x, len(context)), fan_out(emb, len(context))
        first = self.enter(x)
        deep = self.deep(first, emb, context, added)
        return self.leave(deep, first if added is None else plus(first, added.skips[0]), emb, context)

    def enter(self, x: Tensor) -> Tensor:
        """The first convolution."""
        return self.conv_in(2 * x - 1 if self.config.center_input_sample else x)

    def deep(
        self, first: Tensor, emb: Tensor | Once, context: Tensor | Once | None = None, added: "Added | None" = None
    ) -> Tensor:
        """All between `enter` and `leave`: down, and up again to the last block's last layer."""
        layer, run = self._layer(emb, context), self._runner()
        x, skips = descend(self.down_blocks, self.mid_block, first, layer, run, emb)
        if added is not None:
            x, skips = plus(x, added.mid), [plus(skip, more) for skip, more in zip(skips, added.skips, strict=True)]

        for block in cast(Iterable[Block], self.up_blocks):
            for res, attention in block.layers():
                if len(skips) > 1:  # the last layer is for `leave`
                    x = layer(join(x, skips.pop()), res, attention)
            for up in block.upsamplers:
                x = run(up, x, emb, skips[-1].shape[-2:])  # twice the size, or one less where the way down rounded up
        return x

    def leave(self, deep: Tensor, first: Tensor, emb: Tensor | Once, context: Tensor | Once | None = None) -> Tensor:
        """The last layer, which sees `deep` beside the first convolution, and the way out."""
        *_, (res, attention) = cast(Block, self.up_blocks[-1]).layers()
        x = self._layer(emb, context)(join(deep, first), res, attention)
        return self.conv_out(self.conv_norm_out(x))

    @property
    def dtype(self) -> torch.dtype:
        """The dtype of the weights, and of what `forward` takes and gives."""
        return self.conv_in.weight.dtype

    def _wave(self, t: Tensor | float) -> Tensor:
        """Timesteps as sinusoids."""
        return wave(self.config, t, like=self.conv_in.weight)

    def _layer(self, emb: Tensor | Once, context: Tensor | Once | None) -> Callable[..., Tensor]:
        """A residual block and the attention that follows it, if one does."""
        run = self._runner()

        def layer(x: Tensor, res: nn.Module, attention: nn.Module | None) -> Tensor:
            x = run(res, x, emb)
            return x if attention is None else run(attention, x, context)

        return layer

    def _runner(self) -> Callable[..., Tensor]:
        """How forward calls a part: plainly, or so that its activations are computed again in the backward pass."""
        if self.gradient_checkpointing and torch.is_grad_enabled():
            return partial(checkpoint, use_reentrant=False)
        return lambda part, *inputs: part(*inputs)

    def _zero_init(self) -> None:
        zero_init(self.conv_out)
        for module in self.modules():
            if isinstance(module, ResBlock):
                zero_init(module.conv2)
            elif isinstance(module, Transformer):
                zero_init(module.proj_out)
            elif isinstance(module, AttentionBlock):
                zero_init(module.to_out)

    def check_inputs(self, x: Tensor, context: Tensor | None, contexts: int = 1) -> None:
        """Raise InputError unless x (B, ...) and a context of `contexts`·B rows fit this net."""
        c, channels = self.config, self.conv_in.weight.shape[1]  # a first layer may have been put in by hand
        if x.ndim != 4 or x.shape[1] != channels or min(x.shape[2:]) < self.min_size:
            raise InputError(
                f"The U-Net takes latents of shape (B, {channels}, H, W), H and W at least {self.min_size}, "
                f"but got {tuple(x.shape)}.",
                remedy=f"the {channels} channels are the noisy latent and all that the model sees beside it: "
                "mask and masked picture, depth, or a small picture",
            )
        if context is None and c.conditional:
            raise InputError(
                "This U-Net has cross-attention, but got no context.",
                remedy=f"pass context (B, L, {c.cross_attention_dim}), an embedded prompt; for no prompt, embed ''",
            )
        if context is not None and not c.conditional:
            raise InputError("This U-Net has no cross-attention, but got a context.", remedy="leave context out")
        rows = contexts * x.shape[0]
        if context is not None and (context.ndim != 3 or context.shape[::2] != (rows, c.cross_attention_dim)):
            raise InputError(
                f"The U-Net takes a context of shape ({rows}, L, {c.cross_attention_dim}), "
                f"but got {tuple(context.shape)}.",
                remedy="use the text encoder that belongs to this U-Net, and one prompt per picture",
            )


class Block(nn.Module):
    """The parts of one level: residual blocks, an attention for each if the level has them, and a resampler at the end.

    `channels` gives each residual block's input and output channels.
    """

    def __init__(self, config: UNetConfig, level: Level, channels: Iterable[tuple[int, int]]) -> None:
        super().__init__()
        self.resnets = nn.ModuleList(make_res_block(config, a, b) for a, b in channels)
        self.attentions = nn.ModuleList(make_attention(config, level) for _ in range(level.attentions))
        resamplers = [make_resampler(config, level)] if level.resample else []
        self.downsamplers = nn.ModuleList(resamplers if level.way == "down" else [])
        self.upsamplers = nn.ModuleList(resamplers if level.way == "up" else [])

    def layers(self) -> Iterator[tuple[nn.Module, nn.Module | None]]:
        """Each residual block with the attention that follows it, if one does."""
        return zip_longest(self.resnets, self.attentions)


class Added(NamedTuple):
    """What a ControlNet adds to what a U-Net leaves for its way up, first things first, and to its middle."""

    skips: tuple[Tensor, ...]
    mid: Tensor

    def scaled(self, scale: float) -> "Added":
        """By so much of it."""
        return self if scale == 1 else Added(tuple(scale * skip for skip in self.skips), scale * self.mid)


def plus(x: Tensor, more: Tensor) -> Tensor:
    """x and more of the same shape, either of which may be there once for several contexts."""
    rows = max(len(x), len(more))
    return fan_out(x, rows) + fan_out(more, rows)


def make_down(c: UNetConfig) -> tuple[nn.ModuleList, list[int]]:
    """The blocks of the way down, and the channels of each tensor that it leaves for the way up."""
    channels = c.block_out_channels[0]
    blocks, skips = nn.ModuleList(), [channels]
    for level in c.down:
        widths = [channels] + [level.channels] * level.layers
        blocks.append(Block(c, level, pairwise(widths)))
        channels = level.channels
        skips += [channels] * (level.layers + (level.resample is not None))
    return blocks, skips


def make_mid(c: UNetConfig) -> Block | None:
    """The block in the middle, if there is one."""
    channels = c.block_out_channels[-1]
    return Block(c, c.mid, [(channels, channels)] * c.mid.layers) if c.mid else None


def descend(
    down_blocks: nn.ModuleList, mid_block: nn.Module | None, x: Tensor, layer: Callable[..., Tensor],
    run: Callable[..., Tensor], emb: Tensor | Once,
) -> tuple[Tensor, list[Tensor]]:  # fmt: skip
    """Down and through the middle: what comes out, and what is left for the way up, of which x is the first.

    layer: computes a residual block and the attention after it. run: computes a part of (x, emb).
    """
    skips = [x]
    for block in cast(Iterable[Block], down_blocks):
        for res, attention in block.layers():
            x = layer(x, res, attention)
            skips.append(x)
        for down in block.downsamplers:
            x = run(down, x, emb)
            skips.append(x)
    if mid_block is not None:
        for res, attention in cast(Block, mid_block).layers():
            x = layer(x, res, attention)
    return x, skips


def embed_steps(network: nn.Module, emb: Tensor) -> list[Once]:
    """Each row of embeddings (N, emb_channels), and what every residual block takes from it, all at once."""
    taken = {m.project: m.project(emb) for m in network.modules() if isinstance(m, ResBlock)}
    return [Once(emb[i : i + 1], {part: e[i : i + 1] for part, e in taken.items()}) for i in range(len(emb))]


def join(x: Tensor, skip: Tensor) -> Tensor:
    """x, and behind its channels those that the way down has left, perhaps once for several contexts."""
    return torch.cat([x, fan_out(skip, len(x))], dim=1)


def make_res_block(
    c: UNetConfig, in_channels: int, out_channels: int, resample: Literal["down", "up"] | None = None
) -> ResBlock:
    """A residual block as config `c` wants it."""
    return ResBlock(
        in_channels,
        out_channels,
        emb_channels=c.emb_channels,
        groups=c.norm_num_groups,
        eps=c.norm_eps,
        dropout=c.dropout,
        act=c.act_fn,
        scale_shift=c.resnet_time_scale_shift == "scale_shift",
        resample=resample,
    )


def make_attention(c: UNetConfig, level: Level) -> AttentionBlock | Transformer:
    """The attention of one level: to itself, or also to the context."""
    if level.attention == "self":
        return AttentionBlock(level.channels, level.heads, groups=level.attention_groups, eps=c.norm_eps)
    return Transformer(
        level.channels,
        level.heads,
        c.cross_attention_dim,
        depth=level.depth,
        groups=c.norm_num_groups,
        linear_projection=c.use_linear_projection,
        only_cross_attention=level.only_cross_attention,
    )


def make_resampler(c: UNetConfig, level: Level) -> nn.Module:
    """What takes one level's resolution to the next."""
    if level.resample == "resnet":
        return make_res_block(c, level.channels, level.channels, "down" if level.way == "down" else "up")
    if level.way == "down":
        return Downsample(level.channels, padding=c.downsample_padding)
    return Upsample(level.channels)
