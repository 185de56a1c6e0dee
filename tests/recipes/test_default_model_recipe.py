"""The recipe of the default model: its commands are commands, and together they make a model that draws."""

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

sys.path.append(str(Path(__file__).parents[2] / "recipes"))
sys.path.append(str(Path(__file__).parents[1] / "training"))
import default_model
from sprite_sets import COLORS, write_sprites

import safelight
from safelight.app.training_commands import RECIPES, as_field
from safelight.training.loop.recipes import recipe_of


@pytest.mark.parametrize("recipe", default_model.RECIPES)
def test_every_option_is_one_of_its_training(recipe):
    for stage, options in default_model.RECIPES[recipe].items():
        program, kind, *_ = default_model.STAGES[stage][0].split()
        if program != "train" or kind == "precompute" or not options:
            continue  # run as they are, below
        fields = RECIPES[kind].model_fields
        words = {name.replace("-", "_"): value for name, value in options.items()}
        several = {name: as_field(fields[name], [value]) for name, value in words.items() if "," in str(value)}
        made = recipe_of(RECIPES[kind], {"data": "pictures.zip", **words, **several})
        assert made.steps == options["steps"] and (made.size == 128 or stage.endswith("details"))


@pytest.mark.parametrize("recipe", ["cpu", "further"])
def test_one_command_from_pictures_to_a_model(recipe, tmp_path):
    folder = write_sprites(tmp_path / "pictures")
    (folder / "ATTRIBUTION.md").write_text("drawn by a test")
    (folder / "licenses").mkdir()
    (folder / "licenses" / "MIT.txt").write_text("as is")
    shutil.make_archive(str(folder), "zip", folder)
    (tmp_path / "names.txt").write_text("# all\n" + "; ".join(COLORS))
    command = [sys.executable, default_model.__file__, tmp_path / "pictures.zip", "--run",
               tmp_path / "run", "--recipe", recipe, "--steps", 1, "--concepts", tmp_path / "names.txt"]  # fmt: skip
    done = subprocess.run([*map(str, command)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    made = tmp_path / "run" / "default"
    assert (made / "ATTRIBUTION.md").read_text() == "drawn by a test" and (made / "licenses" / "MIT.txt").is_file()
    model = safelight.load(made)
    autoencoder = model.autoencoder.config
    assert autoencoder.latent_channels == 64 and autoencoder.block_out_channels == (16, 32, 64, 128, 256)
    pictures = safelight.text_to_image(model, "a red disc", steps=1, seed=1)
    assert pictures[0].size == (128, 128)
