"""Pictures drawn again from their files: byte for byte from ours; a clear error where something is missing."""

import os
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

import safelight
from safelight.checkpoint.save import save_autoencoder, save_decoder
from safelight.errors import InputError, MissingPartError
from safelight.models.tiny_decoder import TinyDecoder, TinyDecoderConfig
from safelight.pipeline.loading import load
from safelight.pipeline.pictures import save_picture
from safelight.pipeline.recipes import infotext, weights
from safelight.pipeline.recipes.adapters import filled, named
from safelight.pipeline.recipes.reading import read_picture
from safelight.pipeline.recipes.recipe import ModelCard, Recipe
from safelight.pipeline.recipes.redraw import difference, model_for, redraw, weights_of

QUICK = {"steps": 3, "seed": 5}
SIZE = {"width": 64, "height": 64}


@pytest.fixture
def pair(tmp_path):
    """A picture and a mask, as files."""
    y, x = np.mgrid[0:56, 0:72]
    Image.fromarray(np.stack([3 * x, 4 * y, 255 - x - y], 2).astype(np.uint8)).save(tmp_path / "in.png")
    Image.fromarray(np.where(x < 40, 255, 0).astype(np.uint8)).save(tmp_path / "mask.png")
    return {"image": tmp_path / "in.png", "mask": tmp_path / "mask.png"}


def again(model, pictures, folder, k=0, **inputs):
    """Picture k of some, saved, read and drawn again: equal pixels are asserted."""
    path = pictures.save(folder)[k]
    redrawn = redraw(read_picture(path), model, **inputs)
    assert np.array_equal(np.asarray(redrawn.pictures[0]), np.asarray(Image.open(path)))
    assert difference(path, redrawn.pictures[0]) == "the pixels are identical"
    return redrawn


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"sampler": "dpmpp_sde", "grid": "exponential", "guidance_rescale": 0.4, "guidance_end": 0.5},
        {"sampler": "ddim", "eta": 0.3, "initial_noise": "sigma", "clip_skip": 1, "prompt_syntax": "comfyui"},
        {"sampler": "euler", "sampler_options": {"s_churn": 3.0, "s_tmax": float("inf")}, "grid_options": {"rho": 5.0}},
        {"noise": "cuda", "sampler": "euler_ancestral", "noise_seed_delta": 31337},
        {"noise": "comfyui", "sampler": "euler_ancestral", "batch_index": 2},
        {"noise": "cuda", "subseed_strength": 0.4, "seed_resize_from_width": 96, "seed_resize_from_height": 48},
    ],
)
def test_text_to_image(model, tmp_path, settings):
    drawn = safelight.text_to_image(model, "a (red:1.3) fox", negative_prompt="x", **QUICK, **SIZE, **settings)
    assert again(model, drawn, tmp_path).remarks == ()


@pytest.mark.parametrize("noise", [{}, {"noise": "comfyui"}, {"noise": "cuda", "subseed": 9, "subseed_strength": 0.3}])
def test_pictures_of_a_batch(model, tmp_path, noise):
    """A batch rounds otherwise than a picture alone, so a picture of a batch is drawn in such a batch again."""
    drawn = safelight.text_to_image(model, "a fox", count=5, batch_size=3, sampler="ddpm", **QUICK, **SIZE, **noise)
    for k in (0, 2, 4):
        redrawn = again(model, drawn, tmp_path / str(k), k)
        assert len(redrawn.pictures) == 1 and redrawn.pictures.seeds == drawn.seeds[k : k + 1]
        assert redrawn.pictures.recipes == drawn.recipes[k : k + 1]


def test_pictures_with_words_of_their_own(model, tmp_path):
    drawn = safelight.text_to_image(
        model, "{a fox|an owl in the tall grass}", dynamic_prompts=True, count=4, **QUICK, **SIZE
    )
    assert len(set(drawn.prompts)) == 2
    for k in range(4):
        again(model, drawn, tmp_path / str(k), k)


def test_image_to_image_inpaint_and_variations(model, tmp_path, pair):
    image = {"image": pair["image"]}
    first = safelight.image_to_image(model, "a fox", **image, strength=0.7, **QUICK)
    assert again(model, first, tmp_path / "1", **image).remarks == ()
    resized = safelight.image_to_image(model, "a fox", **image, width=64, height=88, **QUICK)
    again(model, resized, tmp_path / "2", **image)
    painted = safelight.inpaint(model, "a hat", **pair, **QUICK)
    assert again(model, painted, tmp_path / "3", **pair).remarks == ()
    again(model, safelight.variations(model, **image, count=2, **QUICK), tmp_path / "4", 1, **image)
    wider = safelight.outpaint(model, "a hat", **image, right=24, **QUICK)
    assert again(model, wider, tmp_path / "5", **image).remarks == ()


