"""The mean of two autoencoders."""

import subprocess
import sys
from copy import deepcopy

import average_autoencoders
import pytest
import torch

from safelight.checkpoint.load import load_autoencoder
from safelight.checkpoint.save import save_autoencoder
from safelight.errors import InputError


@torch.no_grad()
def test_each_weight_is_the_mean_of_both(two_levels, tmp_path):
    first = two_levels(16, 32)
    second = deepcopy(first)
    for weight in second.parameters():
        weight.add_(torch.randn_like(weight))
    for name, one in (("first", first), ("second", second)):
        save_autoencoder(one, tmp_path / name)
    places = [str(tmp_path / name) for name in ("first", "second", "out")]
    subprocess.run([sys.executable, average_autoencoders.__file__, *places, "--share", "0.25"], check=True)
    made = load_autoencoder(tmp_path / "out").state_dict()
    for name, weight in first.state_dict().items():
        torch.testing.assert_close(made[name], 0.75 * weight + 0.25 * second.state_dict()[name])


def test_others_have_no_mean(two_levels):
    with pytest.raises(InputError, match="other shapes"):
        average_autoencoders.mean(two_levels(16, 32), two_levels(16, 16), 0.5)
