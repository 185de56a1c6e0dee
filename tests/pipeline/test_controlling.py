"""Drawing after a picture with a ControlNet, beside diffusers' pipelines; PSNR as in test_parity."""

import diffusers
import numpy as np
import pytest
import torch
from PIL import Image
from transformers import CLIPTokenizer

import safelight
from safelight.errors import InputError, MissingPartError
from safelight.pipeline.controlling import control_of
from safelight.pipeline.developing import encode
from safelight.pipeline.pictures import load_picture
from safelight.pipeline.recipes.reading import read_picture
from safelight.pipeline.recipes.redraw import model_for, redraw

DDIM = {"sampler": "ddim", "grid": "leading", "grid_options": {"final_sigma": "sigma_min"}, "steps": 6, "seed": 3}
PROMPT = {"negative_prompt": "grey", "guidance_scale": 5.0}


def psnr(a, b):
    error = np.mean((np.asarray(a).astype(float) - np.asarray(b).astype(float)) ** 2)
    return np.inf if error == 0 else 10 * np.log10(255**2 / error)


@pytest.fixture(scope="module")
def controlnet(folder, tmp_path_factory):
    """A ControlNet for the small model, as diffusers writes it."""
    torch.manual_seed(1)
    unet = diffusers.UNet2DConditionModel.from_pretrained(folder / "unet")
    network = diffusers.ControlNetModel.from_unet(unet, conditioning_embedding_out_channels=(8, 8, 16, 16))
    for parameter in network.parameters():
        parameter.data += 0.15 * torch.randn_like(parameter)
    place = tmp_path_factory.mktemp("controlnet")
    network.save_pretrained(place)
    return place


@pytest.fixture(scope="module")
def parts(folder, controlnet):
    loaded = diffusers.StableDiffusionPipeline.from_pretrained(folder, safety_checker=None)
    network = diffusers.ControlNetModel.from_pretrained(controlnet)
    tokenizer = CLIPTokenizer.from_pretrained(folder / "tokenizer")
    return {**loaded.components, "tokenizer": tokenizer, "controlnet": network, "requires_safety_checker": False}


@pytest.fixture(scope="module")
def model(folder, controlnet):
    return safelight.load(folder, device="cpu", control=controlnet)


@pytest.fixture(scope="module")
def edges():
    y, x = np.mgrid[:96, :160]
    return Image.fromarray((255 * (np.hypot(x - 80, y - 48) % 24 < 4)).astype(np.uint8)).convert("RGB")


def drawn_by(pipeline, parts, *prompt, **given):
    pipe = pipeline(**parts)
    pipe.set_progress_bar_config(disable=True)
    generator = torch.Generator().manual_seed(3)
    return pipe(*prompt, num_inference_steps=6, generator=generator, **PROMPT, **given).images[0]


@pytest.mark.parametrize(("ours", "theirs"), [
    ({}, {}),
    ({"control_scale": 0.6, "control_start": 0.2, "control_end": 0.7},
     {"controlnet_conditioning_scale": 0.6, "control_guidance_start": 0.2, "control_guidance_end": 0.7}),
    ({"width": 128, "height": 64}, {"width": 128, "height": 64}),
])  # fmt: skip
def test_text_to_image_is_diffusers(model, parts, edges, ours, theirs):
    expected = drawn_by(diffusers.StableDiffusionControlNetPipeline, parts, "a red fox", edges, **theirs)
    drawn = safelight.text_to_image(model, "a red fox", control_image=edges, **PROMPT, **DDIM, **ours)[0]
    assert drawn.size == expected.size == (ours.get("width", 160), ours.get("height", 96))
    assert psnr(drawn, expected) >= 60
    free = safelight.text_to_image(model, "a red fox", width=drawn.width, height=drawn.height, **PROMPT, **DDIM)[0]
    assert psnr(free, expected) < 40


def test_image_to_image_and_inpainting_are_diffusers(model, parts, edges):
    y, x = np.mgrid[:96, :160]
    image = Image.fromarray(np.stack([x, 2 * y, x + y], -1).astype(np.uint8))
    mask = Image.fromarray(np.where(x < 80, 255, 0).astype(np.uint8))
    latent = encode(model, load_picture(image))  # the posterior's mode, where diffusers would draw from it
    pipeline = diffusers.StableDiffusionControlNetImg2ImgPipeline
    given = {"image": latent, "control_image": edges, "strength": 0.5, "controlnet_conditioning_scale": 1.0}
    expected = drawn_by(pipeline, parts, "a red fox", **given)
    drawn = safelight.image_to_image(model, "a red fox", image, strength=0.5, control_image=edges, **PROMPT, **DDIM)[0]
    assert psnr(drawn, expected) >= 60
    painted = safelight.inpaint(model, "a red fox", image, mask, control_image=edges, **PROMPT, **DDIM)[0]
    free = safelight.inpaint(model, "a red fox", image, mask, **PROMPT, **DDIM)[0]
    left, right = (0, 0, 80, 96), (80, 0, 160, 96)
    assert painted.crop(right).tobytes() == image.crop(right).tobytes() != painted.crop(left).tobytes()
    assert psnr(painted.crop(left), free.crop(left)) < 40


