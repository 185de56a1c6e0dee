"""Stable Diffusion XL beside diffusers: the same small model, the same seed, the same picture; and its files."""

import json
import shutil

import diffusers
import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

import safelight
from safelight.checkpoint.load import load_parts
from safelight.checkpoint.single import METADATA
from safelight.diffusion.condition import Condition
from safelight.pipeline.bundle import tasks_of
from safelight.pipeline.developing import decode, encode
from safelight.pipeline.recipes.redraw import skipped
from safelight.pipeline.seeing.attention import attention_maps
from safelight.pipeline.seeing.measuring import guidance_pulls
from safelight.pipeline.seeing.preview import previewer
from safelight.text.mixing import blend_words, swap_word
from small_xl import write_small_xl

# As diffusers' Euler begins and walks with "leading" timesteps
EULER = {"sampler": "euler", "grid": "leading", "steps": 6}
WORDS = {"prompt": "a red fox, résumé", "negative_prompt": "a hat"}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    torch.set_num_threads(1)
    return write_small_xl(tmp_path_factory.mktemp("xl"))


@pytest.fixture(scope="module")
def pipe(folder):
    pipe = diffusers.StableDiffusionXLPipeline.from_pretrained(folder, add_watermarker=False)
    pipe.set_progress_bar_config(disable=True)
    return pipe


@pytest.fixture(scope="module")
def model(folder):
    return safelight.load(folder)


@pytest.fixture(scope="module")
def file(folder, tmp_path_factory):
    path = tmp_path_factory.mktemp("xl_file") / "xl.safetensors"
    safelight.convert(folder, path)
    return path


def psnr(a, b):
    error = np.mean((np.asarray(a).astype(float) - np.asarray(b).astype(float)) ** 2)
    return np.inf if error == 0 else 10 * np.log10(255**2 / error)


def theirs(pipe, **options):
    return pipe(
        num_inference_steps=6, generator=torch.Generator().manual_seed(4), **{"width": 128, "height": 96, **options}
    ).images


def ours(model, prompt, **options):
    return safelight.text_to_image(model, prompt, **{**EULER, "seed": 4, "width": 128, "height": 96, **options})


@pytest.mark.parametrize("guidance", [1.0, 5.0])
def test_text_to_image(pipe, model, guidance):
    drawn = ours(model, **WORDS, guidance_scale=guidance)
    assert psnr(drawn[0], theirs(pipe, **WORDS, guidance_scale=guidance)[0]) >= 60


def test_no_negative_prompt_is_told_as_zeros_as_in_diffusers(pipe, model):
    drawn = ours(model, "a red fox", guidance_scale=5.0)
    assert psnr(drawn[0], theirs(pipe, prompt="a red fox", guidance_scale=5.0)[0]) >= 60
    encoded = ours(model, "a red fox", guidance_scale=5.0, negative_prompt=model.condition([""], size=(12, 16)))
    assert psnr(encoded[0], theirs(pipe, prompt="a red fox", negative_prompt="", guidance_scale=5.0)[0]) >= 60
    assert psnr(drawn[0], encoded[0]) < 50


def test_layers_are_skipped_as_in_diffusers(pipe, model):
    drawn = ours(model, **WORDS, guidance_scale=1.0, clip_skip=1)
    assert psnr(drawn[0], theirs(pipe, **WORDS, guidance_scale=1.0, clip_skip=1)[0]) >= 60


def test_the_size_that_is_told_is_the_pictures_own(pipe, model):
    """Another size, told alone, draws another picture; so that what is told does count."""
    told = {"original_size": (512, 512), "target_size": (512, 512)}
    one, other = theirs(pipe, **WORDS)[0], theirs(pipe, **WORDS, **told)[0]
    drawn = ours(model, **WORDS, guidance_scale=5.0)
    assert psnr(drawn[0], one) >= 60 > psnr(drawn[0], other)
    positive = model.condition([WORDS["prompt"]], size=(64, 64))
    negative = model.condition([WORDS["negative_prompt"]], size=(64, 64))
    assert psnr(ours(model, positive, negative_prompt=negative, guidance_scale=5.0)[0], other) >= 60


def test_image_to_image_and_inpainting_run(model):
    picture = Image.effect_noise((128, 96), 80).convert("RGB")
    mask = Image.new("L", (128, 96))
    mask.paste(255, (0, 0, 64, 96))
    drawn = safelight.image_to_image(model, "a fox", picture, strength=0.5, seed=0, steps=4)
    assert drawn[0].size == (128, 96)
    painted = safelight.inpaint(model, "a fox", picture, mask, seed=0, steps=4)
    right = (64, 0, 128, 96)
    assert np.array_equal(np.asarray(painted[0].crop(right)), np.asarray(picture.crop(right)))
    assert tasks_of(model)[0] == "text_to_image"


