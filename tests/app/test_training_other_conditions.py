"""Training models that are asked in layouts, maps, classes or small pictures, and drawing with what comes out."""

import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from command_line import told as run
from PIL import Image

import safelight
from safelight.errors import InputError

sys.path.append(str(Path(__file__).parent.parent / "training"))
from sprite_sets import write_sprites

FIRST = ["--size", "16", "--channels", "8", "--multipliers", "1,2", "--layers", "1", "--batch-size", "4",
         "--perceptual-weight", "0", "--disc-weight", "0", "--sheet-every", "0", "--steps", "2"]  # fmt: skip
SECOND = ["--size", "16", "--channels", "16", "--multipliers", "1,2", "--layers", "1", "--head-channels", "8",
          "--attention", "1,2", "--text-width", "16", "--text-layers", "1", "--vocabulary-size", "600",
          "--batch-size", "4", "--sheet-steps", "2", "--steps", "3", "--learning-rate", "0.01", "--warmup", "1",
          "--sheet-every", "3", "--ema-decay", "0", "--log-every", "1"]  # fmt: skip
SCENES = ["--scenes", "--classes", "name", "--device", "cpu"]
QUICK = {"steps": 2, "seed": 1, "guidance_scale": 2.0, "width": 64, "height": 64}


@pytest.fixture(scope="module")
def sprites(tmp_path_factory):
    return write_sprites(tmp_path_factory.mktemp("sprites") / "set")


@pytest.fixture(scope="module")
def first_stage(sprites, tmp_path_factory):
    folder = tmp_path_factory.mktemp("first")
    run("train", "autoencoder", sprites, "--run", folder / "run", *FIRST, *SCENES)
    return folder / "run" / "model"


@pytest.fixture
def trained(sprites, first_stage, tmp_path):
    def train(*options):
        run("train", "diffusion", sprites, "--run", tmp_path / "run", "--autoencoder", first_stage, *SECOND, *SCENES,
            *options)  # fmt: skip
        return safelight.load(tmp_path / "run" / "model", device="cpu"), tmp_path / "run"

    return train


def sheet_of(folder):
    return Image.open(folder / "sheets" / "step-00000003.png")


def test_a_model_of_layouts(trained, tmp_path):
    model, folder = trained("--conditioning", "layout", "--layout-width", "64", "--layout-layers", "1")
    assert model.steered_by == "layout" and model.classes == ("block", "disc", "wedge")
    assert sheet_of(folder).width > 8 * 96
    a = safelight.layout_to_image(model, [("disc", 0.1, 0.2, 0.5, 0.6)], **QUICK)
    b = safelight.layout_to_image(model, [("disc", 0.4, 0.2, 0.8, 0.6)], **QUICK)
    assert not torch.allclose(a.latents, b.latents)
    again = Path(run("layout2image", "disc 0.1 0.2 0.5 0.6", "--model", folder / "model", "--steps", 2, "--seed", 1,
                     "--guidance-scale", 2, "--width", 64, "--height", 64, "--out", tmp_path / "out",
                     "--device", "cpu").strip())  # fmt: skip
    assert np.array_equal(np.asarray(Image.open(again)), np.asarray(a[0]))
    run("train", "diffusion", "--run", folder, "--steps", "4", "--device", "cpu")  # a run goes on


def test_the_embedder_of_layouts_learns(trained):
    model, _ = trained("--conditioning", "layout", "--layout-width", "64", "--condition-dropout", "0.5")
    shifts = [p for name, p in model.conditioner.named_parameters() if "norm" in name and name.endswith("bias")]
    assert len(shifts) == 5 and all(shift.any() for shift in shifts)  # which begin at zero


def test_a_model_of_maps(trained, tmp_path):
    model, folder = trained("--conditioning", "none", "--concat", "class_map")
    assert model.sees == "map" and model.classes == ("background", "block", "disc", "wedge")
    assert sheet_of(folder).width > 8 * 96
    numbers = np.zeros((64, 64), np.uint8)
    numbers[16:48, 16:48] = 2
    Image.fromarray(numbers).save(tmp_path / "map.png")
    options = ("--steps", 2, "--seed", 1, "--out", tmp_path / "out", "--device", "cpu")
    drawn = Image.open(run("semantic-synthesis", tmp_path / "map.png", "--model", folder / "model", *options).strip())
    assert drawn.size == (64, 64)


def test_a_model_that_reads_words_and_enlarges(trained, tmp_path):
    model, folder = trained("--concat", "low_resolution")
    assert (model.sees, model.steered_by) == ("picture", "words")
    assert sheet_of(folder).width > 8 * 96
    Image.new("RGB", (24, 16), "teal").save(tmp_path / "small.png")
    options = ("a disc", "--steps", 2, "--seed", 1, "--out", tmp_path / "out", "--device", "cpu")
    drawn = Image.open(run("upscale", tmp_path / "small.png", "--model", folder / "model", *options).strip())
    assert drawn.size == (48, 32)


def test_a_model_that_inpaints_has_a_sheet_of_holes(trained):
    model, folder = trained("--concat", "mask", "--conditioning", "none")
    assert model.paints_masks and sheet_of(folder).width > 8 * 96


def test_classes_are_the_folders_that_pictures_lie_in(first_stage, tmp_path):
    for number, (name, color) in enumerate({"red": "red", "blue": "navy"}.items()):
        (tmp_path / "set" / name).mkdir(parents=True)
        Image.new("RGB", (16, 16), color).save(tmp_path / "set" / name / f"{number}.png")
    run("train", "diffusion", tmp_path / "set", "--run", tmp_path / "run", "--autoencoder", first_stage, *SECOND,
        "--conditioning", "class", "--device", "cpu")  # fmt: skip
    model = safelight.load(tmp_path / "run" / "model", device="cpu")
    assert model.classes == ("blue", "red")
    assert len(safelight.class_to_image(model, "red", **QUICK)) == 1


def test_a_model_of_classes_knows_their_names(trained, tmp_path):
    model, folder = trained("--conditioning", "class")
    assert model.classes == ("block", "disc", "wedge") and model.unet.config.num_class_embeds == 4
    a = safelight.class_to_image(model, "disc", **QUICK)
    assert torch.equal(a.latents, safelight.class_to_image(model, 1, **QUICK).latents)
    with pytest.raises(InputError, match="no class 'disk'"):
        safelight.class_to_image(model, "disk")
    out = run("class2image", "disc", "--model", folder / "model", "--steps", 1, "--seed", 1, "--out", tmp_path / "out",
              "--device", "cpu")  # fmt: skip
    assert Path(out.strip()).name == "disc-1.png"


def test_what_only_scenes_have_is_said(sprites, first_stage, tmp_path):
    base = ["train", "diffusion", sprites, "--autoencoder", first_stage, *SECOND, "--device", "cpu"]
    for options in (["--conditioning", "layout"], ["--conditioning", "none", "--concat", "class_map"]):
        assert "--scenes" in run(*base, "--run", tmp_path / options[-1], *options, code=2)
    both = ["--conditioning", "layout", "--concat", "class_map", "--scenes"]
    assert "leave one of them out" in run(*base, "--run", tmp_path / "both", *both, code=2)
