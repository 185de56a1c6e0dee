"""Models that see the picture they edit, or its depths, beside the latent: beside diffusers, and what goes wrong.

Weights are seeded and random, in the real architectures made small; PSNR as in test_parity.
"""

from types import SimpleNamespace

import diffusers
import numpy as np
import pytest
import torch
from PIL import Image
from transformers import DPTConfig, DPTForDepthEstimation, DPTImageProcessor

import safelight
from safelight.errors import InputError
from safelight.pipeline.bundle import tasks_of
from small_xl import write_small_xl

DDIM = {"sampler": "ddim", "grid": "leading", "grid_options": {"final_sigma": "sigma_min"}, "steps": 6}
WORDS = {"prompt": "make it snow", "negative_prompt": "a hat"}


def psnr(a, b):
    error = np.mean((np.asarray(a).astype(float) - np.asarray(b).astype(float)) ** 2)
    return np.inf if error == 0 else 10 * np.log10(255**2 / error)


def apart(a, b):
    return float((a - b).norm() / b.norm())


def written(kind, folder, channels, place, **more):
    """The small model as diffusers writes one whose U-Net sees `channels`; its VAE's posterior is narrow."""
    torch.manual_seed(1)
    base = diffusers.StableDiffusionPipeline.from_pretrained(folder, safety_checker=None)
    base.vae.quant_conv.weight.data[4:], base.vae.quant_conv.bias.data[4:] = 0, -30
    unet = diffusers.UNet2DConditionModel.from_config(base.unet.config | {"in_channels": channels})
    names = ("vae", "text_encoder", "tokenizer", "scheduler")
    pipe = kind(**{name: getattr(base, name) for name in names}, unet=unet, **more)
    pipe.set_progress_bar_config(disable=True)
    pipe.save_pretrained(place)
    return pipe


@pytest.fixture(scope="module")
def photo():
    y, x = np.mgrid[:48, :64]
    return Image.fromarray(np.stack([4 * x, 5 * y, 3 * (x + y) % 256], -1).astype(np.uint8))


@pytest.fixture(scope="module")
def editor(folder, tmp_path_factory):
    place = tmp_path_factory.mktemp("editor")
    pipe = written(diffusers.StableDiffusionInstructPix2PixPipeline, folder, 8, place,
                   safety_checker=None, feature_extractor=None, requires_safety_checker=False)  # fmt: skip
    return place, pipe, safelight.load(place, device="cpu")


@pytest.mark.parametrize(("words", "image"), [(7.5, 1.5), (3.0, 1.0), (7.5, 2.5), (1.0, 1.5)])
def test_a_picture_is_edited_as_instruct_pix2pix_does_it(editor, photo, words, image):
    _, pipe, model = editor
    guidance = {"guidance_scale": words, "image_guidance_scale": image}
    theirs = pipe(**WORDS, image=photo, **guidance, num_inference_steps=6, generator=torch.Generator().manual_seed(4))
    drawn = safelight.edit(model, image=photo, **WORDS, **guidance, **DDIM, seed=4)
    assert drawn[0].size == (64, 48) and psnr(drawn[0], theirs.images[0]) >= 60


@pytest.mark.parametrize("image", [1.0, 2.0])
def test_a_picture_is_edited_by_a_model_of_xl_as_diffusers_does_it(tmp_path, photo, image):
    base = diffusers.StableDiffusionXLPipeline.from_pretrained(write_small_xl(tmp_path, in_channels=8))
    names = ("vae", "text_encoder", "text_encoder_2", "tokenizer", "tokenizer_2", "unet", "scheduler")
    parts = {name: getattr(base, name) for name in names}
    pipe = diffusers.StableDiffusionXLInstructPix2PixPipeline(**parts, add_watermarker=False)
    pipe.set_progress_bar_config(disable=True)
    pipe.save_pretrained(tmp_path / "editor")
    guidance = {"guidance_scale": 5.0, "image_guidance_scale": image}
    theirs = pipe(**WORDS, image=photo, height=48, width=64, **guidance, num_inference_steps=6,
                  generator=torch.Generator().manual_seed(4)).images[0]  # fmt: skip
    model = safelight.load(tmp_path / "editor", device="cpu")
    drawn = safelight.edit(model, image=photo, **WORDS, **guidance, sampler="euler", grid="leading", steps=6, seed=4)
    assert psnr(drawn[0], theirs) >= 60


