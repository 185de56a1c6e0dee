"""Compile the kernels when the package is built or installed, where there is a C compiler; without one, go on.

A wheel that holds libraries is for Linux on x86-64 and any Python: they are reached through ctypes.
"""

import runpy
import sys
from pathlib import Path
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface


class KernelsHook(BuildHookInterface):
    """See the module."""

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        """Build every variant into the package's own folder, from where wheels take it."""
        if self.target_name != "wheel":
            return
        kernels = Path(self.root) / "src" / "safelight" / "kernels"
        made = list(compiled(kernels))
        if made and version != "editable":
            build_data["force_include"] |= {str(file): f"safelight/kernels/lib/{file.name}" for file in made}
            build_data["pure_python"] = False
            build_data["tag"] = "py3-none-linux_x86_64"


def compiled(kernels: Path) -> list[Path]:
    """Every variant's library that this machine can make, in place of older ones."""
    build = runpy.run_path(str(kernels / "build.py"), run_name="safelight_kernels_build")
    for old in (kernels / "lib").glob("*.so"):
        old.unlink()
    made = []
    for variant in build["VARIANTS"] if build["cpu_features"]() else ():
        try:
            made.append(build["build"](variant, kernels / "lib"))
        except Exception as error:  # an install must not fail for want of speed
            print(f"the kernels {variant.name} were not compiled: {error}", file=sys.stderr)
    return made
