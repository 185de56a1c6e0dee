"""UNetConfig: every U-Net of the latent diffusion family, in the words of diffusers' config.json.

diffusers writes these nets with two classes, and one word means two things in them: `attention_head_dim` is the NUMBER
of heads in a cross-attention block (a slip that 40,000 config files now depend on) and the WIDTH of a head in a plain
attention block. The words are read here, once, and come out as a table of levels (`down`, `mid`, `up`) in which heads
are heads. `UNet` is drawn from that table.
"""

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any, Literal, cast

from safelight.errors import InputError, nearest
from safelight.models.config import check_choice, check_types, frozen
from safelight.models.layers import ACTIVATIONS

__all__ = ["Level", "UNetConfig"]

AttentionKind = Literal["self", "cross"]

# diffusers' name of a block -> the attention that follows each of its residual blocks
DOWN_BLOCKS: dict[str, AttentionKind | None] = {
    "DownBlock2D": None,
    "ResnetDownsampleBlock2D": None,
    "AttnDownBlock2D": "self",
    "CrossAttnDownBlock2D": "cross",
}
UP_BLOCKS: dict[str, AttentionKind | None] = {
    "UpBlock2D": None,
    "ResnetUpsampleBlock2D": None,
    "AttnUpBlock2D": "self",
    "CrossAttnUpBlock2D": "cross",
}
_CHOICES: dict[str, tuple[Any, ...]] = {
    "down_block_types": tuple(DOWN_BLOCKS),
    "mid_block_type": ("UNetMidBlock2D", "UNetMidBlock2DCrossAttn", None),
    "up_block_types": tuple(UP_BLOCKS),
    "act_fn": tuple(ACTIVATIONS),
    "class_embed_type": ("timestep", "identity", "projection", "simple_projection", None),
    "addition_embed_type": ("text_time", None),
    "resnet_time_scale_shift": ("default", "scale_shift"),
    "downsample_type": ("conv", "resnet"),
    "upsample_type": ("conv", "resnet"),
    "downsample_padding": (0, 1),
}


@dataclass(frozen=True, kw_only=True)
class Level:
    """One row of the drawing: what happens at one resolution, on the way down, in the middle, or on the way up."""

    way: Literal["down", "mid", "up"]
    channels: int
    layers: int  # residual blocks
    attention: AttentionKind | None  # None: no attention here
    heads: int  # of each attention
    attention_groups: int | None  # normalisation groups in front of a plain attention; None: no normalisation
    depth: int  # transformer blocks of each cross-attention
    only_cross_attention: bool
    resample: Literal["conv", "resnet"] | None  # how the level ends, if it changes the resolution

    @property
    def attentions(self) -> int:
        """How many: one after each residual block; in the middle one, between the two."""
        return 0 if self.attention is None else 1 if self.way == "mid" else self.layers


