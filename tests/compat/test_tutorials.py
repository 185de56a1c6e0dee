"""Whole tutorials, as they stand, under both libraries: only the import lines differ."""

from pathlib import Path

import pytest
from both import compare

SCRIPTS = Path(__file__).parent / "scripts"
MODELS = {"course_introduction": ("wordy_model", "inpainting_model")}


@pytest.mark.parametrize("name", sorted(path.stem for path in SCRIPTS.glob("*.py")))
def test_tutorial(name, request, record_property):
    folders = [request.getfixturevalue(fixture) for fixture in MODELS.get(name, ("wordy_model",))]
    record_property("psnr", compare((SCRIPTS / f"{name}.py").read_text(), *folders, name=name))
