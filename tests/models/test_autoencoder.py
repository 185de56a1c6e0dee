"""The autoencoder against diffusers' AutoencoderKL and VQModel, its bottlenecks, tiles and complaints."""

import math
from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from safelight.errors import InputError, MissingPartError
from safelight.models.autoencoder import Autoencoder
from safelight.models.autoencoder_config import AutoencoderConfig
from safelight.models.bottleneck import GaussianBottleneck, LatentScale, VectorQuantizer
from safelight.models.tiling import tiled

diffusers = pytest.importorskip("diffusers")


def small(channels=(16, 32), attention_levels=(), **changes):
    """A narrow autoencoder with one level per channel count and attention at the levels named."""
    attn = ["Attn" if i in attention_levels else "" for i in range(len(channels))]
    return AutoencoderConfig(
        block_out_channels=channels,
        down_block_types=tuple(f"{a}DownEncoderBlock2D" for a in attn),
        up_block_types=tuple(f"{a}UpDecoderBlock2D" for a in reversed(attn)),
        **{"layers_per_block": 2, "norm_num_groups": 8} | changes,
    )


KL = {
    "f1": small((16,)),
    "f2": small((16, 16), layers_per_block=1, latent_channels=2),
    "f8, as Stable Diffusion": small((16, 32, 32, 32), scaling_factor=0.18215),
    "f16, attention": small((16, 16, 32, 32, 48), (4,), latent_channels=16),
    "f8, attention at two levels": small((16, 16, 32, 32), (2, 3), latent_channels=8, layers_per_block=1),
    "shifted, no 1x1 convolutions": small(
        (16, 32), scaling_factor=0.3611, shift_factor=0.1159, use_quant_conv=False, use_post_quant_conv=False
    ),
    "no attention at all": small((16, 32), mid_block_add_attention=False, in_channels=1, out_channels=2),
}
VQ = {
    "f4": small((16, 32, 32), latent_channels=3, num_vq_embeddings=64),
    "f4, no attention": small((16, 32, 32), latent_channels=3, num_vq_embeddings=64, mid_block_add_attention=False),
    "f8, attention": small((16, 16, 32, 32), (3,), latent_channels=4, num_vq_embeddings=50),
    "f2, narrow codebook": small((16, 32), latent_channels=4, num_vq_embeddings=20, vq_embed_dim=2),
}