def test_pictures_of_a_batch_are_those_of_their_seeds(model):
    both = ours(model, ["a fox", "a hat"], guidance_scale=5.0, batch_size=2)
    alone = ours(model, "a hat", guidance_scale=5.0, seed=5)
    assert psnr(both[1], alone[0]) >= 60


def test_weights_branches_and_schedules_of_prompts_work(model):
    plain = ours(model, "a red fox")
    for prompt in ("a (red:1.4) fox", "a red fox AND a hat :0.5", "a [red:blue:0.5] fox"):
        drawn = ours(model, prompt)
        assert not np.array_equal(np.asarray(drawn[0]), np.asarray(plain[0])), prompt
    morphed = safelight.morph(model, "a fox", to_prompt="a hat", frames=3, seed=1, steps=3, width=128, height=96)
    assert len(morphed) == 3


def test_step_by_step(model):
    """As the README shows it: every part by itself."""
    grid = model.grid("leading", 3)
    positive, negative = model.condition(["a fox"]), model.condition([""])
    x = torch.randn(1, 4, 16, 16, generator=torch.Generator().manual_seed(0)) * grid.sigmas[0]
    denoise = safelight.guided(model.denoiser, positive, negative, 5.0)
    latent = safelight.sample(denoise, x, grid.sigmas, sampler="euler")
    assert latent.shape == x.shape and latent.isfinite().all()
    assert positive.pooled.shape == (1, 72)


def test_a_single_file_is_the_originals_and_draws_the_same(file, model, tmp_path):
    """Without our notes, from names and shapes alone, as it is for a file from elsewhere."""
    tensors = load_file(file)
    assert "conditioner.embedders.0.transformer.text_model.embeddings.token_embedding.weight" in tensors
    assert tensors["conditioner.embedders.1.model.text_projection"].shape == (48, 24)
    assert "model.diffusion_model.label_emb.0.0.weight" in tensors
    assert "model.diffusion_model.input_blocks.3.1.transformer_blocks.1.attn2.to_k.weight" in tensors
    found = load_parts(file)
    assert (found.family, found.force_zeros_for_empty_prompt) == ("sdxl", True)
    assert found.scheduler_config["_class_name"] == "EulerDiscreteScheduler"
    drawn = ours(safelight.load(file), **WORDS)
    assert psnr(drawn[0], ours(model, **WORDS)[0]) >= 60  # mapped elsewhere, a matrix product may add in another order
    save_file(
        tensors | {"conditioner.embedders.1.model.logit_scale": torch.tensor(4.6)}, tmp_path / "plain.safetensors"
    )
    plain = load_parts(tmp_path / "plain.safetensors")
    unet, first, second = plain.unet.config, plain.text_encoder.text_encoder, plain.text_encoder.text_encoder_2
    assert (unet.addition_embed_type, unet.projection_class_embeddings_input_dim) == ("text_time", 72)
    assert (unet.transformer_layers_per_block, unet.addition_time_embed_dim) == (2, 8)  # the first level has none
    assert (first.config.hidden_size, second.config.hidden_size, second.config.projection_dim) == (32, 48, 24)
    assert list(plain.extra) == ["conditioner.embedders.1.model.logit_scale"]


# What Stability's files say and diffusers does not write of itself (stable-diffusion-xl-base-1.0, and the inpainting
# model of 2023, which kept what belongs to a training's averages)
PUBLISHED = {"upcast_attention": None, "decay": 0.9999, "inv_gamma": 1.0, "min_decay": 0.0, "optimization_step": 37000,
             "power": 0.6666666666666666, "update_after_step": 0, "use_ema_warmup": False}  # fmt: skip


def test_configs_as_they_were_published(folder, model, tmp_path):
    shutil.copytree(folder, tmp_path / "model")
    path = tmp_path / "model" / "unet" / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | PUBLISHED))
    drawn = safelight.load(tmp_path / "model")
    assert drawn.unet.config == model.unet.config


