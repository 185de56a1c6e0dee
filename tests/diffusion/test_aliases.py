"""Peers' names of samplers and grids: as their own sources spell them."""

import pytest

from safelight.diffusion import aliases, grids, samplers
from safelight.errors import InputError

SAMPLERS, GRIDS = samplers.SAMPLERS, grids.GRIDS


@pytest.mark.parametrize(
    ("theirs", "ours"),
    [
        ("Euler a", "euler_ancestral"), ("DPM++ SDE", "dpmpp_sde"), ("dpm++ 2m  sde heun", "dpmpp_2m_sde_heun"),
        ("k_euler_a", "euler_ancestral"), ("k_dpm_2_a", "dpm2_ancestral"), ("k_dpmpp_2s_a", "dpmpp_2s_ancestral"),
        ("sample_dpmpp_2m_sde", "dpmpp_2m_sde"), ("dpm_2", "dpm2"), ("dpm_2_ancestral", "dpm2_ancestral"),
        ("uni_pc", "unipc"), ("uni_pc_bh2", "unipc"), ("dpmpp_3m_sde_gpu", "dpmpp_3m_sde"), ("kdpm_2", "dpm2"),
        ("DPM adaptive", "dpm_adaptive"), ("k_dpm_ad", "dpm_adaptive"),
    ],
)  # fmt: skip
def test_samplers(theirs, ours):
    assert samplers.find(theirs).name == ours
    assert aliases.split(theirs, SAMPLERS, GRIDS) == (ours, None)


@pytest.mark.parametrize(
    ("theirs", "ours"),
    [("Karras", "karras"), ("SGM Uniform", "sgm_uniform"), ("SGMUniform", "sgm_uniform"), ("DDIM", "ddim_uniform"),
     ("Normal", "uniform"), ("normal", "uniform"), ("Align Your Steps", "align_your_steps"), ("Turbo", "trailing")],
)  # fmt: skip
def test_grids(theirs, ours):
    assert grids.find(theirs).name == ours


@pytest.mark.parametrize(
    ("theirs", "sampler", "grid"),
    [
        ("DPM++ 2M Karras", "dpmpp_2m", "karras"), ("dpm++ 2m sde exponential", "dpmpp_2m_sde", "exponential"),
        ("k_lms_ka", "lms", "karras"), ("k_dpmpp_2m_sde_ka", "dpmpp_2m_sde", "karras"), ("euler_k", "euler", "karras"),
        ("Euler a SGM Uniform", "euler_ancestral", "sgm_uniform"), ("UniPC Normal", "unipc", "uniform"),
    ],
)  # fmt: skip
def test_names_of_both(theirs, sampler, grid):
    assert aliases.split(theirs, SAMPLERS, GRIDS) == (sampler, grid)


def test_our_own_names_and_labels_are_themselves():
    for registry, find in ((SAMPLERS, samplers.find), (GRIDS, grids.find)):
        for row in registry.values():
            assert find(row.name) is row and find(row.label) is row
    for row in SAMPLERS.values():
        assert aliases.split(row.name, SAMPLERS, GRIDS) == (row.name, None)


@pytest.mark.parametrize(
    ("name", "near"), [("DPM++ 2N", "dpmpp_2m"), ("Eular", "euler"), ("heuun", "heun"), ("", "known are")]
)
def test_unknown_samplers_name_the_nearest(name, near):
    assert aliases.split(name, SAMPLERS, GRIDS) is None
    with pytest.raises(InputError, match="unknown") as raised:
        samplers.find(name)
    assert near in raised.value.remedy


def test_unknown_grids_name_the_nearest():
    with pytest.raises(InputError, match="karras"):
        grids.find("Karas")
