"""diffusers and transformers on torch: eager, or compiled by torch.compile with max-autotune off (it takes hours)."""

import os

os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
os.environ.setdefault("DIFFUSERS_VERBOSITY", "error")

import diffusers
import numpy as np
import torch
import transformers
from diffusers import AutoencoderKL, DDIMScheduler, StableDiffusionPipeline, UNet2DConditionModel
from transformers import CLIPTextModel


def versions():
    return {one.__name__: one.__version__ for one in (diffusers, transformers, torch)}


def load(job):
    torch.set_num_threads(job.threads)
    os.environ["TORCHINDUCTOR_CACHE_DIR"] = f"{job.cache}/inductor"
    dtype = getattr(torch, job.dtype)
    run = {"text": text, "unet": unet, "encode": encode, "decode": decode, "draw": draw}[job.part](job, dtype)

    @torch.no_grad()
    def answer(**inputs):
        return run(**inputs).float().numpy()

    return answer


def compiled(call, job):
    """The call, compiled if the job says so: the shapes are fixed, and the weights frozen into the graph."""
    if job.mode != "compiled":
        return call
    import torch._inductor.config

    torch._inductor.config.freezing = True
    return torch.compile(call, dynamic=False)


def laid_out(network):
    """Channels last, the layout that torch's convolutions are fastest with."""
    return network.to(memory_format=torch.channels_last).eval()


def tensor(array, dtype):
    return torch.from_numpy(array).to(dtype)


def text(job, dtype):
    encoder = CLIPTextModel.from_pretrained(job.model, subfolder="text_encoder", dtype=dtype)
    call = compiled(encoder, job)
    return lambda ids: call(torch.from_numpy(ids)).last_hidden_state


def unet(job, dtype):
    network = laid_out(UNet2DConditionModel.from_pretrained(job.model, subfolder="unet", torch_dtype=dtype))
    call = compiled(network, job)

    def step(x, t, context):
        x = np.repeat(x, len(context) // len(x), axis=0)  # as its pipelines do
        return call(tensor(x, dtype), torch.tensor(float(t)), tensor(context, dtype)).sample

    return step


def autoencoder(job, dtype):
    return laid_out(AutoencoderKL.from_pretrained(job.model, subfolder="vae", torch_dtype=dtype))


def encode(job, dtype):
    call = compiled(autoencoder(job, dtype).encode, job)
    return lambda picture: call(tensor(picture, dtype)).latent_dist.mean


def decode(job, dtype):
    call = compiled(autoencoder(job, dtype).decode, job)
    return lambda latent: call(tensor(latent, dtype)).sample


def draw(job, dtype):
    pipe = StableDiffusionPipeline.from_pretrained(job.model, torch_dtype=dtype)
    pipe.scheduler = DDIMScheduler.from_config(pipe.scheduler.config, clip_sample=False)  # as for latents
    pipe.set_progress_bar_config(disable=True)
    for network in (pipe.unet, pipe.vae):
        laid_out(network)
    pipe.unet.forward = compiled(pipe.unet.forward, job)
    pipe.vae.decode = compiled(pipe.vae.decode, job)

    size = {"width": job.side, "height": job.side}

    def drawn(prompt, seed):
        generator = torch.Generator().manual_seed(int(seed))
        done = pipe(str(prompt), generator=generator, num_inference_steps=job.steps, output_type="np", **size)
        return torch.from_numpy(done.images[0])

    return drawn
