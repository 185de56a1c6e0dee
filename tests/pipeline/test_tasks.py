"""The tasks, drawn with a small random model: sizes, seeds, batches, masks, hooks, and bad input."""

from copy import deepcopy
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image

import safelight
from safelight.checkpoint.parts import Parts
from safelight.errors import Cancelled, CheckpointError, InputError, MissingPartError, NonFiniteError
from safelight.models.unet import UNet
from safelight.pipeline import developing
from safelight.pipeline.loading import bundle
from safelight.pipeline.pictures import load_picture, to_pil

QUICK = {"steps": 3, "seed": 5, "width": 64, "height": 64}


def pixels(image):
    return np.asarray(image).astype(int)


def test_draws_any_multiple_of_8(model):
    drawn = safelight.text_to_image(model, "a fox", width=72, height=104, steps=2, seed=1)
    assert drawn[0].size == (72, 104)
    assert drawn.latents.shape == (1, 4, 13, 9)
    assert drawn.latents.dtype == torch.float32


def test_draws_at_the_size_it_was_trained_at(model):
    assert safelight.text_to_image(model, "a fox", steps=1, seed=1)[0].size == (256, 256)


def test_the_same_seed_draws_the_same_picture_and_no_seed_a_fresh_one(model):
    first, again = (safelight.text_to_image(model, "a fox", **QUICK) for _ in range(2))
    assert np.array_equal(pixels(first[0]), pixels(again[0]))
    fresh = [safelight.text_to_image(model, "a fox", **QUICK | {"seed": None}).seeds[0] for _ in range(2)]
    assert fresh[0] != fresh[1]
    zero = safelight.text_to_image(model, "a fox", **QUICK | {"seed": 0})
    assert zero.seeds == (0,)


def test_minus_one_is_a_fresh_seed_which_is_recorded(model):
    drawn = safelight.text_to_image(model, "a fox", **QUICK | {"seed": -1}, subseed=-1, subseed_strength=0.5)
    origin, request = drawn.origins[0], drawn.recipes[0].request
    assert origin.seed >= 0 and origin.subseed >= 0
    assert (request["seed"], request["subseed"]) == (origin.seed, origin.subseed)
    again = safelight.text_to_image(model, **request)
    assert torch.equal(again.latents, drawn.latents)


@pytest.mark.parametrize("sampler", ["dpmpp_2m", "euler_ancestral", "dpmpp_sde", "ddpm", "dpmpp_2m_sde"])
def test_picture_k_is_the_picture_of_seed_k_alone(model, sampler):
    options = {"sampler": sampler, "width": 64, "height": 64, "steps": 4}
    together = safelight.text_to_image(model, "a fox", seed=7, count=4, batch_size=4, **options)
    assert together.seeds == (7, 8, 9, 10)
    for k in range(4):
        alone = safelight.text_to_image(model, "a fox", seed=7 + k, **options)
        assert np.abs(pixels(together[k]) - pixels(alone[0])).max() <= 1
    split = safelight.text_to_image(model, "a fox", seed=7, count=4, batch_size=3, **options)
    for k in range(4):
        assert np.abs(pixels(together[k]) - pixels(split[k])).max() <= 1


def test_the_model_says_how_it_is_guided_where_nothing_is_asked(model):
    soft = replace(model, guidance_scale=3.0)
    asked = [safelight.text_to_image(one, "a fox", **QUICK, **more) for one, more in (
        (soft, {}), (model, {"guidance_scale": 3.0}), (model, {}), (soft, {"guidance_scale": 7.5}))]  # fmt: skip
    assert np.array_equal(pixels(asked[0][0]), pixels(asked[1][0]))
    assert np.array_equal(pixels(asked[2][0]), pixels(asked[3][0]))
    assert asked[0].recipes[0].request["guidance_scale"] == 3.0 and asked[2].recipes[0].request["guidance_scale"] == 7.5
    grid = safelight.explore(soft, "a fox", x="steps=1,2", **{**QUICK, "steps": 1})
    assert all(cell.request["guidance_scale"] == 3.0 for cell in grid.cells)
    way = safelight.morph(soft, "a fox", "a hat", frames=2, **QUICK)
    assert way.recipes[0].request["guidance_scale"] == 3.0


