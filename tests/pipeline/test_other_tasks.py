"""Drawing without words: unconditional, of a class, larger, a layout, a map of classes; beside diffusers where it can.

Weights are seeded and random, in the real architectures made small. PSNR as in test_parity.
"""

from dataclasses import replace

import diffusers
import numpy as np
import pytest
import torch
from PIL import Image
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

import safelight
from safelight.diffusion.noise import SeededNoise
from safelight.errors import InputError
from safelight.models.autoencoder import Autoencoder, AutoencoderConfig
from safelight.models.conditioners import ClassEmbedder, LayoutEmbedder, MapEmbedder
from safelight.models.presets import levels
from safelight.models.unet import UNet
from safelight.pipeline.bundle import tasks_of
from safelight.pipeline.conditions import PICTURE_NOISE
from safelight.pipeline.standin import random_model
from safelight.text.tokenizer import Tokenizer

PLAIN = {"down_block_types": ("DownBlock2D", "AttnDownBlock2D"), "up_block_types": ("AttnUpBlock2D", "UpBlock2D"),
         "block_out_channels": (16, 32), "norm_num_groups": 8, "layers_per_block": 1, "attention_head_dim": 8,
         "sample_size": 16}  # fmt: skip
CROSS = PLAIN | {"down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D"),
                 "up_block_types": ("CrossAttnUpBlock2D", "UpBlock2D")}  # fmt: skip
BETAS = {"beta_schedule": "scaled_linear", "beta_start": 0.0015, "beta_end": 0.0195, "clip_sample": False,
         "set_alpha_to_one": False, "steps_offset": 1}  # fmt: skip
DDIM = {"sampler": "ddim", "grid": "leading", "grid_options": {"final_sigma": "sigma_min"}, "steps": 6}


def psnr(a, b):
    error = np.mean((np.asarray(a).astype(float) - np.asarray(b).astype(float)) ** 2)
    return np.inf if error == 0 else 10 * np.log10(255**2 / error)


def vq(scaling_factor=1.0):
    return diffusers.VQModel(
        down_block_types=("DownEncoderBlock2D",) * 3, up_block_types=("UpDecoderBlock2D",) * 3,
        block_out_channels=(8, 8, 16), norm_num_groups=4, latent_channels=3, num_vq_embeddings=64, vq_embed_dim=3,
        scaling_factor=scaling_factor,
    )  # fmt: skip


def quiet(pipe):
    pipe.set_progress_bar_config(disable=True)
    return pipe


@pytest.fixture(scope="module")
def picture():
    y, x = np.mgrid[:32, :64]
    return Image.fromarray(np.stack([4 * x, 8 * y, 3 * (x + y) % 256], -1).astype(np.uint8))


# Unconditional


def test_unconditional_draws_what_ldm_pipeline_draws(tmp_path):
    torch.manual_seed(0)
    unet = diffusers.UNet2DModel(in_channels=3, out_channels=3, **PLAIN)
    pipe = quiet(diffusers.LDMPipeline(vqvae=vq(0.5), unet=unet, scheduler=diffusers.DDIMScheduler(**BETAS)))
    pipe.save_pretrained(tmp_path)
    theirs = pipe(generator=torch.Generator().manual_seed(3), num_inference_steps=6).images[0]
    model = safelight.load(tmp_path, device="cpu")
    drawn = safelight.unconditional(model, seed=3, **DDIM)
    assert drawn[0].size == (64, 64) and psnr(drawn[0], theirs) >= 60
    with pytest.raises(InputError, match="without being asked") as caught:
        safelight.class_to_image(model, 1)
    assert "`unconditional`" in caught.value.remedy


def test_models_that_are_usually_asked_for_something_are_told_nothing(model):
    alone = safelight.unconditional(model, seed=1, steps=2, width=64, height=64)
    empty = safelight.text_to_image(model, "", seed=1, steps=2, width=64, height=64, guidance_scale=1)
    assert torch.equal(alone.latents, empty.latents)


# Classes


