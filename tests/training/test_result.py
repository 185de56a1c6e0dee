"""What a training writes is an ordinary model: `safelight.load` and diffusers draw the same picture from it."""

import numpy as np
import pytest
import torch
from diffusers import DDIMScheduler, StableDiffusionPipeline, UNet2DModel
from tiny import MomentData, tiny_model

import safelight
from safelight.training.loop.recipes import DiffusionConfig, LoopConfig
from safelight.training.loop.train import train
from safelight.training.stages.diffusion import DiffusionStage

LOOP = LoopConfig(steps=2, batch_size=2, warmup=0, log_every=1, sheet_every=0, ema_decay=0.5)


@pytest.mark.parametrize("kind", ["epsilon", "v_prediction"])
def test_diffusers_draws_the_same_picture(tmp_path, kind):
    stage = DiffusionStage(
        tiny_model(prediction_type=kind), DiffusionConfig(learning_rate=0.01, train_text_encoder=True)
    )
    outcome = train(stage, MomentData(text="ids"), tmp_path, LOOP)
    model = safelight.load(outcome.result, device="cpu")
    assert model.prediction_type == kind
    ours = safelight.text_to_image(model, "a fox", steps=5, sampler="ddim", grid="leading", seed=3, guidance_scale=3.0,
                                   initial_noise="unit_variance", width=64, height=64)  # fmt: skip

    pipeline = StableDiffusionPipeline.from_pretrained(outcome.result, safety_checker=None, torch_dtype=torch.float32)
    pipeline.set_progress_bar_config(disable=True)
    assert isinstance(pipeline.scheduler, DDIMScheduler)
    theirs = pipeline("a fox", num_inference_steps=5, guidance_scale=3.0, width=64, height=64,
                      generator=torch.Generator().manual_seed(3)).images[0]  # fmt: skip
    a, b = np.asarray(ours[0], dtype=int), np.asarray(theirs, dtype=int)
    assert a.std() > 5
    assert np.abs(a - b).max() <= 1


def test_the_result_holds_the_averaged_weights(tmp_path):
    stage = DiffusionStage(tiny_model(), DiffusionConfig(learning_rate=0.01))
    outcome = train(stage, MomentData(), tmp_path, LOOP)
    start, end = tiny_model().unet.conv_in.weight, stage.model.unet.conv_in.weight
    stored = safelight.load(outcome.result, device="cpu").unet.conv_in.weight
    assert not torch.equal(stored, end)
    between = ((stored - start) / (end - start)).detach()
    assert 0 < between.median() < 1


def test_a_class_conditional_net_loads_in_diffusers(tmp_path):
    model = tiny_model(text=False, num_class_embeds=4)
    stage = DiffusionStage(model, DiffusionConfig(conditioning="class"), classes=("a", "b", "c"))
    outcome = train(stage, MomentData(), tmp_path, LOOP)
    net = UNet2DModel.from_pretrained(outcome.result, subfolder="unet")
    x, t, labels = torch.randn(2, 4, 8, 8), torch.tensor([5, 900]), torch.tensor([0, 3])
    ours = safelight.load(outcome.result, device="cpu").unet(x, t, class_labels=labels)
    torch.testing.assert_close(ours, net(x, t, class_labels=labels).sample, rtol=1e-4, atol=1e-5)
