"""Scripts with InstructPix2Pix: the same call, in diffusers and here, draws the same picture."""

import textwrap

import diffusers
import pytest
import torch
from both import compare, run
from PIL import Image

from safelight import compat
from safelight.errors import InputError, MissingPartError


@pytest.fixture(scope="module")
def editor(model, tmp_path_factory):
    """The small model with a U-Net that sees a picture beside the latent, as diffusers writes it."""
    torch.manual_seed(1)
    base = diffusers.StableDiffusionPipeline.from_pretrained(model, safety_checker=None)
    unet = diffusers.UNet2DConditionModel.from_config(base.unet.config | {"in_channels": 8})
    for parameter in unet.parameters():
        parameter.data += 0.05 * torch.randn_like(parameter)
    parts = {name: getattr(base, name) for name in ("vae", "text_encoder", "tokenizer", "scheduler")}
    pipe = diffusers.StableDiffusionInstructPix2PixPipeline(
        **parts, unet=unet, safety_checker=None, feature_extractor=None, requires_safety_checker=False
    )
    place = tmp_path_factory.mktemp("editor")
    pipe.save_pretrained(place)
    return place


BEGIN = """
import sys
import torch
import numpy as np
from PIL import Image
from diffusers import StableDiffusionInstructPix2PixPipeline, EulerAncestralDiscreteScheduler, DDIMScheduler
pipe = StableDiffusionInstructPix2PixPipeline.from_pretrained(sys.argv[1], safety_checker=None)
pipe.set_progress_bar_config(disable=True)
pipe.scheduler = EulerAncestralDiscreteScheduler.from_config(pipe.scheduler.config)
y, x = np.mgrid[:64, :96]
picture = Image.fromarray(np.stack([2 * x, 3 * y, x + y], -1).astype(np.uint8))
generator = torch.Generator().manual_seed(3)
seen = []

def look(pipe, i, t, tensors):
    seen.append({name: tensor.clone() for name, tensor in tensors.items()})
    return {"latents": tensors["latents"] * 1.01}
"""
CALLS = {
    "plainly": """pipe("make it snow", image=picture, num_inference_steps=5, image_guidance_scale=1.5,
        guidance_scale=7, generator=generator, output_type="np").images""",
    "several": """pipe(["make it snow", "add a hat"], picture, num_inference_steps=3, num_images_per_prompt=2,
        image_guidance_scale=1.0, negative_prompt=["grey", "old"], generator=generator, output_type="np").images""",
    "without guidance of the words": """pipe("make it snow", picture, num_inference_steps=3, guidance_scale=1,
        generator=generator, output_type="np").images""",
    "without guidance of the picture": """pipe("make it snow", picture, num_inference_steps=3,
        image_guidance_scale=0.9, generator=generator, output_type="np").images""",
    "watched": """[pipe("make it snow", picture, num_inference_steps=3, generator=generator, output_type="latent",
        callback_on_step_end=look, callback_on_step_end_tensor_inputs=["latents", "prompt_embeds", "image_latents"]
        ).images, seen]""",
}


@pytest.mark.parametrize("name", CALLS)
def test_the_same_script_draws_the_same(name, editor):
    compare(BEGIN + f'results["a"] = {textwrap.dedent(CALLS[name])}', str(editor))


def test_the_folder_names_its_pipeline_and_is_written_again(editor, tmp_path):
    pipe = compat.DiffusionPipeline.from_pretrained(editor, safety_checker=None)
    assert isinstance(pipe, compat.StableDiffusionInstructPix2PixPipeline)
    pipe.save_pretrained(tmp_path / "again")
    text = BEGIN + 'results["a"] = pipe("add a hat", picture, num_inference_steps=2, generator=generator).images'
    assert run(text, str(tmp_path / "again"), ours=False)["a"]  # diffusers opens it


def test_what_is_missing_is_named(editor, model):
    pipe = compat.StableDiffusionInstructPix2PixPipeline.from_pretrained(editor, safety_checker=None)
    with pytest.raises(InputError, match="no image to change"):
        pipe("make it snow")
    plain = compat.StableDiffusionInstructPix2PixPipeline.from_pretrained(model, safety_checker=None)
    with pytest.raises(InputError, match="sees no picture"):
        plain("make it snow", Image.new("RGB", (64, 64)), num_inference_steps=1)
    with pytest.raises(MissingPartError, match="Depth2Img"):
        _ = compat.StableDiffusionDepth2ImgPipeline
