"""What comes out of the first stage: its scale, its sheet, and a folder that diffusers loads."""

import diffusers
import pytest
import torch
from first_stage import NO_DISC, TINY, TINY_VQ, Blobs, one_step, stage
from PIL import Image

from safelight.checkpoint.load import load_autoencoder
from safelight.errors import CheckpointError, InputError
from safelight.models.autoencoder import Autoencoder
from safelight.training.stages.autoencoder import measure_scale
from safelight.training.stages.autoencoder_config import AutoencoderTraining
from safelight.training.stages.noise import BatchNoise
from safelight.training.stages.reconstructions import reconstruction_sheet


def weights(made):
    return {"autoencoder": {key: value.clone() for key, value in made.generator.state_dict().items()}}


@pytest.mark.parametrize("shape", [TINY, TINY_VQ], ids=["kl", "vq"])
def test_the_folder_is_diffusers_and_ours(shape, tmp_path):
    made = stage(shape, seed=3, **NO_DISC)
    made.finish(tmp_path / "model", weights(made), {"steps": 3, "data": "blobs"})
    ours = load_autoencoder(tmp_path / "model")
    theirs = getattr(diffusers, ours.config.kind).from_pretrained(tmp_path / "model")
    x = Blobs().batch(1, range(2)).pictures
    with torch.no_grad():
        again = ours(x)
        if shape is TINY:
            expected = theirs.decode(theirs.encode(x).latent_dist.mode()).sample
        else:
            expected = theirs.decode(theirs.encode(x).latents).sample
        torch.testing.assert_close(again, made.generator(x, None).picture, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(again, expected, rtol=1e-5, atol=1e-5)
    assert theirs.config.scaling_factor == ours.config.scaling_factor != 1
    card = (tmp_path / "model" / "README.md").read_text()
    assert "for tests" in card and "blobs" in card and f"{ours.config.scaling_factor:.5g}" in card


def test_finishing_again_replaces_the_folder_and_nothing_else(tmp_path):
    made = stage(TINY, **NO_DISC)
    made.finish(tmp_path / "model", weights(made), {})
    made.finish(tmp_path / "model", weights(made), {})
    (tmp_path / "model" / "holiday.jpg").touch()
    with pytest.raises(CheckpointError, match="other things"):
        made.finish(tmp_path / "model", weights(made), {})
    assert (tmp_path / "model" / "holiday.jpg").exists()


def test_the_scale_makes_latents_unit():
    torch.manual_seed(0)
    autoencoder, data = Autoencoder(TINY).eval(), Blobs()
    scale = measure_scale(autoencoder, data, range(20), seed=4, device="cpu")
    with torch.no_grad():
        posterior = autoencoder.encode(data.batch(4, range(20)).pictures)
        raw = posterior.sample(BatchNoise(4, range(20)).normal(3, 8, 8)).double()
    assert scale.factor == pytest.approx(float(1 / raw.std(correction=0)), rel=1e-6)
    assert scale.shift == pytest.approx(float(raw.mean()), abs=1e-7)
    assert scale.apply(raw).std(correction=0) == pytest.approx(1)
    assert measure_scale(autoencoder, data, [], seed=4, device="cpu") is None


@pytest.mark.parametrize("known", [1.0, 0.25])
def test_the_measured_scale_does_not_depend_on_the_old_one(known):
    torch.manual_seed(0)
    from dataclasses import replace

    autoencoder = Autoencoder(replace(TINY, scaling_factor=known))
    scale = measure_scale(autoencoder, Blobs(), range(5), seed=0, device="cpu")
    torch.manual_seed(0)
    expected = measure_scale(Autoencoder(TINY), Blobs(), range(5), seed=0, device="cpu")
    assert scale.factor == pytest.approx(expected.factor, rel=1e-6)


@pytest.mark.parametrize(("options", "scaled", "shifted"), [
    ({}, True, False), ({"measure_shift": True}, True, True), ({"scale_samples": 0}, False, False),
])  # fmt: skip
def test_what_is_stored_of_the_scale(options, scaled, shifted, tmp_path):
    made = stage(TINY, **NO_DISC, **options)
    made.finish(tmp_path / "model", weights(made), {})
    config = load_autoencoder(tmp_path / "model").config
    assert (config.scaling_factor != 1) is scaled and (config.shift_factor is not None) is shifted


def test_sheet_shows_pictures_above_their_reconstructions():
    made = stage(TINY, sheet_pictures=3, **NO_DISC)
    sheet, again = made.sheet(), made.sheet()
    assert isinstance(sheet, Image.Image) and sheet.tobytes() == again.tobytes()
    plain = stage(TINY, sheet_pictures=3, sheet_difference=True, **NO_DISC).sheet()
    assert plain.size[0] == sheet.size[0] and plain.size[1] > 1.3 * sheet.size[1]


def test_a_sheets_pixels():
    x = torch.full((2, 3, 96, 96), -1.0)
    y = torch.stack([torch.full((3, 96, 96), -0.9), torch.full((3, 96, 96), 1.7)])
    sheet = reconstruction_sheet(x, y, difference=True)
    colors = {color for _, color in sheet.getcolors(1 << 20)}
    level = lambda v: tuple([round((v + 1) * 127.5)] * 3)  # noqa: E731
    assert {level(-1), level(-0.9), level(1), level(0.2)} <= colors  # picture, reconstructions, difference x4
    many = reconstruction_sheet(torch.zeros(11, 3, 96, 96), torch.zeros(11, 3, 96, 96))
    assert many.size[0] < 9 * 110 and many.size[1] > 4 * 96


@pytest.mark.parametrize("shape", [TINY, TINY_VQ], ids=["kl", "vq"])
def test_a_decoder_alone_learns_and_latents_stay_what_they_are(shape, tmp_path):
    made = stage(shape, seed=3, decoder_only=True, **NO_DISC)
    before = weights(made)["autoencoder"]
    for step in range(3):
        one_step(made, step)
    after = weights(made)["autoencoder"]
    still = ("encoder.", "quant_conv.", "quantize.")
    for key, tensor in after.items():
        if key != "logvar":
            assert tensor.equal(before[key]) == key.removeprefix("autoencoder.").startswith(still), key
    made.finish(tmp_path / "model", {"autoencoder": after}, {})
    assert load_autoencoder(tmp_path / "model").config.scaling_factor == shape.scaling_factor


def test_a_decoder_learns_from_disturbed_latents_and_each_sample_has_its_own_disturbance():
    made = stage(TINY, seed=3, decoder_only=True, latent_noise=0.5, **NO_DISC)
    pictures = Blobs().batch(0, range(64)).pictures
    with torch.no_grad():
        made.generator.autoencoder.quant_conv.bias[TINY.embed_dim :] = -30.0  # nothing of the posterior's own
    noise = BatchNoise(5, range(64))
    standard = made._latent_noise(pictures, noise)
    deviation = made._disturbance(noise)
    assert deviation.shape == (64, 1, 1, 1) and float(deviation.min()) < 0.1 * float(deviation.max())
    assert 0.45 < float(deviation.max()) * TINY.scaling_factor <= 0.5
    exact, disturbed = made.generator(pictures, standard).latent, made.generator(pictures, standard, deviation).latent
    torch.testing.assert_close(disturbed - exact, deviation * standard, rtol=1e-3, atol=1e-5)
    assert one_step(made, 0)["loss"].isfinite()


def test_latent_noise_asks_for_latents_that_stay_and_are_no_codes():
    with pytest.raises(ValueError, match="decoder_only"):
        AutoencoderTraining(latent_noise=0.1)
    with pytest.raises(InputError, match="VQ"):
        stage(TINY_VQ, decoder_only=True, latent_noise=0.1, **NO_DISC)
