"""`compiled`: the U-Net by way of torch.compile, block by block."""

import os
import shutil
from importlib.util import find_spec

import torch

from safelight import kernels
from safelight.errors import InputError
from safelight.models.attention import AttentionBlock, Transformer
from safelight.models.layers import ResBlock
from safelight.pipeline.bundle import LatentDiffusion

SHAPES = 64  # of blocks, each of which torch compiles for itself; it would give up after 8


def compiled(model: LatentDiffusion, *, backend: str = "inductor") -> LatentDiffusion:
    """The same model, each block of whose U-Net torch compiles when it is first called: for GPUs.

    Block by block (regional compilation), since blocks of one shape share their code, and the whole net takes minutes.
    The first picture of a size pays for it. What steps share is then computed at every step, and the C kernels of a CPU
    are left out; `backend` is torch.compile's. Raises InputError where what it needs to compile is missing.
    """
    if backend == "inductor" and (tool := _lacking(model.device)):
        remedy = f"install {tool}, or draw without compiling: everything works, a little slower"
        raise InputError(f"torch.compile needs {tool} for {model.device.type!r}, and finds none", remedy=remedy)
    import torch._dynamo.config

    torch._dynamo.config.recompile_limit = max(torch._dynamo.config.recompile_limit, SHAPES)
    kernels.prepare(model.unet, fast=False)
    for part in model.unet.modules():
        if isinstance(part, ResBlock | AttentionBlock | Transformer):
            part.compile(backend=backend, dynamic=False)  # kernels for every shape are slower
    return model


def _lacking(device: torch.device) -> str | None:
    """What torch.compile needs on a device and does not find."""
    if device.type == "cuda":
        return None if find_spec("triton") else "Triton"
    compiler = os.environ.get("CXX", "g++")
    return None if device.type != "cpu" or shutil.which(compiler) or shutil.which("clang++") else "a C++ compiler"
