"""Imports go downwards only: a room may import from its own floor's lower rooms and from floors below, never up."""

import ast
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parent.parent / "src" / "safelight"
# Rooms on one floor do not know each other, except where listed in NEIGHBOURS.
FLOOR = {"errors": -2, "writing": -1, "kernels": 0, "diffusion": 1, "models": 1, "text": 2, "checkpoint": 2,
         "pipeline": 3, "training": 4, "compat": 4, "app": 5}  # fmt: skip
NEIGHBOURS = {("checkpoint", "text")}
FORBIDDEN = {"diffusers", "transformers", "open_clip", "k_diffusion", "accelerate"}


def imported(file: Path) -> set[str]:
    """Every module a file imports, in full, wherever in the file the import stands."""
    here = ("safelight", *file.relative_to(PACKAGE).with_suffix("").parts)
    found = set()
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.Import):
            found |= {name.name for name in node.names}
        elif isinstance(node, ast.ImportFrom):
            base = [*here[: -node.level]] if node.level else []
            base += node.module.split(".") if node.module else []
            found |= {".".join([*base, name.name]) for name in node.names}
    return found


@pytest.mark.parametrize("file", sorted(PACKAGE.rglob("*.py")), ids=lambda f: str(f.relative_to(PACKAGE)))
def test_imports_go_down(file):
    room = file.relative_to(PACKAGE).with_suffix("").parts[0]
    for name in imported(file):
        assert name.split(".")[0] not in FORBIDDEN, f"{file.name} imports the peer {name}"
        other = name.split(".")[1] if name.startswith("safelight.") else None
        if room in FLOOR and other in FLOOR and other != room:
            below = FLOOR[other] < FLOOR[room] or (room, other) in NEIGHBOURS
            assert below, f"{room}/{file.name} (floor {FLOOR[room]}) imports {name} (floor {FLOOR[other]})"
