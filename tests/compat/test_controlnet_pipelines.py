"""Scripts with a ControlNet: the same call, in diffusers and here, draws the same picture."""

import textwrap

import diffusers
import pytest
import torch
from both import compare, run

from safelight import compat
from safelight.errors import InputError, MissingPartError


@pytest.fixture(scope="session")
def controlnet(model, tmp_path_factory):
    """A ControlNet for the model, with random weights, as diffusers writes it."""
    torch.manual_seed(1)
    unet = diffusers.UNet2DConditionModel.from_pretrained(model, subfolder="unet")
    network = diffusers.ControlNetModel.from_unet(unet, conditioning_embedding_out_channels=(8, 8, 16, 16))
    for parameter in network.parameters():
        parameter.data += 0.15 * torch.randn_like(parameter)
    place = tmp_path_factory.mktemp("controlnet")
    network.save_pretrained(place)
    return place


BEGIN = """
import sys
import torch
import numpy as np
from PIL import Image
from diffusers import ControlNetModel, {pipeline}, DDIMScheduler, HeunDiscreteScheduler
controlnet = ControlNetModel.from_pretrained(sys.argv[2])
pipe = {pipeline}.from_pretrained(sys.argv[1], controlnet=controlnet, safety_checker=None)
pipe.set_progress_bar_config(disable=True)
pipe.scheduler = DDIMScheduler.from_config(pipe.scheduler.config)
y, x = np.mgrid[:64, :96]
edges = Image.fromarray((255 * (np.hypot(x - 48, y - 32) % 24 < 4)).astype(np.uint8))
picture = Image.fromarray(np.stack([2 * x, 3 * y, x + y], -1).astype(np.uint8))
generator = torch.Generator().manual_seed(3)
"""
TEXT = {
    "plainly": 'pipe("an otter", edges, num_inference_steps=5, generator=generator, output_type="np").images',
    "partly": """pipe("an otter", image=edges, num_inference_steps=6, generator=generator, output_type="np",
        controlnet_conditioning_scale=0.6, control_guidance_start=0.2, control_guidance_end=0.7).images""",
    "guessing": """pipe("an otter", image=edges, num_inference_steps=5, generator=generator, output_type="np",
        guess_mode=True, negative_prompt="grey").images""",
    "several, of another size": """pipe(["an otter", "a hat"], image=edges, width=64, height=64,
        num_inference_steps=4, num_images_per_prompt=2, generator=generator, output_type="np").images""",
    "one for each prompt, without guidance": """pipe(["an otter", "a hat"], image=[edges, edges.rotate(90)],
        num_inference_steps=4, guidance_scale=1.0, generator=generator, output_type="np").images""",
}


def script(pipeline, call):
    return BEGIN.format(pipeline=pipeline) + f'results["a"] = {textwrap.dedent(call)}'


@pytest.mark.parametrize("name", TEXT)
def test_text_to_image(name, model, controlnet):
    compare(script("StableDiffusionControlNetPipeline", TEXT[name]), model, str(controlnet), name=name)


def test_a_sampler_that_asks_twice(model, controlnet):
    text = script("StableDiffusionControlNetPipeline", TEXT["partly"])
    compare(text.replace("pipe.scheduler = DDIM", "pipe.scheduler = HeunDiscrete"), model, str(controlnet))


def test_image_to_image(model, controlnet):
    call = """pipe("an otter", picture, edges, strength=0.6, num_inference_steps=5, generator=generator,
        output_type="np").images"""
    compare(script("StableDiffusionControlNetImg2ImgPipeline", call), model, str(controlnet))


def test_a_loop_of_ones_own(model, controlnet):
    text = """
        import sys
        import torch
        from diffusers import ControlNetModel, UNet2DConditionModel
        controlnet = ControlNetModel.from_pretrained(sys.argv[2])
        unet = UNet2DConditionModel.from_pretrained(sys.argv[1], subfolder="unet")
        g = torch.Generator().manual_seed(0)
        x = torch.randn(2, 4, 16, 8, generator=g)
        words = torch.randn(2, 5, unet.config.cross_attention_dim, generator=g)
        picture = torch.rand(2, 3, 128, 64, generator=g)
        out = controlnet(x, 10, encoder_hidden_states=words, controlnet_cond=picture, conditioning_scale=0.5)
        results["down"], results["mid"] = out.down_block_res_samples, out.mid_block_res_sample
        results["eps"] = unet(x, 10, words, down_block_additional_residuals=out.down_block_res_samples,
                              mid_block_additional_residual=out.mid_block_res_sample).sample.detach()
        """
    compare(textwrap.dedent(text), model, str(controlnet), least=100)


def test_what_is_saved_is_read_by_diffusers(model, controlnet, tmp_path):
    network = compat.ControlNetModel.from_pretrained(controlnet)
    pipe = compat.StableDiffusionControlNetPipeline.from_pretrained(model, controlnet=network)
    pipe.save_pretrained(tmp_path)
    theirs = diffusers.StableDiffusionControlNetPipeline.from_pretrained(tmp_path)
    weights = theirs.controlnet.state_dict()
    assert weights.keys() == network.state_dict().keys()
    assert all(torch.equal(weights[name], tensor) for name, tensor in network.state_dict().items())
    again = compat.DiffusionPipeline.from_pretrained(tmp_path)
    assert isinstance(again, compat.StableDiffusionControlNetPipeline)
    assert again.controlnet.config.conditioning_embedding_out_channels == [8, 8, 16, 16]


def test_what_is_not_here_says_so(model, controlnet):
    pipe = script("StableDiffusionControlNetPipeline", "pipe")
    made = run(pipe, model, str(controlnet), ours=True)["a"]
    with pytest.raises(MissingPartError, match="several ControlNets"):
        type(made)(**{**made.components, "controlnet": [made.controlnet] * 2})
    with pytest.raises(InputError, match="no picture to follow"):
        made("an otter")
    with pytest.raises(InputError, match="does not lie before"):
        made("an otter", torch.zeros(1, 3, 64, 64), control_guidance_start=0.5, control_guidance_end=0.5)
    with pytest.raises(InputError, match="half of what a ControlNet adds"):
        made.unet(torch.zeros(1, 4, 8, 8), 1, torch.zeros(1, 5, 32), down_block_additional_residuals=())
