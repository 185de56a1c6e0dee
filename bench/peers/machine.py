"""What was measured on, in words that say how to compare it: the CPU, what it can do, and when."""

import datetime
import os
import platform
from pathlib import Path

# What decides how fast a CPU multiplies matrices
FLAGS = ("avx2", "fma", "avx512f", "avx512_vnni", "avx_vnni", "avx512_bf16", "avx512_fp16", "amx_bf16", "amx_int8")


def cpu() -> tuple[str, list[str]]:
    """The CPU's name and those of its flags that matter; what the system does not tell is left out."""
    file = Path("/proc/cpuinfo")
    lines = file.read_text().splitlines() if file.exists() else []
    said = {key.strip(): value.strip() for key, _, value in (line.partition(":") for line in lines)}
    flags = said.get("flags", "").split()
    return said.get("model name") or platform.processor() or platform.machine(), [f for f in FLAGS if f in flags]


def described(threads: int) -> dict[str, str]:
    """The machine as rows of a table."""
    name, flags = cpu()
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return {
        "CPU": f"{name}, {cores} cores, {memory:.0f} GiB memory",
        "its flags": ", ".join(flags),
        "threads": str(threads),
        "system": f"{platform.system()}, Python {platform.python_version()}",
    }


def free_memory() -> int:
    """Bytes that a process could take now; where the system does not tell, as many as you like."""
    file = Path("/proc/meminfo")
    lines = file.read_text().splitlines() if file.exists() else []
    said = [int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable")]
    return said[0] if said else 2**63


def today() -> str:
    """The date, for the page."""
    return datetime.date.today().isoformat()


def best_dtype() -> str:
    """bfloat16 where the CPU multiplies it, else float32."""
    return "bfloat16" if {"avx512_bf16", "amx_bf16"} & set(cpu()[1]) else "float32"
