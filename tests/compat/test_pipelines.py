"""The pipelines end to end: the same call, in diffusers and here, draws the same picture."""

import pytest
from both import compare

TEXT_TO_IMAGE = """
import sys
import torch
from diffusers import StableDiffusionPipeline, {scheduler}
pipe = StableDiffusionPipeline.from_pretrained(sys.argv[1], safety_checker=None).to("cpu")
pipe.set_progress_bar_config(disable=True)
pipe.scheduler = {scheduler}.from_config(pipe.scheduler.config{options})
prompt = "a painting of an otter"
generator = torch.Generator().manual_seed(3)
results["array"] = pipe(prompt, generator=generator, num_inference_steps={steps}, output_type="np"{call}).images
"""

SCHEDULERS = {
    "PNDM": ("PNDMScheduler", "", ""),
    "PNDM with Runge-Kutta": ("PNDMScheduler", ", skip_prk_steps=False", ""),
    "DDIM": ("DDIMScheduler", "", ""),
    "DDIM eta 0.5": ("DDIMScheduler", "", ", eta=0.5"),
    "DDPM": ("DDPMScheduler", "", ""),
    "Euler": ("EulerDiscreteScheduler", "", ""),
    "Euler Karras": ("EulerDiscreteScheduler", ", use_karras_sigmas=True", ""),
    "Euler ancestral": ("EulerAncestralDiscreteScheduler", "", ""),
    "LMS": ("LMSDiscreteScheduler", "", ""),
    "Heun": ("HeunDiscreteScheduler", "", ""),
    "DPM2": ("KDPM2DiscreteScheduler", "", ""),
    "DPM2 ancestral": ("KDPM2AncestralDiscreteScheduler", "", ""),
    "DPM++ 2M": ("DPMSolverMultistepScheduler", "", ""),
    "DPM++ 2M Karras": ("DPMSolverMultistepScheduler", ", use_karras_sigmas=True", ""),
    "DPM++ 2M SDE": ("DPMSolverMultistepScheduler", ", algorithm_type='sde-dpmsolver++'", ""),
    "DPM++ 2S": ("DPMSolverSinglestepScheduler", "", ""),
    "UniPC": ("UniPCMultistepScheduler", "", ""),
    "DEIS": ("DEISMultistepScheduler", "", ""),
    "LCM": ("LCMScheduler", "", ""),
    "TCD": ("TCDScheduler", "", ""),
}


@pytest.mark.parametrize("name", SCHEDULERS)
def test_text_to_image_with_every_scheduler(name, model, record_property):
    scheduler, options, call = SCHEDULERS[name]
    text = TEXT_TO_IMAGE.format(scheduler=scheduler, options=options, call=call, steps=12)
    record_property("psnr", compare(text, model, name=name))
