"""A tiny decoder learns from a first stage, and only it; what comes out draws."""

import pytest
import torch
from first_stage import TINY, Blobs, noise, perceptual
from PIL import Image

from safelight.checkpoint.load import load_decoder
from safelight.errors import InputError
from safelight.models.autoencoder import Autoencoder
from safelight.models.tiny_decoder import TinyDecoder, TinyDecoderConfig
from safelight.training.evaluation.metrics import psnr
from safelight.training.loop.decoders import decoder_config
from safelight.training.loop.recipes import DecoderConfig, DecoderRecipe
from safelight.training.stages.decoder import DecoderStage, mean_psnr


def stage(decoder=None, autoencoder=TINY, *, judge=None, **options):
    torch.manual_seed(0)
    shape = TinyDecoderConfig(latent_channels=3, block_out_channels=(16, 8), num_blocks=(1, 1), scaling_factor=1.0)
    decoder = TinyDecoder(decoder or shape)
    config = DecoderConfig(**{"learning_rate": 5e-3, **options})
    return DecoderStage(decoder, Autoencoder(autoencoder), config, Blobs(), perceptual=judge)


def one_step(made, step):
    for loss in made.losses(made.data.batch(0, range(step * 4, step * 4 + 4)), noise(step)):
        made.optimizers[loss.optimizer].zero_grad()
        loss.value.backward()
        made.optimizers[loss.optimizer].step()
    return {name: float(value) for name, value in loss.figures.items()}


@pytest.mark.parametrize("target", ["decoded", "picture"])
def test_it_learns_and_the_autoencoder_stays(target):
    made = stage(target=target)
    before = {key: tensor.clone() for key, tensor in made.autoencoder.state_dict().items()}
    figures = [one_step(made, step) for step in range(60)]
    assert figures[-1]["l1"] < 0.5 * figures[0]["l1"]
    assert figures[0].keys() == {"loss", "l1", "psnr"} and figures[0]["loss"] == figures[0]["l1"]
    assert figures[-1]["psnr"] > figures[0]["psnr"] + 5
    assert all(torch.equal(tensor, before[key]) for key, tensor in made.autoencoder.state_dict().items())


def test_a_perceptual_distance_is_added():
    made = stage(judge=perceptual(), perceptual_weight=0.5)
    figures = one_step(made, 0)
    assert figures["loss"] == pytest.approx(figures["l1"] + 0.5 * figures["stand_in"], rel=1e-5)
    with pytest.raises(InputError, match="no network"):
        stage(perceptual_weight=0.5)


def test_the_logged_psnr_is_that_of_the_metrics():
    x, y = torch.rand(3, 3, 8, 8) * 2 - 1, torch.rand(3, 3, 8, 8) * 2.4 - 1.2
    assert float(mean_psnr(x, y)) == pytest.approx(float(psnr(x, y.clamp(-1, 1)).mean()), abs=1e-4)
    assert float(mean_psnr(x, x)) == pytest.approx(100, abs=1e-4)


@torch.no_grad()
def test_the_sheet_and_the_folder(tmp_path):
    made = stage(sheet_pictures=3)
    sheet = made.sheet()
    assert isinstance(sheet, Image.Image) and sheet.height > 3 * 96 and sheet.tobytes() == made.sheet().tobytes()
    made.finish(tmp_path / "model", {"decoder": made.decoder.state_dict()}, {"decoder of": "blobs", "steps": 3})
    again, latent = load_decoder(tmp_path / "model"), torch.randn(1, 3, 8, 8)
    torch.testing.assert_close(again(latent), made.decoder(latent), rtol=0, atol=1e-6)
    card = (tmp_path / "model" / "README.md").read_text()
    assert "A tiny decoder" in card and "| decoder of | blobs |" in card and "library_name: safelight" in card


def test_a_new_decoder_has_the_levels_of_the_autoencoder():
    recipe = DecoderRecipe(data="x", autoencoder="y", channels=8, layers=2)
    config = decoder_config(recipe, TINY)
    assert (config.block_out_channels, config.num_blocks) == ((16, 8), (2, 1))
    assert (config.latent_channels, config.scaling_factor) == (3, TINY.scaling_factor)
    with pytest.raises(InputError, match="multipliers=1,2,4, but the autoencoder has 2 levels"):
        decoder_config(recipe.model_copy(update={"multipliers": (1, 2, 4)}), TINY)


def test_a_decoder_for_other_latents_is_refused():
    with pytest.raises(InputError, match="4 channels and enlarges 8 times"):
        stage(TinyDecoderConfig())