def class_model(kind, rows=6, names=("apple", "pear", "plum", "fig", "nut")):
    """A model of classes: in a table of the U-Net, or as a token of its context; the last row is for none."""
    torch.manual_seed(0)
    base = random_model()
    blocks = levels("CrossAttn", "") if kind == "context" else levels("Attn", "")
    config = replace(
        base.unet.config, **blocks, block_out_channels=(32, 64), cross_attention_dim=16, sample_size=8,
        attention_head_dim=4 if kind == "context" else 8, num_class_embeds=None if kind == "context" else rows,
        mid_block_type="UNetMidBlock2DCrossAttn" if kind == "context" else "UNetMidBlock2D",
    )  # fmt: skip
    embedder = ClassEmbedder(ClassEmbedder.Config(num_classes=rows, embed_dim=16, null_class=rows - 1))
    unet = UNet(config).eval().requires_grad_(False)
    for parameter in unet.parameters():
        parameter.add_(0.05 * torch.randn_like(parameter))
    told = embedder.eval().requires_grad_(False) if kind == "context" else None
    return replace(base, unet=unet, text_encoder=None, tokenizer=None, conditioner=told, classes=names, family="ldm")


@pytest.mark.parametrize("guidance", [1.0, 3.0])
@pytest.mark.parametrize("kind", ["table", "context"])
def test_a_class_is_drawn_as_a_plain_loop_around_diffusers_scheduler_draws_it(kind, guidance):
    model = class_model(kind)
    config = {"beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012, "steps_offset": 1}
    scheduler = diffusers.DDIMScheduler(**config, prediction_type="sample", clip_sample=False, set_alpha_to_one=False)
    scheduler.set_timesteps(6)
    x = torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(5))

    def output(number, t):
        label = torch.tensor([number])
        if kind == "table":
            return model.unet(x, t, class_labels=label)
        return model.unet(x, t, model.conditioner.embedding(label)[:, None])

    for t in scheduler.timesteps:
        told, none = output(2, t), output(5, t)
        x = scheduler.step(none + guidance * (told - none), t, x).prev_sample
    drawn = safelight.class_to_image(model, "plum", seed=5, guidance_scale=guidance, **DDIM)
    torch.testing.assert_close(drawn.latents, x, rtol=0, atol=1e-4)  # float32 sums in other orders
    by_number = safelight.class_to_image(model, "2", seed=5, guidance_scale=guidance, **DDIM)
    assert torch.equal(by_number.latents, drawn.latents)


def test_guidance_may_lead_away_from_a_class():
    model = class_model("table")
    draw = {"seed": 1, "steps": 2}
    a = safelight.class_to_image(model, "apple", **draw)
    b = safelight.class_to_image(model, "apple", negative_prompt="pear", **draw)
    none = safelight.class_to_image(model, "apple", negative_prompt="", **draw)
    assert torch.equal(a.latents, none.latents) and not torch.allclose(a.latents, b.latents)


@pytest.mark.parametrize(("label", "remedy"), [("appel", "apple"), (5, "0 to 4"), (-1, "0 to 4"), (True, "0 to 4")])
def test_classes_that_a_model_has_not_are_named(label, remedy):
    with pytest.raises(InputError, match="no class") as caught:
        safelight.class_to_image(class_model("context"), label, steps=1)
    assert remedy in caught.value.remedy


def test_guidance_without_a_null_class_says_what_to_do():
    model = class_model("context")
    model = replace(model, conditioner=ClassEmbedder(ClassEmbedder.Config(num_classes=6, embed_dim=16)))
    with pytest.raises(InputError, match="no picture without a class") as caught:
        safelight.class_to_image(model, 5, steps=1)
    assert "guidance_scale to 1" in caught.value.remedy
    assert len(safelight.class_to_image(model, 5, steps=1, guidance_scale=1)) == 1
    with pytest.raises(InputError, match="without a class"):
        safelight.unconditional(model, steps=1)


# Larger


def test_a_picture_is_enlarged_as_ldm_super_resolution_does_it(tmp_path, picture):
    torch.manual_seed(0)
    unet = diffusers.UNet2DModel(in_channels=6, out_channels=3, **PLAIN)
    pipe = quiet(diffusers.LDMSuperResolutionPipeline(vq(), unet, diffusers.DDIMScheduler(**BETAS)))
    pipe.save_pretrained(tmp_path)
    theirs = pipe(picture, generator=torch.Generator().manual_seed(3), num_inference_steps=6).images[0]
    model = safelight.load(tmp_path, device="cpu")
    drawn = safelight.upscale(model, picture, seed=3, **DDIM)
    assert drawn[0].size == (256, 128) and psnr(drawn[0], theirs) >= 60
    with pytest.raises(InputError, match="noise"):
        safelight.upscale(model, picture, noise_level=20)
    with pytest.raises(InputError, match="enlarge") as caught:
        safelight.text_to_image(model, "")
    assert "`upscale`" in caught.value.remedy


