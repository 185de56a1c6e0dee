"""AutoencoderConfig: every first stage of the paper, in the words of diffusers' config.json."""

from collections.abc import Mapping
from dataclasses import dataclass, fields
from math import isfinite
from typing import Any

from safelight.errors import InputError, MissingPartError, nearest
from safelight.models.config import check_choice, check_types, frozen

__all__ = ["SD_SCALING_FACTOR", "AutoencoderConfig"]

# One over the standard deviation of the first batch of kl-f8 latents that Stable Diffusion was trained on.
SD_SCALING_FACTOR = 0.18215

# diffusers' name of a level -> whether an attention follows each of its residual blocks
DOWN_BLOCKS = {"DownEncoderBlock2D": False, "AttnDownEncoderBlock2D": True}
UP_BLOCKS = {"UpDecoderBlock2D": False, "AttnUpDecoderBlock2D": True}

VQ_ONLY = {"num_vq_embeddings", "vq_embed_dim", "lookup_from_codebook"}
KL_ONLY = {"shift_factor", "use_quant_conv", "use_post_quant_conv"}
# What config files may say beside the fields, and the values that mean the network drawn here.
FIXED: dict[str, tuple[Any, ...]] = {"act_fn": ("silu", "swish"), "latents_mean": (None,), "latents_std": (None,)}


@dataclass(frozen=True, kw_only=True)
class AutoencoderConfig:
    """The shape of an autoencoder; names and meanings are diffusers'.

    With `num_vq_embeddings` the bottleneck is a codebook (VQ) of so many vectors, without it a Gaussian (KL).
    `down_block_types`, `up_block_types` and `block_out_channels` name one level each; the first up block has the lowest
    resolution, the first down block the highest. Scaled latents are (raw - shift_factor)·scaling_factor.
    Raises InputError for a combination that is no network.
    """

    in_channels: int = 3
    out_channels: int = 3
    down_block_types: tuple[str, ...] = ("DownEncoderBlock2D",)
    up_block_types: tuple[str, ...] = ("UpDecoderBlock2D",)
    block_out_channels: tuple[int, ...] = (64,)
    layers_per_block: int = 1  # residual blocks per level of the encoder; the decoder has one more
    latent_channels: int = 4
    norm_num_groups: int = 32
    norm_type: str = "group"
    mid_block_add_attention: bool = True
    sample_size: int | tuple[int, int] = 32  # the side of the pictures it was trained on, pixels; changes nothing
    scaling_factor: float = 1.0
    shift_factor: float | None = None
    force_upcast: bool = False  # advice to the caller: float16 overflows in this decoder
    use_quant_conv: bool = True
    use_post_quant_conv: bool = True
    num_vq_embeddings: int | None = None
    vq_embed_dim: int | None = None  # the width of the codebook; None: latent_channels
    lookup_from_codebook: bool = False  # for diffusers: unquantised input of its decoder means codebook rows
    # For previews: scaled latents as colours, a row of RGB for each channel and one to add. In files "_latent_rgb",
    # since diffusers passes over what begins with an underscore.
    latent_rgb: tuple[tuple[float, ...], ...] | None = None

    def __post_init__(self) -> None:
        check_types(self, may_be_zero=("scaling_factor", "shift_factor"))
        self._check_levels("down_block_types", DOWN_BLOCKS)
        self._check_levels("up_block_types", UP_BLOCKS)
        if self.latent_rgb is not None and [len(row) for row in self.latent_rgb] != [3] * (self.embed_dim + 1):
            raise InputError("latent_rgb has another shape", remedy=f"give {self.embed_dim + 1} rows of 3 numbers")
        if self.scaling_factor == 0 or not isfinite(self.scaling_factor):
            raise InputError(f"scaling_factor cannot be {self.scaling_factor}", remedy="1 leaves latents as they are")
        if self.norm_type != "group":
            raise MissingPartError(f"norm_type {self.norm_type!r}", remedy='only "group" is drawn here')
        for name in self._foreign:
            if getattr(self, name) != DEFAULTS[name]:
                raise InputError(f"{name} does not exist in a {self.kind}", remedy=f"leave {name} out")

    def _check_levels(self, name: str, known: Mapping[str, bool]) -> None:
        types = getattr(self, name)
        for block in types:
            check_choice(name, block, list(known))
        if len(types) != len(self.block_out_channels):
            raise InputError(
                f"{name} names {len(types)} levels, block_out_channels {len(self.block_out_channels)}",
                remedy="give one of each for every level",
            )

    @property
    def kind(self) -> str:
        """The class that diffusers would load: "VQModel" with a codebook, "AutoencoderKL" without."""
        return "AutoencoderKL" if self.num_vq_embeddings is None else "VQModel"

    @property
    def factor(self) -> int:
        """How many pixels of a picture's side one pixel of its latent stands for: the paper's f."""
        return 2 ** (len(self.block_out_channels) - 1)

    @property
    def embed_dim(self) -> int:
        """Channels of the latents between encoder and decoder."""
        return self.latent_channels if self.vq_embed_dim is None else self.vq_embed_dim

    @property
    def _foreign(self) -> set[str]:
        """Fields that only the other kind has."""
        return VQ_ONLY if self.num_vq_embeddings is None else KL_ONLY

    @classmethod
    def from_diffusers(cls, config: Mapping[str, Any]) -> "AutoencoderConfig":
        """Read the config.json of an AutoencoderKL or a VQModel, with that class's own defaults for what is left out.

        One default is not diffusers': without a scaling_factor a VQModel has 1.0, not 0.18215. The configs of the
        published VQ models leave it out, and their latents are not scaled.
        Raises InputError for a key that is not known, MissingPartError for a value that means another network.
        """
        data = {key: value for key, value in config.items() if not key.startswith("_")}
        if "_latent_rgb" in config:
            data["latent_rgb"] = config["_latent_rgb"]
        kind = config.get("_class_name", "VQModel" if "num_vq_embeddings" in data else "AutoencoderKL")
        check_choice("_class_name", kind, list(DIFFUSERS_DEFAULTS))
        for key, allowed in FIXED.items():
            if key in data and data.pop(key) not in allowed:
                raise MissingPartError(f"{key} = {config[key]!r} in an autoencoder", remedy=f"known are: {allowed}")
        for key in data.keys() - DEFAULTS.keys():
            raise InputError(f"an autoencoder's config has no key {key!r}", remedy=nearest(key, DEFAULTS))
        return cls(**(DIFFUSERS_DEFAULTS[kind] | {key: frozen(value) for key, value in data.items()}))

    def to_diffusers(self) -> dict[str, Any]:
        """Give the content of a config.json: `AutoencoderConfig.from_diffusers(c.to_diffusers()) == c`."""
        only_vq = {"norm_type"} if self.num_vq_embeddings is None else set()
        left_out = self._foreign | only_vq | {"latent_rgb"}
        values = {name: getattr(self, name) for name in DEFAULTS if name not in left_out}
        lists = {name: list(value) if isinstance(value, tuple) else value for name, value in values.items()}
        colours = {} if self.latent_rgb is None else {"_latent_rgb": [list(row) for row in self.latent_rgb]}
        return {"_class_name": self.kind, "act_fn": "silu", **lists, **colours}


DEFAULTS = {field.name: field.default for field in fields(AutoencoderConfig)}
DIFFUSERS_DEFAULTS: dict[str, dict[str, Any]] = {
    "AutoencoderKL": {"scaling_factor": SD_SCALING_FACTOR, "force_upcast": True},
    "VQModel": {"latent_channels": 3, "num_vq_embeddings": 256},
}
