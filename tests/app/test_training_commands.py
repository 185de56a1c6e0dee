"""Training as people do it: from pictures to a model that draws, on the command line, in seconds."""

import json
import os
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
from command_line import told as run
from PIL import Image

import safelight
from safelight.app.training_commands import preset
from safelight.models.presets import AUTOENCODERS
from safelight.training.loop.recipes import AutoencoderRecipe

FIRST = ["--size", "16", "--channels", "8", "--multipliers", "1,2", "--layers", "1", "--batch-size", "4",
         "--features-steps", "3", "--disc-start", "2", "--disc-warmup", "1", "--disc-channels", "8",
         "--disc-layers", "1", "--sheet-pictures", "2", "--device", "cpu"]  # fmt: skip
SECOND = ["--size", "16", "--channels", "16", "--multipliers", "1,2", "--layers", "1", "--head-channels", "8",
          "--attention", "2", "--text-width", "16", "--text-layers", "1", "--vocabulary-size", "600",
          "--batch-size", "4", "--sheet-steps", "2", "--device", "cpu"]  # fmt: skip
EVERY = ["--log-every", "2", "--checkpoint-every", "3", "--sheet-every", "6"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("training")
    (folder / "pictures").mkdir()
    chance = np.random.default_rng(0)
    for i in range(20):
        pixels = chance.integers(0, 255, (16, 16, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / "pictures" / f"{i:02}.png")
        (folder / "pictures" / f"{i:02}.txt").write_text(f"a {'red' if i % 2 else 'blue'} picture, number {i}")
    return folder


@pytest.fixture(scope="module")
def first_stage(folder):
    run("train", "autoencoder", folder / "pictures", "--run", folder / "first", "--steps", 6, *FIRST, *EVERY)
    return folder / "first" / "model"


def test_the_features_before_a_first_stage_tell_how_they_are_doing(folder, tmp_path):
    told = run("train", "autoencoder", folder / "pictures", "--run", tmp_path / "run", "--steps", 1, *FIRST,
               "--features-steps", 20, "--sheet-every", 0)  # fmt: skip
    steps = [line.split()[2] for line in told.splitlines() if line.startswith("features, step")]
    assert steps == [f"{n}/20" for n in range(2, 21, 2)]
    assert "of turns found" in told


@pytest.fixture(scope="module")
def second(folder, first_stage):
    averages = ["--ema-lengths", "0.05,0.1", "--ema-snapshot-every", "2"]
    run("train", "diffusion", folder / "pictures", "--run", folder / "second", "--autoencoder", first_stage,
        "--steps", 6, *SECOND, *EVERY, *averages)  # fmt: skip
    return folder / "second"


def test_two_commands_make_a_model_that_draws(second):
    model = safelight.load(second / "model", device="cpu")
    pictures = safelight.text_to_image(model, "a red picture", steps=2, seed=0)
    assert pictures[0].size == (16, 16)
    assert len(model.tokenizer) == model.text_encoder.config.vocab_size <= 600
    config = json.loads((second / "config.json").read_text())
    assert config["stage"] == "diffusion" and config["recipe"]["multipliers"] == [1, 2]
    sheet = Image.open(second / "sheets" / "step-00000006.png")
    assert sheet.width > 3 * 96


def test_a_run_goes_on_by_its_name_alone_and_refuses_other_options(second):
    before = (second / "checkpoints" / "step-00000006" / "manifest.json").read_bytes()
    run("train", "diffusion", "--run", second, "--device", "cpu")  # nothing is left to do: the model is written again
    assert (second / "checkpoints" / "step-00000006" / "manifest.json").read_bytes() == before
    output = run("train", "diffusion", "--run", second, "--learning-rate", "0.5", code=2)
    assert "learning_rate=0.0001, not 0.5" in output
    assert "is a run of the stage diffusion" in run("train", "autoencoder", "--run", second, code=2)
    memory = ["--accumulate", "2", "--gradient-checkpointing"]  # as is advised where it does not suffice
    run("train", "diffusion", "--run", second, "--steps", "8", *memory, "--device", "cpu")
    assert (second / "checkpoints" / "step-00000008").is_dir()


def test_a_length_of_the_average_is_chosen_afterwards(second, tmp_path):
    run("train", "average", second, "--length", "0.07", "--out", tmp_path / "model")
    assert safelight.load(tmp_path / "model", device="cpu").prediction_type == "epsilon"
    assert "0.07" in (tmp_path / "model" / "README.md").read_text()
    assert "sigma_rel" in run("train", "average", second, "--length", "0.5", "--out", tmp_path / "none", code=2)


def test_curves_are_drawn(second, tmp_path):
    pytest.importorskip("matplotlib")
    run("plot", second, "--out", tmp_path / "curves.png")
    assert Image.open(tmp_path / "curves.png").width > 1000
    assert "config.json" in run("plot", tmp_path, code=2)


def test_a_model_is_tuned_with_init_and_its_first_layer_widened(folder, second):
    options = ["--init", second / "model", "--steps", "2", "--batch-size", "2", "--size", "16", "--sheet-every", "0",
               "--device", "cpu"]  # fmt: skip
    run("train", "diffusion", folder / "pictures", "--run", folder / "tuned", *options)
    run("train", "diffusion", folder / "pictures", "--run", folder / "paint", "--concat", "mask", *options)
    model = safelight.load(folder / "paint" / "model", device="cpu")
    assert model.unet.config.in_channels == 9 and model.paints_masks and model.family == "sd1-inpaint"


def test_latents_are_computed_once_and_trained_on(folder, second, tmp_path):
    run("train", "precompute", folder / "pictures", "--out", tmp_path / "latents", "--autoencoder", second / "model",
        "--text-encoder", second / "model", "--size", "16", "--device", "cpu")  # fmt: skip
    options = ["--steps", "2", "--batch-size", "4", "--sheet-every", "0", "--device", "cpu"]
    run("train", "diffusion", tmp_path / "latents", "--run", tmp_path / "run", "--init", second / "model", *options)
    assert "20 latents" in (tmp_path / "run" / "model" / "README.md").read_text()
    assert "not on latents" in run("train", "autoencoder", tmp_path / "latents", "--run", tmp_path / "a", code=2)


def test_wrong_input_is_told_before_any_work(folder, tmp_path, first_stage):
    pictures, there = folder / "pictures", ["--run", tmp_path / "run"]
    assert "data is missing" in run("train", "diffusion", *there, code=2)
    assert "needs a first one" in run("train", "diffusion", pictures, *there, code=2)
    assert "--init" in run("train", "autoencoder", pictures, "--decoder-only", "--run", tmp_path / "g", code=2)
    assert "steps=0" in run("train", "diffusion", pictures, "--run", tmp_path / "a", "--steps", "0", code=2)
    odd = run("train", "autoencoder", pictures, "--run", tmp_path / "h", *FIRST, "--size", "17", code=2)
    assert "17 pixels do not fit a first stage that shrinks them 2 times" in odd and "train at 16" in odd
    odd = run("train", "diffusion", pictures, "--run", tmp_path / "i", "--autoencoder", first_stage, *SECOND,
              "--attention", "8", code=2)  # fmt: skip
    assert "attention=8: no level" in odd and "the factors 1, 2" in odd
    assert "a column `label`" in run("train", "diffusion", pictures, "--run", tmp_path / "j", "--autoencoder",
                                     first_stage, *SECOND, "--conditioning", "class", code=2)  # fmt: skip
    assert "without --r1-gamma" in run("train", "autoencoder", pictures, "--run", tmp_path / "k", "--compile",
                                       "--r1-gamma", "1", code=2)  # fmt: skip
    (tmp_path / "empty").mkdir()
    assert "no pictures" in run("train", "autoencoder", tmp_path / "empty", "--run", tmp_path / "b", code=1)
    (tmp_path / "file.txt").write_text("mine")
    assert "other things" in run("train", "autoencoder", pictures, "--run", tmp_path, code=2)
    for i in range(3):
        Image.new("RGB", (16, 16)).save(tmp_path / "empty" / f"{i}.png")
    output = run(
        "train", "diffusion", tmp_path / "empty", "--run", tmp_path / "c", "--autoencoder", first_stage, code=1
    )
    assert "has no caption" in output
    blocks = {"down_block_types": ["DownBlock2D"] * 4, "up_block_types": ["UpBlock2D"] * 4}  # down to 1x1
    shape = {"_class_name": "UNet2DModel", "block_out_channels": [32] * 4, "norm_num_groups": 32, **blocks}
    (tmp_path / "unet.json").write_text(json.dumps(shape))
    output = run("train", "diffusion", pictures, "--run", tmp_path / "e", "--autoencoder", first_stage, "--size", "16",
                 "--unet", tmp_path / "unet.json", "--conditioning", "none", code=2)  # fmt: skip
    assert "level 4 of the U-Net has norms of 32 channels" in output and "64 channels or more" in output
    arguments = ["--run", tmp_path / "d", "--autoencoder", first_stage, "--unet", "sd99", *SECOND]
    assert "neither a preset nor a file" in run("train", "diffusion", pictures, *arguments, code=2)
    assert {path.name for path in tmp_path.iterdir()} == {"empty", "file.txt", "unet.json"}  # and nothing half begun


def test_a_preset_is_trained_as_the_original_was():
    recipes = {name: AutoencoderRecipe(data="pictures", preset=name, **preset(name)) for name in AUTOENCODERS}
    found = {name: (made.batch_size, made.learning_rate, made.warmup) for name, made in recipes.items()}
    batches = {"kl_f4": 10, "kl_f8": 4, "kl_f16": 6, "vq_f4": 8, "vq_f8": 10, "vq_f16": 14}
    for name, batch in batches.items():
        assert found[name] == (batch, pytest.approx(batch * 4.5e-6), 0)
    assert recipes["vq_f16"].disc_layers == 2 and preset("unknown") == {}


def test_help_answers_without_torch():
    code = "import sys; from safelight.app.cli import app\ntry: app(['train', 'diffusion', '--help'])\n" \
           "except SystemExit: pass\nprint('torch' in sys.modules)"  # fmt: skip
    output = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert output.endswith("False\n") and "--ema-lengths" in output


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_finishes_the_step_saves_and_exits_with_0(folder, first_stage, tmp_path, number):
    command = [sys.executable, "-m", "safelight", "train", "diffusion", folder / "pictures", "--run", tmp_path / "run",
               "--autoencoder", first_stage, "--steps", "100000", "--checkpoint-every", "100000", "--log-every", "1",
               "--sheet-every", "0", *SECOND]  # fmt: skip
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env={**os.environ, "OMP_NUM_THREADS": "1"})
    log, started = tmp_path / "run" / "log.jsonl", time.monotonic()
    while not (log.exists() and log.read_text().count("\n") > 2):
        assert process.poll() is None and time.monotonic() - started < 120
        time.sleep(0.05)
    process.send_signal(number)
    _, told = process.communicate(timeout=60)
    assert process.returncode == 0 and "all is saved" in told
    assert f"safelight train diffusion --run {tmp_path / 'run'}" in told.splitlines()  # whole, to be copied
    (checkpoint,) = (tmp_path / "run" / "checkpoints").iterdir()
    assert int(checkpoint.name[5:]) >= 3


def test_a_lora_is_trained_stopped_and_resumed_and_drawn_with(folder, tmp_path):
    options = ["--init", "default", "--lora-rank", "2", "--lora-alpha", "4", "--batch-size", "2", "--size", "64",
               "--sheet-steps", "2", "--learning-rate", "0.01", "--device", "cpu", "--ema-decay", "0.5"]  # fmt: skip
    options += EVERY
    run("train", "diffusion", folder / "pictures", "--run", tmp_path / "whole", "--steps", 6, *options)
    run("train", "diffusion", folder / "pictures", "--run", tmp_path / "parts", "--steps", 3, *options)
    run("train", "diffusion", folder / "pictures", "--run", tmp_path / "parts", "--steps", 6)
    file = "pytorch_lora_weights.safetensors"
    assert (tmp_path / "whole" / "model" / file).read_bytes() == (tmp_path / "parts" / "model" / file).read_bytes()
    assert (tmp_path / "whole" / "sheets" / "step-00000006.png").exists()
    assert "A LoRA" in (tmp_path / "whole" / "model" / "README.md").read_text()
    plain, tuned = (safelight.load(device="cpu", loras=loras) for loras in ([], [tmp_path / "whole" / "model"]))
    a, b = (
        safelight.text_to_image(model, "a red picture", steps=2, seed=0, width=64, height=64)
        for model in (plain, tuned)
    )
    assert a[0].tobytes() != b[0].tobytes()
    largest = max(f.stat().st_size for f in (tmp_path / "whole" / "checkpoints").rglob("*.safetensors"))
    assert largest < sum(p.nbytes for p in plain.unet.parameters()) / 20
    assert "--init" in run("train", "diffusion", folder / "pictures", "--run", tmp_path / "x", "--lora-rank", 2, code=2)
