"""The tour's code runs as it stands, makes the pictures that the page shows, and no others."""

import re
import runpy
from pathlib import Path

import pytest
import torch
from PIL import Image

from safelight.checkpoint.load import SHIPPED

DOCS = Path(__file__).parent.parent / "docs"


@pytest.fixture
def _gradients_as_before():
    enabled = torch.is_grad_enabled()
    yield
    torch.set_grad_enabled(enabled)


@pytest.mark.usefixtures("_gradients_as_before")
def test_the_tour_runs_and_makes_its_pictures(tmp_path, monkeypatch):
    pytest.importorskip("matplotlib")
    monkeypatch.chdir(tmp_path)
    page = (DOCS / "tour.md").read_text()
    run = runpy.run_path(str(DOCS / "make_tour.py"))["run"]
    again = run(page, None if SHIPPED.is_dir() else "random")
    prose = re.compile(r"```text\n.*?```", re.DOTALL)
    assert prose.sub("", again) == prose.sub("", page)  # only what is printed may differ from model to model
    shown = re.findall(r"!\[[^\]]+\]\((tour/[\w-]+\.(?:png|webp))\)", page)
    made = sorted(str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*") if path.is_file())
    assert sorted(shown) == made
    for name in shown:
        assert Image.open(name).size >= (100, 100)


def test_code_that_fails_names_the_line_of_the_page():
    run = runpy.run_path(str(DOCS / "make_tour.py"))["run"]
    with pytest.raises(ZeroDivisionError) as failure:
        run("# A page\n\n```python\nx = 1\nx / 0\n```\n")
    assert failure.traceback[-1].lineno + 1 == 5
    with pytest.raises(ValueError, match="line 1"):
        run("```python\nprint(1)\n```\n")


def test_the_page_on_exploring_runs(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    blocks = re.findall(r"```python\n(.*?)```", (DOCS / "exploring.md").read_text(), re.DOTALL)
    code = "".join(blocks)
    if not SHIPPED.is_dir():
        code = code.replace("safelight.load()", "safelight.load('random')")
    exec(compile(code, "exploring.md", "exec"), {})
    assert "evaluations were shared" in capsys.readouterr().out
    assert Image.open("sheet.png").size >= (512, 512) and Image.open("way.webp").n_frames == 3
