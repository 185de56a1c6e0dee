"""Which kernels there are on this machine: found, built or missing, where they pay, and both told in words."""

import logging
import os
import subprocess
from threading import Lock
from typing import Literal

import torch

from safelight.kernels import build
from safelight.kernels.native import Kernels

SWITCH = "SAFELIGHT_KERNELS"  # "off": torch everywhere
OFF = f"{SWITCH}=off"
DTYPES = (torch.float32, torch.bfloat16)
log = logging.getLogger(__name__)
_one_at_a_time = Lock()
_loaded: dict[torch.dtype, Kernels | str] = {}

FEW = 2  # tiles of 4x4 pixels, for which transforming a convolution's weights takes longer than all its products
FEW_DOWN = 8  # with stride 2, which the transform is not for; torch is as fast with more
HEAVY = 2_000_000  # weights of a convolution, from which on torch falls off where they meet so few pixels
# What a call must have at least so that C is the faster, as `bench/kernels.py` shows on a CPU with AVX2.
LEAST = {
    "conv3x3": (FEW + 1, "tiles of 4x4 pixels (of not too many weights)"),
    "group_norm": (8192, "values"),
    "attention": (256, "queries"),
    "causal attention": (64, "queries"),
    "geglu": (32, "rows"),
    "linear_int8": (1, "rows"),
}
LEAST_OF = {
    "avx2": {"linear": 1},
    "avx512_bf16": {"linear": 1},  # as fast as torch's, and what stands beside it is added before rounding
    "avx2_bf16": {"conv3x3": 1, "geglu": 8, "linear": 8},  # where torch computes bfloat16 without the CPU's help
}
NARROW = 64  # the widest head whose attention pays in float32
LARGE = 500_000  # weights of a linear layer, from which on float32 pays: they come from main memory then


def kernels_for(dtype: torch.dtype) -> Kernels | None:
    """The C kernels for tensors of a dtype on this CPU, or None: then torch computes."""
    found = _found(dtype)
    return found if isinstance(found, Kernels) else None


def pays(kernels: Kernels, operation: str, size: int, *, head: int = 0, weights: int = LARGE) -> bool:
    """Whether a C kernel is worth its call instead of torch's; `size` is counted in the units of `LEAST`.

    torch's float32 products are as fast on AVX2, so attention is left to torch unless its heads are narrow, and a plain
    linear layer unless it has many weights.
    """
    least = _least(kernels, operation)
    enough = weights >= _fewest(kernels, operation) and head <= (_widest(kernels, operation) or head)
    return least is not None and size >= least and enough


def convolution(kernels: Kernels, tiles: int, weights: int, down: bool) -> Literal["winograd", "linear", "torch"]:
    """How a 3x3 convolution of so many weights that gives so many tiles is fastest; with `down` its stride is 2.

    `linear` is a linear layer of each pixel's neighbours, in C.
    """
    emulated = kernels.variant.name == "avx2_bf16"
    if tiles <= (FEW_DOWN if down else FEW):
        return "linear" if weights >= HEAVY or emulated else "torch"
    if down:
        return "linear" if emulated else "torch"
    return "winograd"


def _least(kernels: Kernels, operation: str) -> int | None:
    usual = LEAST[operation][0] if operation in LEAST else None
    return LEAST_OF.get(kernels.variant.name, {}).get(operation, usual)


def _fewest(kernels: Kernels, operation: str) -> int:
    return LARGE if operation == "linear" and kernels.dtype == torch.float32 else 0


def _widest(kernels: Kernels, operation: str) -> int | None:
    return NARROW if operation.endswith("attention") and kernels.dtype == torch.float32 else None


def _found(dtype: torch.dtype) -> Kernels | str:
    """The kernels for a dtype, or why there are none."""
    if os.environ.get(SWITCH, "").lower() == "off":
        return OFF
    if (found := _loaded.get(dtype)) is None:
        with _one_at_a_time:
            found = _loaded[dtype] = _loaded.get(dtype) or _load(dtype)
    return found


def _load(dtype: torch.dtype) -> Kernels | str:
    name = str(dtype).removeprefix("torch.")
    variant = next((v for v in build.supported() if v.dtype == name), None)
    if variant is None:
        return "there are none for this CPU" if dtype in DTYPES else f"there are none for {name}"
    try:
        path = build.find(variant)
        if path is None:
            log.info("compiling the kernels %s into %s, once", variant.name, build.cache_folder())
            path = build.build(variant, build.cache_folder())
        return Kernels(variant, path)
    except (OSError, RuntimeError, AttributeError, subprocess.CalledProcessError) as error:
        log.info("torch computes, since the kernels %s are missing: %s", variant.name, _told(error))
        return _told(error).splitlines()[0]


def _told(error: Exception) -> str:
    """What went wrong, with the compiler's own words where it spoke."""
    if isinstance(error, subprocess.CalledProcessError):
        return f"the C compiler failed: {error.stderr.strip() or error}"
    return str(error)


def report() -> dict[str, dict[str, str]]:
    """For each dtype that networks run in, what computes each operation on this CPU, and why, in words."""
    return {str(dtype).removeprefix("torch."): _paths(_found(dtype)) for dtype in DTYPES}


def _paths(found: Kernels | str) -> dict[str, str]:
    return {operation: _path(found, operation) for operation in (*LEAST, "linear")}


def _path(found: Kernels | str, operation: str) -> str:
    if isinstance(found, str):
        return f"torch: {found}"
    least, widest, fewest = _least(found, operation), _widest(found, operation), _fewest(found, operation)
    if least is None:
        return "torch: as fast"
    unit = LEAST[operation][1] if operation in LEAST else "rows"
    slow = [f"fewer than {least} {unit}"] * (least > 1) + [f"heads wider than {widest}"] * (widest is not None)
    slow += [f"fewer than {fewest} weights"] * (fewest > 0)
    return f"C ({found.variant.name})" + (f"; torch for {' and '.join(slow)}, where it is faster" if slow else "")
