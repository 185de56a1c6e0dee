"""Snapshots of power-function averages, stored along the way, and the average of any length made of them afterwards."""

import re
from pathlib import Path

import torch
from safetensors import safe_open
from torch import Tensor

from safelight.checkpoint.writing import outgoing, write_safetensors
from safelight.errors import InputError
from safelight.training.loop.capture import whole_tensors
from safelight.training.loop.distributed import World
from safelight.training.loop.ema import Averages, Power, combination

NAME = re.compile(r"step-(\d+)-power-([\d.]+)\.safetensors")


def take(folder: Path, averages: Averages, step: int, world: World) -> None:
    """Store every power-function average of the moment as folder/step-…-power-….safetensors. All processes call it."""
    if world.first:
        folder.mkdir(exist_ok=True)
    for profile in averages.profiles:
        if isinstance(profile, Power):
            tensors = whole_tensors(averages.tensors(profile.name), world)
            if world.first:
                write_safetensors(folder / f"step-{step:08d}-{profile.name}.safetensors", outgoing(tensors))


def stored(folder: Path) -> dict[tuple[int, float], Path]:
    """The snapshots in a folder, by step and sigma_rel."""
    matches = ((NAME.fullmatch(path.name), path) for path in sorted(folder.glob("step-*.safetensors")))
    return {(int(m[1]), float(m[2])): path for m, path in matches if m}


def average(folder: Path, sigma_rel: float, step: int | None = None) -> dict[str, Tensor]:
    """The average of length `sigma_rel` at `step` (the newest), made of the snapshots up to it: {"module.key": tensor}.

    Raises InputError without snapshots, or for a length that no average has.
    """
    snapshots = stored(folder)
    if not snapshots:
        raise InputError(f"{folder} holds no snapshots", remedy="train with --ema-lengths and --ema-snapshot-every")
    step = max(t for t, _ in snapshots) if step is None else step
    chosen = [key for key in snapshots if key[0] <= step]
    result: dict[str, Tensor] = {}
    for key, share in zip(chosen, combination(chosen, step, sigma_rel), strict=True):
        with safe_open(snapshots[key], framework="pt") as file:
            for name in file.keys():  # noqa: SIM118  (a file, not a dict)
                tensor = file.get_tensor(name).to(torch.float64) * float(share)
                result[name] = result[name].add_(tensor) if name in result else tensor
    return {name: tensor.to(torch.float32) for name, tensor in result.items()}