@dataclass(frozen=True, kw_only=True)
class UNetConfig:
    """The shape of a U-Net. Fields have diffusers' names, meanings and defaults; no weights depend on `sample_size`.

    Fields that read "per level" take one value for all levels or a tuple of one per level, highest resolution first.
    A net with a "CrossAttn" block is conditional (diffusers' UNet2DConditionModel: `forward` wants a context); one
    without is plain (UNet2DModel). A combination that makes no net is an InputError that names the field.
    """

    sample_size: int | tuple[int, int] | None = None  # side of the latents it was trained on
    in_channels: int = 4  # with what is concatenated: 9 for inpainting, 5 for depth, 7 for the x4 upscaler
    out_channels: int = 4
    center_input_sample: bool = False  # the input is in [0, 1] and is taken to [-1, 1]
    # The levels. Names are the keys of DOWN_BLOCKS and UP_BLOCKS; the first up block stands beside the last down block.
    down_block_types: tuple[str, ...] = ("CrossAttnDownBlock2D",) * 3 + ("DownBlock2D",)
    mid_block_type: str | None = "UNetMidBlock2DCrossAttn"
    up_block_types: tuple[str, ...] = ("UpBlock2D",) + ("CrossAttnUpBlock2D",) * 3
    block_out_channels: tuple[int, ...] = (320, 640, 1280, 1280)
    layers_per_block: int | tuple[int, ...] = 2  # per level, on the way down; on the way up it is one more
    # Residual blocks
    act_fn: str = "silu"
    dropout: float = 0.0
    norm_num_groups: int = 32
    norm_eps: float = 1e-5
    resnet_time_scale_shift: str = "default"  # "scale_shift": the embedding scales and shifts the second norm
    downsample_padding: int = 1
    downsample_type: str = "conv"  # of "AttnDownBlock2D" levels; "resnet": halve in a residual block (resblock_updown)
    upsample_type: str = "conv"  # of "AttnUpBlock2D" levels
    # Attention
    attention_head_dim: int | tuple[int, ...] | None = 8  # per level. Cross-attention: NUMBER of heads; plain: WIDTH
    cross_attention_dim: int = 1280  # width of the context
    transformer_layers_per_block: int | tuple[int, ...] = 1  # per level
    only_cross_attention: bool | tuple[bool, ...] = False  # per level: both attentions look at the context
    use_linear_projection: bool = False  # SD 2: the transformers' outer projections are linear layers
    upcast_attention: bool = False  # kept for the file's sake: the attention kernels sum in float32 in any case
    add_attention: bool = True  # plain nets: the middle has an attention
    attn_norm_num_groups: int | None = None  # plain nets with scale_shift: groups of the middle's attention norm
    # Time and class
    flip_sin_to_cos: bool = True  # cosines first
    freq_shift: int = 0
    time_embedding_dim: int | None = None  # width of the embedding; None: four times the first level's channels
    class_embed_type: str | None = None  # "timestep", "identity", "projection" or "simple_projection"
    num_class_embeds: int | None = None  # rows of a table of classes, where class_embed_type is None
    projection_class_embeddings_input_dim: int | None = None  # width of the two projections' labels, or what is pooled
    addition_embed_type: str | None = None  # "text_time": the text and sizes are told beside the words as well (SDXL)
    addition_time_embed_dim: int | None = None  # how wide each of those sizes is told

    def __post_init__(self) -> None:
        check_types(self, may_be_zero=("freq_shift", "downsample_padding", "dropout"))
        self._check_choices()
        self._check_lengths()
        _ = self.down, self.mid, self.up  # reading the levels checks the heads

    @property
    def conditional(self) -> bool:
        """Whether `forward` wants a context: some block has cross-attention."""
        return any("CrossAttn" in (name or "") for name in self._block_types)

    @property
    def pooled_width(self) -> int | None:
        """Width of the vector that tells of the whole text and of sizes (SDXL); None: none is told."""
        return self.projection_class_embeddings_input_dim if self.addition_embed_type else None

    @property
    def emb_channels(self) -> int:
        """Width of the embedding of time and class that every residual block receives."""
        return 4 * self.block_out_channels[0] if self.time_embedding_dim is None else self.time_embedding_dim

    @property
    def outer_act_fn(self) -> str:
        """The activation outside the levels: diffusers' plain net knows only SiLU there, whatever `act_fn` says."""
        return self.act_fn if self.conditional else "silu"

    @property
    def down(self) -> tuple[Level, ...]:
        """The levels on the way down, highest resolution first. The last keeps its resolution."""
        last = len(self.down_block_types) - 1
        return tuple(self._outer("down", i, name, ends=i == last) for i, name in enumerate(self.down_block_types))

    @property
    def mid(self) -> Level | None:
        """The middle: Res, Attention, Res; or the lone Res that "UNetMidBlock2D" means in a conditional net."""
        if self.mid_block_type is None:
            return None
        if self.mid_block_type == "UNetMidBlock2DCrossAttn":
            return self._level("mid", -1, "cross", 2)
        if self.conditional:
            return self._level("mid", -1, None, 1)
        return self._level("mid", -1, "self" if self.add_attention else None, 2)

    @property
    def up(self) -> tuple[Level, ...]:
        """The levels on the way up, lowest resolution first, each one residual block longer than on the way down."""
        names = list(enumerate(reversed(self.up_block_types)))
        return tuple(self._outer("up", i, name, ends=i == 0) for i, name in reversed(names))

    @property
    def min_size(self) -> int:
        """The smallest height and width of a latent: sides that are halved and rounded down must not vanish."""
        size = 1
        for level in reversed(self.down):
            rounds_up = level.resample == "conv" and self.downsample_padding == 1
            size = size if level.resample is None else 2 * size - rounds_up
        return size

    @classmethod
    def from_diffusers(cls, config: Mapping[str, Any]) -> "UNetConfig":
        """Read the config.json of a UNet2DConditionModel or a UNet2DModel, with that class's own defaults.

        Without "_class_name", block types with cross-attention, or none at all, mean a UNet2DConditionModel. Raises
        InputError for an unknown key or block, and for a key whose value asks for something this U-Net has not.
        """
        name = _class_name(config)
        given = {key: frozen(value) for key, value in config.items() if not key.startswith("_")}
        known = [field.name for field in fields(cls)]
        for key in given.keys() - set(known):
            _check_foreign(key, given[key], known)
        read = {key: value for key, value in given.items() if key in known}
        for key in ("down_block_types", "up_block_types"):
            if key in read:
                read[key] = _modern(read[key])
        if read.get("upcast_attention", False) is None:  # as Stable Diffusion XL's file says
            del read["upcast_attention"]
        if "cross_attention_dim" in read:
            read["cross_attention_dim"] = _common("cross_attention_dim", read["cross_attention_dim"])
        result = cls(**(_PLAIN_DEFAULTS | read if name == "UNet2DModel" else read))
        _check_class(result, name)
        return result

    def to_diffusers(self) -> dict[str, Any]:
        """Write diffusers' config.json: `UNetConfig.from_diffusers(c.to_diffusers()) == c` for every c.

        diffusers has no word for head widths that differ by level in a plain net (latent diffusion's LSUN churches).
        They are written all the same: Safelight reads them back, diffusers refuses them.
        """
        name, foreign = (
            ("UNet2DConditionModel", _PLAIN_ONLY) if self.conditional else ("UNet2DModel", _CONDITIONAL_ONLY)
        )
        written: dict[str, Any] = {"_class_name": name}
        for field in fields(self):
            value = getattr(self, field.name)
            if field.name not in foreign or value != field.default:
                written[field.name] = list(value) if isinstance(value, tuple) else value
        return written

    # How the levels are read off the fields; i counts from the highest resolution

    @property
    def _block_types(self) -> tuple[str | None, ...]:
        return (*self.down_block_types, self.mid_block_type, *self.up_block_types)

    def _outer(self, way: Literal["down", "up"], i: int, name: str, *, ends: bool) -> Level:
        """Level i, which is diffusers' block `name`; it `ends` the way if no other resolution follows."""
        kind, typed = (
            (DOWN_BLOCKS[name], self.downsample_type) if way == "down" else (UP_BLOCKS[name], self.upsample_type)
        )
        # The two types speak of plain attention blocks alone; the other blocks have it in their name.
        resnet = name.startswith("Resnet") or (kind == "self" and typed == "resnet")
        layers = self._at("layers_per_block", i) + (way == "up")
        return self._level(way, i, kind, layers, None if ends else "resnet" if resnet else "conv")

    def _level(
        self,
        way: Literal["down", "mid", "up"],
        i: int,
        kind: AttentionKind | None,
        layers: int,
        resample: Literal["conv", "resnet"] | None = None,
    ) -> Level:
        return Level(
            way=way,
            channels=self.block_out_channels[i],
            layers=layers,
            attention=kind,
            heads=self._heads(i, kind),
            attention_groups=self._mid_attention_groups if way == "mid" else self.norm_num_groups,
            depth=self._at("transformer_layers_per_block", i),
            only_cross_attention=way != "mid" and self._at("only_cross_attention", i),
            resample=resample,
        )

    def _heads(self, i: int, kind: AttentionKind | None) -> int:
        """The number of heads: attention_head_dim itself, or channels / attention_head_dim (see the module's head)."""
        channels, value = self.block_out_channels[i], self._at("attention_head_dim", i)
        if kind is None or (kind == "self" and value is None):
            return 1
        if value is None or value < 1 or channels % value:
            raise InputError(
                f"attention_head_dim {value!r} does not divide {channels} channels into heads.",
                remedy="it is the number of heads in CrossAttn blocks, and the width of one head in Attn blocks",
            )
        return cast(int, value if kind == "cross" else channels // value)

    @property
    def _mid_attention_groups(self) -> int | None:
        """The middle's plain attention has no normalisation beside scale_shift, unless the config asks for one."""
        if self.attn_norm_num_groups is None and self.resnet_time_scale_shift == "default":
            return self.norm_num_groups
        return self.attn_norm_num_groups

    def _at(self, field: str, i: int) -> Any:
        """The value of a "per level" field at level i."""
        value = getattr(self, field)
        return value[i] if isinstance(value, tuple) else value

    # What makes no net

    def _check_choices(self) -> None:
        for field, choices in _CHOICES.items():
            value = getattr(self, field)
            for name in value if field in ("down_block_types", "up_block_types") else (value,):
                check_choice(field, name, choices)
        if "projection" in (self.class_embed_type or "") and self.projection_class_embeddings_input_dim is None:
            raise InputError(
                f"class_embed_type {self.class_embed_type!r} needs projection_class_embeddings_input_dim.",
                remedy="give the width of the class labels",
            )
        if self.addition_embed_type and not (self.pooled_width and self.addition_time_embed_dim):
            needed = "projection_class_embeddings_input_dim and addition_time_embed_dim"
            raise InputError(f"addition_embed_type {self.addition_embed_type!r} needs {needed}.", remedy="give both")

    def _check_lengths(self) -> None:
        levels = len(self.block_out_channels)
        for field in fields(self):
            value = getattr(self, field.name)
            if field.name != "sample_size" and isinstance(value, tuple) and len(value) != levels:
                raise InputError(
                    f"{field.name} has {len(value)} entries for the {levels} levels of block_out_channels.",
                    remedy="give one entry per level",
                )


# Translation to and from diffusers' config.json

# Where UNet2DModel's defaults are other than UNet2DConditionModel's, which are UNetConfig's own.
_PLAIN_DEFAULTS: dict[str, Any] = {
    "in_channels": 3,
    "out_channels": 3,
    "down_block_types": ("DownBlock2D",) + ("AttnDownBlock2D",) * 3,
    "mid_block_type": "UNetMidBlock2D",
    "up_block_types": ("AttnUpBlock2D",) * 3 + ("UpBlock2D",),
    "block_out_channels": (224, 448, 672, 896),
}
_PLAIN_ONLY = {"add_attention", "attn_norm_num_groups", "downsample_type", "upsample_type"}
_CONDITIONAL_ONLY = {
    "cross_attention_dim",
    "transformer_layers_per_block",
    "only_cross_attention",
    "use_linear_projection",
    "upcast_attention",
    "projection_class_embeddings_input_dim",
    "addition_embed_type",
    "addition_time_embed_dim",
}
# Keys without a field: the value, diffusers' default, that asks for nothing this U-Net lacks.
_FIXED: dict[str, Any] = {
    "attention_type": "default",
    "class_embeddings_concat": False,
    "conv_in_kernel": 3,
    "conv_out_kernel": 3,
    "cross_attention_norm": None,
    "dual_cross_attention": False,
    "encoder_hid_dim": None,
    "encoder_hid_dim_type": None,
    "mid_block_scale_factor": 1,
    "num_attention_heads": None,
    "resnet_out_scale_factor": 1,
    "resnet_skip_time_act": False,
    "reverse_transformer_layers_per_block": None,
    "time_cond_proj_dim": None,
    "time_embedding_act_fn": None,
    "time_embedding_type": "positional",
    "timestep_post_act": None,
}
# Keys that matter only beside a value that _FIXED refuses.
_IDLE = {
    "addition_embed_type_num_heads",
    "mid_block_only_cross_attention",
    "num_train_timesteps",
    # of a training's average of weights, which some files have kept
    *("decay", "inv_gamma", "min_decay", "optimization_step", "power", "update_after_step", "use_ema_warmup"),
}


def _class_name(config: Mapping[str, Any]) -> str:
    blocks = " ".join(str(config.get(key, "")) for key in ("down_block_types", "mid_block_type", "up_block_types"))
    plain = "Block" in blocks and "CrossAttn" not in blocks
    name = config.get("_class_name", "UNet2DModel" if plain else "UNet2DConditionModel")
    check_choice("_class_name", name, ("UNet2DConditionModel", "UNet2DModel"))
    return cast(str, name)


def _modern(blocks: Any) -> Any:
    """Names of blocks without the "UNetRes" that the first diffusers put in front of them."""
    return tuple(str(name).removeprefix("UNetRes") for name in blocks) if isinstance(blocks, tuple) else blocks


def _check_class(config: UNetConfig, name: str) -> None:
    """Refuse the few configs that diffusers' class `name` reads otherwise than UNetConfig does, or not at all."""
    plain_attention = any((block or "").startswith("Attn") for block in config._block_types)
    if name == "UNet2DModel" and config.conditional:
        trouble = "cross-attention blocks in a UNet2DModel"
    elif name == "UNet2DConditionModel" and not config.conditional:
        trouble = "no cross-attention block in a UNet2DConditionModel"
    elif name == "UNet2DConditionModel" and plain_attention and not _all_equal(config.attention_head_dim):
        trouble = "attention_head_dim per level with Attn blocks, which diffusers reads in two orders"
    else:
        return
    raise InputError(f"The U-Net config has {trouble}.", remedy='set "_class_name" to the class that its blocks want')


def _check_foreign(key: str, value: Any, known: list[str]) -> None:
    """Let a key without a field pass if it changes nothing."""
    if key in _IDLE or (key in _FIXED and value == _FIXED[key]):
        return
    if key in _FIXED:
        raise InputError(
            f"The U-Net config asks for {key} = {value!r}; this U-Net has only {_FIXED[key]!r}.",
            remedy="choose a model of Stable Diffusion 1, 2 or XL, or of the latent diffusion family",
        )
    raise InputError(f"The U-Net config has an unknown key {key!r}.", remedy=nearest(key, [*known, *_FIXED]))


def _common(field: str, value: Any) -> Any:
    """The one value of an entry that diffusers allows per level, but that cannot differ."""
    if not _all_equal(value):
        raise InputError(f"{field} {value} differs by level, but there is one context.", remedy="give one width")
    return value[0] if isinstance(value, tuple) else value


def _all_equal(value: Any) -> bool:
    return not isinstance(value, tuple) or len(set(value)) == 1
