"""What the "Stable Diffusion Deep Dive" does by hand. `python deep_dive.py MODEL`.

Latents of a picture; noise added at a step; a picture as the starting point; tokens and positions; tokens replaced and
mixed; learned words; the text encoder's layers run by hand; predicted x0 at each step; guidance by a loss.
"""

import sys

import numpy as np
import torch
from diffusers import AutoencoderKL, LMSDiscreteScheduler, UNet2DConditionModel
from PIL import Image
from transformers import CLIPTextModel, CLIPTokenizer

results = {}  # what the test compares

folder = sys.argv[1]
torch_device = "cpu"
vae = AutoencoderKL.from_pretrained(folder, subfolder="vae").to(torch_device)
tokenizer = CLIPTokenizer.from_pretrained(folder, subfolder="tokenizer")
text_encoder = CLIPTextModel.from_pretrained(folder, subfolder="text_encoder").to(torch_device)
unet = UNet2DConditionModel.from_pretrained(folder, subfolder="unet").to(torch_device)
if not hasattr(
    text_encoder, "text_model"
):  # transformers 5 keeps in the model what the notebook finds one level deeper
    text_encoder.text_model = text_encoder


def set_timesteps(scheduler, num_inference_steps):
    scheduler.set_timesteps(num_inference_steps)
    scheduler.timesteps = scheduler.timesteps.to(torch.float32)


def pil_to_latent(input_im):
    x = torch.from_numpy(np.array(input_im)).permute(2, 0, 1).float() / 255
    with torch.no_grad():
        latent = vae.encode(x.unsqueeze(0).to(torch_device) * 2 - 1)
    return 0.18215 * latent.latent_dist.sample()


def latents_to_pil(latents):
    latents = (1 / 0.18215) * latents
    with torch.no_grad():
        image = vae.decode(latents).sample
    image = (image / 2 + 0.5).clamp(0, 1)
    image = image.detach().cpu().permute(0, 2, 3, 1).numpy()
    images = (image * 255).round().astype("uint8")
    return [Image.fromarray(image) for image in images]


scheduler = LMSDiscreteScheduler(
    beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", num_train_timesteps=1000
)

# A picture to latents and back
ys, xs = np.mgrid[0:64, 0:64] / 63
input_image = Image.fromarray((np.stack([ys, xs, (np.sin(9 * xs * ys) + 1) / 2], -1) * 255).astype(np.uint8))
torch.manual_seed(5)
encoded = pil_to_latent(input_image)
results["encoded"] = encoded
results["decoded"] = latents_to_pil(encoded)

# The scheduler, and noise added at one of its steps
set_timesteps(scheduler, 15)
results["timesteps"] = scheduler.timesteps
results["sigmas"] = scheduler.sigmas
noise = torch.randn_like(encoded)
sampling_step = 10
encoded_and_noised = scheduler.add_noise(encoded, noise, timesteps=torch.tensor([scheduler.timesteps[sampling_step]]))
results["noised"] = latents_to_pil(encoded_and_noised.float())


def embed(text):
    text_input = tokenizer(
        text, padding="max_length", max_length=tokenizer.model_max_length, truncation=True, return_tensors="pt"
    )
    with torch.no_grad():
        return text_encoder(text_input.input_ids.to(torch_device))[0]


def with_uncond(text_embeddings):
    uncond_input = tokenizer([""], padding="max_length", max_length=text_embeddings.shape[1], return_tensors="pt")
    with torch.no_grad():
        uncond_embeddings = text_encoder(uncond_input.input_ids.to(torch_device))[0]
    return torch.cat([uncond_embeddings, text_embeddings])


# A picture as the starting point: the same loop, begun at start_step
text_embeddings = with_uncond(embed(["A colorful dancer, nat geo photo"]))
set_timesteps(scheduler, 12)
start_step = 4
torch.manual_seed(6)
noise = torch.randn_like(encoded)
latents = scheduler.add_noise(encoded, noise, timesteps=torch.tensor([scheduler.timesteps[start_step]]))
latents = latents.to(torch_device).float()
for i, t in enumerate(scheduler.timesteps):
    if i >= start_step:
        latent_model_input = torch.cat([latents] * 2)
        latent_model_input = scheduler.scale_model_input(latent_model_input, t)
        with torch.no_grad():
            noise_pred = unet(latent_model_input, t, encoder_hidden_states=text_embeddings)["sample"]
        noise_pred_uncond, noise_pred_text = noise_pred.chunk(2)
        noise_pred = noise_pred_uncond + 8 * (noise_pred_text - noise_pred_uncond)
        latents = scheduler.step(noise_pred, t, latents).prev_sample
results["from a picture"] = latents_to_pil(latents)
results["from a picture, latents"] = latents

# Tokens
prompt = "A picture of a puppy"
text_input = tokenizer(
    prompt, padding="max_length", max_length=tokenizer.model_max_length, truncation=True, return_tensors="pt"
)
results["tokens"] = [(int(t), tokenizer.decode(int(t))) for t in text_input["input_ids"][0][:8]]
output_embeddings = text_encoder(text_input.input_ids.to(torch_device))[0]

