"""The pipelines end to end: the same call, in diffusers and here, draws the same picture."""

import textwrap

import pytest
from both import agreement, compare, run

BEGIN = """
import sys
import torch
import numpy as np
from PIL import Image
from diffusers import {pipeline}, {scheduler}
pipe = {pipeline}.from_pretrained(sys.argv[1], safety_checker=None).to("cpu")
pipe.set_progress_bar_config(disable=True)
pipe.scheduler = {scheduler}.from_config(pipe.scheduler.config{options})
prompt = "a painting of an otter"
generator = torch.Generator().manual_seed(3)
square = np.random.RandomState(0).randint(0, 256, (64, 64, 3), dtype=np.uint8)
picture = Image.fromarray(square).resize((8, 8)).resize((64, 64))
wide = Image.fromarray(square).resize((8, 8)).resize((100, 70))
white = np.zeros((64, 64), dtype=np.uint8)
white[16:48, 8:40] = 255
mask = Image.fromarray(white)
"""


def script(pipeline, call, scheduler="PNDMScheduler", options=""):
    return BEGIN.format(pipeline=pipeline, scheduler=scheduler, options=options) + textwrap.dedent(call)


SCHEDULERS = {
    "PNDM": ("PNDMScheduler", "", ""),
    "PNDM with Runge-Kutta": ("PNDMScheduler", ", skip_prk_steps=False", ""),
    "DDIM": ("DDIMScheduler", "", ""),
    "DDIM eta 0.5": ("DDIMScheduler", "", ", eta=0.5"),
    "zero terminal SNR": ("EulerDiscreteScheduler", ", timestep_spacing='trailing', rescale_betas_zero_snr=True", ""),
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
    "v prediction": ("DDIMScheduler", ", prediction_type='v_prediction'", ""),
}


@pytest.mark.parametrize("name", SCHEDULERS)
def test_text_to_image_with_every_scheduler(name, model, record_property):
    scheduler, options, call = SCHEDULERS[name]
    draw = f'results["a"] = pipe(prompt, generator=generator, num_inference_steps=10, output_type="np"{call}).images'
    record_property("psnr", compare(script("StableDiffusionPipeline", draw, scheduler, options), model, name=name))