def test_several_prompts_are_drawn_count_times_each(model):
    drawn = safelight.text_to_image(model, ["a fox", "a hat on a table"], count=2, **QUICK)
    assert drawn.seeds == (5, 6, 7, 8)
    alone = safelight.text_to_image(model, "a hat on a table", **QUICK | {"seed": 8})
    assert np.abs(pixels(drawn[3]) - pixels(alone[0])).max() <= 1


def test_prompt_negative_prompt_guidance_and_clip_skip_all_matter(model):
    base = safelight.text_to_image(model, "a fox", **QUICK).latents
    for change in ({"negative_prompt": "hat"}, {"guidance_scale": 3}, {"clip_skip": 1}, {"guidance_rescale": 0.7},
                   {"guidance_end": 0.5}, {"guidance_start": 0.4}, {"initial_noise": "sigma"}):  # fmt: skip
        assert not torch.allclose(base, safelight.text_to_image(model, "a fox", **QUICK | change).latents), change
    assert not torch.allclose(base, safelight.text_to_image(model, "a hat", **QUICK).latents)


def test_words_beyond_77_tokens_are_heard(model):
    long = "a fox and " * 40
    a, b = (safelight.text_to_image(model, long + end, **QUICK).latents for end in ("a hat", "a boat"))
    assert not torch.allclose(a, b)
    with pytest.raises(InputError):
        safelight.text_to_image(model, long, **QUICK, long_prompts="error")


def test_guidance_1_costs_one_pass(model):
    rows = []

    class Counting(torch.nn.Module):
        def __init__(self, unet):
            super().__init__()
            self.unet, self.config = unet, unet.config

        def forward(self, x, *args, **kwargs):
            rows.append(len(x))
            return self.unet(x, *args, **kwargs)

    counted = replace(model, unet=Counting(model.unet))
    safelight.text_to_image(counted, "a fox", **QUICK, sampler="euler", guidance_scale=1)
    assert rows == [1, 1, 1]
    rows.clear()
    safelight.text_to_image(counted, "a fox", **QUICK, sampler="euler", guidance_scale=2)
    assert rows == [2, 2, 2]


def test_watch_sees_and_edit_changes(model):
    seen = []
    safelight.text_to_image(model, "a fox", **QUICK, sampler="heun", watch=seen.append)
    assert [step.index for step in seen] == [0, 1, 2, 3, 4]  # two evaluations a step, but one for the last
    assert all(step.total == 5 and step.x0.shape == (1, 4, 8, 8) for step in seen)
    assert [s.sigma for s in seen] == sorted((s.sigma for s in seen), reverse=True)
    edited = safelight.text_to_image(model, "a fox", **QUICK, edit=lambda x, sigma: x * 0.5)
    assert not torch.allclose(edited.latents, safelight.text_to_image(model, "a fox", **QUICK).latents)


def test_a_callback_can_cancel(model):
    def stop(step):
        if step.index == 1:
            raise Cancelled("enough")

    with pytest.raises(Cancelled):
        safelight.text_to_image(model, "a fox", **QUICK, watch=stop)


def test_a_wrapper_of_the_denoiser_acts(model):
    grey = safelight.text_to_image(model, "a fox", **QUICK, wrap=lambda denoise: lambda x, sigma: denoise(x, sigma) * 0)
    assert grey.latents.abs().max() < 1e-6


def test_image_to_image_keeps_the_size_and_obeys_strength(model, picture):
    drawn = [
        safelight.image_to_image(model, "a fox", picture, strength=s, steps=4, seed=1, guidance_scale=1)
        for s in (0, 0.25, 1)
    ]
    assert all(d[0].size == (72, 56) for d in drawn)
    distances = [float((d.latents - drawn[0].latents).norm()) for d in drawn]
    assert distances == sorted(distances) and distances[1] > 0
    resized = safelight.image_to_image(model, "a fox", picture, width=64, height=128, steps=2, seed=1)
    assert resized[0].size == (64, 128)


