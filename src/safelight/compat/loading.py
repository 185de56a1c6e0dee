"""Folders and files to networks, with the options of `from_pretrained`; the reading itself is the checkpoint room's."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import torch
from torch import nn

from safelight.checkpoint.load import locate
from safelight.checkpoint.writing import outgoing, write_json, write_weights
from safelight.compat.notes import explain
from safelight.errors import CheckpointError, InputError, nearest

DTYPES = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}
# Said in scripts, and of no meaning here: how the peers load, where they cache, whom they trust.
IDLE = {
    "use_auth_token", "token", "use_safetensors", "low_cpu_mem_usage", "device_map", "cache_dir", "force_download",
    "resume_download", "proxies", "trust_remote_code", "ignore_mismatched_sizes", "attn_implementation", "use_fast",
    "output_loading_info", "from_flax", "mirror", "original_config", "config", "disable_mmap", "load_safety_checker",
    "safety_checker", "feature_extractor", "requires_safety_checker", "image_encoder", "custom_revision", "provider",
    "use_onnx", "local_dir_use_symlinks", "clean_up_tokenization_spaces", "return_unused_kwargs",
}  # fmt: skip
HUB = {"variant", "revision", "local_files_only", "use_auth_token", "token", "cache_dir", "force_download",
       "use_safetensors", "torch_dtype", "dtype", "low_cpu_mem_usage", "resume_download", "proxies"}  # fmt: skip


@dataclass(frozen=True)
class Options:
    """What `from_pretrained` was told of where to load from, and in which precision."""

    subfolder: str | None = None
    variant: str | None = None
    revision: str | None = None
    local_files_only: bool = False
    dtype: torch.dtype | None = torch.float32  # None: that of the file

    @classmethod
    def read(cls, given: Mapping[str, Any], *, also: Mapping[str, Any] | None = None) -> Self:
        """Sort a script's keywords. Raises InputError for one that nobody knows; `also` names further known ones."""
        known = {"subfolder", "variant", "revision", "local_files_only"}
        said = {name: given[name] for name in known if given.get(name) is not None}
        for word in given.keys() - known - IDLE - {"torch_dtype", "dtype"} - (also or {}).keys():
            raise InputError(f"from_pretrained has no option {word!r}", remedy=nearest(word, sorted(known | IDLE)))
        if given.get("device_map") not in (None, "cpu"):
            explain("device_map= is not read here: move the model with .to(device).")
        return cls(**said, dtype=dtype_of(given))

    def locate(self, name: str | Path) -> Path:
        """Find the folder or file; a hub id is fetched, or found in the cache."""
        path = locate(name, variant=self.variant, revision=self.revision, local_files_only=self.local_files_only)
        if self.subfolder and not (path / self.subfolder).is_dir():
            there = sorted(p.name for p in path.iterdir() if p.is_dir()) if path.is_dir() else []
            remedy = nearest(self.subfolder, there) if there else "leave subfolder= out"
            raise CheckpointError(f"has no folder {self.subfolder!r}", path=path, remedy=remedy)
        return path / self.subfolder if self.subfolder else path


def dtype_of(given: Mapping[str, Any]) -> torch.dtype | None:
    """Read `torch_dtype` or `dtype`: float32 unless told otherwise; None, the file's own, for "auto"."""
    dtype = given.get("dtype") if given.get("dtype") is not None else given.get("torch_dtype")
    if dtype == "auto":
        return None
    if isinstance(dtype, str):
        if dtype not in DTYPES:
            raise InputError(f"torch_dtype={dtype!r} is not known", remedy=nearest(dtype, DTYPES))
        return DTYPES[dtype]
    return torch.float32 if dtype is None else dtype


def folder_of(name: str | Path, **given: Any) -> Path:
    """Find the folder that `from_pretrained(name, **given)` means."""
    return Options.read(given).locate(name)


def save_network(
    folder: str | Path,
    network: nn.Module,
    config: Mapping[str, Any],
    stem: str,
    *,
    variant: str | None = None,
    max_shard_size: int | str | None = None,
    **_: Any,
) -> None:
    """Write config.json and the weights, as safetensors, with the names that the peers look for."""
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    limit = _bytes(max_shard_size) if isinstance(max_shard_size, str) else max_shard_size
    write_weights(folder, stem, outgoing(network.state_dict()), variant=variant, max_shard_size=limit)
    write_json(folder / "config.json", {key: value for key, value in config.items() if key != "_name_or_path"})


def _bytes(size: str) -> int:
    """Read "10GB", "500MB" or "1GiB"."""
    units = {"KB": 10**3, "MB": 10**6, "GB": 10**9, "KIB": 2**10, "MIB": 2**20, "GIB": 2**30}
    number = size.upper().rstrip("KMGIB")
    unit = size.upper().removeprefix(number)
    if unit not in units or not number.strip().isdigit():
        raise InputError(f"max_shard_size={size!r} is no size", remedy='write it like "2GB", or as a number of bytes')
    return int(number) * units[unit]
