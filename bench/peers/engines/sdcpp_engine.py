"""stable-diffusion.cpp by its Python package, which draws whole pictures only.

Its noise is its own, so its picture is another one than everyone else's: time and memory are what is learnt here. It
keeps weights as the file has them, in float16, whatever precision the others run in.
"""

from importlib.metadata import version

import numpy as np
from stable_diffusion_cpp import StableDiffusion


def versions():
    return {"stable-diffusion-cpp-python": version("stable-diffusion-cpp-python")}


def load(job):
    if job.part != "draw":
        raise NotImplementedError("its Python package draws whole pictures only")
    model = StableDiffusion(model_path=job.single, n_threads=job.threads, vae_decode_only=True, verbose=False)
    size = {"width": job.side, "height": job.side}

    def drawn(prompt, seed):
        images = model.generate_image(
            str(prompt), cfg_scale=7.5, sample_method="euler", sample_steps=job.steps, seed=int(seed), **size
        )
        return np.asarray(images[0]) / np.float32(255)

    return drawn
