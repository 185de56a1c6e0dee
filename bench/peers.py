"""Safelight beside its peers on Stable Diffusion 1: one command that sets everything up, measures, and writes it down.

    python bench/peers.py --small                                    a quick look
    python bench/peers.py                                            all rows: hours on a small CPU
    python bench/peers.py --peers diffusers openvino --rows unet2 decode --sizes 512 --repeats 5 --threads 2

The peers (diffusers, eager and compiled; OpenVINO, and in int8; stable-diffusion.cpp) get an environment of their own
in a cache folder, about 4 GB with the weights; what cannot be installed is named on the page with the reason. Rows are
kept there as well, so that a page can be put together from several runs on one machine; a row measured again takes
the place of the old one. See bench/peers/ for how it works.
"""

import argparse
import json
import os
from pathlib import Path

from peers import machine
from peers.contestants import CONTESTANTS
from peers.environment import Environment
from peers.material import inputs, model_folder, single_file
from peers.measuring import Result, Setting, measure
from peers.page import page, read
from peers.rows import KINDS, SIZES, STEPS, Row, rows

CACHE = Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "safelight" / "peers"
CLOCKS = {"wall": "wall", "cpu": "the processes' CPU time on all threads, since other work ran beside"}
PAGE = Path(__file__).parent.parent / "docs" / "benchmarks.md"


def asked() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    names = [name for name in CONTESTANTS if name != "safelight"]
    parser.add_argument("--peers", nargs="*", choices=names, default=names, metavar="PEER", help=", ".join(names))
    parser.add_argument("--rows", nargs="+", choices=KINDS, default=list(KINDS), metavar="ROW", help=", ".join(KINDS))
    parser.add_argument("--sizes", nargs="+", type=int, default=SIZES, help="sides of the pictures in pixels")
    parser.add_argument("--steps", type=int, default=STEPS, help="of a picture drawn from end to end")
    parser.add_argument("--repeats", type=int, default=5, help="turns that everyone takes")
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), default=machine.best_dtype())
    parser.add_argument("--clock", choices=("wall", "cpu"), default="wall", help="cpu: for a machine with other work")
    parser.add_argument("--patience", type=float, default=1800, help="seconds to wait for one answer")
    parser.add_argument("--small", action="store_true", help="the U-Net and the decoder at 256², twice, few peers")
    parser.add_argument("--cache", type=Path, default=CACHE, help="where environment, weights and results are kept")
    parser.add_argument("--page", type=Path, default=PAGE)
    given = parser.parse_args()
    if given.small:
        given.peers = [name for name in given.peers if name in ("diffusers", "openvino")]
        given.rows, given.sizes, given.repeats = ["text", "unet2", "decode"], [256], 2
    return given


def show(row: Row, results: dict[str, Result]) -> None:
    """A row on the terminal, as soon as it is there."""
    ours = results["safelight"]
    print(f"{row}:")
    for name, one in results.items():
        if one.error or not one.turns:
            print(f"  {CONTESTANTS[name].label:24} {one.error or 'no turns'}", flush=True)
            continue
        ratio = one.seconds / ours.seconds if ours.turns else float("nan")
        far = "" if one.apart is None else f"  {one.apart:.1e} apart"
        before = f"  import {one.imports:.1f}, load {one.load:.1f}, first {one.first:.1f}"
        print(f"  {CONTESTANTS[name].label:24} {one.seconds:8.3f} s  x{ratio:4.2f}{far}{before}"
              f"  {one.peak / 1e9:.2f} GB", flush=True)  # fmt: skip


def main() -> None:
    given = asked()
    given.cache.mkdir(parents=True, exist_ok=True)
    environment = Environment(given.cache)
    left_out = {name: reason for name in given.peers if (reason := environment.install(CONTESTANTS[name]))}
    present = [CONTESTANTS[name] for name in ("safelight", *given.peers) if name not in left_out]
    single = single_file(given.cache) if any(one.name == "sdcpp" for one in present) else Path()
    setting = Setting(
        cache=given.cache,
        model=model_folder(given.cache),
        single=single,
        repeats=given.repeats,
        threads=given.threads,
        dtype=given.dtype,
        clock=given.clock,
        patience=given.patience,
    )
    asked_for = {"precision": given.dtype, "clock": CLOCKS[given.clock], "date": machine.today()}
    facts = machine.described(given.threads) | asked_for
    kept = Kept(given.cache / "results.json", facts)
    for row in rows(given.rows, given.sizes, given.steps):
        results = measure(row, present, environment.pythons(present), inputs(row, given.cache), setting)
        show(row, results)
        kept.add(row, results)
    given.page.write_text(page(read(kept.rows), facts, environment.refused()))
    print(f"written: {given.page}")


class Kept:
    """Results of this machine, threads and precision, from this run and earlier ones, in a file."""

    def __init__(self, file: Path, facts: dict[str, str]) -> None:
        self.file = file
        self.all = json.loads(file.read_text()) if file.exists() else {}
        same = " | ".join(value for name, value in facts.items() if name != "date")
        self.rows = self.all.setdefault(same, {})

    def add(self, row: Row, results: dict[str, Result]) -> None:
        """Keep a row in place of an older one: only what took turns can be compared."""
        self.rows[row.key] = {name: one.to_json() for name, one in results.items()}
        part = self.file.with_suffix(".part")
        part.write_text(json.dumps(self.all, indent=1))
        part.rename(self.file)


if __name__ == "__main__":
    main()
