"""diffusers' schedulers by name, over the same coroutines as `sample`: one row each, with diffusers' keys and defaults.

    scheduler = DDIMScheduler.from_pretrained("path/to/model", subfolder="scheduler")
    scheduler.set_timesteps(50)
    for t in scheduler.timesteps:
        output = unet(scheduler.scale_model_input(latents, t), t)
        latents = scheduler.step(output, t, latents).prev_sample

Timesteps and samples equal those of diffusers 0.42 (to 1e-4; diffusers computes its schedules in float32), and noise is
drawn as there. Where they differ on purpose, the class says so. All of them:

* have `pred_original_sample`, `get_velocity` and prediction_type "sample", where some of diffusers' lack them;
* go on from the sample they are given, and from the timestep they are given;
* take `timesteps` or `sigmas` of your own in `set_timesteps`.

config.py       from_config, from_pretrained, save_pretrained; the frozen config
grid.py         which timesteps and sigmas a config asks for
plan.py         the run: its grid, its evaluations, the place reached; add_noise
face.py         step, over a suspended coroutine
by_table.py  k_diffusion.py  dpm.py  distilled.py   the rows
"""

from safelight.diffusion.schedulers.by_table import DDIMScheduler, DDPMScheduler, PNDMScheduler
from safelight.diffusion.schedulers.config import SchedulerConfig
from safelight.diffusion.schedulers.distilled import LCMScheduler, TCDScheduler
from safelight.diffusion.schedulers.dpm import (
    DEISMultistepScheduler,
    DPMSolverMultistepScheduler,
    DPMSolverSinglestepScheduler,
    UniPCMultistepScheduler,
)
from safelight.diffusion.schedulers.face import Scheduler, SchedulerOutput, randn
from safelight.diffusion.schedulers.k_diffusion import (
    EulerAncestralDiscreteScheduler,
    EulerDiscreteScheduler,
    HeunDiscreteScheduler,
    KDPM2AncestralDiscreteScheduler,
    KDPM2DiscreteScheduler,
    LMSDiscreteScheduler,
)

__all__ = [
    "DDIMScheduler",
    "DDPMScheduler",
    "DEISMultistepScheduler",
    "DPMSolverMultistepScheduler",
    "DPMSolverSinglestepScheduler",
    "EulerAncestralDiscreteScheduler",
    "EulerDiscreteScheduler",
    "HeunDiscreteScheduler",
    "KDPM2AncestralDiscreteScheduler",
    "KDPM2DiscreteScheduler",
    "LCMScheduler",
    "LMSDiscreteScheduler",
    "PNDMScheduler",
    "Scheduler",
    "SchedulerConfig",
    "SchedulerOutput",
    "TCDScheduler",
    "UniPCMultistepScheduler",
    "randn",
]
