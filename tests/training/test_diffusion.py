"""The second stage against the papers' formulas, written out here, and against diffusers' training example."""

import math
from dataclasses import replace

import pytest
import torch
from diffusers import DDPMScheduler
from diffusers.training_utils import compute_snr
from tiny import SCHEDULER, MomentData, tiny_model
from torch.nn import functional as F

from safelight.diffusion.condition import Condition
from safelight.diffusion.parameterization import PARAMETERIZATIONS
from safelight.errors import InputError
from safelight.training.data.batches import Batch
from safelight.training.loop.optim import guarded_step
from safelight.training.loop.recipes import DiffusionConfig
from safelight.training.stages.diffusion import DiffusionStage, diffusion_loss, draw_timesteps
from safelight.training.stages.noise import BatchNoise

KINDS = ["epsilon", "v_prediction", "sample"]
T = torch.tensor([0, 7, 250, 600, 901, 999])


@pytest.fixture
def batch():
    g = torch.Generator().manual_seed(1)
    return {
        "x0": torch.randn(6, 4, 8, 8, generator=g),
        "noise": torch.randn(6, 4, 8, 8, generator=g),
        "context": torch.randn(6, 5, 16, generator=g),
    }


def ours(model, batch, **options):
    return diffusion_loss(
        model.unet, batch["x0"], batch["noise"], T.double(), Condition(context=batch["context"]),
        schedule=model.schedule, parameterization=model.parameterization, **options,
    )  # fmt: skip


def papers(model, batch, kind, gamma=None, distance=2):
    """DDPM's eq. 4 and 14, Salimans & Ho's v, and min-SNR's eq. in words of alpha and sigma, in float64."""
    beta = torch.linspace(0.00085**0.5, 0.012**0.5, 1000, dtype=torch.float64) ** 2
    alpha_bar = (1 - beta).cumprod(0)[T].reshape(-1, 1, 1, 1)
    a, s = alpha_bar.sqrt(), (1 - alpha_bar).sqrt()
    x0, noise = batch["x0"].double(), batch["noise"].double()
    output = model.unet((a * x0 + s * noise).float(), T, batch["context"]).double()
    target = {"epsilon": noise, "v_prediction": a * noise - s * x0, "sample": x0}[kind]
    loss = (output - target).abs().pow(distance).mean((1, 2, 3))
    if gamma is None:
        return loss.mean()
    snr = (a / s).flatten() ** 2
    capped = torch.minimum(snr, torch.full_like(snr, gamma))
    return ({"epsilon": capped / snr, "v_prediction": capped / (snr + 1), "sample": capped}[kind] * loss).mean()