def test_image_to_image_takes_odd_sizes(model, picture):
    assert safelight.image_to_image(model, "", picture[:, :51, :45], steps=1, seed=1)[0].size == (45, 51)


def test_inpainting_leaves_what_is_not_masked_alone(model, picture):
    image = to_pil(picture)
    mask = np.zeros((56, 72), np.uint8)
    mask[10:30, 20:50] = 255
    drawn = safelight.inpaint(model, "a fox", image, Image.fromarray(mask), steps=3, seed=2)
    change = pixels(drawn[0]) != pixels(image)
    assert not change[mask == 0].any()
    assert change[mask == 255].any()


def test_a_mask_may_have_a_soft_edge_as_diffusers_makes_it(model, picture):
    from diffusers.image_processor import VaeImageProcessor

    stencil = Image.new("L", (72, 56))
    stencil.paste(255, (20, 10, 50, 30))
    soft = VaeImageProcessor.blur(stencil, 3)
    options = {"steps": 2, "seed": 2}
    drawn, wanted, hard = (
        safelight.inpaint(model, "a fox", picture, mask, mask_blur=blur, **options)[0]
        for mask, blur in ((stencil, 3), (soft, 0), (stencil, 0))
    )
    assert np.array_equal(pixels(drawn), pixels(wanted)) and not np.array_equal(pixels(drawn), pixels(hard))


def test_outpainting_draws_beyond_the_edges_alone(model, picture):
    drawn = safelight.outpaint(model, "a fox", picture, left=8, top=13, mask_blur=0, steps=2, seed=2)
    assert drawn[0].size == (72 + 8, 56 + 13)
    assert np.array_equal(pixels(drawn[0])[13:, 8:], pixels(to_pil(picture)))
    other = safelight.outpaint(model, "a fox", picture, left=8, top=13, mask_blur=0, steps=2, seed=3)
    change = pixels(drawn[0]) != pixels(other[0])
    assert change[:13].any() and change[:, :8].any() and not change[13:, 8:].any()
    with pytest.raises(InputError, match="nothing is to be drawn") as raised:
        safelight.outpaint(model, "a fox", picture)
    assert "right=64" in raised.value.remedy


def test_inpainting_model_sees_mask_and_picture(model, picture):
    torch.manual_seed(0)
    painter = replace(model, unet=UNet(replace(model.unet.config, in_channels=9)).eval())
    assert painter.paints_masks and not model.paints_masks
    for parameter in painter.unet.parameters():
        parameter.data.normal_(std=0.05)
    mask = torch.zeros(56, 72)
    mask[:, 36:] = 1
    options = {"steps": 2, "seed": 2}
    drawn = safelight.inpaint(painter, "a fox", picture, mask, **options)
    change = pixels(drawn[0]) != pixels(to_pil(picture))
    assert not change[:, :36].any() and change[:, 36:].any()
    other = safelight.inpaint(painter, "a fox", -picture, mask, **options)
    assert not torch.allclose(drawn.latents, other.latents)
    with pytest.raises(InputError, match="trained to inpaint"):
        safelight.upscale(painter, picture, **options)
    partly = safelight.inpaint(painter, "a fox", picture, mask, strength=0.5, **options)
    assert not torch.allclose(drawn.latents, partly.latents)
    everything, redrawn = torch.ones(56, 72), {"strength": 0.5, **options}  # to it all a redrawn picture is hole
    partly = safelight.inpaint(painter, "a fox", picture, everything, **redrawn)
    assert torch.equal(safelight.image_to_image(painter, "a fox", picture, **redrawn).latents, partly.latents)


def test_variations_differ_from_each_other(model, picture):
    drawn = safelight.variations(model, picture, count=2, steps=3, seed=0)
    assert len(drawn) == 2 and not np.array_equal(pixels(drawn[0]), pixels(drawn[1]))


def test_half_precision_draws_nearly_the_same(model):
    half = deepcopy(model).to(dtype=torch.float16)
    a, b = (safelight.text_to_image(m, "a fox", **QUICK, guidance_scale=2) for m in (model, half))
    assert 0 < (a.latents - b.latents).norm() / a.latents.norm() < 0.03


