"""What models and pipelines of diffusers and transformers return, and the configs they carry."""

from collections.abc import ItemsView, Iterator, KeysView, ValuesView
from dataclasses import dataclass, fields
from typing import Any

from torch import Tensor

from safelight.compat.randomness import DiagonalGaussianDistribution


class Output:
    """A dataclass that is read by attribute, by name, by position or as a dict, as the peers' outputs are.

    Fields that are None do not count: `out[1]` is the second field that has a value. Iterating gives the names.
    """

    def to_dict(self) -> dict[str, Any]:
        """Give the fields that have a value, by name."""
        values = {field.name: getattr(self, field.name) for field in fields(self)}  # type: ignore[arg-type]
        return {name: value for name, value in values.items() if value is not None}

    def to_tuple(self) -> tuple[Any, ...]:
        """Give the fields that have a value, in order."""
        return tuple(self.to_dict().values())

    def __getitem__(self, key: str | int | slice) -> Any:
        return self.to_dict()[key] if isinstance(key, str) else self.to_tuple()[key]

    def __setitem__(self, key: str, value: Any) -> None:
        setattr(self, key, value)

    def __contains__(self, key: object) -> bool:
        return key in self.to_dict()

    def __iter__(self) -> Iterator[str]:
        return iter(self.to_dict())

    def __len__(self) -> int:
        return len(self.to_dict())

    def keys(self) -> KeysView[str]:
        """Name the fields that have a value."""
        return self.to_dict().keys()

    def values(self) -> ValuesView[Any]:
        """Give the values that are not None."""
        return self.to_dict().values()

    def items(self) -> ItemsView[str, Any]:
        """Give names and values."""
        return self.to_dict().items()

    def get(self, key: str, default: Any = None) -> Any:
        """Look a field up, or give the default where it has no value."""
        return self.to_dict().get(key, default)


@dataclass
class UNet2DOutput(Output):
    """`sample` (B, C, H, W): what the plain U-Net predicts."""

    sample: Tensor


@dataclass
class UNet2DConditionOutput(Output):
    """`sample` (B, C, H, W): what the conditional U-Net predicts."""

    sample: Tensor


@dataclass
class AutoencoderKLOutput(Output):
    """`latent_dist`: the posterior, over latents that are not scaled."""

    latent_dist: DiagonalGaussianDistribution


@dataclass
class VQEncoderOutput(Output):
    """`latents` (B, C, h, w): not quantised, not scaled."""

    latents: Tensor


@dataclass
class DecoderOutput(Output):
    """`sample` (B, 3, H, W), the picture in [-1, 1]; `commit_loss` of a VQ model."""

    sample: Tensor
    commit_loss: Tensor | None = None


@dataclass
class ControlNetOutput(Output):
    """What to add to a U-Net: `down_block_res_samples`, first things first, and `mid_block_res_sample`."""

    down_block_res_samples: tuple[Tensor, ...]
    mid_block_res_sample: Tensor


@dataclass
class BaseModelOutput(Output):
    """`last_hidden_state` (B, L, D) before the final norm; `hidden_states`, where asked for: one more than layers."""

    last_hidden_state: Tensor
    hidden_states: tuple[Tensor, ...] | None = None


@dataclass
class BaseModelOutputWithPooling(Output):
    """`last_hidden_state` (B, L, D) after the final norm, `pooler_output` (B, D) at the end of text."""

    last_hidden_state: Tensor
    pooler_output: Tensor | None = None
    hidden_states: tuple[Tensor, ...] | None = None


@dataclass
class CLIPTextModelOutput(Output):
    """`text_embeds` (B, P), the projected pooled feature, and `last_hidden_state` (B, L, D)."""

    text_embeds: Tensor
    last_hidden_state: Tensor
    hidden_states: tuple[Tensor, ...] | None = None


@dataclass
class ImagePipelineOutput(Output):
    """`images`: PIL images, an array (B, H, W, 3) in [0, 1], or a tensor (B, 3, H, W), as `output_type` asked."""

    images: Any


@dataclass
class StableDiffusionPipelineOutput(Output):
    """`images` as in ImagePipelineOutput. `nsfw_content_detected` is None: nothing checks pictures here."""

    images: Any
    nsfw_content_detected: list[bool] | None = None


class Config(dict[str, Any]):
    """A config that is read as a dict and by attribute, and not written.

    `native` is Safelight's own config of the same network: what diffusers has no word for is looked up there.
    """

    def __init__(self, data: dict[str, Any], native: Any = None) -> None:
        super().__init__(data)
        self.__dict__["native"] = native

    def __getattr__(self, name: str) -> Any:
        if name in self:
            return self[name]
        if name != "native" and (native := self.__dict__.get("native")) is not None:
            return getattr(native, name)
        raise AttributeError(f"the config has no {name!r}; it has {', '.join(self)}")

    def __setattr__(self, name: str, value: Any) -> None:
        raise TypeError(f"a config is not written: make another model or scheduler with from_config({name}=...)")

    def __setitem__(self, name: str, value: Any) -> None:
        self.__setattr__(name, value)

    def __reduce__(self) -> Any:
        return type(self), (dict(self), self.__dict__["native"])
