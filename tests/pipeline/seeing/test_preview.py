import json
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F

from safelight.checkpoint.save import save_autoencoder
from safelight.errors import CheckpointError, InputError
from safelight.models.autoencoder import Autoencoder
from safelight.models.autoencoder_config import AutoencoderConfig
from safelight.models.presets import AUTOENCODERS
from safelight.pipeline.seeing import preview
from safelight.pipeline.seeing.preview import (
    STABLE_DIFFUSION,
    approximate,
    fit_latent_rgb,
    latent_rgb,
    previewer,
    smooth_pictures,
    store_latent_rgb,
)

TABLE = ((0.5, 0.0, 0.1), (0.0, 0.3, -0.2), (-0.2, 0.4, 0.0), (0.1, 0.1, 0.6), (0.05, -0.1, 0.2))


class LinearAutoencoder(Autoencoder):
    """An autoencoder whose decoder is the table itself, each colour repeated over its patch: the fit must find it."""

    def decode(self, latent, *, quantize=True, tile=None):
        picture = approximate(latent, TABLE)
        return F.interpolate(picture, scale_factor=self.config.factor, mode="nearest")


def test_the_fit_finds_a_linear_decoder(model):
    linear = LinearAutoencoder(model.autoencoder.config)
    linear.load_state_dict(model.autoencoder.state_dict())
    pictures = smooth_pictures(8, 64) * 0.05  # dim, so that no colour is clamped
    assert approximate(linear.encode(pictures).mode(), TABLE).abs().max() < 1
    found = torch.tensor(fit_latent_rgb(linear, pictures))
    assert torch.allclose(found, torch.tensor(TABLE), atol=1e-4)  # rounded to four places


def test_the_fit_is_the_best_linear_map_and_the_same_each_time(model):
    autoencoder = model.autoencoder
    table = fit_latent_rgb(autoencoder)
    assert fit_latent_rgb(autoencoder) == table
    with torch.no_grad():
        latent = autoencoder.encode(smooth_pictures(8, 128)).mode()
        shown = F.avg_pool2d(autoencoder.decode(latent).clamp(-1, 1), 8)

    def badness(rows):
        rows = torch.tensor(rows)
        return (torch.einsum("bchw,cr->brhw", latent, rows[:-1]) + rows[-1].view(1, 3, 1, 1) - shown).square().mean()

    best = badness(table)
    assert best < shown.var()
    for row in range(5):
        for change in (0.01, -0.01):
            other = [list(values) for values in table]
            other[row][1] += change
            assert badness(other) > best


def test_stable_diffusion_needs_no_fit_and_a_stored_table_comes_first(model, monkeypatch):
    def no_fit(autoencoder):
        raise AssertionError("it was fitted")

    monkeypatch.setattr(preview, "fit_latent_rgb", no_fit)
    with torch.device("meta"):
        assert latent_rgb(Autoencoder(AUTOENCODERS["sd15"])) == STABLE_DIFFUSION
        assert latent_rgb(Autoencoder(replace(AUTOENCODERS["sd15"], latent_rgb=TABLE))) == TABLE
    with pytest.raises(AssertionError, match="fitted"):
        latent_rgb(model.autoencoder)


def test_previews_are_one_pixel_for_one_of_the_latent(model):
    latent = torch.linspace(-3, 3, 2 * 4 * 5 * 6).view(2, 4, 5, 6)
    shown = previewer(model)(latent)
    assert [image.size for image in shown] == [(6, 5), (6, 5)]


def test_a_table_is_stored_with_the_model_and_read_again(model, tmp_path):
    diffusers = pytest.importorskip("diffusers")
    folder = tmp_path / "model"
    save_autoencoder(model.autoencoder, folder)
    before = json.loads((folder / "config.json").read_text())
    table = store_latent_rgb(folder)
    after = json.loads((folder / "config.json").read_text())
    assert after.pop("_latent_rgb") == [list(row) for row in table] and after == before
    config = preview.load_autoencoder(folder).config
    assert config.latent_rgb == table
    assert AutoencoderConfig.from_diffusers(config.to_diffusers()) == config
    theirs = diffusers.AutoencoderKL.from_pretrained(folder)  # reads on as before
    assert torch.equal(theirs.decoder.conv_out.weight, model.autoencoder.decoder.conv_out.weight)


def test_bad_tables_and_folders_are_named(tmp_path):
    with pytest.raises(InputError, match="5 rows of 3"):
        replace(AUTOENCODERS["sd15"], latent_rgb=((1.0, 2.0, 3.0),))
    with pytest.raises(CheckpointError, match=r"config\.json"):
        store_latent_rgb(tmp_path)