def test_a_decode_that_overflows_in_float16_is_repeated_in_float32(model):
    hot = deepcopy(model)
    hot.autoencoder.post_quant_conv.weight.data *= 2e4  # sums overflow float16; the norms of the decoder undo it
    good = safelight.text_to_image(hot, "a fox", **QUICK)
    hot.autoencoder.half()
    assert hot.autoencoder.dtype == torch.float16
    again = safelight.text_to_image(hot, "a fox", **QUICK)
    assert np.abs(pixels(good[0]) - pixels(again[0])).max() <= 2
    assert hot.autoencoder.dtype == torch.float16


def test_nan_is_an_error_and_never_a_black_picture(model):
    broken = deepcopy(model)
    broken.autoencoder.decoder.conv_out.bias.data[:] = float("nan")
    with pytest.raises(NonFiniteError, match="the decoder gave NaN"):
        safelight.text_to_image(broken, "a fox", **QUICK)
    broken.unet.conv_out.bias.data[:] = float("nan")
    with pytest.raises(NonFiniteError, match="sampling"):
        safelight.text_to_image(broken, "a fox", **QUICK)


def test_tiled_decode_is_close(model):
    whole, tiled = (
        safelight.text_to_image(model, "a fox", width=640, height=64, steps=1, seed=0, tile=t)
        for t in ("never", "always")
    )
    assert tiled[0].size == whole[0].size
    assert np.abs(pixels(whole[0]) - pixels(tiled[0])).mean() < 8


def test_large_pictures_are_decoded_in_strips_which_change_nothing(model):
    """Strips add a norm's sums in another order: a pixel may be rounded the other way, by one of 255."""
    whole, strips = (
        safelight.text_to_image(model, "a fox", width=128, height=192, steps=1, seed=0, tile=t)[0]
        for t in ("never", "strips")
    )
    assert np.abs(pixels(whole) - pixels(strips)).max() <= 1
    assert developing._parts((1024, 1024), "auto", model.device) == (None, False)
    assert developing._parts((1024, 1032), "auto", model.device) == (None, True)


def test_a_scheduler_config_that_describes_no_schedule_is_a_bad_checkpoint(model):
    parts = Parts(unet=model.unet, autoencoder=model.autoencoder, scheduler_config={"beta_schedule": "linnear"},
                  source="here/model")  # fmt: skip
    with pytest.raises(CheckpointError, match=r"here/model: .*linnear") as caught:
        bundle(parts)
    assert "linear" in caught.value.remedy


def test_a_model_shows_itself_in_one_line(model):
    assert repr(model).startswith("<LatentDiffusion ") and "float32 on cpu" in repr(model) and len(repr(model)) < 200


def test_text_encoder_can_be_released(model):
    condition = model.condition(["a fox"])
    bare = model.without_text_encoder()
    with pytest.raises(MissingPartError):
        safelight.text_to_image(bare, "a fox", **QUICK)
    a = safelight.text_to_image(bare, condition, negative_prompt=model.condition([""]), **QUICK)
    assert torch.allclose(a.latents, safelight.text_to_image(model, "a fox", **QUICK).latents, atol=1e-4)


@pytest.mark.parametrize(
    "bad",
    [
        {"width": 65}, {"width": 8}, {"steps": 0}, {"steps": 2.5}, {"guidance_scale": float("nan")}, {"seed": -2},
        {"sampler": "eulr"}, {"grid": "karas"}, {"eta": 2}, {"eta": 0.5}, {"count": 0}, {"stepz": 3}, {"prompt": 3},
        {"seed": 2**63 - 1, "count": 2}, {"guidance_start": 0.9, "guidance_end": 0.1},
        {"sampler_options": {"churn": 1}}, {"negative_prompt": ["a", "b", "c"]}, {"clip_skip": 11}, {"prompt": []},
    ],
    ids=str,
)  # fmt: skip
def test_bad_input_is_named(model, bad):
    with pytest.raises(InputError) as caught:
        safelight.text_to_image(model, **{"prompt": "a fox"} | QUICK | bad)
    assert str(caught.value)


