"""Prompts that change on the way and prompts of several branches, drawn with a small random model."""

from dataclasses import replace
from itertools import pairwise

import pytest
import torch

import safelight
from safelight.diffusion.composition import Composition, composed
from safelight.diffusion.condition import Condition
from safelight.diffusion.noise import make_noise
from safelight.diffusion.samplers import sample
from safelight.errors import InputError, MissingPartError
from safelight.models.presets import levels
from safelight.models.unet import UNet
from safelight.pipeline.steering import step_of
from safelight.text.grammar import PromptError

QUICK = {"steps": 4, "seed": 5, "width": 64, "height": 64, "sampler": "euler", "grid": "karras"}


def latents(model, prompt, **options):
    return safelight.text_to_image(model, prompt, **QUICK | options).latents


def test_prompts_without_marks_are_drawn_the_same_in_every_syntax(model):
    drawn = [latents(model, "a red fox", prompt_syntax=s) for s in ("a1111", "comfyui", "compel", "plain")]
    assert all(torch.equal(a, b) for a, b in pairwise(drawn))
    assert not torch.allclose(latents(model, "a (red:1.5) fox"), drawn[0], atol=1e-2)
    assert torch.equal(latents(model, "a (red:1.5) fox", emphasis="ignore", negative_prompt="x"),
                       latents(model, "a (red) fox", emphasis="ignore", negative_prompt="x"))  # fmt: skip


def test_a_whole_prompt_is_drawn_as_by_hand(model):
    """Composition, weights, schedules and guidance, put together from their parts."""
    prompt = "a (red:1.3) [fox:wolf:0.5] AND snow:0.5"
    found = latents(model, prompt, negative_prompt="[bad|worse]", guidance_scale=5, emphasis="no_norm")
    texts = ["a red fox", "a red wolf", "snow", "bad", "worse"]
    context = model.condition(texts).context.clone()
    context[:2, 2] *= 1.3
    grid = model.grid("karras", 4)
    rows = [(0, 2, 3), (0, 2, 4), (1, 2, 3), (1, 2, 4)]

    def denoise(x, sigma):
        first, second, negative = rows[grid.sigmas.index(sigma)]
        positive = Composition(Condition(context=context[[first, second]]), (0, 0), (1.0, 0.5))
        against = Condition(context=context[negative : negative + 1])
        return composed(model.denoiser.on(grid), positive, against, 5.0)(x, sigma)

    noise = make_noise("", [5], (4, 8, 8)).initial()
    by_hand = sample(denoise, noise * (1 + grid.sigmas[0] ** 2) ** 0.5, grid.sigmas, sampler="euler")
    torch.testing.assert_close(found, by_hand, atol=2e-3, rtol=2e-3)


def test_pictures_of_a_batch_are_steered_apart(model):
    prompts = ["a [b|c]", "d AND e:0.5 AND f", "g"]
    together = latents(model, prompts, count=2, batch_size=6)
    for k, prompt in enumerate(prompts):
        alone = latents(model, prompt, count=2, seed=5 + 2 * k, batch_size=1)
        assert torch.allclose(together[2 * k : 2 * k + 2], alone, atol=2e-3)


def test_composition_acts_without_guidance_too(model):
    single, double = latents(model, "a", guidance_scale=1), latents(model, "a AND b", guidance_scale=1)
    assert not torch.allclose(single, double, atol=1e-2)
    weightless = latents(model, "a AND b:0", guidance_scale=1)
    assert torch.allclose(single, weightless, atol=1e-2)


def test_in_a_negative_prompt_and_is_a_word(model):
    assert torch.equal(latents(model, "a", negative_prompt="b AND c"), latents(model, "a", negative_prompt=r"b \AND c"))


def test_schedules_that_come_late_as_a1111s_do(model):
    late = latents(model, "[a:b:1]", prompt_delay=1)
    assert torch.equal(late, latents(model, "[a:b:2]"))
    assert not torch.equal(late, latents(model, "[a:b:1]"))


def test_the_step_is_known_by_sigma(model):
    grid = model.grid("karras", 5)
    assert [step_of(grid, sigma) for sigma in grid.sigmas] == [1, 2, 3, 4, 5, 5]
    assert [step_of(grid, (a + b) / 2) for a, b in pairwise(grid.sigmas)] == [1, 2, 3, 4, 5]
    assert step_of(grid, 2 * grid.sigmas[0]) == 1
    assert [step_of(grid, sigma, 1) for sigma in grid.sigmas] == [1, 1, 2, 3, 4, 4]
    assert step_of(grid.last(0), 1.0) == 1


def test_a_part_of_the_grid_sees_the_end_of_the_schedule(model, picture):
    options = {"strength": 0.5, "steps": 4, "seed": 1}
    second = safelight.image_to_image(model, "[a:b:0.5]", picture, **options).latents
    assert torch.equal(second, safelight.image_to_image(model, "b", picture, **options).latents)


def test_encoded_conditions_still_go_in(model):
    both = model.condition(["a", "b"])
    drawn = latents(model, both, negative_prompt=model.condition([""]))
    assert torch.allclose(drawn, latents(model, ["a", "b"]), atol=2e-3)
    mixed = latents(model, "a", negative_prompt=model.condition(["b"]))
    assert torch.allclose(mixed, latents(model, "a", negative_prompt="b"), atol=2e-3)


def test_bad_prompts_are_pointed_at(model):
    with pytest.raises(PromptError, match=r"'1\.2\.3' is not a number\n  a \(b:1\.2\.3\)\n       \^"):
        latents(model, "a (b:1.2.3)")
    with pytest.raises(PromptError, match="not a number"):
        latents(model, "a", negative_prompt="(b:..)")
    with pytest.raises(MissingPartError, match="<lora:x:1> asks for an adapter"):
        latents(model, "a <lora:x:1>")
    assert torch.equal(latents(model, "a <lora:x:1>", extra_networks="ignore"), latents(model, "a "))
    with pytest.raises(InputError, match="prompt_syntax"):
        latents(model, "a", prompt_syntax="a111")


def test_a_model_without_text_draws_unguided_whatever_the_scale(model):
    plain = replace(
        model.unet.config, **levels("", "Attn"), block_out_channels=(32, 64), mid_block_type="UNetMidBlock2D"
    )
    torch.manual_seed(0)
    wordless = replace(model, unet=UNet(plain).eval(), text_encoder=None, tokenizer=None)
    drawn = latents(wordless, "", count=2)
    assert torch.equal(drawn, latents(wordless, "", count=2, guidance_scale=1.0))
    assert torch.allclose(drawn[1:], latents(wordless, "", seed=6), atol=1e-4)
    with pytest.raises(InputError, match="without text"):
        latents(wordless, "a fox")