TEXT_TO_IMAGE = {
    "as the model came": 'results["a"] = pipe(prompt, num_inference_steps=5, generator=generator).images',
    "the global generator": """
        torch.manual_seed(7)
        results["a"] = pipe(prompt, num_inference_steps=4, output_type="np").images
        results["and what it draws next"] = torch.randn(5)
        """,
    "three prompts": """
        out = pipe(["an otter", "a hat", ""], num_inference_steps=4, generator=generator, output_type="np")
        results["a"] = out.images
        """,
    "a list of generators": """
        generators = [torch.Generator().manual_seed(i) for i in range(4)]
        out = pipe([prompt, "a hat"], num_images_per_prompt=2, num_inference_steps=4, generator=generators)
        results["a"] = out.images
        """,
    "noise on the way, from a list of generators": """
        generators = [torch.Generator().manual_seed(i) for i in range(2)]
        pipe.scheduler = EulerAncestralDiscreteScheduler.from_config(pipe.scheduler.config)
        results["a"] = pipe([prompt, "a hat"], num_inference_steps=4, generator=generators, output_type="np").images
        """,
    "images per prompt": """
        out = pipe([prompt, "a hat"], negative_prompt=["fog", "rain"], num_images_per_prompt=2, num_inference_steps=4,
                   generator=generator, output_type="np")
        results["a"] = out.images
        """,
    "a negative prompt": """
        out = pipe(prompt, negative_prompt="blurry", num_inference_steps=4, generator=generator, output_type="np")
        results["a"] = out.images
        """,
    "no guidance": """
        out = pipe(prompt, guidance_scale=1.0, num_inference_steps=4, generator=generator, output_type="np")
        results["a"] = out.images
        """,
    "guidance rescaled": """
        out = pipe(prompt, guidance_rescale=1.0, guidance_scale=20, num_inference_steps=4, generator=generator,
                   output_type="np")
        results["a"] = out.images
        """,
    "another size": """
        out = pipe(prompt, height=48, width=80, num_inference_steps=4, generator=generator)
        results["a"] = out.images
        """,
    "a prompt that is cut": """
        out = pipe("an otter, " * 40, num_inference_steps=4, generator=generator, output_type="np")
        results["a"] = out.images
        """,
    "embeddings": """
        positive, negative = pipe.encode_prompt([prompt, "a hat"], "cpu", 1, True, ["fog", "rain"])
        results["embeddings"] = [positive, negative]
        positive = 0.6 * positive[:1] + 0.4 * positive[1:]
        out = pipe(prompt_embeds=positive, negative_prompt_embeds=negative[:1], num_inference_steps=4,
                   num_images_per_prompt=2, generator=generator, output_type="np")
        results["a"] = out.images
        """,
    "given latents": """
        latents = torch.randn(1, 4, 8, 8, generator=generator)
        results["a"] = pipe(prompt, latents=latents, num_inference_steps=4, output_type="np").images
        results["untouched"] = latents
        """,
    "output types": """
        for kind in ("pil", "np", "pt", "latent"):
            generator = torch.Generator().manual_seed(3)
            results[kind] = pipe(prompt, num_inference_steps=3, generator=generator, output_type=kind).images
        """,
    "a tuple": """
        out = pipe(prompt, num_inference_steps=3, generator=generator, return_dict=False)
        results["a"] = out[0]
        results["nsfw"] = out[1]
        results["length"] = len(out)
        """,
    "reading the output": """
        out = pipe(prompt, num_inference_steps=3, generator=generator)
        results["keys"] = list(out.keys())
        results["images"] = out["images"]
        results["first"] = out[0]
        results["nsfw"] = out.nsfw_content_detected
        """,
    "own timesteps": """
        pipe.scheduler = DDPMScheduler.from_config(pipe.scheduler.config)
        out = pipe(prompt, timesteps=[900, 600, 300, 100], generator=generator, output_type="np")
        results["a"] = out.images
        """,
    "own sigmas": """
        pipe.scheduler = EulerDiscreteScheduler.from_config(pipe.scheduler.config)
        out = pipe(prompt, sigmas=[14.0, 7.0, 3.0, 1.0, 0.3], generator=generator, output_type="np")
        results["a"] = out.images
        """,
    "a callback that changes latents": """
        seen = []
        def change(pipeline, i, t, tensors):
            seen.append((i, int(t), sorted(tensors)))
            tensors["latents"] = tensors["latents"] + 0.1 * (i == 2)
            return tensors
        out = pipe(prompt, num_inference_steps=5, generator=generator, output_type="np", callback_on_step_end=change)
        results["a"] = out.images
        results["seen"] = seen
        """,
    "a callback that ends guidance": """
        def no_more_guidance(pipeline, i, t, tensors):
            if i == 2:
                tensors["prompt_embeds"] = tensors["prompt_embeds"].chunk(2)[-1]
                pipeline._guidance_scale = 0.0
            return tensors
        out = pipe(prompt, num_inference_steps=5, generator=generator, output_type="np",
                   callback_on_step_end=no_more_guidance, callback_on_step_end_tensor_inputs=["prompt_embeds"])
        results["a"] = out.images
        """,
    "a callback that interrupts": """
        def stop(pipeline, i, t, tensors):
            pipeline._interrupt = i == 1
            return tensors
        out = pipe(prompt, num_inference_steps=5, generator=generator, output_type="np", callback_on_step_end=stop)
        results["a"] = out.images
        """,
    "an old callback": """
        seen = []
        def look(i, t, latents):
            seen.append((i, int(t), latents.clone()))
        pipe(prompt, num_inference_steps=5, generator=generator, callback=look, callback_steps=2)
        results["a"] = [latents for _, _, latents in seen]
        results["when"] = [(i, t) for i, t, _ in seen]
        """,
    "an old callback, two evaluations a step": """
        pipe.scheduler = HeunDiscreteScheduler.from_config(pipe.scheduler.config)
        seen = []
        pipe(prompt, num_inference_steps=3, generator=generator, callback=lambda *a: seen.append(a), callback_steps=1)
        results["when"] = [(i, float(t)) for i, t, _ in seen]
        results["a"] = [latents for _, _, latents in seen]
        """,
    "a scheduler with an outdated config": """
        scheduler = DDIMScheduler(beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear")
        old = StableDiffusionPipeline(**{**pipe.components, "scheduler": scheduler}, requires_safety_checker=False)
        old.set_progress_bar_config(disable=True)
        results["corrected"] = [old.scheduler.config.steps_offset, old.scheduler.config.clip_sample]
        results["a"] = old(prompt, num_inference_steps=4, generator=generator, output_type="np").images
        """,
}
IMPORTS = """
from diffusers import DDIMScheduler, DDPMScheduler, EulerAncestralDiscreteScheduler
from diffusers import EulerDiscreteScheduler, HeunDiscreteScheduler
"""


