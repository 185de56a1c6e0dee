"""Every sampler once: a coroutine of 5 to 15 lines over a falling list of sigmas.

driver.py      the registry `SAMPLERS` and its decorator, `sample`, `drive`, and the dry run `visited`
onestep.py     Euler, Euler ancestral = DDIM, DDPM, Heun and EDM, DPM2, DPM2 ancestral

To add one, write a coroutine in the file of its kind and decorate it with `@sampler`; a new file is imported below.
"""

from safelight.diffusion.samplers import onestep
from safelight.diffusion.samplers.driver import (
    SAMPLERS,
    Denoise,
    Edit,
    Noise,
    Sampler,
    Step,
    Steps,
    Watch,
    drive,
    find,
    sample,
    sampler,
    visited,
)

__all__ = [
    "SAMPLERS",
    "Denoise",
    "Edit",
    "Noise",
    "Sampler",
    "Step",
    "Steps",
    "Watch",
    "drive",
    "find",
    "onestep",
    "sample",
    "sampler",
    "visited",
]
