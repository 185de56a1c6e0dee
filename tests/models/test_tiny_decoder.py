"""The tiny decoder: diffusers' numbers, its shape, and what it fits."""

import json

import diffusers
import pytest
import torch
from safetensors.torch import save_file

from safelight import kernels
from safelight.checkpoint.load import decoder_weights, load_decoder
from safelight.checkpoint.save import save_decoder
from safelight.errors import CheckpointError, InputError
from safelight.models.presets import AUTOENCODERS
from safelight.models.tiny_decoder import TinyDecoder, TinyDecoderConfig

SMALL = TinyDecoderConfig(latent_channels=3, block_out_channels=(12, 8), num_blocks=(2, 1), scaling_factor=0.5)


def drawn(config=SMALL, seed=0):
    torch.manual_seed(seed)
    return TinyDecoder(config).eval()


@torch.no_grad()
def test_it_is_the_decoder_of_diffusers_autoencoder_tiny(tmp_path):
    torch.manual_seed(0)
    theirs = diffusers.AutoencoderTiny(
        latent_channels=4, encoder_block_out_channels=(8, 8, 8), decoder_block_out_channels=(8, 8, 8),
        num_encoder_blocks=(1, 1, 1), num_decoder_blocks=(2, 3, 1),
    ).eval()  # fmt: skip
    theirs.save_pretrained(tmp_path)
    ours = load_decoder(tmp_path)
    assert ours.config.factor == 4
    latent = 3 * torch.randn(2, 4, 6, 5)
    torch.testing.assert_close(ours(latent), theirs.decode(latent).sample, rtol=0, atol=1e-5)


@torch.no_grad()
@pytest.mark.parametrize("form", ["taesd_decoder.pth", "autoencoder_tiny.safetensors"])
def test_files_of_their_own(tmp_path, form):
    """TAESD's own decoder is a Sequential whose first layer bends the latents: one number more than in diffusers."""
    torch.manual_seed(0)
    theirs = diffusers.AutoencoderTiny().eval()
    names, path = theirs.state_dict(), tmp_path / form
    if form == "taesd_decoder.pth":
        layers = {key.removeprefix("decoder.layers."): t for key, t in names.items() if key.startswith("decoder.")}
        numbered = {key: key.split(".", 1) for key in layers}
        torch.save({f"{int(n) + 1}.{rest}": layers[key] for key, (n, rest) in numbered.items()}, path)
    else:
        save_file(names, path)
    ours, latent = load_decoder(path), 3 * torch.randn(1, 4, 6, 5)
    assert ours.config == TinyDecoderConfig(act_fn="relu")
    torch.testing.assert_close(ours(latent), theirs.decode(latent).sample, rtol=0, atol=1e-5)
    assert decoder_weights(path) == {f"decoder: {form}": path}


def test_shapes_and_what_does_not_fit():
    decoder = drawn()
    assert decoder(torch.zeros(2, 3, 5, 4)).shape == (2, 3, 10, 8)
    with pytest.raises(InputError, match="do not fit this decoder"):
        decoder(torch.zeros(2, 4, 5, 4))
    with pytest.raises(InputError, match="one of each"):
        TinyDecoderConfig(num_blocks=(1, 1))
    with pytest.raises(InputError, match="gelu"):
        TinyDecoderConfig(act_fn="gelu")


def test_what_an_autoencoder_needs_is_said():
    stable = AUTOENCODERS["kl_f8"]
    fits = TinyDecoderConfig(scaling_factor=stable.scaling_factor)
    fits.check_fits(stable)
    TinyDecoderConfig().check_fits(stable)
    with pytest.raises(InputError, match=r"4 channels and enlarges 4 times; .* 4 and need 8"):
        TinyDecoderConfig(block_out_channels=(8,) * 3, num_blocks=(1,) * 3).check_fits(stable)
    with pytest.raises(InputError, match="3 channels and enlarges 8 times"):
        TinyDecoderConfig(latent_channels=3).check_fits(stable)
    with pytest.raises(InputError, match=r"scaled by 0\.5"):
        TinyDecoderConfig(scaling_factor=0.5).check_fits(stable)


@torch.no_grad()
def test_a_folder_and_back(tmp_path):
    decoder, latent = drawn(), torch.randn(1, 3, 4, 4)
    save_decoder(decoder, tmp_path / "one")
    again = load_decoder(tmp_path / "one")
    assert again.config == SMALL
    assert all(torch.equal(tensor, again.state_dict()[key]) for key, tensor in decoder.state_dict().items())
    torch.testing.assert_close(again(latent), decoder(latent), rtol=0, atol=1e-6)


def test_folders_of_other_things(tmp_path):
    save_decoder(drawn(), tmp_path / "one")
    config = json.loads((tmp_path / "one" / "config.json").read_text())
    (tmp_path / "one" / "config.json").write_text(json.dumps(config | {"num_block": [1]}))
    with pytest.raises(CheckpointError, match="no 'num_block'"):
        load_decoder(tmp_path / "one")
    (tmp_path / "one" / "config.json").write_text(json.dumps(config | {"_class_name": "AutoencoderKL"}))
    with pytest.raises(CheckpointError, match="AutoencoderKL"):
        load_decoder(tmp_path / "one")
    save_file({"encoder.conv_in.weight": torch.zeros(8, 3, 3, 3)}, tmp_path / "vae.safetensors")
    with pytest.raises(CheckpointError, match="holds no tiny decoder"):
        load_decoder(tmp_path / "vae.safetensors")
    (tmp_path / "one" / "model_index.json").write_text("{}")
    with pytest.raises(CheckpointError, match="no folder of a tiny decoder"):
        load_decoder(tmp_path / "one")


@torch.no_grad()
def test_with_kernels_it_gives_the_same_but_for_rounding():
    decoder = drawn(TinyDecoderConfig(block_out_channels=(64, 32), num_blocks=(2, 1)))
    latent = torch.randn(1, 4, 24, 24)
    plain = decoder(latent)
    kernels.prepare(decoder)
    torch.testing.assert_close(decoder(latent), plain, rtol=0, atol=1e-4)