@pytest.fixture(scope="module")
def upscaler(tmp_path_factory):
    """Stable Diffusion's x4 upscaler in small, as diffusers writes it."""
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("upscaler")
    Tokenizer.clip().save(folder / "clip")
    unet = diffusers.UNet2DConditionModel(
        **CROSS,
        in_channels=7,
        out_channels=4,
        cross_attention_dim=16,
        num_class_embeds=1000,
        use_linear_projection=True,
    )
    vae = diffusers.AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * 3, up_block_types=("UpDecoderBlock2D",) * 3, latent_channels=4,
        block_out_channels=(8, 8, 16), norm_num_groups=4, scaling_factor=0.08333,
    )  # fmt: skip
    text = CLIPTextModel(CLIPTextConfig(
        hidden_size=16, intermediate_size=32, num_hidden_layers=1, num_attention_heads=2, eos_token_id=49407
    ))  # fmt: skip
    low = diffusers.DDPMScheduler(beta_start=0.0001, beta_end=0.02, beta_schedule="scaled_linear")
    pipe = diffusers.StableDiffusionUpscalePipeline(
        vae, text, CLIPTokenizer.from_pretrained(folder / "clip"), unet, low,
        diffusers.DDIMScheduler(**BETAS, prediction_type="v_prediction"),
    )  # fmt: skip
    pipe.save_pretrained(folder / "model")
    return folder / "model", quiet(pipe)


@pytest.mark.parametrize(("guidance", "level"), [(1.0, None), (6.0, 20), (6.0, 200)])
def test_a_picture_is_enlarged_as_the_x4_upscaler_does_it(upscaler, picture, guidance, level):
    folder, pipe = upscaler
    seed = 4
    theirs = pipe(
        "a fox", picture, num_inference_steps=6, guidance_scale=guidance, negative_prompt="a hat",
        noise_level=20 if level is None else level, generator=torch.Generator().manual_seed(seed + PICTURE_NOISE),
        latents=SeededNoise([seed], (4, 32, 64)).initial(),
    ).images[0]  # fmt: skip
    words = {"prompt": "a fox", "negative_prompt": "a hat", "guidance_scale": guidance}
    drawn = safelight.upscale(safelight.load(folder, device="cpu"), picture, noise_level=level, seed=seed, **words,
                              **DDIM)  # fmt: skip
    assert drawn[0].size == (256, 128) and psnr(drawn[0], theirs) >= 60


def test_each_picture_of_a_batch_has_noise_of_its_own_and_any_size_will_do(upscaler, picture):
    model, small = safelight.load(upscaler[0], device="cpu"), picture.crop((0, 0, 21, 17))
    together = safelight.upscale(model, small, prompt="a fox", seed=7, count=2, steps=2)
    assert together[0].size == (84, 68)
    alone = safelight.upscale(model, small, prompt="a fox", seed=8, steps=2)
    torch.testing.assert_close(together.latents[1:], alone.latents, rtol=0, atol=1e-4)
    with pytest.raises(InputError, match="noise_level"):
        safelight.upscale(model, small, noise_level=351)


def test_diffusers_loads_the_upscaler_that_we_write(upscaler, tmp_path):
    safelight.convert(upscaler[0], tmp_path / "again")
    pipe = diffusers.StableDiffusionUpscalePipeline.from_pretrained(tmp_path / "again")
    assert pipe.low_res_scheduler.config.beta_end == 0.02
    safelight.convert(upscaler[0], tmp_path / "one.safetensors")
    assert safelight.load(tmp_path / "one.safetensors", device="cpu").sees == "picture"


# Layouts and maps


def layout_model():
    model = class_model("context")
    torch.manual_seed(1)
    embedder = LayoutEmbedder(LayoutEmbedder.Config(num_classes=5, embed_dim=16, max_objects=3, num_layers=1))
    return replace(model, conditioner=embedder.eval().requires_grad_(False))


def test_a_layout_is_heard_as_tuples_or_as_a_text():
    model = layout_model()
    draw = {"seed": 2, "steps": 3, "guidance_scale": 3}
    boxes = [("apple", 0.1, 0.2, 0.5, 0.6), ("pear", 0.5, 0.5, 1, 1)]
    a = safelight.layout_to_image(model, boxes, **draw)
    b = safelight.layout_to_image(model, "apple 0.1 0.2 0.5 0.6, pear 0.5 0.5 1 1", **draw)
    other = safelight.layout_to_image(model, [boxes[0], ("pear", 0.5, 0.4, 1, 1)], **draw)
    assert torch.equal(a.latents, b.latents) and not torch.allclose(a.latents, other.latents)
    turned = safelight.layout_to_image(model, boxes[::-1], **draw)
    torch.testing.assert_close(turned.latents, a.latents, rtol=0, atol=1e-4)  # objects have no order
    empty = safelight.layout_to_image(model, [], seed=2, steps=3)
    assert torch.allclose(empty.latents, safelight.unconditional(model, seed=2, steps=3).latents, atol=1e-4)