def test_the_input_may_come_in_any_form(model, tmp_path, pair):
    drawn = safelight.image_to_image(model, "a fox", np.asarray(Image.open(pair["image"])), **QUICK)
    assert again(model, drawn, tmp_path, image=pair["image"]).remarks == ()


def test_missing_and_other_inputs(model, tmp_path, pair):
    drawn = safelight.image_to_image(model, "a fox", pair["image"], **QUICK)
    reading = read_picture(drawn.save(tmp_path)[0])
    with pytest.raises(InputError, match=r"72x56 pixels of sha256 [0-9a-f]{64}") as raised:
        redraw(reading, model)
    assert "--image" in raised.value.remedy
    with pytest.raises(InputError, match="takes no mask"):
        redraw(reading, model, **pair)
    other = Image.open(pair["image"]).transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    assert redraw(reading, model, image=other).remarks == (
        "this image is not the one it was drawn from: the pixels differ",
    )


def test_another_seed_draws_another_picture(model, tmp_path):
    drawn = safelight.text_to_image(model, "a fox", count=2, **QUICK, **SIZE)
    redrawn = redraw(read_picture(drawn.save(tmp_path)[1]), model, seed=17)
    alone = safelight.text_to_image(model, "a fox", **QUICK | {"seed": 17}, **SIZE)
    assert redrawn.pictures.seeds == (17,)
    assert np.array_equal(np.asarray(redrawn.pictures[0]), np.asarray(alone[0]))


def test_what_no_file_can_hold_is_refused(model, tmp_path):
    drawn = safelight.text_to_image(model, "a fox", wrap=lambda denoise: denoise, **QUICK, **SIZE)
    with pytest.raises(InputError, match="lacks wrap"):
        redraw(read_picture(drawn.save(tmp_path)[0]), model)


def test_remarks_say_what_is_not_as_it_was(model, tmp_path):
    recipe = safelight.text_to_image(model, "a fox", **QUICK, **SIZE).recipes[0]
    card = replace(recipe.model, dtype="float16", device="cuda", int8=True, weights={"m.safetensors": "ab"})
    changed = replace(recipe, model=card, request={**recipe.request, "later_option": 1})
    path = save_picture(Image.new("RGB", (64, 64)), tmp_path / "a.png", changed)
    redrawn = redraw(read_picture(path), model)
    words = "\n".join(redrawn.remarks)
    assert "later_option" in words and "hashes of the weights differ" in words
    assert "float16" in words and "cuda" in words and "with int8, and now without" in words
    assert "of the pixels differ" in difference(path, redrawn.pictures[0])


