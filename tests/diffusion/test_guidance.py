import math

import pytest
import torch
from closed_form import even, gaussian

from safelight.diffusion.condition import Condition
from safelight.diffusion.denoiser import Denoiser
from safelight.diffusion.grids import make_grid
from safelight.diffusion.guidance import blending, conditioned, guided, loss_guided, masked
from safelight.diffusion.noise import SeededNoise
from safelight.diffusion.parameterization import PARAMETERIZATIONS
from safelight.diffusion.samplers import sample
from safelight.diffusion.schedule import noise_schedule
from safelight.errors import InputError

SD = noise_schedule()
X = torch.randn(3, 4, 6, 6, generator=torch.Generator().manual_seed(0))


class Network:
    """Nonlinear in x and in the context, and it counts the rows it is given."""

    def __init__(self):
        self.rows = []

    def __call__(self, x, timesteps, context=None, class_labels=None):
        self.rows.append(len(x))
        lean = context.mean(dim=(1, 2)).reshape(-1, 1, 1, 1)
        return torch.tanh(x + lean) + 0.3 * lean * x.flip(-1)


def words(value: float, batch: int = 1, length: int = 77) -> Condition:
    return Condition(context=torch.full((batch, length, 2), value))


def network_and_guided(*args, kind="epsilon", **options):
    network = Network()
    return network, guided(Denoiser(network, SD, PARAMETERIZATIONS[kind]), *args, **options)


def test_scale_one_is_the_condition_alone_in_one_pass():
    network, denoise = network_and_guided(words(1.0), words(-1.0), 1.0)
    assert torch.equal(denoise(X, 3.0), conditioned(Denoiser(Network(), SD), words(1.0))(X, 3.0))
    assert network.rows == [3]


def test_two_conditions_share_one_pass():
    network, denoise = network_and_guided(words(1.0), words(-1.0), 7.5)
    denoise(X, 3.0)
    assert network.rows == [6]


@pytest.mark.parametrize("kind", ["epsilon", "v_prediction", "sample"])
@pytest.mark.parametrize("scale", [0.0, 0.5, 7.5])
def test_formula(kind, scale):
    """It is linear, so mixing the pictures is mixing the raw outputs."""
    _, denoise = network_and_guided(words(1.0), words(-1.0), scale, kind=kind)
    plain = Denoiser(Network(), SD, PARAMETERIZATIONS[kind])
    away, toward = plain(X, 3.0, words(-1.0)), plain(X, 3.0, words(1.0))
    torch.testing.assert_close(denoise(X, 3.0), away + scale * (toward - away), rtol=1e-4, atol=1e-4)


def test_contexts_of_different_lengths_take_two_passes():
    network, denoise = network_and_guided(words(1.0, length=154), words(-1.0), 7.5)
    _, equal = network_and_guided(words(1.0), words(-1.0), 7.5)
    torch.testing.assert_close(denoise(X, 3.0), equal(X, 3.0))
    assert network.rows == [3, 3]


def test_pictures_of_a_batch_have_their_own_prompts():
    prompts = Condition.cat([words(0.1), words(0.5), words(0.9)])
    _, denoise = network_and_guided(prompts, words(-1.0), 4.0)
    for i in range(3):
        _, single = network_and_guided(prompts.select(slice(i, i + 1)), words(-1.0), 4.0)
        assert torch.equal(denoise(X, 3.0)[i : i + 1], single(X[i : i + 1], 3.0))


def test_interval():
    network, denoise = network_and_guided(words(1.0), words(-1.0), 7.5, interval=(0.5, 5.0))
    for sigma in (5.01, 5.0, 2.0, 0.5, 0.49):
        denoise(X, sigma)
    assert network.rows == [3, 6, 6, 6, 3]


@pytest.mark.parametrize("kind", ["epsilon", "v_prediction"])
@pytest.mark.parametrize("rescale", [0.7, 1.0])
def test_rescale_on_the_raw_output_as_diffusers(kind, rescale):
    _, denoise = network_and_guided(words(1.0), words(-1.0), 7.5, rescale=rescale, kind=kind)
    plain = Denoiser(Network(), SD, PARAMETERIZATIONS[kind])
    away, toward = plain.output(X, 3.0, words(-1.0)), plain.output(X, 3.0, words(1.0))
    mixed = away + 7.5 * (toward - away)
    rows = []
    for one, reference in zip(mixed, toward, strict=True):
        rows.append(rescale * one * reference.std() / one.std() + (1 - rescale) * one)
    torch.testing.assert_close(denoise(X, 3.0), plain.parameterization.denoised(torch.stack(rows), X, 3.0))
    if rescale == 1:
        assert rows[0].std() == pytest.approx(float(toward[0].std()), rel=1e-4)


def test_a_negative_is_needed():
    with pytest.raises(InputError, match="negative"):
        network_and_guided(words(1.0), None, 7.5)
    network, denoise = network_and_guided(words(1.0), None, 1.0)
    denoise(X, 3.0)
    assert network.rows == [3]


# Inpainting