def test_bad_pictures_and_masks_are_named(model, picture, tmp_path):
    (tmp_path / "broken.png").write_bytes(b"\x89PNG\r\n\x1a\n")
    arrays = (np.zeros((8, 8, 3)), np.zeros((8, 8, 7), np.uint8))
    for image in (tmp_path / "none.png", tmp_path / "broken.png", 3, *arrays, picture * 2, picture[:2]):
        with pytest.raises(InputError, match="image"):
            safelight.image_to_image(model, "", image, steps=1)
    for mask in (torch.ones(3, 3), torch.full((56, 72), 2.0), torch.ones(2, 1, 56, 72), torch.ones(5)):
        with pytest.raises(InputError, match="mask"):
            safelight.inpaint(model, "", picture, mask, steps=1)
    with pytest.raises(InputError, match="strength"):
        safelight.image_to_image(model, "", picture, strength=1.5)


def test_transparency_is_laid_on_white():
    clear = Image.new("RGBA", (8, 8), (255, 0, 0, 0))
    assert torch.equal(load_picture(clear), torch.ones(1, 3, 8, 8))


def test_the_peers_names_draw_and_are_recorded_as_ours(model):
    ours = safelight.text_to_image(model, "a fox", **QUICK, sampler="dpmpp_2m_sde", grid="exponential")
    theirs = safelight.text_to_image(model, "a fox", **QUICK, sampler="DPM++ 2M SDE Exponential")
    assert torch.equal(ours.latents, theirs.latents) and theirs.recipes == ours.recipes
    with pytest.raises(InputError, match="names the grid 'exponential', and grid is 'karras'"):
        safelight.text_to_image(model, "a fox", **QUICK, sampler="DPM++ 2M Exponential", grid="karras")


def test_the_name_of_a_model_is_not_a_model():
    with pytest.raises(InputError, match="'default' is a name"):
        safelight.text_to_image("default", "a fox")


@pytest.mark.parametrize("device", ["meta", "opengl", "nope"])
def test_a_device_that_cannot_draw_is_named(device):
    with pytest.raises(InputError, match=f"device '{device}' cannot be used: (?!.*ASSERT)"):
        safelight.load("random", device=device)


def test_a_revision_is_of_the_hub():
    with pytest.raises(InputError, match="'main' is of a hub id"):
        safelight.load(revision="main")


def test_the_peers_words_are_answered_with_ours(model):
    with pytest.raises(InputError, match="here it is called steps"):
        safelight.text_to_image(model, "a fox", num_inference_steps=3)


@pytest.mark.parametrize("sampler", ["euler_ancestral", "dpmpp_sde"])
@pytest.mark.parametrize(
    "noise",
    [
        {"noise": "cuda", "noise_seed_delta": 31337},
        {"noise": "comfyui"},
        {"noise": "cuda", "subseed": 3, "subseed_strength": 0.5},
        {"seed_resize_from_width": 96, "seed_resize_from_height": 48},
    ],
)
def test_picture_k_of_any_noise_is_reproducible_alone(model, sampler, noise):
    options = QUICK | noise | {"sampler": sampler}
    together = safelight.text_to_image(model, "a fox", count=3, **options)
    if sampler == "euler_ancestral":  # ComfyUI's first noise is the usual one, and a Brownian path is ours in any case
        plain = safelight.text_to_image(model, "a fox", **QUICK, sampler=sampler)
        assert np.abs(pixels(together[0]) - pixels(plain[0])).max() > 1
    for k in range(3):
        alone = safelight.text_to_image(model, "a fox", batch_index=k, **options)
        assert np.abs(pixels(together[k]) - pixels(alone[0])).max() <= 1  # batches round otherwise
        assert alone.origins == together.origins[k : k + 1]


def test_a_missing_subseed_is_a_fresh_one_and_half_a_size_is_refused(model):
    first, second = (safelight.text_to_image(model, "a fox", **QUICK, subseed_strength=1.0) for _ in range(2))
    assert first.origins[0].subseed != second.origins[0].subseed
    with pytest.raises(InputError, match="seed_resize_from_height"):
        safelight.text_to_image(model, "a fox", **QUICK, seed_resize_from_width=64)