def test_a_model_that_predicts_v_says_so_to_others(folder, tmp_path):
    shutil.copytree(folder, tmp_path / "model")
    path = tmp_path / "model" / "scheduler" / "scheduler_config.json"
    told = {"prediction_type": "v_prediction", "rescale_betas_zero_snr": True}
    path.write_text(json.dumps(json.loads(path.read_text()) | told))
    safelight.convert(tmp_path / "model", tmp_path / "v.safetensors")
    tensors = load_file(tmp_path / "v.safetensors")
    assert {"v_pred", "ztsnr"} <= tensors.keys()
    wrong = {"modelspec.prediction_type": "epsilon", "global_step": "many"}  # as trainers leave it
    save_file(tensors, tmp_path / "plain.safetensors", wrong)
    found = load_parts(tmp_path / "plain.safetensors")
    assert found.prediction_type == "v_prediction" and found.scheduler_config["rescale_betas_zero_snr"] is True


def test_a_word_about_empty_prompts_survives_a_file(folder, tmp_path):
    shutil.copytree(folder, tmp_path / "model")
    path = tmp_path / "model" / "model_index.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"force_zeros_for_empty_prompt": False}))
    safelight.convert(tmp_path / "model", tmp_path / "x.safetensors")
    safelight.convert(tmp_path / "x.safetensors", tmp_path / "back")
    assert not safelight.load(tmp_path / "x.safetensors").force_zeros_for_empty_prompt
    assert not safelight.load(tmp_path / "back").force_zeros_for_empty_prompt


def test_a_variant_is_of_the_model_where_the_autoencoder_beside_it_has_none(folder, pipe, tmp_path):
    pipe.save_pretrained(tmp_path / "half", variant="fp16")
    model = safelight.load(tmp_path / "half", variant="fp16", vae=folder / "vae")
    assert model.autoencoder.config.scaling_factor == 0.13025


def test_in_float16_what_overflows_is_done_again_in_float32(folder):
    """As XL's published autoencoder does: here its first layers are scaled until they do."""
    model = safelight.load(folder, dtype="float16")
    with torch.no_grad():
        model.autoencoder.encoder.conv_in.weight *= 60000
        model.autoencoder.decoder.conv_in.weight *= 60000
    picture = torch.linspace(-1, 1, 64).expand(1, 3, 64, 64)
    with torch.no_grad():
        assert not model.autoencoder.encode(picture).mode().isfinite().all()
    latent = encode(model, picture)
    assert latent.isfinite().all() and decode(model, latent).isfinite().all()
    assert previewer(model)(latent)[0].size == (8, 8)


@pytest.mark.parametrize("negative", ["", "a hat"])
def test_the_ends_of_a_way_are_the_pictures_of_both_prompts(model, negative):
    size = {"width": 128, "height": 96, "negative_prompt": negative}
    way = safelight.morph(model, "a red fox", to_prompt="a hat", frames=3, seed=4, steps=3, **size)
    first = safelight.text_to_image(model, "a red fox", seed=4, steps=3, **size)
    assert psnr(way[0], first[0]) >= 60


def test_clip_skip_of_other_programs_means_what_it_means_there(model):
    assert skipped("AUTOMATIC1111 v1.10.1", 1, model) == 0 and skipped("ComfyUI", 1, model) == 0
    assert skipped("ComfyUI", 2, model) == 1 and skipped("AUTOMATIC1111", 1, safelight.load("random")) == 1


def test_words_are_not_swapped_in_two_tables(model):
    with pytest.raises(safelight.SafelightError, match="two text encoders"):
        blend_words(model.tokenizer, model.text_encoder, {"fox": 1.0})
    with pytest.raises(safelight.SafelightError, match="two text encoders"):
        swap_word(model.tokenizer, model.text_encoder, "a fox", "fox", torch.zeros(1, 32))


def test_the_file_of_an_autoencoder_alone_has_the_scale_of_the_model_it_is_for(folder, model, tmp_path):
    """As sdxl_vae.safetensors, whose shapes are those of Stable Diffusion's, and which says no scale."""
    shutil.copy(folder / "vae" / "diffusion_pytorch_model.safetensors", tmp_path / "sdxl_vae.safetensors")
    given = safelight.load(folder, vae=tmp_path / "sdxl_vae.safetensors").autoencoder
    assert given.config.scaling_factor == 0.13025
    x = torch.randn(1, 4, 8, 8)
    with torch.no_grad():
        torch.testing.assert_close(given.decode(x), model.autoencoder.decode(x), rtol=0, atol=1e-4)


