"""Run the code of tour.md in order, renew its pictures in tour/, and what it prints in the page itself.

python docs/make_tour.py            with the model that ships with the package
python docs/make_tour.py MODEL      with another
"""

import contextlib
import io
import re
import sys
from pathlib import Path
from typing import Any

PAGE = Path(__file__).with_name("tour.md")
BLOCK = re.compile(r"```python\n(.*?)```\n(\n```text\n(.*?)```\n)?", re.DOTALL)


def run(text: str, model: str | None = None) -> str:
    """Run every block of Python in one namespace, in the current folder; the text, with what each block prints.

    model: what `safelight.load()` loads instead of the model that ships.
    """
    space: dict[str, Any] = {"__name__": "tour"}

    def renewed(block: re.Match[str]) -> str:
        printed, code = io.StringIO(), block[1]
        line = text.count("\n", 0, block.start(1))
        if model is not None:
            code = code.replace("safelight.load()", f"safelight.load({model!r})")
        with contextlib.redirect_stdout(printed):
            exec(compile("\n" * line + code, PAGE.name, "exec"), space)  # so that errors name the page's line
        if bool(printed.getvalue()) != bool(block[2]):
            raise ValueError(f"{PAGE.name}, line {line}: a ```text block must stand behind what prints, and only there")
        shown = f"\n```text\n{printed.getvalue()}```\n" if printed.getvalue() else ""
        return f"```python\n{block[1]}```\n{shown}"

    return BLOCK.sub(renewed, text)


if __name__ == "__main__":
    chosen = str(Path(sys.argv[1]).resolve()) if len(sys.argv) > 1 else None
    with contextlib.chdir(PAGE.parent):
        PAGE.write_text(run(PAGE.read_text(), chosen))
