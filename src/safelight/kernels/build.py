"""Compile the kernels: C files -> one shared library per variant, named by what is in it.

It happens when the package is built or installed (`hatch_build.py` at the repository's root), and where that was
without a compiler, or the C files have changed since, at the first use on a machine that has one. This module needs
nothing but Python, so that it runs before torch is there.
"""

import hashlib
import os
import platform
import shlex
import shutil
import subprocess
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

SOURCES = Path(__file__).parent / "c"
PACKAGE_FOLDER = Path(__file__).parent / "lib"
# No OpenMP library is linked: its functions are found in the one that torch has loaded, so that there is one only.
FLAGS = ("-O3", "-std=gnu11", "-fPIC", "-fopenmp", "-fvisibility=default", "-Wno-psabi")
AVX2 = ("-mavx2", "-mfma")
AVX512 = (*AVX2, "-mavx512f", "-mavx512vl", "-mavx512bw", "-mavx512dq")


@dataclass(frozen=True)
class Variant:
    """One way to compile every kernel: `lanes` floats in a vector, `dtype` of the tensors, CPU features it needs.

    With one of the features `unless`, torch has instructions of its own for this dtype, and has not been shown slower.
    """

    name: str
    lanes: int
    dtype: str
    features: frozenset[str]
    flags: tuple[str, ...]
    unless: frozenset[str] = frozenset()

    @property
    def definitions(self) -> tuple[str, ...]:
        """What the C files are told."""
        return (f"-DVARIANT={self.name}", f"-DLANES={self.lanes}", *(["-DBF16"] if self.dtype == "bfloat16" else []))


WIDE = frozenset({"avx2", "fma", "avx512f", "avx512vl", "avx512bw", "avx512dq"})
AMX = frozenset({"amx_bf16"})
BYTES = ("-mavx512vnni", "-DVNNI")
PAIRS = ("-mavx512bf16", "-DPAIRS")
VARIANTS = (
    Variant("avx512_bf16", 16, "bfloat16", WIDE | {"avx512_vnni", "avx512_bf16"}, (*AVX512, *BYTES, *PAIRS), AMX),
    Variant("avx512_vnni", 16, "float32", WIDE | {"avx512_vnni"}, (*AVX512, *BYTES)),
    Variant("avx512", 16, "float32", WIDE, AVX512),
    Variant("avx2_bf16", 8, "bfloat16", frozenset({"avx2", "fma"}), AVX2, frozenset({"avx512f"})),
    Variant("avx2", 8, "float32", frozenset({"avx2", "fma"}), AVX2),
)
# The code of the wide variants, with their instructions spelled out: slow, for tests on machines that lack them.
EMULATED = (
    Variant("emulated_avx512_bf16", 16, "bfloat16", frozenset({"avx2", "fma"}), (*AVX2, "-DPAIRS", "-DVNNI")),
    Variant("emulated_avx512", 16, "float32", frozenset({"avx2", "fma"}), AVX2),
)


def supported() -> tuple[Variant, ...]:
    """The variants to run on this machine, best first for each dtype."""
    features = cpu_features()
    return tuple(v for v in VARIANTS if v.features <= features and not v.unless & features)


def cpu_features() -> frozenset[str]:
    """The flags of this CPU that its operating system allows; empty where Safelight has no kernels for it."""
    if platform.system() != "Linux" or platform.machine() != "x86_64":
        return frozenset()
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    return frozenset(next((line.split(":")[1] for line in lines if line.startswith("flags")), "").split())


def compiler() -> list[str] | None:
    """The C compiler's command: $CC, else cc, gcc or clang; None if there is none."""
    chosen = shlex.split(os.environ.get("CC", ""))
    if chosen:
        return chosen if shutil.which(chosen[0]) else None
    found = next(filter(None, map(shutil.which, ("cc", "gcc", "clang"))), None)
    return [found] if found else None


def cache_folder() -> Path:
    """Where libraries built at first use are kept: $XDG_CACHE_HOME/safelight/kernels."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "safelight" / "kernels"


def file_name(variant: Variant, extra: Sequence[str] = ()) -> str:
    """The library's name, with a digest of all that it is made from: what is stale has another name."""
    digest = hashlib.sha256(repr((variant.flags, variant.definitions, FLAGS, *extra)).encode())
    for file in sorted(SOURCES.iterdir()):
        digest.update(file.read_bytes())
    return f"{variant.name}-{digest.hexdigest()[:16]}.so"


def find(variant: Variant) -> Path | None:
    """The variant's library if it has been built: with the package, or at an earlier use."""
    name = file_name(variant)
    return next((folder / name for folder in (PACKAGE_FOLDER, cache_folder()) if (folder / name).is_file()), None)


def build(variant: Variant, folder: Path, extra: Sequence[str] = ()) -> Path:
    """Compile a variant into `folder`; `extra` are further flags for the compiler, such as sanitizers.

    Raises OSError or subprocess.CalledProcessError, with the compiler's words in `stderr`, where it cannot.
    """
    command = compiler()
    if command is None:
        raise FileNotFoundError("there is no C compiler (cc, gcc or clang) on the path")
    target = folder / file_name(variant, extra)
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder) as room:
        made = Path(room) / target.name
        files = sorted(str(file) for file in SOURCES.glob("*.c"))
        options = [*FLAGS, *variant.flags, *variant.definitions, *extra]
        # Compiling and linking are two steps, since in one -fopenmp would link an OpenMP library.
        subprocess.run([*command, *options, "-c", *files], cwd=room, check=True, capture_output=True, text=True)
        objects = [Path(file).with_suffix(".o").name for file in files]
        subprocess.run([*command, "-shared", *extra, *objects, "-o", str(made), "-lm"], cwd=room, check=True,
                       capture_output=True, text=True)  # fmt: skip
        made.replace(target)
    return target