def test_a_folder_written_here_is_diffusers(folder, file, tmp_path):
    """From the single file back to a folder, which diffusers reads and draws the same picture with."""
    safelight.convert(file, tmp_path / "back")
    index = json.loads((tmp_path / "back" / "model_index.json").read_text())
    assert index["_class_name"] == "StableDiffusionXLPipeline" and index["force_zeros_for_empty_prompt"] is True
    pipes = [diffusers.StableDiffusionXLPipeline.from_pretrained(f, add_watermarker=False)
             for f in (folder, tmp_path / "back")]  # fmt: skip
    for pipe in pipes:
        pipe.set_progress_bar_config(disable=True)
    a, b = (theirs(pipe, **WORDS)[0] for pipe in pipes)
    assert np.array_equal(np.asarray(a), np.asarray(b))
    assert METADATA not in load_file(file)


def test_an_inpainting_model(tmp_path):
    folder = write_small_xl(tmp_path, in_channels=9)
    model = safelight.load(folder)
    assert (model.family, model.sees) == ("sdxl-inpaint", "mask")
    picture = Image.effect_noise((128, 96), 80).convert("RGB")
    drawn = safelight.inpaint(model, "a fox", picture, Image.new("L", (128, 96), 255), seed=0, steps=2)
    assert drawn[0].size == (128, 96)
    safelight.convert(folder, tmp_path / "model.safetensors")
    safelight.convert(tmp_path / "model.safetensors", tmp_path / "again")
    index = json.loads((tmp_path / "again" / "model_index.json").read_text())
    assert index["_class_name"] == "StableDiffusionXLInpaintPipeline"


def kohya(layer, rows, columns, seed):
    generator = torch.Generator().manual_seed(seed)
    down, up = torch.randn(2, columns, generator=generator), torch.randn(rows, 2, generator=generator)
    return {f"{layer}.lora_down.weight": down, f"{layer}.lora_up.weight": up, f"{layer}.alpha": torch.tensor(1.0)}


def test_a_lora_in_kohyas_names(folder, tmp_path):
    """kohya's names for XL: CompVis' for the U-Net, te1 and te2 for the text encoders."""
    te = "text_model_encoder_layers_0_self_attn_q_proj"
    lora = kohya("lora_unet_input_blocks_3_1_transformer_blocks_0_attn1_to_q", 64, 64, 1)
    lora |= kohya(f"lora_te1_{te}", 32, 32, 2) | kohya(f"lora_te2_{te}", 48, 48, 3)
    save_file(lora, tmp_path / "kohya.safetensors")
    model = safelight.load(folder, loras=[tmp_path / "kohya.safetensors"])
    place = "text_model.encoder.layers.0.self_attn.q_proj"
    known = {"unet.down_blocks.1.attentions.0.transformer_blocks.0.attn1.to_q": 1,
             f"text_encoder.{place}": 2, f"text_encoder_2.{place}": 3}  # fmt: skip
    plain = safelight.load(folder)
    for name, seed in known.items():
        network, _, layer = name.partition(".")
        down, up, _ = kohya("x", *(lora_shape(plain, network, layer)), seed).values()
        old, new = (find(one, network).get_submodule(layer).weight for one in (plain, model))
        torch.testing.assert_close(new, old + 0.5 * up @ down, rtol=1e-5, atol=1e-5)


def test_a_lora_draws_what_it_draws_in_diffusers(folder, tmp_path):
    te = "text_model.encoder.layers.0.self_attn.q_proj"
    layers = {"unet.down_blocks.1.attentions.0.transformer_blocks.1.attn2.to_v": (64, 80),
              f"text_encoder.{te}": (32, 32), f"text_encoder_2.{te}": (48, 48)}  # fmt: skip
    lora = {}
    for seed, (layer, (rows, columns)) in enumerate(layers.items()):
        down, up, _ = kohya(layer, rows, columns, seed).values()
        lora |= {f"{layer}.lora_A.weight": down, f"{layer}.lora_B.weight": up}
    save_file(lora, tmp_path / "lora.safetensors")
    pipe = diffusers.StableDiffusionXLPipeline.from_pretrained(folder, add_watermarker=False)
    pipe.set_progress_bar_config(disable=True)
    before = theirs(pipe, **WORDS, guidance_scale=5.0)[0]
    pipe.load_lora_weights(tmp_path, weight_name="lora.safetensors")
    peers = theirs(pipe, **WORDS, guidance_scale=5.0)[0]
    model = safelight.load(folder, loras=[tmp_path / "lora.safetensors"])
    assert psnr(ours(model, **WORDS, guidance_scale=5.0)[0], peers) >= 60 > psnr(before, peers)


