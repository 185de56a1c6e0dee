"""Run one text under the peers and under `safelight.compat`, which differ in the import lines alone, and compare."""

import re
import sys

import numpy as np
import torch
from PIL import Image

IMPORT = re.compile(r"from (?:diffusers|transformers)[\w.]* import")


def run(text, *arguments, ours, name="script"):
    """Execute a script with command-line arguments; its `results`, a dict, are what it drew."""
    if ours:
        text = IMPORT.sub("from safelight.compat import", text)
        assert not re.search(
            r"\b(diffusers|transformers)\b", "\n".join(re.findall(r"^(?:from|import) .*$", text, re.M))
        )
    before, sys.argv = sys.argv, [name, *arguments]
    torch.manual_seed(1234)
    scope = {"__name__": name, "results": {}}
    try:
        exec(compile(text, name, "exec"), scope)
    finally:
        sys.argv = before
    return scope["results"]


def compare(text, *arguments, name="script", least=60.0):
    """Run a text in both libraries; every result must agree to `least` dB. Gives the worst."""
    theirs = run(text, *arguments, ours=False, name=name)
    mine = run(text, *arguments, ours=True, name=name)
    assert theirs, "the script kept no results"
    assert mine.keys() == theirs.keys()
    levels = {key: agreement(mine[key], theirs[key]) for key in theirs}
    assert min(levels.values()) >= least, levels
    return float(min(levels.values()))


def agreement(a, b):
    """Peak signal-to-noise ratio in dB, the peak being 1 for pictures and the largest value for tensors; inf: equal."""
    if isinstance(a, dict):
        assert a.keys() == b.keys()
        return agreement(list(a.values()), [b[key] for key in a])
    if isinstance(a, list | tuple) and not all(isinstance(x, int) for x in a):
        assert len(a) == len(b)
        return min((agreement(x, y) for x, y in zip(a, b, strict=True)), default=float("inf"))
    if isinstance(a, Image.Image):
        assert a.size == b.size and a.mode == b.mode
        a, b = (np.asarray(x, dtype=np.float64) / 255 for x in (a, b))
    if isinstance(a, torch.Tensor | np.ndarray):
        a, b = (np.asarray(torch.as_tensor(x).detach(), dtype=np.float64) for x in (a, b))
        assert a.shape == b.shape, (a.shape, b.shape)
        assert np.isfinite(a).all() and np.isfinite(b).all()
        error = np.mean((a - b) ** 2)
        return float("inf") if error == 0 else 10 * np.log10(max(1.0, np.abs(b).max()) ** 2 / error)
    assert a == b, (a, b)
    return float("inf")