def test_both_guidances_count_and_several_prompts_keep_their_own(editor, photo):
    *_, model = editor
    draw = {"image": photo, "seed": 4, "steps": 3}
    base = safelight.edit(model, "make it snow", **draw).latents
    for change in ({"image_guidance_scale": 2.0}, {"guidance_scale": 3.0}, {"negative_prompt": "a hat"},
                   {"image": photo.transpose(Image.Transpose.FLIP_LEFT_RIGHT)}):  # fmt: skip
        assert apart(base, safelight.edit(model, "make it snow", **draw | change).latents) > 1e-2
    several = safelight.edit(model, ["make it snow", "a [red:blue:2] hat AND a fox:0.5"], **draw)
    assert apart(several.latents[:1], base) < 1e-4  # float32 sums in other orders
    alone = safelight.edit(model, "a [red:blue:2] hat AND a fox:0.5", **draw | {"seed": 5})
    assert apart(several.latents[1:], alone.latents) < 1e-4


def test_encoded_prompts_edit_as_well(editor, photo):
    *_, model = editor
    draw = {"image": photo, "seed": 4, "steps": 2}
    a = safelight.edit(model, "make it snow", **draw).latents
    both = model.condition(["make it snow", ""])
    words = [both.select(slice(k, k + 1)) for k in (0, 1)]
    assert apart(safelight.edit(model, words[0], negative_prompt=words[1], **draw).latents, a) < 1e-4
    with pytest.raises(InputError, match="other lengths"):
        safelight.edit(model, model.condition(["a fox " * 60]), negative_prompt=words[1], **draw)


def test_an_edited_picture_keeps_its_size_or_takes_another_and_is_drawn_again(editor, photo, tmp_path):
    *_, model = editor
    odd = photo.crop((0, 0, 61, 45))
    drawn = safelight.edit(model, "make it snow", odd, seed=4, steps=2)
    assert drawn[0].size == (61, 45)
    assert safelight.edit(model, "make it snow", odd, width=64, height=72, seed=4, steps=2)[0].size == (64, 72)
    (recipe,) = drawn.recipes
    assert recipe.task == "edit" and recipe.inputs["image"]["width"] == 61
    again = safelight.edit(model, image=odd, **recipe.request)
    assert np.array_equal(np.asarray(again[0]), np.asarray(drawn[0]))


@pytest.fixture(scope="module")
def deep(folder, tmp_path_factory):
    torch.manual_seed(2)
    estimator = DPTForDepthEstimation(DPTConfig(
        hidden_size=32, num_hidden_layers=4, num_attention_heads=2, intermediate_size=32, image_size=32, patch_size=8,
        backbone_out_indices=[0, 1, 2, 3], neck_hidden_sizes=[8, 8, 8, 8], fusion_hidden_size=8, is_hybrid=False,
    ))  # fmt: skip
    place = tmp_path_factory.mktemp("deep")
    pipe = written(diffusers.StableDiffusionDepth2ImgPipeline, folder, 5, place,
                   depth_estimator=estimator.eval(), feature_extractor=DPTImageProcessor(size=32))  # fmt: skip
    encode = pipe.vae.encode  # of whose posterior no sample is drawn, so that the seed's first noise is the start's
    pipe.vae.encode = lambda x: SimpleNamespace(latents=encode(x).latent_dist.mode())
    return pipe, safelight.load(place, device="cpu")


@pytest.fixture(scope="module")
def depth():
    y, x = np.mgrid[:40, :52]  # near the photograph's shape
    return (1000 * np.exp(-((x - 20) ** 2 + (y - 25) ** 2) / 90)).astype(np.float32)


@pytest.mark.parametrize("guidance", [1.0, 6.0])
def test_a_picture_is_redrawn_in_its_depths_as_diffusers_does_it(deep, photo, depth, guidance):
    pipe, model = deep
    theirs = pipe(**WORDS, image=photo, depth_map=torch.from_numpy(depth)[None], strength=0.7, guidance_scale=guidance,
                  num_inference_steps=10, generator=torch.Generator().manual_seed(4)).images[0]  # fmt: skip
    drawn = safelight.depth_to_image(model, image=photo, depth=depth, strength=0.7, guidance_scale=guidance, **WORDS,
                                     **DDIM | {"steps": 10}, seed=4)  # fmt: skip
    assert drawn[0].size == photo.size and psnr(drawn[0], theirs) >= 60