def find(model, network):
    return model.unet if network == "unet" else getattr(model.text_encoder, network)


def lora_shape(model, network, layer):
    return tuple(find(model, network).get_submodule(layer).weight.shape)


def test_learned_words_have_vectors_for_both(folder, tmp_path):
    vectors = {"clip_l": torch.randn(2, 32), "clip_g": torch.randn(2, 48)}
    save_file(vectors, tmp_path / "skuppy.safetensors")
    model = safelight.load(folder, embeddings=[tmp_path / "skuppy.safetensors"])
    ids = torch.tensor([model.tokenizer.ids("a skuppy")])
    assert ids[0, 2:4].tolist() == [49408, 49409]
    second = model.text_encoder(ids)[1]
    positions = model.text_encoder.text_encoder_2.text_model.embeddings.position_embedding.weight
    torch.testing.assert_close(second.hidden_states[0][0, 2:4], vectors["clip_g"] + positions[2:4])
    one = {"emb_params": torch.randn(1, 32)}
    save_file(one, tmp_path / "old.safetensors")
    with pytest.raises(safelight.SafelightError, match="32 wide, but the text encoder 32 and 48"):
        safelight.load(folder, embeddings=[tmp_path / "old.safetensors"])


def test_a_user_who_swaps_parts_is_told_what_does_not_fit(model):
    other = safelight.load("random")
    with pytest.raises(safelight.SafelightError, match="not told of sizes"):
        other.told_size(torch.zeros(1, 24))
    words = Condition(context=model.condition(["a fox"]).context)
    with pytest.raises(safelight.SafelightError, match="pooled vector; got none"):
        ours(model, words, guidance_scale=1.0)


def test_the_refiner_is_refused_by_name(folder, tmp_path):
    shutil.copytree(folder, tmp_path / "refiner")
    path = tmp_path / "refiner" / "model_index.json"
    index = json.loads(path.read_text()) | {"text_encoder": [None, None], "tokenizer": [None, None]}
    path.write_text(json.dumps(index))
    with pytest.raises(safelight.SafelightError, match="refiner"):
        safelight.load(tmp_path / "refiner")


def test_a_controlnet(pipe, folder, tmp_path):
    torch.manual_seed(3)
    unet = pipe.unet.config
    shape = ("block_out_channels", "down_block_types", "layers_per_block", "cross_attention_dim", "attention_head_dim",
             "transformer_layers_per_block", "use_linear_projection", "addition_embed_type", "addition_time_embed_dim",
             "projection_class_embeddings_input_dim")  # fmt: skip
    control = diffusers.ControlNetModel(**{name: unet[name] for name in shape})
    with torch.no_grad():
        for parameter in control.parameters():
            parameter += 0.05 * torch.randn_like(parameter)
    control.save_pretrained(tmp_path / "control")
    edges = Image.linear_gradient("L").resize((128, 96)).convert("RGB")
    peer = diffusers.StableDiffusionXLControlNetPipeline(**pipe.components, controlnet=control, add_watermarker=False)
    peer.set_progress_bar_config(disable=True)
    steered = theirs(peer, **WORDS, image=edges, guidance_scale=5.0, controlnet_conditioning_scale=0.7)[0]
    model = safelight.load(folder, control=tmp_path / "control")
    drawn = ours(model, **WORDS, control_image=edges, control_scale=0.7, guidance_scale=5.0)
    assert psnr(drawn[0], steered) >= 60 > psnr(theirs(pipe, **WORDS, guidance_scale=5.0)[0], steered)
    with pytest.raises(safelight.SafelightError, match="ControlNet's"):
        safelight.load("default", control=tmp_path / "control")


def test_grids_films_and_attention_maps_work(model):
    """A grid's networks remember what they said; its pictures are those drawn alone."""
    options = EULER | {"seed": 4, "width": 128, "height": 96}
    grid = safelight.explore(model, "a red fox", x="guidance_scale=2,5", **options)
    for cell, scale in zip(grid.cells, (2.0, 5.0), strict=True):
        assert psnr(cell.image, ours(model, "a red fox", guidance_scale=scale)[0]) >= 60
    maps = attention_maps(model, "a red fox", steps=2, seed=0, width=64, height=64)
    assert maps.words == ("a", "red", "fox") and maps.maps.shape == (3, 8, 8)
    pulls = guidance_pulls(model, "a red fox", steps=2, seed=0, width=64, height=64)
    assert len(pulls) == 2 and all(pull.difference > 0 for pull in pulls)
