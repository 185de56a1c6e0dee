"""`Face`: a network of Safelight behind another library's call shapes.

A face owns nothing. It shares the network's own tables of parts and parameters, so parameter names are equal, what a
script moves, trains or replaces in the face is moved, trained or replaced in the network, and no weight exists twice.
"""

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar, Self

import torch
from torch import Tensor, nn

from safelight.checkpoint.build import Plan
from safelight.checkpoint.files import read_json
from safelight.compat.loading import Options, save_network
from safelight.compat.outputs import Config
from safelight.errors import CheckpointError


class Face(nn.Module):
    """Give the face of `net`; `self.net` is the network itself."""

    net: nn.Module

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        object.__setattr__(self, "net", net)  # around nn.Module, which would register it as a part of its own
        for table in ("_parameters", "_buffers", "_modules"):
            object.__setattr__(self, table, getattr(net, table))
        self.training = net.training

    @property
    def dtype(self) -> torch.dtype:
        """The precision of the weights."""
        return self._floats().dtype

    @property
    def device(self) -> torch.device:
        """Where the weights live."""
        return self._floats().device

    def _floats(self) -> Tensor:
        return next(p for p in self.parameters() if p.is_floating_point())

    def train(self, mode: bool = True) -> Self:
        """Switch dropout on, or with `mode` False off."""
        self.net.train(mode)
        return super().train(mode)

    def num_parameters(self, only_trainable: bool = False, exclude_embeddings: bool = False) -> int:
        """Count the numbers in the weights."""
        skipped = {m.weight for m in self.modules() if isinstance(m, nn.Embedding)} if exclude_embeddings else set()
        kept = (p for p in self.parameters() if p not in skipped and (p.requires_grad or not only_trainable))
        return sum(p.numel() for p in kept)

    def __getattr__(self, name: str) -> Any:
        try:
            return super().__getattr__(name)
        except AttributeError:
            config = self.__dict__.get("_config")
            if config is not None and name in config:
                return config[name]
            raise AttributeError(f"{type(self).__name__} has no {name!r}") from None


class Pretrained(Face):
    """A face that is built from a config, loaded from a folder, and saved to one."""

    stem: ClassVar[str] = "diffusion_pytorch_model"  # of the weights' file

    def __init__(self, net: nn.Module, config: Mapping[str, Any]) -> None:
        super().__init__(net)
        object.__setattr__(self, "_config", Config(dict(config), net.config))

    @property
    def config(self) -> Config:
        """What config.json says: read as a dict or by attribute."""
        return self._config

    @classmethod
    def wrap(cls, net: nn.Module, config: Mapping[str, Any] | None = None) -> Self:
        """Give the face of a loaded network; `config` are entries of its file that the network does not need."""
        face = cls.__new__(cls)
        Pretrained.__init__(face, net, {**cls.describe(net), **(config or {})})
        return face

    @classmethod
    def describe(cls, net: Any) -> dict[str, Any]:
        """Write the network's config in the words of config.json."""
        return {**net.config.to_diffusers(), "_class_name": cls.__name__}

    @classmethod
    def plan(cls, folder: Path, variant: str | None) -> Plan[Any]:
        """Find the weights in a folder and check them against the network."""
        raise NotImplementedError

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path: str | os.PathLike[str], **options: Any) -> Self:
        """Load a folder, or the `subfolder=` of a model's, in float32 unless `torch_dtype=` (or `dtype=`) is given.

        Further options: `variant="fp16"`, `revision=`, `local_files_only=`. Raises CheckpointError or InputError.
        """
        chosen = Options.read(options)
        folder = chosen.locate(os.fspath(pretrained_model_name_or_path))
        config = read_json(folder / "config.json")
        declared = config.get("_class_name", cls.__name__)
        if declared != cls.__name__:
            what = f"is a {declared}, not a {cls.__name__}"
            raise CheckpointError(
                what, path=folder, key="_class_name", remedy=f"load it with {declared}.from_pretrained"
            )
        return cls.wrap(cls.plan(folder, chosen.variant).fill(dtype=chosen.dtype), config)

    @classmethod
    def from_config(cls, config: Mapping[str, Any], **changes: Any) -> Self:
        """Make an untrained network of another's `.config`, or of a dictionary."""
        return cls(**{key: value for key, value in {**config, **changes}.items() if not key.startswith("_")})

    def save_pretrained(self, save_directory: str | os.PathLike[str], **options: Any) -> None:
        """Write config.json and safetensors, whole or not at all; `variant=` and `max_shard_size=` as in diffusers."""
        save_network(Path(save_directory), self, self.config, self.stem, **options)
