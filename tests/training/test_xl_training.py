"""The second stage of Stable Diffusion XL: it is told the words, the text as a whole, and how large a picture is."""

import diffusers
import pytest
import torch
from safetensors.torch import load_file

import safelight
from safelight.errors import InputError
from safelight.training.data.batches import Batch
from safelight.training.loop.recipes import DiffusionConfig
from safelight.training.stages.diffusion import DiffusionStage
from safelight.training.stages.noise import BatchNoise
from small_xl import write_small_xl

CAPTIONS = ["a red fox", "a hat"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    torch.set_num_threads(1)
    return write_small_xl(tmp_path_factory.mktemp("xl"))


@pytest.fixture
def batch():
    return Batch(torch.randn(2, 3, 32, 48, generator=torch.Generator().manual_seed(0)), captions=CAPTIONS)


def test_the_network_is_told_what_it_is_told_when_drawing(folder, batch):
    model = safelight.load(folder)
    stage = DiffusionStage(model, DiffusionConfig(condition_dropout=0.0))
    told = stage.condition(batch, BatchNoise(0, range(2)), (4, 6))
    drawn = model.condition(CAPTIONS, size=(4, 6))
    torch.testing.assert_close(told.context, drawn.context)
    torch.testing.assert_close(told.pooled, drawn.pooled)


def test_the_loss_is_diffusers(folder, batch):
    """The U-Net's answer under both, to 1e-5 of the loss: sums of a few thousand float32 squares."""
    model = safelight.load(folder)
    stage = DiffusionStage(model, DiffusionConfig(condition_dropout=0.0))
    (loss,) = stage.losses(batch, BatchNoise(0, range(2)))
    peer = diffusers.UNet2DConditionModel.from_pretrained(folder, subfolder="unet")
    answers = []

    def ask(x, t, context, pooled):
        text, sizes = pooled[:, :24], torch.tensor([[32.0, 48, 0, 0, 32, 48]]).expand(2, -1)
        told = {"text_embeds": text, "time_ids": sizes}
        answers.append(peer(x, t, encoder_hidden_states=context, added_cond_kwargs=told).sample)
        return answers[0]

    stage.modules["unet"] = ask
    (other,) = stage.losses(batch, BatchNoise(0, range(2)))
    torch.testing.assert_close(loss.value, other.value, rtol=1e-5, atol=0)
    assert len(answers) == 1


def test_a_lora_is_trained_from_the_command_line_and_drawn_with(folder, tmp_path):
    from PIL import Image
    from typer.testing import CliRunner

    from safelight.app.cli import app

    data = tmp_path / "pictures"
    data.mkdir()
    for k, caption in enumerate(CAPTIONS):
        Image.effect_noise((64, 64), 60).convert("RGB").save(data / f"{k}.png")
        (data / f"{k}.txt").write_text(caption)
    options = ["--init", str(folder), "--lora-rank", "2", "--steps", "2", "--batch-size", "2", "--size", "64",
               "--sheet-steps", "2", "--learning-rate", "0.01", "--ema-decay", "0.5", "--device", "cpu"]  # fmt: skip
    done = CliRunner().invoke(app, ["train", "diffusion", str(data), "--run", str(tmp_path / "run"), *options])
    assert done.exit_code == 0, done.output
    file = tmp_path / "run" / "model" / "pytorch_lora_weights.safetensors"
    keys = load_file(file)
    assert "lora_unet_down_blocks_1_attentions_0_transformer_blocks_1_attn2_to_k.lora_up.weight" in keys
    models = [safelight.load(folder, loras=loras) for loras in ([], [file])]
    pictures = [safelight.text_to_image(one, "a fox", steps=2, seed=0, width=64, height=64) for one in models]
    assert pictures[0][0].tobytes() != pictures[1][0].tobytes()


def test_two_text_encoders_are_not_trained(folder):
    with pytest.raises(InputError, match="this model has two"):
        DiffusionStage(safelight.load(folder), DiffusionConfig(train_text_encoder=True))
