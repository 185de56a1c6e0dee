"""A run's config.json, and what becomes of it where no training comes of the run."""

import pytest

from safelight.errors import InputError
from safelight.training.loop.log import Log
from safelight.training.loop.recipes import CONFIG, FEATURES, TOKENIZER, DiffusionRecipe, recipe_for, written_run


def options(**values):
    return DiffusionRecipe(data="pictures", **values)


def test_a_run_that_is_refused_leaves_nothing(tmp_path):
    run = tmp_path / "run"
    with pytest.raises(InputError), written_run(run, "diffusion", options()):
        (run / TOKENIZER).mkdir()
        (run / TOKENIZER / "vocab.json").write_text("{}")
        (run / FEATURES).write_bytes(b"")
        (run / "checkpoints").mkdir()
        raise InputError("something is wrong")
    assert not run.exists()


def test_what_else_is_in_its_folder_stays(tmp_path):
    with pytest.raises(KeyboardInterrupt), written_run(tmp_path, "diffusion", options()):
        (tmp_path / ".mine").write_text("mine")
        raise KeyboardInterrupt
    assert [file.name for file in tmp_path.iterdir()] == [".mine"]


def test_a_run_that_cannot_go_on_with_other_options_keeps_its_own(tmp_path):
    with written_run(tmp_path, "diffusion", options(batch_size=4)):
        Log(tmp_path, tensorboard=False)
    before = (tmp_path / CONFIG).read_bytes()
    with pytest.raises(InputError), written_run(tmp_path, "diffusion", options(batch_size=4, accumulate=3)):
        raise InputError("batch_size 4 is not a multiple of 3 passes")
    assert (tmp_path / CONFIG).read_bytes() == before


def test_what_fails_in_training_keeps_the_options_that_it_was_given(tmp_path):
    with pytest.raises(MemoryError), written_run(tmp_path, "diffusion", options(steps=7)):
        Log(tmp_path, tensorboard=False)
        raise MemoryError
    assert recipe_for(tmp_path, "diffusion", DiffusionRecipe, {}).steps == 7


@pytest.mark.parametrize(("buckets", "refused"), [(False, False), (True, True)])
def test_passes_may_become_smaller_where_that_leaves_the_order_of_the_data(tmp_path, buckets, refused):
    """A pass of buckets has one shape, so how many samples it has decides which come together."""
    with written_run(tmp_path, "diffusion", options(buckets=buckets)):
        Log(tmp_path, tensorboard=False)
    given = {"accumulate": 2, "gradient_checkpointing": True, "precision": "bfloat16"}
    if refused:
        with pytest.raises(InputError, match="begun with accumulate=1, not 2"):
            recipe_for(tmp_path, "diffusion", DiffusionRecipe, given)
    else:
        assert recipe_for(tmp_path, "diffusion", DiffusionRecipe, given).accumulate == 2
