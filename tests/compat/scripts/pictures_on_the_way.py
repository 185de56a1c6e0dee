"""PNDM, decoded every few steps; gives x0 too where the scheduler has it. `python pictures_on_the_way.py MODEL`."""

import sys

import numpy as np
import torch
from diffusers import AutoencoderKL, DDIMScheduler, PNDMScheduler, UNet2DConditionModel
from PIL import Image
from transformers import CLIPTextModel, CLIPTokenizer

results = {}  # what the test compares

folder = sys.argv[1]
vae = AutoencoderKL.from_pretrained(folder, subfolder="vae")
tokenizer = CLIPTokenizer.from_pretrained(folder, subfolder="tokenizer")
text_encoder = CLIPTextModel.from_pretrained(folder, subfolder="text_encoder")
unet = UNet2DConditionModel.from_pretrained(folder, subfolder="unet")
text_encoder.requires_grad_(False)
vae.requires_grad_(False)
unet.requires_grad_(False)


def get_text_embeds(prompt):
    text_input = tokenizer(
        prompt, padding="max_length", max_length=tokenizer.model_max_length, truncation=True, return_tensors="pt"
    )
    uncond_input = tokenizer(
        [""] * len(prompt), padding="max_length", max_length=tokenizer.model_max_length, return_tensors="pt"
    )
    return torch.cat([text_encoder(uncond_input.input_ids)[0], text_encoder(text_input.input_ids)[0]])


def decode_img_latents(latents):
    imgs = vae.decode(latents / vae.config.scaling_factor, return_dict=False)[0]
    imgs = (imgs / 2 + 0.5).clamp(0, 1).permute(0, 2, 3, 1).numpy()
    return [Image.fromarray(image) for image in (imgs * 255).round().astype("uint8")]


def produce_latents(scheduler, text_embeddings, num_inference_steps=10, start_step=0, latents=None):
    if latents is None:
        latents = torch.randn((text_embeddings.shape[0] // 2, unet.config.in_channels, 8, 8))
    scheduler.set_timesteps(num_inference_steps)
    if start_step > 0:
        start_timestep = scheduler.timesteps[start_step]
        start_timesteps = start_timestep.repeat(latents.shape[0]).long()
        noise = torch.randn_like(latents)
        latents = scheduler.add_noise(latents, noise, start_timesteps)
    pictures = []
    for i, t in enumerate(scheduler.timesteps[start_step:]):
        latent_model_input = torch.cat([latents] * 2)
        noise_pred = unet(latent_model_input, t, encoder_hidden_states=text_embeddings)[0]
        noise_pred_uncond, noise_pred_text = noise_pred.chunk(2)
        noise_pred = noise_pred_uncond + 7.5 * (noise_pred_text - noise_pred_uncond)
        latents = scheduler.step(noise_pred, t, latents)["prev_sample"]
        if i % 3 == 0:
            pictures += decode_img_latents(latents)
    return latents, pictures


torch.manual_seed(2)
embeds = get_text_embeds(["an otter", "a hat on a cat"])
settings = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear", "num_train_timesteps": 1000}
for name, scheduler in {
    "PNDM": PNDMScheduler(**settings, skip_prk_steps=True, steps_offset=1),
    "PNDM, Runge-Kutta": PNDMScheduler(**settings),
    "DDIM": DDIMScheduler(**settings, clip_sample=False, set_alpha_to_one=False, steps_offset=1),
}.items():
    latents, pictures = produce_latents(scheduler, embeds)
    results[name] = pictures
    results[f"{name}, latents"] = latents
    if "Runge" in name:
        continue
    again, pictures = produce_latents(scheduler, embeds, start_step=3, latents=latents)
    results[f"{name}, begun at step 3"] = pictures
    results[f"{name}, begun at step 3, latents"] = again

x = np.asarray(results["DDIM"][0])
results["shape"] = x.shape
