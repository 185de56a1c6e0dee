"""A scheduler's configuration: diffusers' keys, defaults and files."""

import inspect
import json
import warnings

import diffusers
import pytest
from scheduler_runs import (
    NAMES,
    SD,
    Z,
    both,
)

import safelight.diffusion.schedulers as schedulers
from safelight.diffusion.schedulers import (
    DDIMScheduler,
    PNDMScheduler,
    Scheduler,
)
from safelight.errors import CheckpointError, InputError, MissingPartError

pytestmark = pytest.mark.filterwarnings("ignore:__array:DeprecationWarning", "ignore::FutureWarning")  # diffusers'


@pytest.mark.parametrize("name", NAMES)
def test_configuration_equals_diffusers(name, tmp_path):
    """The same keys and defaults; the file is the same, and each reads the other's."""
    ours, theirs = both(name, {"beta_start": 0.001})
    ours.save_pretrained(tmp_path / "ours")
    theirs.save_pretrained(tmp_path / "theirs")
    written = [json.loads((tmp_path / who / "scheduler_config.json").read_text()) for who in ("ours", "theirs")]
    for config in written:
        config.pop("_diffusers_version")
    assert written[0] == written[1]
    read = getattr(diffusers, name).from_pretrained(tmp_path / "ours")
    back = getattr(schedulers, name).from_pretrained(tmp_path, subfolder="theirs")
    drop = ("_diffusers_version", "_use_default_values")
    for config in (read.config, back.config):
        assert {k: v for k, v in config.items() if k not in drop} == written[1]
    assert list(inspect.signature(type(ours)).parameters) == list(inspect.signature(type(theirs)).parameters)
    assert set(inspect.signature(ours.step).parameters) == set(inspect.signature(theirs.step).parameters)
    assert isinstance(ours, Scheduler) and type(ours).__name__ == name == ours.config._class_name
    assert ours.order == theirs.order


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("other", ["DDIMScheduler", "DPMSolverMultistepScheduler"])
def test_from_config_of_another_scheduler(name, other):
    """As in diffusers: keys that stood at their default take the new class's default, foreign ones are carried."""
    ours, theirs = both(other, {"timestep_spacing": "trailing", **SD})
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        found = getattr(schedulers, name).from_config(ours.config)
    expected = getattr(diffusers, name).from_config(theirs.config)
    drop = ("_diffusers_version", "_use_default_values", "_class_name")
    assert {k: v for k, v in found.config.items() if k not in drop} == {
        k: v for k, v in expected.config.items() if k not in drop
    }


def test_keys():
    with pytest.raises(InputError, match="beta_start"):
        DDIMScheduler(beta_strat=0.001)
    with pytest.raises(InputError, match="eta"):
        scheduler = DDIMScheduler()
        scheduler.step(Z, 1, Z, etta=1.0)
    with pytest.warns(UserWarning, match="a_new_key"):
        scheduler = DDIMScheduler.from_config({"a_new_key": 3, "skip_prk_steps": True, "beta_start": 0.001})
    assert scheduler.config.a_new_key == 3 and scheduler.config["beta_start"] == 0.001
    assert PNDMScheduler.from_config({"skip_prk_steps": True}).config.skip_prk_steps is True
    assert scheduler.num_train_timesteps == 1000
    with pytest.raises(AttributeError):
        _ = scheduler.config.beta_strat
    with pytest.raises(InputError, match="cannot be changed"):
        scheduler.config["beta_start"] = 2
    with pytest.raises(InputError, match="cannot be changed"):
        scheduler.config.beta_start = 2
    assert DDIMScheduler(500, 0.001).config.num_train_timesteps == 500


@pytest.mark.parametrize(
    ("name", "config", "error"),
    [
        ("DDIMScheduler", {"prediction_type": "epsilom"}, InputError),
        ("DDIMScheduler", {"beta_schedule": "lineer"}, InputError),
        ("DDIMScheduler", {"timestep_spacing": "trailling"}, InputError),
        ("EulerDiscreteScheduler", {"use_karras_sigmas": True, "use_beta_sigmas": True}, InputError),
        ("EulerDiscreteScheduler", {"final_sigmas_type": "one"}, InputError),
        ("DPMSolverMultistepScheduler", {"algorithm_type": "dpmsolver+"}, InputError),
        ("DPMSolverMultistepScheduler", {"solver_order": 4}, InputError),
        ("UniPCMultistepScheduler", {"solver_type": "bh3"}, InputError),
        ("UniPCMultistepScheduler", {"use_flow_sigmas": True}, MissingPartError),
    ],
)
def test_bad_settings(name, config, error):
    with pytest.raises(error):
        getattr(schedulers, name)(**config).set_timesteps(10)


def test_files_that_cannot_be_read(tmp_path):
    with pytest.raises(CheckpointError, match="subfolder"):
        DDIMScheduler.from_pretrained(tmp_path)
    for content in ("{", "[1]"):
        (tmp_path / "scheduler_config.json").write_text(content)
        with pytest.raises(CheckpointError, match="JSON"):
            DDIMScheduler.from_pretrained(tmp_path)
    DDIMScheduler(beta_start=0.001).save_pretrained(tmp_path)
    assert DDIMScheduler.from_pretrained(tmp_path, beta_end=0.03).config.beta_start == 0.001
    assert [p.name for p in tmp_path.iterdir()] == ["scheduler_config.json"]
