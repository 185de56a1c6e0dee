"""What the diffusion course's introduction to Stable Diffusion does. `python course_introduction.py MODEL INPAINTING`.

The pipeline and its parts one by one, a scheduler swapped, a loop by hand, image to image, inpainting.
"""

import sys

import numpy as np
import torch
from diffusers import (
    LMSDiscreteScheduler,
    StableDiffusionImg2ImgPipeline,
    StableDiffusionInpaintPipeline,
    StableDiffusionPipeline,
)
from PIL import Image

results = {}  # what the test compares

model_id, inpainting_id = sys.argv[1:]
device = "cpu"
pipe = StableDiffusionPipeline.from_pretrained(model_id).to(device)
pipe.enable_attention_slicing()
pipe.set_progress_bar_config(disable=True)

generator = torch.Generator(device=device).manual_seed(42)
pipe_output = pipe(
    prompt="Palette knife painting of an autumn cityscape",
    negative_prompt="Oversaturated, blurry, low quality",
    height=48,
    width=64,
    guidance_scale=8,
    num_inference_steps=5,
    generator=generator,
)
results["picture"] = pipe_output.images
results["parts"] = sorted(pipe.components.keys())

# The autoencoder, round trip
images = torch.rand(1, 3, 64, 64, generator=generator) * 2 - 1
with torch.no_grad():
    latents = 0.18215 * pipe.vae.encode(images).latent_dist.mean
    decoded_images = pipe.vae.decode(latents / 0.18215).sample
results["latents"] = latents
results["round trip"] = decoded_images

# The tokenizer and the text encoder
input_ids = pipe.tokenizer(["A painting of a flooble"])["input_ids"]
results["ids"] = input_ids
results["pieces"] = [pipe.tokenizer.decode(input_id) for input_id in input_ids[0]]
input_ids = torch.tensor(input_ids).to(device)
with torch.no_grad():
    text_embeddings = pipe.text_encoder(input_ids)["last_hidden_state"]
results["embeddings"] = text_embeddings
text_embeddings = pipe._encode_prompt("A painting of a flooble", device, 1, True, "")
results["by the pipe"] = text_embeddings

# The U-Net
timestep = pipe.scheduler.timesteps[0]
latents = torch.randn(1, 4, 8, 8, generator=generator)
text_embeddings = torch.randn(1, 77, pipe.unet.config.cross_attention_dim, generator=generator)
with torch.no_grad():
    results["unet"] = pipe.unet(latents, 981, text_embeddings).sample

# The scheduler
results["alphas"] = pipe.scheduler.alphas_cumprod
pipe.scheduler = LMSDiscreteScheduler.from_config(pipe.scheduler.config)
keys = ("beta_start", "beta_end", "beta_schedule", "num_train_timesteps", "prediction_type")
results["config"] = {key: pipe.scheduler.config[key] for key in keys}
generator = torch.Generator(device=device).manual_seed(42)
out = pipe(prompt="Palette knife painting", num_inference_steps=5, generator=generator, output_type="np")
results["LMS"] = out.images

# A loop by hand
guidance_scale = 8
num_inference_steps = 6
prompt = "Beautiful picture of a wave breaking"
negative_prompt = "zoomed in, blurry, oversaturated, warped"
text_embeddings = pipe._encode_prompt(prompt, device, 1, True, negative_prompt)
latents = torch.randn((1, 4, 8, 8), device=device, generator=generator)
pipe.scheduler.set_timesteps(num_inference_steps, device=device)
latents *= pipe.scheduler.init_noise_sigma
for t in pipe.progress_bar(pipe.scheduler.timesteps):
    latent_model_input = torch.cat([latents] * 2)
    latent_model_input = pipe.scheduler.scale_model_input(latent_model_input, t)
    with torch.no_grad():
        noise_pred = pipe.unet(latent_model_input, t, encoder_hidden_states=text_embeddings).sample
    noise_pred_uncond, noise_pred_text = noise_pred.chunk(2)
    noise_pred = noise_pred_uncond + guidance_scale * (noise_pred_text - noise_pred_uncond)
    latents = pipe.scheduler.step(noise_pred, t, latents).prev_sample
with torch.no_grad():
    image = pipe.decode_latents(latents.detach())
results["by hand"] = image
results["by hand, as pictures"] = pipe.numpy_to_pil(image)

# Image to image
ys, xs = np.mgrid[0:64, 0:64] / 63
init_image = Image.fromarray((np.stack([ys, xs, ys * xs], -1) * 255).astype(np.uint8))
img2img_pipe = StableDiffusionImg2ImgPipeline.from_pretrained(model_id).to(device)
img2img_pipe.set_progress_bar_config(disable=True)
result_image = img2img_pipe(
    prompt="An oil painting of a man on a bench",
    image=init_image,
    strength=0.6,
    num_inference_steps=6,
    generator=torch.Generator().manual_seed(1),
).images[0]
results["image to image"] = [result_image]

# Inpainting
pipe = StableDiffusionInpaintPipeline.from_pretrained(inpainting_id)
pipe = pipe.to(device)
pipe.set_progress_bar_config(disable=True)
mask_image = Image.new("L", (64, 64))
mask_image.paste(255, (10, 20, 40, 60))
image = pipe(
    prompt="A small robot, high resolution, sitting on a park bench",
    image=init_image,
    mask_image=mask_image,
    num_inference_steps=5,
    height=64,
    width=64,
    generator=torch.Generator().manual_seed(1),
).images[0]
results["inpainting"] = [image]
