"""What the machine has: the facts behind `safelight doctor` and `safelight models`."""

import os
import platform
import shutil
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

LIBRARIES = ("torch", "safetensors", "tokenizers", "huggingface_hub", "numpy", "Pillow", "pydantic", "typer", "rich")


def examine() -> dict[str, Any]:
    """Versions, devices, threads, precision, cache and free space, as names and values."""
    import torch
    from huggingface_hub import constants

    import safelight
    from safelight.kernels import report

    cuda = [torch.cuda.get_device_name(k) for k in range(torch.cuda.device_count())]
    home = str(Path.home())
    return {
        "safelight": safelight.__version__,
        "python": platform.python_version(),
        "system": f"{platform.system()} {platform.machine()}",
        **{name: _version(name) for name in LIBRARIES},
        "cuda": ", ".join(cuda) or "none",
        "mps": "yes" if torch.backends.mps.is_available() else "none",
        "cpu": f"{os.cpu_count()} cores, {torch.get_num_threads()} threads, {torch.backends.cpu.get_cpu_capability()}",
        "bfloat16 on this CPU": "native" if torch.ops.mkldnn._is_mkldnn_bf16_supported() else "emulated, slower",
        **{f"{name}, {dtype}": path for dtype, paths in report().items() for name, path in paths.items()},
        "model cache": constants.HF_HUB_CACHE.replace(home, "~"),
        "free space": f"{shutil.disk_usage(home).free / 1e9:.0f} GB",
    }


def cached_models() -> list[dict[str, Any]]:
    """The diffusion models in the hub's cache: id, size, revisions."""
    from huggingface_hub import CacheNotFound, scan_cache_dir

    try:
        repositories = scan_cache_dir().repos
    except CacheNotFound:
        return []
    return [
        {"model": one.repo_id, "size": f"{one.size_on_disk / 1e9:.2f} GB", "revisions": len(one.revisions)}
        for one in sorted(repositories, key=lambda one: one.repo_id)
        if one.repo_type == "model" and any(f.file_name == "model_index.json" for r in one.revisions for f in r.files)
    ]


def _version(name: str) -> str:
    try:
        return version(name)
    except PackageNotFoundError:
        return "not installed"