@pytest.mark.parametrize(
    ("boxes", "words"),
    [
        ("apple 0.1 0.2 0.5", "four numbers"), ([("apple", 0.5, 0.2, 0.5, 0.6)], "has the box"),
        ([("apple", 0, 0, 1, 2)], "has the box"), ("aple 0 0 1 1", "no class 'aple'"), ([3], "four numbers"),
        ("apple 0 0 1 1;" * 4, "4 objects"), ([("apple", float("nan"), 0, 1, 1)], "has the box"),
    ],
)  # fmt: skip
def test_what_is_no_layout_is_named(boxes, words):
    with pytest.raises(InputError, match=words):
        safelight.layout_to_image(layout_model(), boxes, steps=1)


@pytest.fixture(scope="module")
def map_model():
    model = random_model()
    torch.manual_seed(0)
    config = replace(
        model.unet.config, **levels("Attn", ""), mid_block_type="UNetMidBlock2D", block_out_channels=(32, 64),
        attention_head_dim=8, in_channels=7,
    )  # fmt: skip
    unet = UNet(config).eval().requires_grad_(False)
    for parameter in unet.parameters():
        parameter.add_(0.05 * torch.randn_like(parameter))
    embedder = MapEmbedder(MapEmbedder.Config(num_classes=4)).eval().requires_grad_(False)
    return replace(model, unet=unet, text_encoder=None, tokenizer=None, conditioner=embedder, family="ldm")


def test_a_map_is_heard_in_any_form_and_gives_the_picture_its_size(map_model, tmp_path):
    numbers = np.zeros((44, 68), np.uint8)
    numbers[10:30, 8:40] = 3
    file = Image.fromarray(numbers, "P")
    file.putpalette([0, 0, 0, 255, 0, 0, 0, 255, 0, 0, 0, 255])
    file.save(tmp_path / "map.png")
    draw = {"seed": 2, "steps": 2}
    a, b, c = (
        safelight.semantic_synthesis(map_model, one, **draw)
        for one in (torch.from_numpy(numbers), numbers.astype(np.int64), tmp_path / "map.png")
    )
    assert a[0].size == (68, 44)
    assert torch.equal(a.latents, b.latents) and torch.equal(a.latents, c.latents)
    other = safelight.semantic_synthesis(map_model, np.zeros_like(numbers), **draw)
    assert not torch.allclose(a.latents, other.latents)


def test_what_is_no_map_is_named(map_model, model, tmp_path):
    Image.new("RGB", (8, 8)).save(tmp_path / "rgb.png")
    for wrong, words in [(np.full((8, 8), 4, np.uint8), "classes from 4 to 4"), (tmp_path / "rgb.png", "RGB"),
                         (torch.zeros(8, 8), "no map"), (torch.zeros(1, 8, 8).long(), "no map")]:  # fmt: skip
        with pytest.raises(InputError, match=words):
            safelight.semantic_synthesis(map_model, wrong, steps=1)
    with pytest.raises(InputError, match="draw from words"):
        safelight.semantic_synthesis(model, np.zeros((8, 8), np.uint8), steps=1)


@pytest.mark.parametrize("task", ["class_to_image", "upscale", "layout_to_image", "semantic_synthesis"])
def test_a_model_of_another_kind_is_sent_to_its_own_task(model, task):
    asked = {"class_to_image": "apple", "upscale": Image.new("RGB", (8, 8)), "layout_to_image": "apple 0 0 1 1",
             "semantic_synthesis": np.zeros((8, 8), np.uint8)}  # fmt: skip
    with pytest.raises(InputError, match="draw from words") as caught:
        getattr(safelight, task)(model, asked[task], steps=1)
    assert "`text_to_image`" in caught.value.remedy
    with pytest.raises(InputError, match="draw layouts"):
        safelight.text_to_image(layout_model(), "an apple")