def test_batches_seeds_and_the_fast_preset(model, edges):
    settings = {"control_image": edges, "steps": 4, "width": 64, "height": 64}
    three = safelight.text_to_image(model, "a red fox", count=3, seed=5, batch_size=2, **settings)
    alone = safelight.text_to_image(model, "a red fox", seed=7, **settings)
    assert psnr(three[2], alone[0]) >= 60
    fast = safelight.text_to_image(model, "a red fox", seed=7, fast=True, **settings)
    free = safelight.text_to_image(model, "a red fox", seed=7, fast=True, **settings | {"control_image": None})
    assert psnr(fast[0], free[0]) < 40
    none = safelight.text_to_image(model, "a red fox", seed=7, **settings, control_scale=0)
    plain = safelight.text_to_image(model, "a red fox", seed=7, **settings | {"control_image": None})
    assert psnr(none[0], plain[0]) >= 60


def test_it_acts_at_the_steps_that_lie_wholly_between(model, edges):
    picture = torch.zeros(1, 3, 64, 64)
    times = [900.0, 700.0, 500.0, 300.0, 100.0]
    settings = {"control_image": picture, "control_scale": 1.0, "control_start": 0.2, "control_end": 0.7}
    control = control_of(model, times, settings)
    assert [control.acts(t) for t in times] == [False, True, True, False, False]
    assert control.acts(600.0) and control.acts(400.0) and not control.acts(300.0)  # between steps: of the one before
    never = control_of(model, times, settings | {"control_start": 0.31, "control_end": 0.33})
    assert not any(never.acts(t) for t in times)


def test_its_recipe_draws_it_again(model, edges, tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    drawn = safelight.text_to_image(model, "a red fox", control_image=edges, control_scale=0.8, steps=3, seed=2)
    (path,) = drawn.save(tmp_path, "fox")
    reading = read_picture(path)
    assert reading.request["control_scale"] == 0.8 and "control_image" not in reading.request
    assert reading.recipe.inputs["control_image"]["width"] == 160
    assert any(name.startswith("control: ") for name in reading.model["weights"])
    loaded = model_for(reading)
    assert loaded.control is not None
    again = redraw(reading, loaded, control_image=edges)
    assert again.pictures[0].tobytes() == drawn[0].tobytes() and not again.remarks
    with pytest.raises(InputError, match="its control_image: 160x96 pixels"):
        redraw(reading, loaded)
    plain = safelight.text_to_image(model, "a red fox", steps=2, seed=2, width=64, height=64)
    plain_reading = read_picture(plain.save(tmp_path, "plain")[0])
    with pytest.raises(InputError, match="without a control_image"):
        redraw(plain_reading, model, control_image=edges)
    assert redraw(plain_reading, model).pictures[0].tobytes() == plain[0].tobytes()
    monkeypatch.setattr("safelight.pipeline.recipes.redraw.find_model", lambda *found, **more: None)
    with pytest.raises(MissingPartError, match="--control"):
        model_for(reading)


def test_what_does_not_go_together_is_named(folder, controlnet, model, edges, tmp_path):
    with pytest.raises(InputError, match=r"without a ControlNet") as caught:
        safelight.text_to_image(safelight.load(folder, device="cpu"), "a red fox", control_image=edges)
    assert "--control" in str(caught.value)
    with pytest.raises(InputError, match="block_out_channels"):
        safelight.load("default", control=controlnet)
    with pytest.raises(InputError, match=r"control_start=0\.8 lies behind control_end=0\.2"):
        safelight.text_to_image(model, "a fox", control_image=edges, control_start=0.8, control_end=0.2)
    with pytest.raises(InputError, match="control_scale"):
        safelight.text_to_image(model, "a fox", control_image=edges, controlnet_conditioning_scale=1)
    with pytest.raises(InputError, match="no file"):
        safelight.text_to_image(model, "a fox", control_image=tmp_path / "none.png")
    with pytest.raises(InputError, match="padding_mask_crop"):
        mask = Image.new("L", edges.size, 255)
        safelight.inpaint(model, "a fox", edges, mask, control_image=edges, padding_mask_crop=8)