@pytest.mark.parametrize("gamma", [None, 5.0])
@pytest.mark.parametrize("kind", KINDS)
def test_loss_gradients_and_a_step_equal_the_papers(batch, kind, gamma):
    model, reference = tiny_model(prediction_type=kind), tiny_model(prediction_type=kind)
    loss, expected = ours(model, batch, snr_gamma=gamma).mean(), papers(reference, batch, kind, gamma)
    torch.testing.assert_close(loss.double(), expected, rtol=1e-5, atol=0)
    loss.backward(), expected.backward()
    gradients = [p.grad.clone() for p in reference.unet.parameters()]
    for (name, p), gradient in zip(model.unet.named_parameters(), gradients, strict=True):
        torch.testing.assert_close(p.grad, gradient, rtol=1e-4, atol=1e-5 * float(gradient.abs().max()), msg=name)

    before = [p.detach().clone() for p in reference.unet.parameters()]
    for p, q in zip(model.unet.parameters(), gradients, strict=True):
        p.grad = q.clone()  # Adam's first step is the gradient's sign: only equal gradients have comparable steps
    stage = DiffusionStage(model, DiffusionConfig(learning_rate=1e-3, weight_decay=0.1))
    norm, skipped = guarded_step(stage.optimizers["unet"], factor=0.5, clip=0.0)
    torch.testing.assert_close(norm, torch.cat([g.flatten() for g in gradients]).norm())
    assert skipped == 0
    lr, b1, b2, eps = 0.5e-3, 0.9, 0.999, 1e-8
    for p, old, g in zip(model.unet.parameters(), before, gradients, strict=True):  # Loshchilov & Hutter, algorithm 2
        m_hat, v_hat = (1 - b1) * g / (1 - b1), (1 - b2) * g**2 / (1 - b2)
        torch.testing.assert_close(p, old - lr * 0.1 * old - lr * m_hat / (v_hat.sqrt() + eps), rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("gamma", [None, 5.0])
@pytest.mark.parametrize("kind", KINDS)
def test_loss_equals_diffusers_training_example(batch, kind, gamma):
    """The arithmetic of diffusers' examples/text_to_image/train_text_to_image.py, with diffusers' own classes."""
    model = tiny_model(prediction_type=kind)
    scheduler = DDPMScheduler.from_config(SCHEDULER, prediction_type=kind)
    noisy = scheduler.add_noise(batch["x0"], batch["noise"], T)
    if kind == "v_prediction":
        target = scheduler.get_velocity(batch["x0"], batch["noise"], T)
    else:
        target = batch["noise"] if kind == "epsilon" else batch["x0"]
    output = model.unet(noisy, T, batch["context"])
    loss = F.mse_loss(output.float(), target.float(), reduction="none").mean((1, 2, 3))
    if gamma is not None:
        snr = compute_snr(scheduler, T)
        weights = torch.stack([snr, gamma * torch.ones_like(snr)], dim=1).min(dim=1)[0]
        if kind == "epsilon":
            weights = weights / snr
        elif kind == "v_prediction":
            weights = weights / (snr + 1)
        loss = loss * weights
    each = ours(model, batch, snr_gamma=gamma)
    torch.testing.assert_close(each.mean(), loss.mean(), rtol=1e-5, atol=0)
    # At t = 0 diffusers' float32 has lost four of the seven digits of 1 - ᾱ, and so of its SNR.
    torch.testing.assert_close(each, loss, rtol=1e-4 if gamma else 1e-5, atol=0)


def test_l1_is_the_mean_of_absolute_differences(batch):
    model = tiny_model()
    expected = papers(model, batch, "epsilon", distance=1)
    torch.testing.assert_close(ours(model, batch, distance="l1").mean().double(), expected, rtol=1e-5, atol=0)


def test_timesteps_are_uniform_logit_normal_or_stratified():
    noise = BatchNoise(0, range(4000))
    uniform = draw_timesteps(noise, DiffusionConfig(), 1000)
    assert uniform.min() >= 0 and uniform.max() <= 999 and (uniform == uniform.floor()).all()
    counts = torch.histc(uniform, 10, 0, 1000)
    assert ((counts - 400) ** 2 / 400).sum() < 27.9  # chi² with 9 degrees of freedom, p = 0.001
    logit = draw_timesteps(noise, DiffusionConfig(timesteps="logit_normal", logit_mean=0.5, logit_std=0.8), 1000)
    z = torch.logit((logit + 0.5) / 1000)
    assert abs(z.mean() - 0.5) < 0.05 and abs(z.std() - 0.8) < 0.05
    stratified = draw_timesteps(BatchNoise(0, range(100)), DiffusionConfig(stratified=True), 1000)
    assert torch.equal((stratified // 10).sort().values, torch.arange(100.0, dtype=torch.float64))


def test_offset_noise_moves_whole_channels():
    """The noise that the network is asked for: with offset, its channel means spread as wide as the offset."""
    seen = {}

    def spread(offset):
        stage = DiffusionStage(tiny_model(), DiffusionConfig(offset_noise=offset))
        stage.modules["unet"] = lambda x, t, **steering: x * 0
        noise = BatchNoise(0, range(64))
        seen[offset] = next(stage.losses(MomentData().batch(0, range(64)), noise)).value.item()

    spread(0.0), spread(1.0)
    assert seen[0.0] == pytest.approx(1.0, rel=0.05)
    assert seen[1.0] == pytest.approx(2.0, rel=0.15)  # the two variances add


def test_zero_terminal_snr_trains_pure_noise_to_say_minus_x0():
    model = tiny_model(prediction_type="v_prediction", zero_snr=True)
    x0, noise = torch.randn(2, 2, 4, 8, 8).unbind()
    seen = []

    def network(x, t, context=None):
        seen.append(x)
        return -x0

    last = torch.full((2,), 999.0)
    loss = diffusion_loss(network, x0, noise, last, schedule=model.schedule, parameterization=model.parameterization)
    torch.testing.assert_close(seen[0], noise, rtol=0, atol=2e-3)
    assert loss.max() < 1e-6
    with pytest.raises(InputError, match="zero terminal SNR"):
        DiffusionStage(tiny_model(zero_snr=True), DiffusionConfig())


def steering(stage, batch, numbers):
    return stage.condition(batch, BatchNoise(3, numbers), (8, 8))


def test_a_share_of_the_captions_is_dropped_to_the_null_caption():
    stage = DiffusionStage(tiny_model(), DiffusionConfig(condition_dropout=0.3))
    captions = [f"picture {i}" for i in range(60)]
    got = steering(stage, Batch(torch.zeros(60, 3, 16, 16), captions), range(60)).context
    null, all_ = stage.model.condition([""]).context, stage.model.condition(captions).context
    dropped = torch.tensor([torch.allclose(row, null[0], atol=1e-6) for row in got])
    assert 8 <= dropped.sum() <= 30
    torch.testing.assert_close(got[~dropped], all_[~dropped])
    precomputed = MomentData().batch(0, range(60))
    got = steering(stage, precomputed, range(60)).context
    assert torch.equal(got[~dropped], precomputed.context[~dropped]) and torch.equal(got[dropped][0], null[0])


def test_classes_are_dropped_to_the_last_row():
    model = tiny_model(text=False, num_class_embeds=4)
    stage = DiffusionStage(model, DiffusionConfig(conditioning="class", condition_dropout=0.5), classes=("a", "b", "c"))
    batch = MomentData().batch(0, range(40))
    labels = steering(stage, batch, range(40)).class_labels
    dropped = labels == 3
    assert 8 < dropped.sum() < 32 and torch.equal(labels[~dropped], batch.labels[~dropped])
    loss = next(stage.losses(batch, BatchNoise(0, range(40)))).value
    loss.backward()
    assert model.unet.class_embedding.weight.grad.abs().sum(1).min() > 0


def test_masks_and_small_pictures_become_input_channels():
    pictures = torch.rand(5, 3, 16, 16) * 2 - 1
    batch = Batch(pictures, ["one"] * 5)
    small = DiffusionStage(tiny_model(in_channels=7), DiffusionConfig(concat="low_resolution"))
    concat = steering(small, batch, range(5)).concat
    assert concat.shape == (5, 3, 8, 8)
    torch.testing.assert_close(concat.mean((2, 3)), pictures.mean((2, 3)), rtol=0, atol=0.05)
    paint = DiffusionStage(tiny_model(in_channels=9), DiffusionConfig(concat="mask"))
    concat = steering(paint, batch, range(5)).concat
    mask = concat[:, :1]
    assert concat.shape == (5, 5, 8, 8) and set(mask.unique().tolist()) == {0.0, 1.0}
    assert torch.isfinite(next(paint.losses(batch, BatchNoise(0, range(5)))).value)


def test_a_jointly_trained_text_encoder_gets_gradients_and_a_frozen_one_none():
    for joint in (True, False):
        stage = DiffusionStage(tiny_model(), DiffusionConfig(train_text_encoder=joint, condition_dropout=0.0))
        next(stage.losses(MomentData(text="ids").batch(0, range(4)), BatchNoise(0, range(4)))).value.backward()
        grads = [p.grad for p in stage.model.text_encoder.parameters()]
        assert all(g is not None and g.abs().max() > 0 for g in grads) if joint else all(g is None for g in grads)
        assert all(p.grad is None for p in stage.model.autoencoder.parameters())


def test_latents_are_drawn_from_the_posterior():
    stage = DiffusionStage(tiny_model(), DiffusionConfig())
    batch = MomentData().batch(0, range(3))
    noise = BatchNoise(5, range(3))
    mean, logvar = batch.moments.chunk(2, 1)
    expected = 0.5 * (mean + (logvar / 2).exp() * BatchNoise(5, range(3)).normal(4, 8, 8))  # 0.5: the scaling factor
    torch.testing.assert_close(stage.latents(batch, noise), expected)


@pytest.mark.parametrize(
    ("model", "options", "words"),
    [
        (lambda: tiny_model(in_channels=5), {}, "4 to 4 channels"),
        (lambda: tiny_model(), {"conditioning": "none"}, "cross-attention"),
        (lambda: tiny_model(text=False), {}, "text encoder"),
        (lambda: tiny_model(text=False), {"conditioning": "class"}, "one row for each class"),
        (lambda: replace(tiny_model(), tokenizer=None), {}, "text encoder"),
    ],
)
def test_what_does_not_go_together_is_refused_at_once(model, options, words):
    with pytest.raises(InputError, match=words):
        DiffusionStage(model(), DiffusionConfig(**options))


def test_each_sample_has_its_own_noise_in_any_batch():
    whole = BatchNoise(7, range(8), total=8)
    parts = [BatchNoise(7, range(i, i + 4), places=range(i, i + 4), total=8) for i in (0, 4)]
    for draw in (lambda n: n.normal(4, 3), lambda n: n.uniform(), lambda n: n.stratified(), lambda n: n.normal(2)):
        a = draw(whole)
        assert torch.equal(a, torch.cat([draw(part) for part in parts]))
        assert not torch.equal(a, draw(BatchNoise(8, range(8), total=8)))
    big = BatchNoise(0, range(2000)).normal(16)
    assert abs(big.mean()) < 0.02 and abs(big.std() - 1) < 0.02 and math.isclose(big[0].mean(), big[:1].mean())
    assert PARAMETERIZATIONS.keys() >= set(KINDS)