MASK = torch.zeros(1, 1, 6, 6)
MASK[..., 3:] = 1
LATENT = torch.randn(1, 4, 6, 6, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("sampler", ["euler", "euler_ancestral", "heun", "dpmpp_2m", "dpmpp_3m_sde"])
@pytest.mark.parametrize("shown", [True, False])
def test_masked_keeps_the_latent_exactly(sampler, shown):
    noise = SeededNoise([1], (4, 6, 6))
    z, grid = noise.initial(), make_grid(SD, 8)
    denoise = masked(gaussian, MASK, LATENT, z if shown else None)
    x = sample(denoise, LATENT + grid.sigmas[0] * z, grid.sigmas, sampler=sampler, noise=noise)
    assert torch.equal(x[..., :3], LATENT[..., :3])
    free = sample(gaussian, LATENT + grid.sigmas[0] * z, grid.sigmas, sampler="heun")
    if sampler == "heun":
        torch.testing.assert_close(x[..., 3:], free[..., 3:])  # this denoiser looks at each pixel alone


@pytest.mark.parametrize("strength", [1.0, 0.6])
@pytest.mark.parametrize("peer_class", ["EulerDiscreteScheduler", "DDIMScheduler"])
def test_blending_equals_diffusers_inpainting_loop(strength, peer_class):
    """The loop of StableDiffusionInpaintPipeline for networks of 4 channels, with diffusers' own scheduler."""
    diffusers = pytest.importorskip("diffusers")
    config = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}
    if peer_class == "DDIMScheduler":
        config |= {"clip_sample": False, "set_alpha_to_one": True}
    peer = getattr(diffusers, peer_class)(steps_offset=1, timestep_spacing="leading", **config)
    peer.set_timesteps(10)
    timesteps = peer.timesteps[10 - int(10 * strength) :]
    if hasattr(peer, "set_begin_index"):
        peer.set_begin_index(10 - len(timesteps))

    def network(x, t, **steering):
        return torch.tanh(1.3 * x) * 0.7 + 0.1 * x.flip(-1)

    latent = LATENT.double()
    z = torch.randn(1, 4, 6, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(2))
    at_full = strength == 1
    theirs = z * peer.init_noise_sigma if at_full else peer.add_noise(latent, z, timesteps[:1])
    for i, t in enumerate(timesteps):
        theirs = peer.step(network(peer.scale_model_input(theirs, t), t), t, theirs).prev_sample
        kept = latent if i == len(timesteps) - 1 else peer.add_noise(latent, z, timesteps[i + 1 : i + 2])
        theirs = (1 - MASK) * kept + MASK * theirs

    grid = make_grid(SD, 10, "leading").last(strength)
    start = grid.sigmas[0]
    x = z * math.sqrt(1 + start**2) if at_full else latent + start * z
    denoise = conditioned(Denoiser(network, SD).on(grid), Condition())
    ours = sample(denoise, x, grid.sigmas, sampler="euler", edit=blending(MASK, latent, z, below=start))
    torch.testing.assert_close(ours, theirs, rtol=1e-3, atol=1e-4)  # the peer's betas are float32
    assert torch.equal(ours[..., :3], latent[..., :3])


def test_blending_with_fresh_noise():
    noise = SeededNoise([1], (4, 6, 6))
    edit = blending(MASK, LATENT, noise.draw)
    first, second = edit(X[:1], 2.0), edit(X[:1], 2.0)
    assert not torch.equal(first, second)
    assert torch.equal(first[..., 3:], X[:1, ..., 3:])


# Guidance by a loss


def coldness(x0):
    return ((x0 - 2.0) ** 2).flatten(1).sum(1)


def test_loss_gradient_through_the_network():
    """x0 = MEAN + k (x - MEAN), so the loss's gradient in x is k times its gradient in x0."""
    sigma, scale = 1.5, 0.05
    k = float(gaussian(torch.tensor(1.0), sigma) - gaussian(torch.tensor(0.0), sigma))
    x0 = gaussian(X, sigma)
    for through, slope in ((True, k), (False, 1.0)):
        steered = loss_guided(gaussian, coldness, scale, through_network=through)
        with torch.no_grad():
            found = steered(X, sigma)
        torch.testing.assert_close(found, x0 - scale * sigma**2 * slope * 2 * (x0 - 2.0))
        assert not found.requires_grad


def test_loss_of_the_decoded_picture():
    steered = loss_guided(gaussian, coldness, 0.1, decode=lambda z: 3 * z, through_network=False)
    x0 = gaussian(X, 1.0)
    torch.testing.assert_close(steered(X, 1.0), x0 - 0.1 * 2 * (3 * x0 - 2.0) * 3)


def test_loss_guidance_leads_where_the_loss_falls():
    x = 14.6 * X
    sigmas = [*even(30, 14.6, 0.05), 0.0]
    plain = sample(gaussian, x, sigmas, sampler="euler")
    led = sample(loss_guided(gaussian, coldness, 1.0), x, sigmas, sampler="euler")
    assert float(coldness(led).max()) < 0.5 * float(coldness(plain).min())


def test_loss_guidance_does_not_mix_pictures():
    steered = loss_guided(gaussian, coldness, 0.1)
    assert torch.equal(steered(X, 2.0)[1:2], steered(X[1:2], 2.0))


def test_loss_scale_by_sigma_and_nothing_at_zero():
    def refuses(x0):
        raise AssertionError("no gradient was asked for")

    assert torch.equal(loss_guided(gaussian, refuses, lambda sigma: 0.0)(X, 2.0), gaussian(X, 2.0))
    by_sigma = loss_guided(gaussian, coldness, lambda sigma: 0.1 / sigma)
    torch.testing.assert_close(by_sigma(X, 2.0), loss_guided(gaussian, coldness, 0.05)(X, 2.0))


def test_wrappers_nest():
    network, denoise = network_and_guided(words(1.0), words(-1.0), 3.0)
    nested = masked(loss_guided(denoise, coldness, 0.01), MASK, LATENT)
    x0 = sample(nested, 14.6 * X, make_grid(SD, 4).sigmas, sampler="dpmpp_2m")
    assert torch.equal(x0[..., :3], LATENT.expand(3, 4, 6, 6)[..., :3])
    assert network.rows == [6] * 4
