"""The process's own random generators as tensors, to be saved with a run and set again: Python's, NumPy's and torch's.

Training draws its noise elsewhere (`noise`); these feed what asks the global generators, such as dropout.
"""

import random
from collections.abc import Mapping
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor


def seed_everything(seed: int) -> None:
    """Seed the three of them, on every device."""
    random.seed(seed)
    np.random.seed(seed % 2**32)
    torch.manual_seed(seed)


def rng_state(device: torch.device) -> dict[str, Tensor]:
    """Their states, always of the same shapes, on the CPU."""
    version, words, gauss = random.getstate()
    _, keys, place, has_gauss, cached = cast("tuple[str, Any, int, int, float]", np.random.get_state(legacy=True))
    states = {
        "python": torch.tensor([version, *words], dtype=torch.int64),
        "python.gauss": _optional(gauss),
        "numpy": torch.from_numpy(np.asarray(keys, dtype=np.int64)),
        "numpy.place": torch.tensor([place], dtype=torch.int64),
        "numpy.gauss": _optional(cached if has_gauss else None),
        "torch": torch.get_rng_state(),
    }
    if device.type == "mps":
        return states | {"mps": torch.mps.get_rng_state()}
    return states | ({"cuda": torch.cuda.get_rng_state(device)} if device.type == "cuda" else {})


def set_rng_state(states: Mapping[str, Tensor], device: torch.device) -> None:
    """Set them to what `rng_state` gave. A state of another kind of device is left aside."""
    version, *words = states["python"].tolist()
    random.setstate((version, tuple(words), _value(states["python.gauss"])))
    gauss = _value(states["numpy.gauss"])
    keys = states["numpy"].numpy().astype(np.uint32)
    np.random.set_state(("MT19937", keys, int(states["numpy.place"]), int(gauss is not None), gauss or 0.0))
    torch.set_rng_state(states["torch"])
    if device.type == "cuda" and "cuda" in states:
        torch.cuda.set_rng_state(states["cuda"], device)
    if device.type == "mps" and "mps" in states:
        torch.mps.set_rng_state(states["mps"])


def _optional(value: float | None) -> Tensor:
    return torch.tensor([0.0 if value is None else 1.0, value or 0.0], dtype=torch.float64)


def _value(pair: Tensor) -> float | None:
    there, value = pair.tolist()
    return value if there else None