# Token embeddings and positions, added by hand and by the module
token_emb_layer = text_encoder.text_model.embeddings.token_embedding
pos_emb_layer = text_encoder.text_model.embeddings.position_embedding
results["tables"] = [tuple(token_emb_layer.weight.shape), tuple(pos_emb_layer.weight.shape)]
token_embeddings = token_emb_layer(text_input.input_ids.to(torch_device))
position_ids = text_encoder.text_model.embeddings.position_ids[:, :77]
position_embeddings = pos_emb_layer(position_ids)
input_embeddings = token_embeddings + position_embeddings
results["embeddings"] = input_embeddings
results["the module's"] = text_encoder.text_model.embeddings(text_input.input_ids.to(torch_device))


def build_causal_attention_mask(bsz, seq_len, dtype):
    mask = torch.empty(bsz, seq_len, seq_len, dtype=dtype)
    mask.fill_(torch.tensor(torch.finfo(dtype).min))
    mask.triu_(1)
    return mask.unsqueeze(1)


def get_output_embeds(input_embeddings):
    bsz, seq_len = input_embeddings.shape[:2]
    causal_attention_mask = build_causal_attention_mask(bsz, seq_len, dtype=input_embeddings.dtype)
    encoder_outputs = text_encoder.text_model.encoder(
        inputs_embeds=input_embeddings, attention_mask=causal_attention_mask.to(torch_device)
    )
    output = encoder_outputs[0]
    return text_encoder.text_model.final_layer_norm(output)


results["by hand"] = get_output_embeds(input_embeddings)
results["as by the model"] = bool(torch.allclose(results["by hand"], output_embeddings, atol=1e-5))


def generate_with_embs(text_embeddings, num_inference_steps=6):
    generator = torch.manual_seed(32)
    text_embeddings = with_uncond(text_embeddings)
    set_timesteps(scheduler, num_inference_steps)
    latents = torch.randn((1, unet.in_channels, 8, 8), generator=generator)
    latents = latents.to(torch_device) * scheduler.init_noise_sigma
    for t in scheduler.timesteps:
        latent_model_input = scheduler.scale_model_input(torch.cat([latents] * 2), t)
        with torch.no_grad():
            noise_pred = unet(latent_model_input, t, encoder_hidden_states=text_embeddings)["sample"]
        noise_pred_uncond, noise_pred_text = noise_pred.chunk(2)
        noise_pred = noise_pred_uncond + 7.5 * (noise_pred_text - noise_pred_uncond)
        latents = scheduler.step(noise_pred, t, latents).prev_sample
    return latents_to_pil(latents)[0]


# The puppy replaced by a cat, then half a skunk, then a learned word
with torch.no_grad():
    puppy = torch.where(text_input.input_ids[0] == 6829)
    replacements = {
        "cat": token_emb_layer(torch.tensor(2368, device=torch_device)),
        "half a skunk": 0.5 * token_emb_layer(torch.tensor(6829)) + 0.5 * token_emb_layer(torch.tensor(42194)),
        "learned": torch.randn(token_emb_layer.weight.shape[1], generator=torch.manual_seed(9)),
    }
    for name, embedding in replacements.items():
        changed = token_emb_layer(text_input.input_ids.to(torch_device)).clone()
        changed[0, puppy[0]] = embedding.to(torch_device)
        modified = get_output_embeds(changed + position_embeddings)
        results[name] = [generate_with_embs(modified)]

# Two prompts mixed
results["chimera"] = [generate_with_embs(embed(["A mouse"]) * 0.35 + embed(["A leopard"]) * 0.65)]


# x0 at each step, and guidance by a loss: blue
def blue_loss(images):
    return torch.abs(images[:, 2] - 0.9).mean()


text_embeddings = with_uncond(embed(["A campfire (oil on canvas)"]))
set_timesteps(scheduler, 8)
latents = torch.randn((1, unet.config.in_channels, 8, 8), generator=torch.manual_seed(32)) * scheduler.init_noise_sigma
frames = []
for i, t in enumerate(scheduler.timesteps):
    latent_model_input = torch.cat([latents] * 2)
    sigma = scheduler.sigmas[i]
    latent_model_input = scheduler.scale_model_input(latent_model_input, t)
    with torch.no_grad():
        noise_pred = unet(latent_model_input, t, encoder_hidden_states=text_embeddings)["sample"]
    noise_pred_uncond, noise_pred_text = noise_pred.chunk(2)
    noise_pred = noise_pred_uncond + 8 * (noise_pred_text - noise_pred_uncond)
    if i % 3 == 0:
        latents = latents.detach().requires_grad_()
        latents_x0 = latents - sigma * noise_pred
        denoised_images = vae.decode((1 / 0.18215) * latents_x0).sample / 2 + 0.5
        loss = blue_loss(denoised_images) * 200
        results[f"loss at {i}"] = loss.detach()
        cond_grad = torch.autograd.grad(loss, latents)[0]
        latents = latents.detach() - cond_grad * sigma**2
    out = scheduler.step(noise_pred, t, latents)
    frames.append(out.pred_original_sample)
    latents = out["prev_sample"]
results["x0 at each step"] = frames
results["blue"] = latents_to_pil(latents)
