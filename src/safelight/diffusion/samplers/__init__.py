"""Every sampler once: a coroutine of 5 to 15 lines over a falling list of sigmas.

driver.py      the registry `SAMPLERS` and its decorator, `sample`, `drive`, and the dry run `visited`
onestep.py     Euler, Euler ancestral = DDIM, DDPM, Heun and EDM, DPM2, DPM2 ancestral
multistep.py   PLMS, PNDM, LMS, DEIS
dpmsolver.py   DPM-Solver and DPM-Solver++, multistep and singlestep
unipc.py       UniPC
dpmpp.py       DPM++ 2M, 2S ancestral, SDE, 2M SDE, 3M SDE, as in k-diffusion
adaptive.py    DPM fast, DPM adaptive
restart.py     Restart
distilled.py   LCM, TCD

To add one, write a coroutine in the file of its kind and decorate it with `@sampler`; a new file is imported below.
"""

from safelight.diffusion.samplers import adaptive, distilled, dpmpp, dpmsolver, multistep, onestep, restart, unipc
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
    "adaptive",
    "distilled",
    "dpmpp",
    "dpmsolver",
    "drive",
    "find",
    "multistep",
    "onestep",
    "restart",
    "sample",
    "sampler",
    "unipc",
    "visited",
]