def test_pictures_carry_the_request_that_draws_them_again():
    model, boxes = layout_model(), [("apple", 0.1, 0.2, 0.5, 0.6)]
    (recipe,) = safelight.layout_to_image(model, boxes, seed=2, steps=2).recipes
    assert recipe.request["boxes"] == [["apple", 0.1, 0.2, 0.5, 0.6]] and not recipe.unrecorded
    again = safelight.layout_to_image(model, **{k: v for k, v in recipe.request.items() if k != "batch_index"})
    assert torch.equal(again.latents, safelight.layout_to_image(model, boxes, seed=2, steps=2).latents)
    (recipe,) = safelight.class_to_image(class_model("table"), "fig", seed=2, steps=1).recipes
    assert recipe.request["label"] == "fig" and recipe.request["negative_prompt"] == "" and not recipe.unrecorded


# Inpainting without words


@pytest.fixture(scope="module")
def ldm_painter():
    """Latent diffusion's own inpainting in small: no words, a codebook, 3 + 3 + 1 channels."""
    torch.manual_seed(0)
    base = random_model()
    config = replace(
        base.unet.config, **levels("", "Attn"), block_out_channels=(32, 64), attention_head_dim=32, sample_size=16,
        in_channels=7, out_channels=3, mid_block_type="UNetMidBlock2D",
    )  # fmt: skip
    unet = UNet(config).eval().requires_grad_(False)
    for parameter in unet.parameters():
        parameter.add_(0.05 * torch.randn_like(parameter))
    stage = Autoencoder(AutoencoderConfig.from_diffusers(dict(vq().config))).eval().requires_grad_(False)
    return replace(base, unet=unet, autoencoder=stage, text_encoder=None, tokenizer=None, family="ldm-inpaint")


def test_latent_diffusion_s_own_inpainting_sees_what_its_script_shows_it(ldm_painter, picture):
    """A plain loop with the lines of CompVis/latent-diffusion, scripts/inpaint.py, around diffusers' scheduler."""
    model, mask = ldm_painter, np.zeros((32, 64), np.uint8)
    mask[5:21, 13:50] = 255
    image = torch.from_numpy(np.array(picture)).permute(2, 0, 1)[None] / 255
    holes = torch.from_numpy(mask)[None, None] / 255
    masked, holes = ((1 - holes) * image) * 2 - 1, holes * 2 - 1
    c = model.autoencoder.encode(masked).mode()
    c = torch.cat((c, torch.nn.functional.interpolate(holes, size=c.shape[-2:])), dim=1)
    config = {"beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012, "steps_offset": 1}
    scheduler = diffusers.DDIMScheduler(**config, prediction_type="sample", clip_sample=False, set_alpha_to_one=False)
    scheduler.set_timesteps(6)
    x = torch.randn(1, 3, 8, 16, generator=torch.Generator().manual_seed(5))
    for t in scheduler.timesteps:
        x = scheduler.step(model.unet(torch.cat((x, c), dim=1), t), t, x).prev_sample
    drawn = safelight.inpaint(model, "", picture, Image.fromarray(mask), seed=5, guidance_scale=1, **DDIM)
    torch.testing.assert_close(drawn.latents, x, rtol=0, atol=1e-4)
    other = safelight.inpaint(replace(model, family="ldm"), "", picture, Image.fromarray(mask), seed=5, **DDIM)
    assert not torch.allclose(other.latents, x, atol=1e-2)


# What a model can be asked for


def test_the_tasks_of_a_model_are_those_it_draws(model, picture):
    mask = Image.new("L", picture.size, 255)
    given = {"text_to_image": {"prompt": "a fox"}, "unconditional": {}, "class_to_image": {"label": 1},
             "image_to_image": {"prompt": "a fox", "image": picture}, "variations": {"image": picture},
             "inpaint": {"prompt": "a fox", "image": picture, "mask": mask},
             "outpaint": {"prompt": "a fox", "image": picture, "left": 8}}  # fmt: skip
    of_words, of_classes = tasks_of(model), tasks_of(class_model("table"))
    assert set(of_words) == set(given) - {"class_to_image"} and of_words[0] == "text_to_image"
    assert of_classes == ("class_to_image", "unconditional")
    for loaded, tasks in ((model, of_words), (class_model("table"), of_classes)):
        for task in tasks:
            assert getattr(safelight, task)(loaded, **given[task], steps=1, seed=0)
    for task in set(given) - set(of_classes) - {"image_to_image", "variations", "inpaint", "outpaint"}:
        with pytest.raises(InputError, match="this model was trained"):
            getattr(safelight, task)(class_model("table"), **given[task], steps=1)
