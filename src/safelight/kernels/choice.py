"""Which kernels there are on this machine: found, built or missing, and told in words."""

import logging
import os
import subprocess
from functools import cache
from threading import Lock

import torch

from safelight.kernels import build
from safelight.kernels.native import Kernels

SWITCH = "SAFELIGHT_KERNELS"  # "off": torch everywhere
OPERATIONS = ("conv3x3", "group_norm", "attention", "geglu", "linear")
log = logging.getLogger(__name__)
_one_at_a_time = Lock()


def kernels_for(dtype: torch.dtype) -> Kernels | None:
    """The C kernels for tensors of a dtype on this CPU, or None: then torch computes."""
    if dtype not in (torch.float32, torch.bfloat16) or os.environ.get(SWITCH, "").lower() == "off":
        return None
    with _one_at_a_time:
        return _load(dtype)


@cache
def _load(dtype: torch.dtype) -> Kernels | None:
    name = str(dtype).removeprefix("torch.")
    variant = next((v for v in build.supported() if v.dtype == name), None)
    if variant is None:
        return None
    try:
        path = build.find(variant)
        if path is None:
            log.info("compiling the kernels %s into %s, once", variant.name, build.cache_folder())
            path = build.build(variant, build.cache_folder())
        return Kernels(variant, path)
    except (OSError, AttributeError, subprocess.CalledProcessError) as error:
        log.info("torch computes, since the kernels %s are missing: %s", variant.name, reason(error))
        return None


def reason(error: Exception) -> str:
    """What went wrong, with the compiler's own words where it spoke."""
    return f"{error}\n{error.stderr}" if isinstance(error, subprocess.CalledProcessError) else str(error)


NARROW = 64  # the widest head whose attention pays in float32


def pays(kernels: Kernels, operation: str, head: int = 0) -> bool:
    """Whether a C kernel is worth its call instead of torch's, as measured by `bench/kernels.py`.

    torch's float32 products are as fast on AVX2, so there attention is worth it for narrow heads alone, and a plain
    linear layer never. In bfloat16 torch is far behind without the CPU's help, and with AVX-512 a prototype of these
    kernels was ahead throughout.
    """
    if kernels.dtype != torch.float32:
        return True
    return head <= NARROW if operation == "attention" else operation != "linear"


def report() -> dict[str, str]:
    """What computes each operation on this machine's CPU, for each dtype of a network, in words."""
    return {str(d).removeprefix("torch."): _words(kernels_for(d)) for d in (torch.float32, torch.bfloat16)}


def _words(kernels: Kernels | None) -> str:
    if kernels is not None:
        fast = [name for name in OPERATIONS if pays(kernels, name)]
        slow = [name for name in OPERATIONS if not pays(kernels, name)]
        narrow = f" (heads to {NARROW})" if not pays(kernels, "attention", NARROW + 1) else ""
        words = f"C, {kernels.variant.name}: {', '.join(fast)}".replace("attention", "attention" + narrow)
        return words + (f"; torch: {', '.join(slow)}" if slow else "")
    if os.environ.get(SWITCH, "").lower() == "off":
        return f"torch, since {SWITCH}=off"
    if not build.supported():
        return "torch, since there are no kernels for this CPU"
    return "torch, since there is no C compiler" if build.compiler() is None else "torch, since compiling failed"