def random_weights(module, seed=0):
    """Fill with weights that keep signals and biases of about unit size, and norms that differ by channel."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in module.named_parameters():
            values = torch.randn(parameter.shape, generator=generator)
            if "norm" in name:
                parameter.copy_(0.2 * values + name.endswith("weight"))
            elif name.endswith("bias"):
                parameter.copy_(0.2 * values)
            else:
                parameter.copy_(values / math.sqrt(parameter[0].numel()))
    return module.eval()


def pair(config):
    """A diffusers model and ours with the same random weights; the state dict fits without any renaming."""
    kind = {"AutoencoderKL": diffusers.AutoencoderKL, "VQModel": diffusers.VQModel}[config.kind]
    peer = random_weights(kind.from_config(config.to_diffusers()))
    ours = Autoencoder(config).eval()
    ours.load_state_dict(peer.state_dict(), strict=True)
    return peer, ours


def picture(config, height=None, width=None, batch=2):
    side = config.factor * 3
    shape = (batch, config.in_channels, height or side, width or side + 2 * config.factor)
    return torch.randn(shape, generator=torch.Generator().manual_seed(5)).clamp(-1, 1)


# In float32, attention sums in another order than the peer's. Measured: at most 2.0e-6; 0 in a net without attention.
ROUNDING = 5e-6


def relative_error(ours, peers):
    assert ours.shape == peers.shape
    return float((ours - peers).norm() / peers.norm())


@pytest.mark.parametrize("config", (KL | VQ).values(), ids=KL | VQ)
@torch.no_grad()
def test_in_double_precision_nothing_but_rounding_is_left(config):
    peer, ours = (model.double() for model in pair(config))
    x = picture(config).double()
    encoded = peer.encode(x)
    moments = encoded.latents if config.kind == "VQModel" else encoded.latent_dist.parameters
    assert relative_error(ours.moments(x), moments) < 1e-13
    z = torch.randn(2, config.embed_dim, 5, 4, dtype=torch.float64)
    assert relative_error(ours.decode_raw(z), peer.decode(z).sample) < 1e-13


@pytest.mark.parametrize("config", KL.values(), ids=KL)
@torch.no_grad()
def test_kl_is_diffusers(config):
    peer, ours = pair(config)
    x = picture(config)
    expected, posterior = peer.encode(x).latent_dist, ours.encode(x)
    assert relative_error(ours.moments(x), expected.parameters) < ROUNDING
    assert relative_error(posterior.mean, expected.mean) < ROUNDING
    assert relative_error(posterior.std, expected.std) < ROUNDING
    assert relative_error(posterior.logvar, expected.logvar) < ROUNDING
    assert relative_error(posterior.kl(), expected.kl()) < ROUNDING
    z = torch.randn(expected.mean.shape, generator=torch.Generator().manual_seed(6))
    assert relative_error(ours.decode_raw(z), peer.decode(z).sample) < ROUNDING
    shift = config.shift_factor or 0.0
    scaled = (z - shift) * config.scaling_factor
    assert relative_error(ours.decode(scaled), peer.decode(scaled / config.scaling_factor + shift).sample) < ROUNDING


@pytest.mark.parametrize("config", VQ.values(), ids=VQ)
@torch.no_grad()
def test_vq_is_diffusers(config):
    peer, ours = pair(config)
    x = picture(config)
    latents, posterior = peer.encode(x).latents, ours.encode(x)
    assert relative_error(ours.moments(x), latents) < ROUNDING
    assert relative_error(posterior.mean, latents) < ROUNDING
    assert relative_error(ours.decode_raw(latents), peer.decode(latents).sample) < ROUNDING
    assert relative_error(ours.decode(posterior.mode()), peer(x).sample) < ROUNDING
    raw = peer.decode(latents, force_not_quantize=True).sample
    assert relative_error(ours.decode_raw(latents, quantize=False), raw) < ROUNDING
    # The legacy loss is diffusers' only one; indices and codes are its own.
    codes, loss, (_, _, indices) = peer.quantize(latents)
    quantized = ours.quantize(latents)
    assert torch.equal(quantized.indices.flatten(), indices)
    assert relative_error(quantized.codes, codes) < ROUNDING
    assert relative_error(quantized.loss(legacy=True), loss) < ROUNDING


@pytest.mark.parametrize("config", (KL | VQ).values(), ids=KL | VQ)
def test_config_survives_diffusers_own_class(config):
    assert AutoencoderConfig.from_diffusers(config.to_diffusers()) == config
    with torch.device("meta"):
        peer = getattr(diffusers, config.kind).from_config(config.to_diffusers())
    assert AutoencoderConfig.from_diffusers(dict(peer.config)) == config


def test_a_config_file_of_stable_diffusion_1():
    data = {
        "_class_name": "AutoencoderKL", "_diffusers_version": "0.6.0", "act_fn": "silu",
        "block_out_channels": [128, 256, 512, 512], "down_block_types": ["DownEncoderBlock2D"] * 4, "in_channels": 3,
        "latent_channels": 4, "layers_per_block": 2, "norm_num_groups": 32, "out_channels": 3, "sample_size": 512,
        "up_block_types": ["UpDecoderBlock2D"] * 4,
    }  # fmt: skip
    config = AutoencoderConfig.from_diffusers(data)
    assert (config.scaling_factor, config.force_upcast, config.factor) == (0.18215, True, 8)


def test_a_vq_config_without_scaling_factor_is_not_scaled():
    data = {key: value for key, value in VQ["f4"].to_diffusers().items() if key != "scaling_factor"}
    assert AutoencoderConfig.from_diffusers(data).scaling_factor == 1.0
    del data["_class_name"]
    assert AutoencoderConfig.from_diffusers(data) == VQ["f4"]


@torch.no_grad()
def test_scaled_latents_leave_and_enter():
    config = KL["shifted, no 1x1 convolutions"]
    model = random_weights(Autoencoder(config))
    x = picture(config)
    posterior = model.encode(x)
    torch.testing.assert_close(posterior.mode(), (posterior.mean - 0.1159) * 0.3611)
    torch.testing.assert_close(model.decode(posterior.mode()), model.decode_raw(posterior.mean))
    torch.testing.assert_close(model(x), model.decode(posterior.mode()))
    noise = torch.randn(posterior.mean.shape)
    torch.testing.assert_close(posterior.sample(noise), (posterior.mean + posterior.std * noise - 0.1159) * 0.3611)


@torch.no_grad()
def test_one_generator_per_picture_makes_each_picture_its_own():
    config = KL["f2"]
    model = random_weights(Autoencoder(config))
    x = picture(config, batch=3)
    together = model.encode(x).sample([torch.Generator().manual_seed(seed) for seed in (7, 8, 9)])
    alone = model.encode(x[1:2]).sample(torch.Generator().manual_seed(8))
    torch.testing.assert_close(together[1:2], alone)
    assert not torch.allclose(together[0], together[1])


def test_kl_is_summed_per_picture_and_zero_for_the_standard_normal():
    moments = torch.zeros(2, 8, 4, 4)
    moments[1, :4] = 1.0
    moments[1, 4:] = math.log(2)
    kl = GaussianBottleneck().posterior(moments, LatentScale()).kl()
    # KL of N(1, 2) from N(0, 1) is (1 + 2 - 1 - ln 2)/2 for each of the 64 numbers.
    torch.testing.assert_close(kl, torch.tensor([0.0, 64 * (2 - math.log(2)) / 2]))


def test_log_variance_is_clamped():
    logvar = GaussianBottleneck().posterior(torch.tensor([0, -99.0, 0, 99.0]).view(2, 2, 1, 1), LatentScale()).logvar
    assert logvar.flatten().tolist() == [-30, 20]


@torch.no_grad()
def test_a_vq_posterior_is_a_point():
    config = VQ["f4"]
    posterior = random_weights(Autoencoder(config)).encode(picture(config))
    assert torch.equal(posterior.sample(torch.Generator()), posterior.mode())
    assert not posterior.std.any() and torch.equal(posterior.std, posterior.logvar.exp())
    assert posterior.kl().tolist() == [0, 0]


def quantizer():
    codebook = VectorQuantizer(3, 2)
    with torch.no_grad():
        codebook.embedding.weight.copy_(torch.tensor([[0.0, 0.0], [1.0, 0.0], [0.0, 2.0]]))
    return codebook


def test_latents_snap_to_the_nearest_vector_and_pass_their_gradient():
    z = torch.tensor([[0.9, 0.2], [0.1, 1.2], [-4.0, 0.1]]).T.reshape(1, 2, 1, 3).requires_grad_()
    quantized = quantizer()(z)
    assert quantized.indices.tolist() == [[[1, 2, 0]]]
    torch.testing.assert_close(quantized.codes[0, :, 0].T, torch.tensor([[1.0, 0.0], [0.0, 2.0], [0.0, 0.0]]))
    weights = torch.arange(6.0).view(1, 2, 1, 3)
    (quantized.codes * weights).sum().backward()
    assert torch.equal(z.grad, weights)


@pytest.mark.parametrize("legacy", [False, True])
def test_beta_weighs_the_commitment_and_in_the_legacy_loss_the_codebook(legacy):
    codebook = quantizer()
    z = torch.tensor([[0.5, 1.0]]).T.reshape(1, 2, 1, 1).requires_grad_()  # nearest is (0, 0) or (1, 0) at (0.5, 1)
    quantized = codebook(z)
    row = int(quantized.indices)
    difference = z.detach().flatten() - codebook.embedding.weight[row].detach()
    quantized.loss(beta=0.1, legacy=legacy).backward()
    commitment, codes = (1.0, 0.1) if legacy else (0.1, 1.0)
    torch.testing.assert_close(z.grad.flatten(), commitment * difference)
    torch.testing.assert_close(codebook.embedding.weight.grad[row], -codes * difference)


def test_usage_counts_vectors_and_their_spread():
    codebook = quantizer()
    assert codebook.usage(torch.tensor([[[0, 1], [2, 0], [1, 2]]])).used == 3
    assert codebook.usage(torch.tensor([0, 1, 2])).perplexity == pytest.approx(3)
    assert codebook.usage(torch.tensor([1, 1, 1])).perplexity == pytest.approx(1)
    assert codebook.usage(torch.tensor([0, 0, 0, 2])).perplexity == pytest.approx(4 / 3**0.75)


def test_a_long_search_is_made_in_parts(monkeypatch):
    codebook, z = quantizer(), torch.randn(2, 2, 5, 7)
    whole = codebook.nearest(z)
    monkeypatch.setattr("safelight.models.bottleneck.SEARCH_ROWS", 8)
    assert torch.equal(codebook.nearest(z), whole)
    distances = torch.cdist(z.movedim(1, -1).flatten(0, 2), codebook.embedding.weight)
    assert torch.equal(whole.flatten(), distances.argmin(1))


@pytest.mark.parametrize("config", [KL["f2"], VQ["f4"]], ids=["KL", "VQ"])
def test_gradients_reach_every_parameter_and_checkpointing_changes_none(config):
    model, x = random_weights(Autoencoder(config)), picture(config)

    def gradients(checkpointed):
        model.encoder.gradient_checkpointing = model.decoder.gradient_checkpointing = checkpointed
        model.zero_grad()
        posterior = model.encode(x)
        loss = (model.decode(posterior.sample(torch.Generator().manual_seed(1))) - x).square().mean()
        if config.num_vq_embeddings is not None:
            loss = loss + model.quantize(posterior.mean).loss()
        loss.backward()
        return {name: parameter.grad.clone() for name, parameter in model.named_parameters()}

    kept, recomputed = gradients(False), gradients(True)
    for name, gradient in kept.items():
        assert gradient.abs().sum() > 0, name
        torch.testing.assert_close(gradient, recomputed[name], msg=name)


def test_checkpointing_keeps_fewer_tensors():
    config = KL["f2"]
    model = random_weights(Autoencoder(config))

    def kept(checkpointed):
        model.decoder.gradient_checkpointing = checkpointed
        sizes = []
        with torch.autograd.graph.saved_tensors_hooks(lambda t: sizes.append(t.numel()) or t, lambda t: t):
            model.decode(torch.randn(1, 2, 16, 16))
        return sum(sizes)

    assert kept(True) < kept(False) / 3


@torch.no_grad()
def test_half_precision_inside_single_precision_outside():
    config = KL["f8, as Stable Diffusion"]
    model = random_weights(Autoencoder(config))
    x = picture(config)
    whole = model.encode(x).mode()
    half = model.to(torch.bfloat16)
    assert half.moments(x).dtype == torch.bfloat16
    posterior = half.encode(x)
    assert posterior.mode().dtype == half.decode(posterior.mode()).dtype == torch.float32
    assert relative_error(posterior.mode(), whole) < 0.05


# ---------------------------------------------------------------------------------------------------------- tiles


@given(
    height=st.integers(1, 40), width=st.integers(1, 40), tile=st.integers(2, 17), data=st.data(),
    unit_in=st.integers(1, 3), unit_out=st.integers(1, 3),
)  # fmt: skip
@settings(max_examples=60, deadline=None)
def test_blending_adds_nothing_of_its_own(height, width, tile, data, unit_in, unit_out):
    overlap = data.draw(st.integers(0, tile - 1))
    sizes = []

    def resize(x):  # a network that works on each cell alone
        sizes.append(x.shape[-2:])
        cells = x[..., ::unit_in, ::unit_in]
        return cells.repeat_interleave(unit_out, -1).repeat_interleave(unit_out, -2)

    x = torch.rand(1, 2, height * unit_in, width * unit_in)
    y = tiled(resize, x, tile=tile, overlap=overlap, unit_in=unit_in, unit_out=unit_out)
    torch.testing.assert_close(y, resize(x))
    assert set(sizes[:-1]) == {(min(tile, height) * unit_in, min(tile, width) * unit_in)}


def test_what_a_tile_border_spoils_fades_out():
    kernel = torch.full((1, 1, 3, 3), 1 / 9)
    x = torch.rand(1, 1, 64, 64)
    whole = nn.functional.conv2d(x, kernel, padding=1)
    parts = tiled(lambda t: nn.functional.conv2d(t, kernel, padding=1), x, tile=32, overlap=16)
    # At its edge a tile alone is wrong by a third of the brightness; its weight there is smooth(0.5/16) < 0.003.
    assert float((parts - whole).abs().max()) < 2e-3


def steps(image):
    """How much neighbouring columns differ, on average down each of them."""
    return (image[..., 1:] - image[..., :-1]).abs().mean((0, 1, 2))


@torch.no_grad()
def test_tiles_differ_from_the_whole_in_statistics_and_show_no_seam():
    config = small((16, 32, 32), scaling_factor=0.5)
    model = random_weights(Autoencoder(config))
    latent = torch.randn(1, 4, 64, 64, generator=torch.Generator().manual_seed(1))
    whole = model.decode(latent)
    by_tile = {tile: model.decode(latent, tile=tile) for tile in (64, 128, 192)}
    errors = [relative_error(picture, whole) for picture in by_tile.values()]
    # Measured: 0.173, 0.055, 0.025 of the picture's norm. What remains is each tile's own mean and variance.
    assert errors[0] < 0.2 and errors[1] < 0.07 and errors[2] < 0.03
    for blended in by_tile.values():
        seams = steps(blended - whole)
        assert seams.max() < 2 * seams.median()
    # The measure finds a seam where there is one: tiles put side by side without overlap.
    seams = steps(tiled(model.decode, latent, tile=32, overlap=0, unit_out=4) - whole)
    assert seams.max() > 5 * seams.median() and seams.argmax() == 127


@torch.no_grad()
def test_encoding_in_tiles_is_close_to_encoding_whole():
    model = random_weights(Autoencoder(small((16, 32, 32))))
    noise = torch.randn(1, 3, 64, 64, generator=torch.Generator().manual_seed(1))
    picture = nn.functional.interpolate(noise, scale_factor=4, mode="bicubic")
    whole, parts = model.encode(picture), model.encode(picture, tile=128)
    assert relative_error(parts.mode(), whole.mode()) < 0.07  # measured: 0.054
    assert torch.equal(model.encode(picture, tile=256).mode(), whole.mode())


def test_a_gradient_comes_back_through_tiles():
    model = random_weights(Autoencoder(small((16, 32, 32))))
    latent = torch.randn(1, 4, 24, 24, requires_grad=True)
    model.decode(latent, tile=64).square().mean().backward()
    assert torch.isfinite(latent.grad).all() and (latent.grad != 0).all()


# --------------------------------------------------------------------------------------------------------- errors


@pytest.mark.parametrize(
    ("attempt", "message"),
    [
        (lambda model: model.encode(torch.zeros(1, 3, 64, 60)), "60x64 pixels .* multiples of 8\n.* 56x64"),
        (lambda model: model.encode(torch.zeros(1, 3, 7, 64)), "64x7 .* 64x8"),
        (lambda model: model.encode(torch.zeros(1, 4, 64, 64)), r"\(1, 4, 64, 64\) .*\n.*batch, 3, "),
        (lambda model: model.encode(torch.zeros(3, 64, 64)), r"\(3, 64, 64\)"),
        (lambda model: model.decode(torch.zeros(1, 3, 8, 8)), r"\(1, 3, 8, 8\) .*\n.*batch, 4, "),
        (lambda model: model.decode(torch.zeros(1, 4, 8, 8), tile=20), "20 pixels .* factor 8\n.* multiple of 8"),
        (lambda model: model.decode(torch.zeros(1, 4, 8, 8), tile=8), "at least twice"),
        (lambda model: model.decode(torch.zeros(1, 4, 8, 8), tile=0), "at least twice"),
        (lambda model: model.encode(torch.zeros(2, 3, 8, 8)).sample([torch.Generator()]), "1 generators .* 2 pictures"),
        (lambda model: model.encode(torch.zeros(2, 3, 8, 8)).sample(torch.zeros(1, 4, 1, 1)), "noise of shape"),
    ],
)  # fmt: skip
def test_bad_input_is_named(attempt, message):
    with pytest.raises(InputError, match=f"(?s){message}"):
        attempt(Autoencoder(KL["f8, as Stable Diffusion"]))


@pytest.mark.parametrize(
    ("key", "value", "error"),
    [
        ("_class_name", "AutoencoderKl", InputError),
        ("block_out_channels", [16], InputError),
        ("down_block_types", ["DownBlock2D"] * 2, InputError),
        ("num_vq_embedings", 3, InputError),
        ("vq_embed_dim", 3, InputError),
        ("latent_channels", "4", InputError),
        ("scaling_factor", 0.0, InputError),
        ("scaling_factor", float("nan"), InputError),
        ("norm_type", "spatial", MissingPartError),
        ("act_fn", "relu", MissingPartError),
        ("latents_mean", [0.0] * 4, MissingPartError),
    ],
)
def test_a_config_for_another_network_is_refused(key, value, error):
    with pytest.raises(error, match=key):
        AutoencoderConfig.from_diffusers(small().to_diffusers() | {key: value})


def test_a_codebook_needs_its_one_by_one_convolutions():
    with pytest.raises(InputError, match="use_quant_conv does not exist in a VQModel"):
        replace(VQ["f4"], use_quant_conv=False)