@pytest.fixture
def memory(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache" / "safelight" / "weights.json"


@pytest.fixture(scope="module")
def single(model, tmp_path_factory):
    """The small random model as a file."""
    from safelight.checkpoint.parts import Parts
    from safelight.checkpoint.save import save_single_file

    path = tmp_path_factory.mktemp("single") / "small.safetensors"
    parts = {name: getattr(model, name) for name in ("unet", "autoencoder", "text_encoder", "tokenizer", "family")}
    save_single_file(Parts(**parts, prediction_type="sample"), path)
    return path


def test_a_model_is_found_again_by_its_hash(single, tmp_path, memory):
    drawn = safelight.text_to_image(load(single, prediction_type="sample"), "a fox", **QUICK, **SIZE)
    path = drawn.save(tmp_path)[0]
    reading = read_picture(path)
    assert set(reading.model["weights"]) == {"small.safetensors"}
    assert memory.is_file()
    found = model_for(reading)
    assert found.name == str(single)
    assert difference(path, redraw(reading, found).pictures[0]) == "the pixels are identical"
    short = replace(reading, model={"name": "renamed", "hash": reading.model["weights"]["small.safetensors"][:10]})
    assert weights.find_model(short=short.model["hash"]) == single
    os.utime(single, (1, 1))  # another file has taken its place
    assert weights.find_model(reading.model["weights"]) is None


def test_a_missing_model_is_told_by_name_and_hash(single, tmp_path, memory):
    drawn = safelight.text_to_image(load(single, prediction_type="sample"), "a fox", **QUICK, **SIZE)
    reading = read_picture(drawn.save(tmp_path)[0])
    memory.unlink()  # as on another machine
    digest = reading.model["weights"]["small.safetensors"]
    with pytest.raises(
        MissingPartError, match=f"'small.safetensors' is not known on this machine .*{digest}"
    ) as raised:
        model_for(reading)
    assert "--model" in raised.value.remedy


def test_the_default_model_is_that_of_this_package(tmp_path, memory):
    """It is found by its name: its folder differs from machine to machine, and is not remembered."""
    drawn = safelight.text_to_image(load("default"), "a red apple", **QUICK, **SIZE)
    path = drawn.save(tmp_path)[0]
    reading = read_picture(path)
    assert reading.model["name"] == "default" and reading.model["weights"] and not memory.exists()
    redrawn = redraw(reading, model_for(reading))
    assert redrawn.remarks == () and difference(path, redrawn.pictures[0]) == "the pixels are identical"


def test_loras_and_learned_words_are_found_again_beside_the_model(model, single, tmp_path, memory):
    wide = model.unet.conv_in.weight
    for name in ("a", "b"):
        down, up = torch.randn(2, *wide.shape[1:]), torch.randn(len(wide), 2, 1, 1)
        layer = "lora_unet_conv_in.lora_{}.weight".format
        save_file({layer("down"): down, layer("up"): up}, tmp_path / f"{name}.safetensors")
    width = model.text_encoder.config.hidden_size
    save_file({"emb_params": torch.randn(2, width)}, tmp_path / "ink-style.safetensors")
    beside = {"loras": [f"{tmp_path / 'a.safetensors'}:0.3", *[(tmp_path / "b.safetensors", -0.05)] * 2],
              "embeddings": [tmp_path / "ink-style.safetensors"]}  # fmt: skip
    loaded = load(single, prediction_type="sample", **beside)
    path = safelight.text_to_image(loaded, "a fox in ink-style", steps=1, seed=1, **SIZE).save(tmp_path / "drawn")[0]
    reading = read_picture(path)
    amounts = {"lora: a.safetensors": 0.3, "lora: b.safetensors": -0.05, "lora: b.safetensors (2)": -0.05}
    assert reading.model["loras"] == amounts
    other = load(single, prediction_type="sample", embeddings=[f"<ink>={tmp_path / 'ink-style.safetensors'}"])
    safelight.text_to_image(other, "a fox", steps=1, seed=1, **SIZE).save(tmp_path / "other")  # by another word since
    redrawn = redraw(reading, model_for(reading))
    assert redrawn.remarks == () and difference(path, redrawn.pictures[0]) == "the pixels are identical"
    other = model_for(reading, loras=[(tmp_path / "a.safetensors", 0.5), *beside["loras"][1:]])
    assert redraw(reading, other).remarks == ("lora: a.safetensors was added by 0.3, and now by 0.5",)
    (tmp_path / "b.safetensors").unlink()
    with pytest.raises(MissingPartError, match=r"the lora is not known on this machine \(.*b.safetensors sha256"):
        model_for(reading)


def test_a_file_fills_in_for_a_strangers_lora(model, single, tmp_path, memory):
    wide = model.unet.conv_in.weight
    for name in ("Ink", "other"):
        down, up = torch.randn(2, *wide.shape[1:]), torch.randn(len(wide), 2, 1, 1)
        layer = "lora_unet_conv_in.lora_{}.weight".format
        save_file({layer("down"): down, layer("up"): up}, tmp_path / f"{name}.safetensors")
    theirs = "Steps: 1, Sampler: Euler, Seed: 1, Size: 64x64"
    reading = infotext.read(f"a fox <lora:ink:0.3> <lora:pen:-0.05:1>\n{theirs}")
    ink, other = tmp_path / "Ink.safetensors", tmp_path / "other.safetensors"
    settled, loras = filled(reading, [str(other), str(ink)])
    assert loras == [(str(other), -0.05), (str(ink), 0.3)]
    assert settled.remarks == ("other.safetensors fills in for the LoRA 'pen', by -0.05",)
    redrawn = redraw(settled, load(single, prediction_type="sample", loras=loras))
    plain = replace(reading, request={**reading.request, "prompt": "a fox  "})
    by_hand = redraw(plain, load(single, prediction_type="sample", loras=[(ink, 0.3), (other, -0.05)]))
    assert torch.allclose(redrawn.pictures.latents, by_hand.pictures.latents, atol=1e-4)


def test_a_prompt_s_loras_are_found_by_name(tmp_path):
    (tmp_path / "old").mkdir()
    for file in ("Ink.safetensors", "old/ink.safetensors", "old/pen.safetensors", "other.safetensors"):
        (tmp_path / file).touch()
    ink, pen, other = (tmp_path / file for file in ("Ink.safetensors", "old/pen.safetensors", "other.safetensors"))
    request = {"prompt": "a fox <lora:ink:0.3>", "negative_prompt": "<lyco:PEN:-2:1>", "extra_networks": "error"}
    settled = request | {"extra_networks": "ignore"}
    assert named(request, [str(tmp_path)]) == (settled, [(ink, 0.3), (pen, -2.0)])
    assert named(request, [pen, f"{ink}:0.5", other])[1] == [(pen, -2.0), (str(ink), 0.5), (other, 1.0)]
    with pytest.raises(MissingPartError, match="not given: 'PEN' by -2") as raised:
        named(request, [other, ink])
    assert "folder" in raised.value.remedy
    for left in ({"prompt": "a fox"}, settled, {"prompt": "<lora:ink:1><hypernet:x:1>"}):
        assert named(left, [other]) == (left, [(other, 1.0)])
    stranger = infotext.read("a <lora:pen:0.3>\nSteps: 1, Sampler: Euler, Seed: 1")
    assert filled(stranger, [tmp_path])[1] == [(pen, 0.3)]


def test_loras_of_strangers_are_named_where_no_file_fills_in():
    reading = infotext.read("a fox <lora:ink:0.3><lora:off:0><lora:odd:nan>\nSteps: 1, Sampler: Euler, Seed: 1")
    with pytest.raises(MissingPartError, match=r"'ink' by 0\.3, 'odd' by 1"):
        filled(reading, [])
    assert filled(reading, ["INK.safetensors:0.9"], without=True)[1] == [("INK.safetensors", 0.9)]
    graph = replace(reading, request={"prompt": "x", "prompt_syntax": "comfyui"}, model={"loras": {"x.safetensors": 2}})
    with pytest.raises(MissingPartError, match=r"'x\.safetensors' by 2"):
        filled(graph, [])
    assert filled(graph, ["x.safetensors", "y:0.5"])[1] == [("x.safetensors", 2), ("y", 0.5)]


@pytest.mark.parametrize("said", [["x"], {"lora: a.safetensors": "much"}, 3])
def test_what_a_file_tells_of_loras_is_not_trusted(model, tmp_path, said):
    path = safelight.text_to_image(model, "a fox", steps=1, seed=1, **SIZE).save(tmp_path)[0]
    reading = read_picture(path)
    told = replace(reading, model={**reading.model, "name": "default", "loras": said})
    assert model_for(told).loras == {}


def test_a_vae_and_a_decoder_are_found_again_beside_the_model(model, single, tmp_path, memory):
    stage = model.autoencoder.config
    levels = len(stage.block_out_channels)
    shape = TinyDecoderConfig(latent_channels=stage.embed_dim, block_out_channels=(8,) * levels,
                              num_blocks=(1,) * levels, scaling_factor=stage.scaling_factor)  # fmt: skip
    save_decoder(TinyDecoder(shape), tmp_path / "tiny")
    save_autoencoder(model.autoencoder, tmp_path / "first")
    parts = {"vae": tmp_path / "first", "decoder": tmp_path / "tiny"}
    loaded = load(single, prediction_type="sample", **parts)
    path = safelight.text_to_image(loaded, "a fox", steps=1, seed=1, **SIZE).save(tmp_path / "drawn")[0]
    reading = read_picture(path)
    assert weights.find_model(weights_of(reading)) == single  # by its own files alone
    found = model_for(reading)
    redrawn = redraw(reading, found)
    assert redrawn.remarks == () and difference(path, redrawn.pictures[0]) == "the pixels are identical"
    own = {name: file for name, file in found.weights.items() if "decoder" not in name}
    remarks = redraw(reading, replace(found, decoder=None, weights=own)).remarks
    assert remarks == ("this is not the decoder that drew it: the hashes of the weights differ",)
    parts["decoder"].rename(tmp_path / "elsewhere")
    with pytest.raises(MissingPartError, match=r"the decoder is not known on this machine \(.* sha256") as raised:
        model_for(reading)
    assert "--decoder" in raised.value.remedy


@pytest.mark.parametrize("name", ["/etc/passwd", "../x", "evil/model", "a.ckpt", ""])
def test_a_strangers_model_name_loads_nothing(tmp_path, memory, name):
    recipe = Recipe("text_to_image", {"prompt": "x"}, ModelCard(name, weights={"a": "b"}), (8, 8))
    with pytest.raises(MissingPartError, match="not known on this machine"):
        model_for(read_picture(save_picture(Image.new("RGB", (8, 8)), tmp_path / "a.png", recipe)))


def test_hashes_are_taken_once_and_again_when_a_file_changes(tmp_path, memory, monkeypatch):
    file = tmp_path / "a.safetensors"
    file.write_bytes(b"one")
    first = weights.hashes({"a": file}, str(file))
    taken = []
    real = weights.file_digest
    monkeypatch.setattr(weights, "file_digest", lambda *given: taken.append(given) or real(*given))
    assert weights.hashes({"a": file}, str(file)) == first and taken == []
    file.write_bytes(b"three")
    assert weights.hashes({"a": file}, str(file)) != first and len(taken) == 1
    assert weights.find_model(first) is None
    memory.write_text('{"files": [], "models": {"x": 3}}')  # damaged: forgotten, and written anew
    assert weights.hashes({"a": file}) and weights.find_model({"a": "b"}) is None
    file.unlink()
    assert weights.hashes({"a": file}) == {}
