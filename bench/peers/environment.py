"""The peers' own environment, so that Safelight's stays as it is: a virtual one in a cache folder, made once.

A peer that cannot be installed is left out, and the reason kept: it stands on the page, and the next run does not try
again, since some peers build for minutes before they fail. To try again, delete refused.json.
"""

import json
import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path

from .contestants import Contestant

CONSTRAINTS = Path(__file__).parents[2] / "constraints.txt"
PATIENCE = 1800  # seconds for one peer's packages

# Prints the versions of the packages it is asked for, {} for one that is missing
ASK = """
import json, sys
from importlib.metadata import PackageNotFoundError, version
def of(name):
    try: return version(name)
    except PackageNotFoundError: return None
print(json.dumps({name: of(name) for name in sys.argv[1:]}))
"""


class Environment:
    """A virtual environment at `folder`. It is made when the first peer is installed."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder / "environment"
        self.refused_file = folder / "refused.json"

    @property
    def python(self) -> Path:
        """Its interpreter."""
        return self.folder / "bin" / "python"

    def refused(self) -> dict[str, str]:
        """The peers that could not be installed, and why."""
        return json.loads(self.refused_file.read_text()) if self.refused_file.exists() else {}

    def versions(self, packages: Iterable[str]) -> dict[str, str | None]:
        """The versions of packages that are installed there; None for those that are not."""
        names = [package.partition("==")[0] for package in packages]
        if not self.python.exists():
            return dict.fromkeys(names)
        return json.loads(subprocess.check_output([self.python, "-c", ASK, *names], text=True))

    def install(self, peer: Contestant) -> str | None:
        """Install what a peer needs. Returns None, or the reason why it cannot take part."""
        refused = self.refused()
        if peer.name in refused:
            return refused[peer.name]
        missing = [p for p, v in zip(peer.packages, self.versions(peer.packages).values(), strict=True) if v is None]
        if not missing:
            return None
        if not self.python.exists():
            subprocess.run([sys.executable, "-m", "venv", self.folder], check=True)
        print(f"installing {', '.join(missing)}", flush=True)
        if (reason := self._pip(missing)) is not None:
            self.refused_file.write_text(json.dumps(refused | {peer.name: reason}, indent=1))
        return reason

    def _pip(self, packages: list[str]) -> str | None:
        """Ask pip; return None, or the last line that says what went wrong."""
        command = [self.python, "-m", "pip", "install", "-q", "-c", CONSTRAINTS, *packages]
        try:
            done = subprocess.run(command, capture_output=True, text=True, timeout=PATIENCE)
        except subprocess.TimeoutExpired:
            return f"not installed within {PATIENCE // 60} minutes"
        if done.returncode == 0:
            return None
        told = [line for line in done.stderr.splitlines() if "rror" in line] or done.stderr.splitlines() or ["?"]
        return told[-1].strip()[:200]

    def pythons(self, contestants: Iterable[Contestant]) -> dict[str, Path]:
        """The interpreter of each: this one for Safelight itself."""
        return {one.name: Path(sys.executable) if one.ours else self.python for one in contestants}
