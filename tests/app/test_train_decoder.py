"""A tiny decoder on the command line: trained, gone on with, and drawn with."""

from pathlib import Path

import numpy as np
import pytest
import torch
from command_line import told as run
from PIL import Image
from safetensors.torch import load_file

import safelight
from safelight.checkpoint.load import load_decoder
from safelight.checkpoint.save import save_autoencoder, save_decoder
from safelight.errors import InputError
from safelight.models.autoencoder import Autoencoder, AutoencoderConfig
from safelight.models.tiny_decoder import TinyDecoder, TinyDecoderConfig
from safelight.pipeline.pictures import to_pil
from safelight.pipeline.seeing.preview import previewer
from safelight.pipeline.standin import random_model

TINY = AutoencoderConfig(
    down_block_types=("DownEncoderBlock2D",) * 2, up_block_types=("UpDecoderBlock2D",) * 2, block_out_channels=(8, 16),
    latent_channels=3, norm_num_groups=4, scaling_factor=0.7,
)  # fmt: skip
OPTIONS = ["--size", 16, "--channels", 8, "--layers", 1, "--batch-size", 4, "--warmup", 1, "--checkpoint-every", 2,
           "--sheet-every", 4, "--sheet-pictures", 2, "--log-every", 1, "--device", "cpu"]  # fmt: skip
WEIGHTS = "diffusion_pytorch_model.safetensors"


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    folder, chance = tmp_path_factory.mktemp("data"), np.random.default_rng(0)
    (folder / "pictures").mkdir()
    for i in range(8):
        Image.fromarray(chance.integers(0, 255, (16, 16, 3), dtype=np.uint8)).save(folder / "pictures" / f"{i}.png")
    torch.manual_seed(0)
    save_autoencoder(Autoencoder(TINY), folder / "first")
    return folder


def test_it_trains_goes_on_and_fits_its_autoencoder(data, tmp_path):
    start = ["train", "decoder", data / "pictures", "--autoencoder", data / "first", *OPTIONS]
    run(*start, "--run", tmp_path / "whole", "--steps", 4)
    run(*start, "--run", tmp_path / "halves", "--steps", 2)
    run("train", "decoder", "--run", tmp_path / "halves", "--steps", 4, "--device", "cpu")
    one, two = (load_file(tmp_path / name / "model" / WEIGHTS) for name in ("whole", "halves"))
    assert one.keys() == two.keys() and all(torch.equal(one[key], two[key]) for key in one)
    assert (tmp_path / "whole" / "sheets" / "step-00000004.png").is_file()
    made = load_decoder(tmp_path / "whole" / "model")
    made.config.check_fits(TINY)
    run(*start, "--run", tmp_path / "more", "--steps", 1, "--init", tmp_path / "whole" / "model")


def test_what_is_missing_is_said(data, tmp_path):
    start = ["train", "decoder", data / "pictures", *OPTIONS, "--run", tmp_path / "run", "--steps", 1]
    assert "autoencoder is missing" in run(*start, code=2)
    assert "1,2,4" in run(*start, "--autoencoder", data / "first", "--multipliers", "1,2,4", code=2)


@pytest.fixture(scope="module")
def decoder(tmp_path_factory):
    """An untrained one for the model in memory."""
    folder, stage = tmp_path_factory.mktemp("decoder") / "tiny", random_model().autoencoder.config
    levels = len(stage.block_out_channels)
    torch.manual_seed(0)
    save_decoder(TinyDecoder(TinyDecoderConfig(
        latent_channels=stage.embed_dim, block_out_channels=(8,) * levels, num_blocks=(1,) * levels,
        scaling_factor=stage.scaling_factor)), folder)  # fmt: skip
    return folder


@torch.no_grad()
def test_drawing_with_it(decoder, tmp_path):
    model = safelight.load("random", device="cpu", decoder=decoder)
    drawn = safelight.text_to_image(model, "a fox", steps=1, seed=1, width=64, height=64)
    assert np.array_equal(np.asarray(drawn[0]), np.asarray(to_pil(model.decoder(drawn.latents)[0])))
    assert previewer(model)(drawn.latents)[0].size == (64, 64)
    assert f"decoder: {WEIGHTS}" in model.weights
    options = ("--steps", 1, "--seed", 1, "--width", 64, "--height", 64, "--device", "cpu", "--out", tmp_path)
    out = run("text2image", "a fox", "--model", "random", "--decoder", decoder, *options)
    path = next(line for line in out.splitlines() if line.endswith(".png"))
    assert np.array_equal(np.asarray(Image.open(Path(path))), np.asarray(drawn[0]))


def test_one_for_other_latents_is_refused(tmp_path):
    save_decoder(TinyDecoder(TinyDecoderConfig(latent_channels=7, block_out_channels=(8,), num_blocks=(1,))),
                 tmp_path / "other")  # fmt: skip
    with pytest.raises(InputError, match="latents of 7 channels and enlarges 1 times"):
        safelight.load("random", device="cpu", decoder=tmp_path / "other")
