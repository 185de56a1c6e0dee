"""What the README shows in Python runs as it stands there, one block after the other."""

import re
from pathlib import Path

import pytest
import torch

README = Path(__file__).parents[2] / "README.md"


def test_its_python_runs(tmp_path, monkeypatch, capsys):
    if not README.is_file():
        pytest.skip("not in a clone")
    monkeypatch.chdir(tmp_path)
    torch.set_num_threads(1)
    blocks = re.findall(r"```python\n(.*?)```", README.read_text(encoding="utf-8"), re.DOTALL)
    names: dict[str, object] = {}
    for block in blocks:
        exec(block, names)
    assert len(blocks) == 2 and len(list((tmp_path / "outputs").glob("*.png"))) == 4
    assert names["picture"].shape == (1, 3, 128, 128)
    assert capsys.readouterr().out.count("\n") == 20
