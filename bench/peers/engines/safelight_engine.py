"""Safelight itself, as people call it: networks loaded and prepared, and `text_to_image`; with --int8 as well."""

import numpy as np
import torch
from torch import Tensor

import safelight
from safelight import kernels
from safelight.checkpoint.load import load_autoencoder, load_text_encoder, load_unet
from safelight.models.run import Run


def versions():
    return {"safelight": safelight.__version__, "torch": torch.__version__, "kernels": variant()}


def variant() -> str:
    found = [kernels.kernels_for(dtype) for dtype in (torch.float32, torch.bfloat16)]
    return ", ".join(one.variant.name for one in found if one) or "none"


def load(job):
    torch.set_num_threads(job.threads)
    dtype = getattr(torch, job.dtype)
    if job.mode == "int8" and job.part not in ("unet", "draw"):
        raise NotImplementedError("the linear layers of the U-Net alone are rounded")
    run = {"text": text, "unet": unet, "encode": encode, "decode": decode, "draw": draw}[job.part](job, dtype)

    @torch.no_grad()
    @kernels.reused()  # as whenever a picture is drawn
    def answer(**inputs):
        return run(**inputs).float().numpy()

    return answer


def prepared(network, mode=""):
    kernels.prepare(network, int8=mode == "int8")
    return network


def tensor(array, dtype) -> Tensor:
    return torch.from_numpy(array).to(dtype)


def text(job, dtype):
    encoder = prepared(load_text_encoder(job.model, dtype=dtype))
    return lambda ids: encoder(torch.from_numpy(ids)).last_hidden_state


def unet(job, dtype):
    network = prepared(load_unet(job.model, dtype=dtype), job.mode)
    run = prompts = None

    def step(x, t, context):
        nonlocal run, prompts
        if len(x) == len(context):
            return network(tensor(x, dtype), float(t), tensor(context, dtype))
        if run is None:  # a picture's timesteps and prompts are known before its first step
            run, prompts = Run(network, [float(t)]), tensor(context, dtype)
        return run(tensor(x, dtype), float(t), context=prompts)

    return step


def encode(job, dtype):
    autoencoder = prepared(load_autoencoder(job.model, dtype=dtype))
    return lambda picture: autoencoder.encode(tensor(picture, dtype)).mean


def decode(job, dtype):
    autoencoder = prepared(load_autoencoder(job.model, dtype=dtype))
    return lambda latent: autoencoder.decode(tensor(latent * autoencoder.config.scaling_factor, dtype))


def draw(job, dtype):
    model = safelight.load(job.model, dtype=dtype, int8=job.mode == "int8")
    size = {"width": job.side, "height": job.side}

    def drawn(prompt, seed):
        pictures = safelight.text_to_image(
            model, str(prompt), seed=int(seed), steps=job.steps, sampler="ddim", grid="leading", **size
        )
        return torch.from_numpy(np.asarray(pictures[0]) / np.float32(255))

    return drawn