@pytest.mark.parametrize("name", TEXT_TO_IMAGE)
def test_text_to_image(name, model, record_property):
    text = IMPORTS + script("StableDiffusionPipeline", TEXT_TO_IMAGE[name], "PNDMScheduler")
    record_property("psnr", compare(text, model, name=name))


def test_the_pictures_differ_where_they_should(model):
    """Else all of the above would hold for a pipeline that draws one thing."""
    call = 'results["a"] = pipe({prompt!r}, num_inference_steps=5, generator=generator, output_type="np"{more}).images'
    variants = [
        {"prompt": "an otter", "more": ""},
        {"prompt": "a hat", "more": ""},
        {"prompt": "an otter", "more": ", guidance_scale=2"},
        {"prompt": "an otter", "more": ", negative_prompt='fog'"},
        {"prompt": "an otter", "more": ", guidance_rescale=1.0, guidance_scale=20"},
    ]
    drawn = [run(script("StableDiffusionPipeline", call.format(**v)), model, ours=True)["a"] for v in variants]
    assert max(agreement(drawn[0], other) for other in drawn[1:]) < 50


IMAGE_TO_IMAGE = {
    "strength 0.8": 'results["a"] = pipe(prompt, image=picture, num_inference_steps=8, generator=generator).images',
    "strength 0.35": """
        results["a"] = pipe(prompt, image=picture, strength=0.35, num_inference_steps=10, generator=generator,
                            output_type="np").images
        """,
    "strength 1": """
        results["a"] = pipe(prompt, image=picture, strength=1.0, num_inference_steps=5, generator=generator,
                            output_type="np").images
        """,
    "an odd size": 'results["a"] = pipe(prompt, image=wide, num_inference_steps=5, generator=generator).images',
    "a tensor": """
        image = torch.rand(1, 3, 64, 64, generator=generator)
        results["a"] = pipe(prompt, image=image, num_inference_steps=5, generator=generator, output_type="np").images
        """,
    "an array": """
        image = square[None].astype(np.float32) / 255
        results["a"] = pipe(prompt, image=image, num_inference_steps=5, generator=generator, output_type="np").images
        """,
    "latents": """
        image = torch.randn(1, 4, 8, 8, generator=generator)
        results["a"] = pipe(prompt, image=image, num_inference_steps=5, generator=generator, output_type="np").images
        """,
    "one picture, two prompts": """
        results["a"] = pipe([prompt, "a hat"], image=picture, num_inference_steps=5, generator=generator,
                            output_type="np").images
        """,
    "two pictures, two prompts, two generators": """
        generators = [torch.Generator().manual_seed(i) for i in range(2)]
        results["a"] = pipe([prompt, "a hat"], image=[picture, picture.rotate(90)], num_inference_steps=5,
                            generator=generators, output_type="np").images
        """,
    "images per prompt, a list of generators": """
        generators = [torch.Generator().manual_seed(i) for i in range(2)]
        results["a"] = pipe(prompt, image=picture, num_images_per_prompt=2, num_inference_steps=5,
                            generator=generators, output_type="np").images
        """,
    "the global generator": """
        torch.manual_seed(11)
        results["a"] = pipe(prompt, image=picture, num_inference_steps=5, output_type="np").images
        """,
}
BEGINNINGS = {"PNDM": "PNDMScheduler", "Euler ancestral": "EulerAncestralDiscreteScheduler",
              "DPM++ 2M": "DPMSolverMultistepScheduler", "Heun": "HeunDiscreteScheduler", "DDIM": "DDIMScheduler",
              "LMS": "LMSDiscreteScheduler", "UniPC": "UniPCMultistepScheduler"}  # fmt: skip


@pytest.mark.parametrize("name", IMAGE_TO_IMAGE)
def test_image_to_image(name, model, record_property):
    text = script("StableDiffusionImg2ImgPipeline", IMAGE_TO_IMAGE[name])
    record_property("psnr", compare(text, model, name=name))


@pytest.mark.parametrize("name", BEGINNINGS)
def test_image_to_image_begins_where_each_scheduler_begins(name, model, record_property):
    text = script("StableDiffusionImg2ImgPipeline", IMAGE_TO_IMAGE["strength 0.35"], BEGINNINGS[name])
    record_property("psnr", compare(text, model, name=name))


