"""A process of one contestant, and the talk with it: a question is a JSON line to its standard input, an answer one
from its standard output. What it says otherwise goes into a log."""

import json
import os
import selectors
import subprocess
import time
from pathlib import Path
from typing import Any, Self

WORKER = Path(__file__).parent / "worker.py"


class Failed(Exception):
    """A contestant gave no answer. Says why."""


class Channel:
    """A worker, started at once; a context manager that ends it. `seconds` is how long it took to import its engine."""

    def __init__(
        self, python: Path | str, engine: str, *, clock: str, threads: int, log: Path, patience: float
    ) -> None:
        count = str(threads)
        threading = dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"), count)
        self.patience = patience
        self.started = time.perf_counter()
        self._log = log.open("w")
        self._process = subprocess.Popen(
            [python, WORKER, engine, clock],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._log,
            env=os.environ | threading,
        )
        self._ready = selectors.DefaultSelector()
        self._ready.register(self._process.stdout, selectors.EVENT_READ)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._process.kill()
        self._process.wait()
        self._log.close()

    def hello(self) -> dict[str, Any]:
        """The first line, said when the engine is imported: how long that took, and versions."""
        return self._answer()

    def ask(self, question: str, **given: Any) -> dict[str, Any]:
        """Ask, and wait for the answer. Raises Failed where there is none, or the answer is an error."""
        line = json.dumps({"ask": question, **given}) + "\n"
        try:
            self._process.stdin.write(line.encode())
            self._process.stdin.flush()
        except BrokenPipeError:
            raise Failed(self._last_words()) from None
        return self._answer()

    def _answer(self) -> dict[str, Any]:
        if not self._ready.select(self.patience):
            raise Failed(f"no answer within {self.patience:.0f} s")
        line = self._process.stdout.readline()
        if not line:
            raise Failed(self._last_words())
        answer = json.loads(line)
        if "error" in answer:
            raise Failed(answer["error"])
        return answer

    def _last_words(self) -> str:
        code = self._process.wait()
        lines = Path(self._log.name).read_text(errors="replace").strip().splitlines() or [""]
        return f"ended with {code}: {lines[-1][:200]}"
