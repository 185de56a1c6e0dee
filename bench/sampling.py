"""What each exact saving brings to a whole generation: with all of them, and without one, taking turns in one process.

    python bench/sampling.py [--model random] [--steps 8] [--side 256] [--rounds 3] [--threads 1]

Printed are medians of the process's CPU time as ratios to the run with all savings, so that a busy machine changes
little, and how far the latents are from that run's, of their norm: rounding, if a saving is exact.
"""

import argparse
import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from functools import partial
from statistics import median

import torch

import safelight
from safelight.kernels.choice import SWITCH
from safelight.pipeline import steering


@contextmanager
def without_kernels() -> Iterator[None]:
    os.environ[SWITCH] = "off"
    try:
        yield
    finally:
        del os.environ[SWITCH]


@contextmanager
def without_sharing() -> Iterator[None]:
    """Every step is computed for itself, as for a network that somebody has patched."""
    known, steering.untouched = steering.untouched, lambda unet: False
    try:
        yield
    finally:
        steering.untouched = known


VARIANTS = {
    "all savings": (nullcontext, {}),
    "without the C kernels": (without_kernels, {}),
    "without what steps share": (without_sharing, {}),
    "scale 1, one pass": (nullcontext, {"guidance_scale": 1.0}),
    "scale 1, two passes": (nullcontext, {"guidance_scale": 1.000001}),
}


def timed(draw: Callable[[], safelight.Pictures], around: Callable[[], object]) -> tuple[float, torch.Tensor]:
    with around():
        start = time.process_time()
        latents = draw().latents
        return time.process_time() - start, latents


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="random")
    parser.add_argument("--steps", type=int, default=8)
    parser.add_argument("--side", type=int, default=256)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=1)
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    model = safelight.load(given.model)
    settings = {"seed": 0, "steps": given.steps, "width": given.side, "height": given.side}
    times, latents = {name: [] for name in VARIANTS}, {}
    for _ in range(given.rounds + 1):  # the first warms up
        for name, (around, more) in VARIANTS.items():
            draw = partial(safelight.text_to_image, model, "a fox", **settings | more)
            seconds, latents[name] = timed(draw, around)
            times[name].append(seconds)
    print(f"torch {torch.__version__}, {given.threads} threads; {given.model}, {given.side}², {given.steps} steps")
    for name, seconds in times.items():
        base = "scale 1, one pass" if name.startswith("scale") else "all savings"
        far = float((latents[name] - latents[base]).norm() / latents[base].norm())
        usual, times_of_it = median(seconds[1:]), median(times[base][1:])
        print(f"{name:26} {usual:7.2f} s  x{usual / times_of_it:4.2f}  {far:.1e} away")


if __name__ == "__main__":
    main()