INPAINTING = {
    "all anew": """
        results["a"] = pipe(prompt, image=picture, mask_image=mask, num_inference_steps=6, height=64, width=64,
                            generator=generator, output_type="np").images
        """,
    "strength 0.6": """
        results["a"] = pipe(prompt, image=picture, mask_image=mask, strength=0.6, num_inference_steps=8, height=64,
                            width=64, generator=generator, output_type="np").images
        """,
    "no guidance, resized": """
        results["a"] = pipe(prompt, image=wide, mask_image=mask, guidance_scale=1.0, num_inference_steps=5, height=48,
                            width=64, generator=generator, output_type="np").images
        """,
    "tensors": """
        image = torch.rand(1, 3, 64, 64, generator=generator) * 2 - 1
        hole = (torch.rand(1, 1, 64, 64, generator=generator) > 0.7).float()
        results["a"] = pipe(prompt, image=image, mask_image=hole, num_inference_steps=5, generator=generator,
                            output_type="np").images
        """,
    "arrays": """
        image, hole = square.astype(np.float32) / 255, white.astype(np.float32) / 255
        results["a"] = pipe(prompt, image=image, mask_image=hole, num_inference_steps=5, generator=generator,
                            output_type="np").images
        """,
    "two prompts, images per prompt": """
        results["a"] = pipe([prompt, "a hat"], image=picture, mask_image=mask, num_images_per_prompt=2,
                            num_inference_steps=4, generator=generator, output_type="np").images
        """,
    "two of each, a list of generators": """
        generators = [torch.Generator().manual_seed(i) for i in range(2)]
        results["a"] = pipe([prompt, "a hat"], image=[picture, picture.rotate(90)], mask_image=[mask, mask.rotate(90)],
                            num_inference_steps=4, generator=generators, output_type="np").images
        """,
    "given latents": """
        latents = torch.randn(1, 4, 8, 8, generator=generator)
        results["a"] = pipe(prompt, image=picture, mask_image=mask, latents=latents, num_inference_steps=4,
                            generator=generator, output_type="np").images
        """,
    "given latents of the masked picture": """
        hidden = torch.randn(1, 4, 8, 8, generator=generator)
        results["a"] = pipe(prompt, image=picture, mask_image=mask, masked_image_latents=hidden, num_inference_steps=4,
                            generator=generator, output_type="np").images
        """,
    "cropped": """
        results["a"] = pipe(prompt, image=wide, mask_image=mask.resize((100, 70)), padding_mask_crop=6, height=64,
                            width=64, num_inference_steps=4, generator=generator).images
        """,
    "cropped at the edge": """
        corner = Image.new("L", (100, 70))
        corner.paste(255, (70, 40, 100, 70))
        results["a"] = pipe(prompt, image=wide, mask_image=corner, padding_mask_crop=12, height=64, width=48,
                            num_inference_steps=4, generator=generator).images
        """,
    "blurred": """
        soft = pipe.mask_processor.blur(mask, blur_factor=5)
        results["mask"] = [soft]
        results["a"] = pipe(prompt, image=picture, mask_image=soft, num_inference_steps=4, generator=generator,
                            output_type="np").images
        """,
    "a callback": """
        def change(pipeline, i, t, tensors):
            return {"latents": tensors["latents"] * 1.01, "mask": tensors["mask"]}
        results["a"] = pipe(prompt, image=picture, mask_image=mask, num_inference_steps=4, generator=generator,
                            output_type="np", callback_on_step_end=change,
                            callback_on_step_end_tensor_inputs=["latents", "mask", "masked_image_latents"]).images
        """,
}


@pytest.mark.parametrize("channels", [9, 4])
@pytest.mark.parametrize("name", INPAINTING)
def test_inpainting(name, channels, model, inpainting_model, record_property):
    text = script("StableDiffusionInpaintPipeline", INPAINTING[name])
    record_property("psnr", compare(text, inpainting_model if channels == 9 else model, name=name))


@pytest.mark.parametrize("name", BEGINNINGS)
def test_inpainting_blends_with_each_scheduler(name, model, record_property):
    text = script("StableDiffusionInpaintPipeline", INPAINTING["strength 0.6"], BEGINNINGS[name])
    record_property("psnr", compare(text, model, name=name))
