"""`convert`: a model in one form becomes a model in another."""

import re
from pathlib import Path
from typing import Any

import torch

from safelight.checkpoint.files import PICKLES
from safelight.checkpoint.load import load_parts
from safelight.checkpoint.parts import Parts
from safelight.checkpoint.save import save_folder, save_single_file
from safelight.errors import InputError, nearest

# A folder may be called sd-v1.5 or model.fp16; one called model.txt or model.safetensor is a slip.
LIKE_A_FILE = re.compile(r"\.(safetensors?|st|txt|json|gguf|onnx|zip|tar|h5|npz|model|weights)", re.IGNORECASE)
DTYPES = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}


def convert(
    source: str | Path,
    target: str | Path,
    *,
    dtype: torch.dtype | str | None = None,
    variant: str | None = None,
    max_shard_size: int | None = None,
    overwrite: bool = False,
    **options: Any,
) -> Parts:
    """Rewrite a model: a single file, a folder or a hub id as a single file or a folder. Return its parts.

    A target that ends in .safetensors is a single file in the CompVis layout, any other a diffusers folder, whose file
    names get `variant` and whose files are at most `max_shard_size` bytes long. The numbers are copied bit for bit
    unless `dtype` asks for others. `options` are those of `load_parts`. Raises InputError for a target that would be a
    pickle, that looks like another kind of file, or that exists: `overwrite` replaces a file, or a folder of nothing
    but a model.
    """
    target = Path(target)
    if target.suffix in PICKLES:
        raise InputError(f"{target.name}: pickles are not written", remedy="name a .safetensors file, or a folder")
    if target.suffix != ".safetensors" and LIKE_A_FILE.fullmatch(target.suffix) and not target.is_dir():
        raise InputError(f"{target.name} looks like a file's name", remedy="end it in .safetensors, or name a folder")
    if not overwrite and (target.is_file() or (target.is_dir() and any(target.iterdir()))):
        raise InputError(f"{target} exists", remedy="name another, or let it be replaced: --overwrite, overwrite=True")
    parts = load_parts(source, dtype=_dtype(dtype), **options)
    if target.suffix == ".safetensors":
        save_single_file(parts, target)
    else:
        save_folder(parts, target, variant=variant, max_shard_size=max_shard_size)
    return parts


def _dtype(dtype: torch.dtype | str | None) -> torch.dtype | None:
    if isinstance(dtype, str) and dtype not in DTYPES:
        raise InputError(f"dtype {dtype!r} is not written", remedy=nearest(dtype, DTYPES))
    return DTYPES[dtype] if isinstance(dtype, str) else dtype
