"""The process of one contestant: `python worker.py ENGINE CLOCK`. It runs in any environment that has NumPy.

Each line of the standard input is a question, each of the standard output its answer (see `channel`):

    {"ask": "prepare", **job}                        {"seconds": 61.2}
    {"ask": "load", **job}                           {"seconds": 3.1, "peak": 3900000000}
    {"ask": "run", "inputs": FILE, "out": FILE}      {"seconds": 5.2, "peak": 4100000000}

Inputs are a file of named arrays; the answer's numbers go to `out`, if it is given. Peaks are of the whole process, in
bytes. CLOCK is "wall", or "cpu" for the process's own time on all its threads, which other work on a busy machine does
not lengthen much.
"""

import json
import os
import sys
import time
from importlib import import_module
from pathlib import Path
from types import SimpleNamespace
from typing import Any, TextIO

BEGUN = time.perf_counter()
CLOCKS = {"wall": time.perf_counter, "cpu": time.process_time}


def own_output() -> TextIO:
    """The standard output for answers alone: whatever else is printed goes to the standard error."""
    kept = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)
    return kept


def peak() -> int:
    """The most memory that this process has held at once, in bytes (resident set; Linux)."""
    status = Path("/proc/self/status")
    lines = status.read_text().splitlines() if status.exists() else []
    return next((int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM")), 0)


class Worker:
    """Answers questions with an engine's help; `run` is what the engine loaded last."""

    def __init__(self, engine: Any, clock: str) -> None:
        self.engine, self.clock = engine, CLOCKS[clock]
        self.run = None

    def answer(self, ask: str, given: dict[str, Any]) -> dict[str, Any]:
        """Do what is asked, and time it."""
        import numpy as np

        inputs = dict(np.load(given["inputs"])) if ask == "run" else {}
        start = self.clock()
        if ask == "run":
            result = np.asarray(self.run(**inputs))
        elif ask == "load":
            self.run = self.engine.load(SimpleNamespace(**given))
        elif hasattr(self.engine, "prepare"):
            self.engine.prepare(SimpleNamespace(**given))
        seconds = self.clock() - start
        if given.get("out"):
            np.save(given["out"], result.astype(np.float32))
        return {"seconds": seconds, "peak": peak()}


def main() -> None:
    answers = own_output()

    def say(what: dict[str, Any]) -> None:
        print(json.dumps(what), file=answers)

    try:
        engine = import_module(f"engines.{sys.argv[1]}")
        taken = time.process_time() if sys.argv[2] == "cpu" else time.perf_counter() - BEGUN
        say({"seconds": taken, "versions": engine.versions()})
        worker = Worker(engine, sys.argv[2])
        for line in sys.stdin:
            given = json.loads(line)
            say(worker.answer(given.pop("ask"), given))
    except Exception as error:
        say({"error": f"{type(error).__name__}: {error}".splitlines()[0][:300]})
        raise


if __name__ == "__main__":
    main()
