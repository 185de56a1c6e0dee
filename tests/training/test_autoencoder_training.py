"""The first stage against a plain reference written from the paper's formulas, and what it does over some steps."""

import copy
import math

import pytest
import torch
from first_stage import NO_DISC, TINY, TINY_VQ, noise, one_step, perceptual, stage
from torch.nn import functional as F

from safelight.errors import InputError
from safelight.models.autoencoder import Autoencoder
from safelight.training.stages.autoencoder import AutoencoderStage
from safelight.training.stages.autoencoder_config import (
    AUTOENCODER_TRAININGS,
    AutoencoderTraining,
)

JUDGED = {"disc_start": 0, "disc_warmup": 0}


def plain_losses(made, pictures, epsilon):
    """Rombach et al. 2022, appendix G, and VQGAN's equation 7, in one piece and without any cleverness."""
    config, network, judge, metric = made.config, made.generator.autoencoder, made.judge.discriminator, made.perceptual
    h = network.quant_conv(network.encoder(pictures))
    if network.config.num_vq_embeddings is None:
        mean, logvar = h[:, : h.shape[1] // 2], h[:, h.shape[1] // 2 :].clamp(-30, 20)
        z = mean + torch.exp(logvar / 2) * epsilon
        regular = config.kl_weight * (0.5 * (mean**2 + logvar.exp() - 1 - logvar)).sum() / len(pictures)
    else:
        codes = network.quantize.embedding.weight
        rows = h.movedim(1, -1).reshape(-1, h.shape[1])
        nearest = torch.stack([((codes - row) ** 2).sum(1).argmin() for row in rows])
        chosen = codes[nearest].view(len(h), *h.shape[2:], -1).movedim(-1, 1)
        towards_codes, towards_latents = ((h - chosen.detach()) ** 2).mean(), ((chosen - h.detach()) ** 2).mean()
        beta = config.commitment_beta
        regular = config.codebook_weight * (
            towards_codes + beta * towards_latents if config.original else towards_latents + beta * towards_codes
        )
        z = h + (chosen - h).detach()
    again = network.decoder(network.post_quant_conv(z))
    rec = (pictures - again).abs() + config.perceptual_weight * metric(pictures, again).view(-1, 1, 1, 1)
    logvar = made.generator.logvar
    terms = rec / torch.exp(logvar) + logvar
    nll = terms.sum() / len(terms) if made.reduction == "sum" else terms.mean()
    g_loss = -judge(again).mean()
    last = network.decoder.conv_out.weight
    of_nll = torch.autograd.grad(nll, last, retain_graph=True)[0].norm()
    of_g = torch.autograd.grad(g_loss, last, retain_graph=True)[0].norm()
    d_weight = (of_nll / (of_g + 1e-4)).clamp(0, 1e4).detach()
    generator = nll + regular + d_weight * config.disc_weight * config.disc_factor * g_loss
    real, fake = judge(pictures), judge(again.detach())
    if config.disc_loss == "hinge":
        loss_d = (torch.clamp(1 - real, min=0).mean() + torch.clamp(1 + fake, min=0).mean()) / 2
    else:
        loss_d = (torch.log1p(torch.exp(-real)).mean() + torch.log1p(torch.exp(fake)).mean()) / 2
    return generator, config.disc_factor * loss_d, d_weight


def plain_adam(parameter, gradient, rate, betas=(0.5, 0.9), eps=1e-8):
    """Kingma & Ba 2015, algorithm 1, its first step."""
    m, v = (1 - betas[0]) * gradient, (1 - betas[1]) * gradient**2
    return parameter - rate * (m / (1 - betas[0])) / ((v / (1 - betas[1])).sqrt() + eps)


def relative(a, b):
    a, b = a.detach(), b.detach()
    return float((a - b).norm() / b.norm().clamp(min=1e-12))


CASES = {
    "kl": (TINY, {}),
    "kl, vanilla": (TINY, {"disc_loss": "vanilla", "disc_factor": 0.7, "kl_weight": 1e-2}),
    "kl, mean, group norm": (TINY, {"reduction": "mean", "disc_norm": "group", "perceptual_weight": 0.3}),
    "vq": (TINY_VQ, {"disc_weight": 0.75, "codebook_weight": 1.3}),
    "vq, no norm": (TINY_VQ, {"reduction": "mean", "disc_norm": "none"}),
}


@pytest.mark.parametrize("case", CASES)
def test_one_step_is_the_papers(case):
    """Losses, gradients and one step of both optimizers."""
    shape, options = CASES[case]
    made = stage(shape, **JUDGED, **options)
    if shape is TINY_VQ:
        torch.nn.init.normal_(made.generator.autoencoder.quantize.embedding.weight, std=0.5)
    plain = copy.deepcopy(made)
    pictures = made.data.batch(0, range(4)).pictures
    loss_g, loss_d, d_weight = plain_losses(plain, pictures, noise().normal(3, 8, 8))
    ours = dict(plain.generator.named_parameters())
    g_gradients = torch.autograd.grad(loss_g, [p for p in ours.values() if p.requires_grad], retain_graph=True)
    d_gradients = torch.autograd.grad(loss_d, list(plain.judge.discriminator.parameters()))

    figures = {}
    for loss in made.losses(made.data.batch(0, range(4)), noise()):
        loss.value.backward()
        figures |= {loss.optimizer: loss.value.detach(), **loss.figures}
    assert relative(figures["autoencoder"], loss_g) < 1e-5
    assert relative(figures["discriminator"], loss_d) < 1e-5
    assert relative(figures["adaptive_weight"], d_weight) < 1e-5
    trained = [p for p in made.generator.parameters() if p.requires_grad]
    for parameter, gradient in zip(trained, g_gradients, strict=True):
        assert relative(parameter.grad, gradient) < 2e-5 or (parameter.grad - gradient).norm() < 1e-6 * loss_g.abs()
    for parameter, gradient in zip(made.judge.discriminator.parameters(), d_gradients, strict=True):
        assert relative(parameter.grad, gradient) < 2e-5 or (parameter.grad - gradient).norm() < 1e-7

    before = [p.detach().clone() for p in (*trained, *made.judge.discriminator.parameters())]
    rate = made.config.learning_rate
    wanted = [
        plain_adam(p, q.grad, rate)
        for p, q in zip(before, (*trained, *made.judge.discriminator.parameters()), strict=True)
    ]
    for optimizer in made.optimizers.values():
        optimizer.step()
    for parameter, expected in zip((*trained, *made.judge.discriminator.parameters()), wanted, strict=True):
        assert relative(parameter, expected) < 1e-5


def test_the_discriminators_gradients_are_its_own_losses_alone():
    made = stage(**JUDGED)
    losses = made.losses(made.data.batch(0, range(4)), noise())
    next(losses).value.backward()
    assert all(p.grad is None for p in made.judge.discriminator.parameters())
    before = [p.grad.clone() for p in made.generator.parameters() if p.grad is not None]
    next(losses).value.backward()
    assert all(torch.equal(a, p.grad) for a, p in zip(before, made.generator.parameters(), strict=False))


def test_r1_penalty_is_half_the_squared_gradient():
    made, without = (stage(disc_norm="none", r1_gamma=gamma, **JUDGED) for gamma in (1e6, 0.0))
    *_, loss = made.losses(made.data.batch(0, range(4)), noise())
    *_, bare = without.losses(made.data.batch(0, range(4)), noise())
    network, penalty = copy.deepcopy(made.judge.discriminator).double(), 0.0
    for picture in made.data.batch(0, range(4)).pictures:  # by its definition, one picture at a time
        x = picture[None].double().requires_grad_()
        (gradient,) = torch.autograd.grad(network(x).mean(), x)
        penalty += 0.5 * float((gradient**2).sum()) / 4
    assert float(loss.figures["r1"]) == pytest.approx(penalty, rel=1e-4)
    assert float((loss.value - bare.value).detach()) == pytest.approx(1e6 * penalty, rel=1e-4)
    loss.value.backward()
    bare.value.backward()
    pairs = zip(made.judge.discriminator.parameters(), without.judge.discriminator.parameters(), strict=True)
    assert any(not torch.allclose(p.grad, q.grad) for p, q in pairs)


def test_the_courses_of_the_adversary():
    """Corrected, the discriminator learns before its judgement counts; in the original both begin at `disc_start`."""
    seen = {}
    for original in (False, True):
        made = stage(disc_start=3, disc_warmup=2, original=original)
        rows = [one_step(made, step) for step in range(5)]
        seen[original] = ["".join("g" * ("adversarial" in row) + "d" * ("disc_loss" in row)) for row in rows]
    assert seen == {False: ["", "d", "d", "gd", "gd"], True: ["", "", "", "gd", "gd"]}


def test_a_warm_discriminator_tells_more_than_a_cold_one():
    """What the correction is for: at `disc_start` its logits separate pictures from reconstructions."""
    gaps = {}
    for original in (False, True):
        made = stage(disc_start=24, disc_warmup=24, original=original, perceptual_weight=0.0)
        for step in range(25):
            figures = one_step(made, step)
        gaps[original] = float(figures["logits_real"] - figures["logits_fake"])
    assert gaps[False] > 5 * abs(gaps[True])


def test_logvar_is_trained_unless_original():
    for original, moves in ((False, True), (True, False)):
        made = stage(original=original, **NO_DISC)
        for step in range(3):
            one_step(made, step)
        assert bool(made.generator.logvar != 0) is moves
    assert not stage(TINY_VQ, reduction="mean").generator.logvar.requires_grad  # VQ's likelihood has none


def test_beta_weighs_the_commitment_unless_original():
    penalties = {}
    for original in (False, True):
        made = stage(TINY_VQ, reduction="mean", original=original, commitment_beta=0.0, **NO_DISC)
        loss = next(made.losses(made.data.batch(0, range(4)), noise()))
        made.generator.autoencoder.quantize.embedding.weight.grad = None
        loss.value.backward()
        penalties[original] = float(made.generator.autoencoder.quantize.embedding.weight.grad.abs().sum())
    assert penalties[False] > 0  # beta 0 takes the commitment away, and the codes are still drawn to the latents
    assert penalties[True] == 0  # in the original it takes that away


def test_lpips_has_no_dropout_unless_original():
    values = {}
    for original in (False, True):
        made = stage(original=original, pixel_loss="l1", **NO_DISC)
        pictures = made.data.batch(0, range(4))
        values[original] = [float(next(made.losses(pictures, noise(step))).figures["stand_in"]) for step in (0, 0, 1)]
    pictures = made.data.batch(0, range(4)).pictures
    again = made.generator(pictures, noise().normal(3, 8, 8)).picture
    exact = float(made.perceptual(pictures, again).mean())
    assert values[False][0] == pytest.approx(exact, rel=1e-6)
    assert values[True][0] == values[True][1] != pytest.approx(exact, rel=1e-5)  # drawn, and drawn alike if resumed


@pytest.mark.parametrize("shape", [TINY, TINY_VQ], ids=["kl", "vq"])
def test_some_dozen_steps_make_reconstructions_better(shape):
    made = stage(shape, disc_start=20, disc_warmup=10, learning_rate=3e-3, reduction="mean", revive_every=10)
    rows = [one_step(made, step, count=8) for step in range(50)]
    assert rows[-1]["l1"] < 0.8 * rows[0]["l1"]
    assert rows[-1]["stand_in"] < rows[0]["stand_in"]
    assert all(torch.isfinite(value).all() for row in rows for value in row.values())


def test_bfloat16_passes_and_float32_losses():
    made = stage(TINY_VQ, reduction="mean", **JUDGED)
    with torch.autocast("cpu", torch.bfloat16):
        losses = list(made.losses(made.data.batch(0, range(4)), noise()))
    exact = list(stage(TINY_VQ, reduction="mean", **JUDGED).losses(made.data.batch(0, range(4)), noise()))
    for loss, reference in zip(losses, exact, strict=True):
        assert loss.value.dtype == torch.float32
        assert float(loss.value) == pytest.approx(float(reference.value), rel=0.1)
        loss.value.backward()
    assert all(p.grad.dtype == torch.float32 for p in made.judge.discriminator.parameters())


def test_a_step_asks_the_device_nothing():
    """Every tensor lives on "meta", which has no numbers to ask for: an .item() or a branch on a tensor would fail."""
    made = stage(TINY, disc_norm="group", **JUDGED)
    made.generator.to("meta")
    made.judge.discriminator.to("meta")
    made.perceptual.to("meta")
    batch = made.data.batch(0, range(4), "meta")
    for loss in made.losses(batch, MetaNoise(0, range(4))):
        loss.value.backward()


class MetaNoise(type(noise())):
    def normal(self, *shape):
        return super().normal(*shape).to("meta")


def test_presets_are_the_papers():
    presets = {name: AutoencoderTraining(**options) for name, options in AUTOENCODER_TRAININGS.items()}
    assert presets["kl_f8"] == AutoencoderTraining(learning_rate=1.8e-5)
    assert presets["kl_f8"].disc_start == 50001 and presets["kl_f8"].kl_weight == 1e-6
    vq = presets["vq_f16"]
    assert (vq.disc_start, vq.disc_weight, vq.disc_layers) == (250001, 0.75, 2)
    assert stage().reduction == "sum" and stage(TINY_VQ).reduction == "mean"
    assert stage(reduction="mean").reduction == "mean"
    assert vq.learning_rate == pytest.approx(6.3e-5) and vq.codebook_weight == 1 and vq.commitment_beta == 0.25
    assert presets["vq_f8"].disc_weight == 0.6
    assert set(presets) == {
        *("kl_f4", "kl_f8", "kl_f16", "kl_f32", "vq_f4", "vq_f4_noattn", "vq_f8", "vq_f8_n256", "vq_f16")
    }


def test_without_a_perceptual_network_its_weight_must_be_zero():
    autoencoder = Autoencoder(TINY)
    with pytest.raises(InputError, match="perceptual"):
        AutoencoderStage(autoencoder, AutoencoderTraining(), stage().data)
    made = AutoencoderStage(autoencoder, AutoencoderTraining(perceptual_weight=0, **NO_DISC), stage().data)
    assert made.perceptual_name == "none" and set(made.modules) == {"autoencoder"}
    assert next(made.losses(made.data.batch(0, range(2)), noise(count=2))).figures["stand_in"] == 0
    assert perceptual().name == stage().perceptual_name == "for tests"


def test_l2_is_the_squared_error():
    made = stage(pixel_loss="l2", reduction="mean", perceptual_weight=0.0, kl_weight=0.0, **NO_DISC)
    loss = next(made.losses(made.data.batch(0, range(4)), noise()))
    pictures = made.data.batch(0, range(4)).pictures
    again = made.generator(pictures, noise().normal(3, 8, 8)).picture
    torch.testing.assert_close(loss.value, F.mse_loss(again, pictures))


def test_the_logarithm_of_l2_is_psnr():
    made = stage(pixel_loss="l2", reduction="log", perceptual_weight=0.0, kl_weight=0.0, **NO_DISC)
    loss = next(made.losses(made.data.batch(0, range(4)), noise()))
    pictures = made.data.batch(0, range(4)).pictures
    again = made.generator(pictures, noise().normal(3, 8, 8)).picture
    psnr = 10 * math.log10(4) - 10 * loss.value / math.log(10)
    errors = (again - pictures).square().mean((1, 2, 3))
    torch.testing.assert_close(psnr, (10 * torch.log10(4 / errors)).mean())
    assert not made.generator.logvar.requires_grad
    judged = stage(pixel_loss="l2", reduction="log", disc_start=0, disc_warmup=0)
    assert next(judged.losses(judged.data.batch(0, range(4)), noise())).value.isfinite()