def test_depths_may_be_a_file_of_16_bits_an_array_or_a_tensor_of_any_unit(deep, photo, depth, tmp_path):
    _, model = deep
    whole = (depth / depth.max() * 65535).round().astype(np.uint16)
    Image.fromarray(whole).save(tmp_path / "depth.png")
    forms = [whole, whole / 7, torch.from_numpy(whole.astype(np.float32))[None], tmp_path / "depth.png",
             Image.fromarray(whole.astype(np.float32), "F")]  # fmt: skip
    drawn = [safelight.depth_to_image(model, "a hat", photo, one, seed=4, steps=3).latents for one in forms]
    assert all(apart(one, drawn[0]) < 1e-3 for one in drawn[1:])
    turned = safelight.depth_to_image(model, "a hat", photo, whole[:, ::-1].copy(), seed=4, steps=3)
    assert apart(turned.latents, drawn[0]) > 1e-2


def test_a_map_turned_by_exif_is_turned(deep, photo, depth):
    near = Image.fromarray((depth / depth.max() * 255).astype(np.uint8))
    turned = near.transpose(Image.Transpose.ROTATE_90)
    turned.getexif()[274] = 6
    draw = {"seed": 4, "steps": 3}
    a, b = (safelight.depth_to_image(deep[1], "a hat", photo, one, **draw).latents for one in (near, turned))
    assert torch.equal(a, b)


def test_pictures_of_any_size_are_drawn_in_their_depths_and_again(deep, photo, depth):
    _, model = deep
    odd, near = photo.crop((0, 0, 61, 45)), (depth / 4).astype(np.uint8)[:37, :50]
    drawn = safelight.depth_to_image(model, "a hat", odd, near, seed=4, steps=4)
    (recipe,) = drawn.recipes
    assert drawn[0].size == (61, 45) and recipe.inputs.keys() == {"image", "depth"}
    again = safelight.depth_to_image(model, image=odd, depth=Image.fromarray(near), **recipe.request)
    assert np.array_equal(np.asarray(again[0]), np.asarray(drawn[0]))


@pytest.mark.parametrize(
    ("wrong", "words"),
    [
        (np.zeros((48, 64), np.uint8), "equally near"), (np.full((48, 64), np.nan), "not finite"),
        (np.ones((3, 48, 64)), "no map"), (np.eye(64), "64x64, and the image 64x48"), ("nowhere.png", "no file"),
        (np.ones((1, 48, 64), np.uint8), "no map"), (np.zeros((0, 4)), "no map"), (None, "cannot use a NoneType"),
        (np.array([["a", "b"]]), "no map"), (np.pad(np.ones((1, 1)), ((0, 479), (0, 639))), "equally near"),
    ],
)  # fmt: skip
def test_what_is_no_map_of_depths_is_named(deep, photo, wrong, words):
    with pytest.raises(InputError, match=words):
        safelight.depth_to_image(deep[1], "a hat", photo, wrong, steps=1)


def test_each_model_is_sent_to_its_own_task(editor, deep, model, photo, depth):
    assert tasks_of(editor[2]) == ("edit",) and tasks_of(deep[1]) == ("depth_to_image",)
    for wrong, task, ours in ((editor[2], "text_to_image", "edit"), (deep[1], "text_to_image", "depth_to_image"),
                              (model, "edit", "text_to_image"), (model, "depth_to_image", "text_to_image"),
                              (deep[1], "edit", "depth_to_image"), (editor[2], "depth_to_image", "edit")):  # fmt: skip
        own = {"image": photo} if task != "text_to_image" else {}
        own |= {"depth": depth} if task == "depth_to_image" else {}
        with pytest.raises(InputError, match="was trained to") as caught:
            getattr(safelight, task)(wrong, prompt="a hat", steps=1, **own)
        assert f"`{ours}`" in caught.value.remedy
    with pytest.raises(InputError, match="leaves the words out"):
        safelight.edit(editor[2], "a hat", photo, guidance_scale=0, steps=1)


def test_a_single_file_draws_what_its_folder_draws(editor, photo, tmp_path):
    place, _, model = editor
    safelight.convert(place, tmp_path / "edit.safetensors")
    one = safelight.load(tmp_path / "edit.safetensors", device="cpu")
    a, b = (safelight.edit(each, "make it snow", photo, seed=4, **DDIM).latents for each in (model, one))
    assert one.sees == "original" and apart(a, b) < 1e-5
    safelight.convert(place, tmp_path / "folder")
    assert "Pix2Pix" in type(diffusers.DiffusionPipeline.from_pretrained(tmp_path / "folder")).__name__
