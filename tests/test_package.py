"""The package from outside: cheap to import, every public name there, its version in one place."""

import subprocess
import sys

import pytest

import safelight


def python(code):
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout


def test_importing_costs_nothing():
    heavy = {"torch", "numpy", "PIL", "tokenizers", "safetensors", "pydantic", "huggingface_hub", "matplotlib"}
    loaded = python("import sys, safelight; print(*sys.modules)").split()
    assert not heavy & set(loaded)


def test_loading_and_drawing_import_no_peer_and_no_hub():
    loaded = python("import sys, safelight; safelight.load; safelight.text_to_image; print(*sys.modules)").split()
    assert not {"diffusers", "transformers", "huggingface_hub", "matplotlib", "scipy"} & set(loaded)


@pytest.mark.parametrize("name", safelight.__all__)
def test_every_public_name_is_there(name):
    assert getattr(safelight, name) is not None
    assert name in dir(safelight)


def test_an_unknown_name_is_an_attribute_error():
    with pytest.raises(AttributeError, match="nothing_of_the_kind"):
        safelight.nothing_of_the_kind
