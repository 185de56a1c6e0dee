"""Scripts of Stable Diffusion XL's three pipelines, run in both libraries: the same pictures, to 60 dB and more."""

import pytest
import torch
from both import compare

from safelight import compat
from safelight.errors import InputError, MissingPartError
from small_xl import write_small_xl

HEAD = """
import torch
from diffusers import StableDiffusionXLPipeline, AutoPipelineForImage2Image, AutoPipelineForInpainting
from diffusers import DiffusionPipeline
from PIL import Image

folder = __import__("sys").argv[1]
pipe = DiffusionPipeline.from_pretrained(folder, add_watermarker=False)
assert type(pipe).__name__ == "StableDiffusionXLPipeline"
pipe.set_progress_bar_config(disable=True)
seeded = lambda: torch.Generator().manual_seed(4)
common = dict(num_inference_steps=4, width=64, height=48)
picture = Image.linear_gradient("L").resize((64, 48)).convert("RGB")
mask = Image.new("L", (64, 48)); mask.paste(255, (16, 8, 48, 40))
"""
SCRIPTS = {
    "text": """
results["plain"] = pipe("a red fox", generator=seeded(), **common).images
results["two"] = pipe(["a fox", "a hat"], negative_prompt=["a", "b"], generator=seeded(), **common).images
results["no guidance"] = pipe("a red fox", guidance_scale=1.0, generator=seeded(), **common).images
""",
    "other words for the second": """
results["a"] = pipe("a red fox", prompt_2="a hat!", negative_prompt="b", negative_prompt_2="c", clip_skip=1,
                    num_images_per_prompt=2, guidance_rescale=0.5, generator=seeded(), **common).images
""",
    "sizes": """
results["a"] = pipe("a red fox", original_size=(512, 300), crops_coords_top_left=(8, 64), target_size=(48, 64),
                    negative_original_size=(64, 64), negative_crops_coords_top_left=(3, 4),
                    negative_target_size=(99, 88), negative_prompt="a hat", generator=seeded(), **common).images
""",
    "embeddings": """
words = pipe.encode_prompt("a red fox", device="cpu", negative_prompt="a hat")
names = ("prompt_embeds", "negative_prompt_embeds", "pooled_prompt_embeds", "negative_pooled_prompt_embeds")
results["words"] = list(words)
results["a"] = pipe(**dict(zip(names, words)), generator=seeded(), **common).images
""",
    "image to image": """
other = AutoPipelineForImage2Image.from_pipe(pipe)
other.set_progress_bar_config(disable=True)
results["a"] = other("a red fox", image=picture, strength=0.6, num_inference_steps=5, generator=seeded()).images
results["b"] = other("a red fox", image=picture, num_inference_steps=8, generator=seeded()).images
""",
    "inpainting": """
other = AutoPipelineForInpainting.from_pipe(pipe)
other.set_progress_bar_config(disable=True)
results["a"] = other("a red fox", image=picture, mask_image=mask, strength=0.7, generator=seeded(), **common).images
results["b"] = other("a red fox", image=picture, mask_image=mask, generator=seeded(), **common).images
""",
    "negative sizes alone": """
other = AutoPipelineForImage2Image.from_pipe(pipe)
other.set_progress_bar_config(disable=True)
results["a"] = other("a red fox", image=picture, num_inference_steps=8, negative_original_size=(99, 88),
                     crops_coords_top_left=(4, 8), generator=seeded()).images
""",
    "a callback": """
seen = []
def look(pipe, i, t, tensors):
    seen.append(tensors["latents"].clone())
    return tensors
pipe("a red fox", callback_on_step_end=look, callback_on_step_end_tensor_inputs=["latents"], generator=seeded(),
     **common)
results["seen"] = seen
""",
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    torch.set_num_threads(1)
    return write_small_xl(tmp_path_factory.mktemp("xl"))


@pytest.mark.parametrize("name", SCRIPTS)
def test_scripts_draw_the_same(folder, name):
    compare(HEAD + SCRIPTS[name], str(folder), name=name)


def test_saved_and_loaded_from_a_single_file(folder, tmp_path):
    import safelight

    pipe = compat.StableDiffusionXLPipeline.from_pretrained(folder)
    pipe.save_pretrained(tmp_path / "again")
    safelight.convert(tmp_path / "again", tmp_path / "xl.safetensors")
    pipes = [pipe, compat.DiffusionPipeline.from_single_file(tmp_path / "xl.safetensors"),
             compat.AutoPipelineForText2Image.from_pretrained(tmp_path / "again")]  # fmt: skip
    drawn = []
    for one in pipes:
        assert type(one) is compat.StableDiffusionXLPipeline
        one.set_progress_bar_config(disable=True)
        generator = torch.Generator().manual_seed(0)
        drawn.append(one("a fox!", num_inference_steps=2, width=64, height=64, generator=generator, output_type="pt"))
    for other in drawn[1:]:
        torch.testing.assert_close(other.images, drawn[0].images, rtol=0, atol=1e-4)


def test_a_learned_word_is_taught_to_each_text_encoder(folder):
    pipe = compat.StableDiffusionXLPipeline.from_pretrained(folder)
    pipe.load_textual_inversion(torch.ones(1, 32), token="<x>")
    pipe.load_textual_inversion(torch.ones(1, 48), token="<x>", text_encoder=pipe.text_encoder_2,
                                tokenizer=pipe.tokenizer_2)  # fmt: skip
    assert pipe.tokenizer("<x>").input_ids == pipe.tokenizer_2("<x>").input_ids == [49406, 49408, 49407]
    pipe.load_textual_inversion(torch.ones(2, 32), token=["<s0>", "<s1>"])
    assert pipe.tokenizer("<s0><s1>").input_ids == [49406, 49409, 49410, 49407]


def test_in_float16_the_autoencoder_runs_in_float32_as_in_diffusers(folder):
    pipe = compat.StableDiffusionXLPipeline.from_pretrained(folder, torch_dtype=torch.float16)
    with torch.no_grad():
        pipe.vae.net.decoder.conv_in.weight *= 60000
    pipe.set_progress_bar_config(disable=True)
    drawn = pipe("a fox", num_inference_steps=1, width=64, height=64, output_type="pt").images
    assert drawn.isfinite().all() and pipe.vae.dtype == torch.float16
    pipe.upcast_vae()
    other = compat.AutoPipelineForImage2Image.from_pipe(pipe)
    other.set_progress_bar_config(disable=True)
    assert other("a fox", image=drawn, num_inference_steps=4).images[0].size == (64, 64)


def test_what_is_missing_is_told(folder):
    pipe = compat.StableDiffusionXLPipeline.from_pretrained(folder)
    with pytest.raises(InputError, match="pooled_prompt_embeds are not"):
        pipe(prompt_embeds=torch.zeros(1, 77, 80))
    with pytest.raises(InputError, match="denoising_end"):
        pipe("a fox", denoising_end=0.8)
    with pytest.raises(InputError, match="added_cond_kwargs has nothing"):
        pipe.unet(torch.zeros(1, 4, 8, 8), 1, torch.zeros(1, 77, 80))
    plain = compat.UNet2DConditionModel(block_out_channels=(32,), down_block_types=("CrossAttnDownBlock2D",),
                                        up_block_types=("CrossAttnUpBlock2D",), cross_attention_dim=8)  # fmt: skip
    with pytest.raises(MissingPartError, match="text_embeds"):
        plain(torch.zeros(1, 4, 8, 8), 1, torch.zeros(1, 2, 8), added_cond_kwargs={"text_embeds": torch.zeros(1, 4)})
