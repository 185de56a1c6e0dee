"""Thousands of random calls of the C kernels beside their twins in float64, under AddressSanitizer and UBSan.

    python bench/fuzz_kernels.py [--cases 2000] [--seed 0] [--variants avx2,avx2_bf16,...] [--plain]

Shapes, strides, odd sizes, extreme values and 1 to 4 threads are drawn from the seed (tests/kernels/fuzz.py). The
variants named emulated_... run the AVX-512 kernels' own code with their instructions spelled out, so on any CPU with
AVX2. --plain compiles as the package does, without sanitizers. Ends with status 1 if a variant fails.
"""

import argparse
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from safelight.kernels import build

FUZZ = Path(__file__).parent.parent / "tests" / "kernels" / "fuzz.py"
VARIANTS = ("avx2", "avx2_bf16", "emulated_avx512", "emulated_avx512_bf16")


def surroundings(plain: bool) -> dict[str, str]:
    """The environment in which a sanitized library can be loaded: its runtime must come first."""
    if plain:
        return dict(os.environ)
    asked = subprocess.run(
        [*build.compiler(), "-print-file-name=libasan.so"], capture_output=True, text=True, check=True
    )
    if not Path(asked.stdout.strip()).is_file():
        raise SystemExit("the compiler has no AddressSanitizer; use --plain")
    return os.environ | {"LD_PRELOAD": asked.stdout.strip(), "ASAN_OPTIONS": "detect_leaks=0"}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cases", type=int, default=2000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--variants", default=",".join(VARIANTS))
    parser.add_argument("--plain", action="store_true")
    given = parser.parse_args()
    env, failed = surroundings(given.plain), False
    with tempfile.TemporaryDirectory() as folder:
        for name in given.variants.split(","):
            start = time.monotonic()
            options = [] if given.plain else ["--sanitize"]
            command = [sys.executable, FUZZ, name, str(given.cases), str(given.seed), *options, folder]
            failed |= subprocess.run(command, env=env).returncode != 0
            print(f"{name}: {time.monotonic() - start:.0f} s", flush=True)
    raise SystemExit(failed)


if __name__ == "__main__":
    main()
