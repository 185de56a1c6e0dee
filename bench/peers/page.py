"""docs/benchmarks.md, written from results: all that was measured on one machine, and what was not."""

from collections.abc import Callable, Mapping, Sequence
from math import log
from typing import Any

import numpy as np

from .contestants import CONTESTANTS
from .measuring import Result
from .rows import KINDS, WORDS, Row, row_of

Rows = Mapping[Row, Mapping[str, Result]]
FIRST = "safelight"

HEAD = """# Benchmarks

Written by `python bench/peers.py`, which sets up the peers, gives everyone the same seeded random Stable Diffusion 1
weights, checks that the answers agree, and lets them take turns on the same cores. In each field: the median of the
turns, and in brackets how many times as long as Safelight it took: above 1, Safelight is faster. Seconds are of one
machine on one day; the ratios are what counts. Rows may be of several runs; those of a row are of one.
"""


def page(rows: Rows, machine: Mapping[str, str], left_out: Mapping[str, str]) -> str:
    """The page. `left_out`: peers that could not take part -> why."""
    names = [name for name in CONTESTANTS if any(name in results for results in rows.values())]
    parts = [
        HEAD,
        "## Measured on\n\n" + table(["what", "is"], [*machine.items(), *versions(rows).items()]),
        "## Time\n\n" + times(rows, names),
        "## How far off the answers are\n\n" + apart(rows, names),
        "## From nothing to the first answer\n\n" + starts(rows, names),
        "## Memory\n\n" + memory(rows, names),
    ]
    if grown := growth(rows, names):
        parts.append("## Growth\n\n" + grown)
    parts.append("## Not measured\n\n" + missing(rows, left_out))
    return "\n".join(parts)


def table(head: Sequence[str], lines: Sequence[Sequence[str]]) -> str:
    """A table in Markdown."""
    written = [head, ["---"] * len(head), *lines]
    return "".join(f"| {' | '.join(line)} |\n" for line in written)


def versions(rows: Rows) -> dict[str, str]:
    """Every library's version, as its engine told it."""
    return {library: v for results in rows.values() for one in results.values() for library, v in one.versions.items()}


def fields(rows: Rows, names: Sequence[str], of: Any, label: Callable[[Row], str] = str) -> str:
    """A table of rows by contestants; `of(result, first)` is a field, "" where there is nothing."""
    lines = []
    for row, results in rows.items():
        first = results.get(FIRST)
        told = [of(results[name], first) if name in results and not results[name].error else "" for name in names]
        if any(told):
            lines.append([label(row), *told])
    return table(["", *(CONTESTANTS[name].label for name in names)], lines)


def times(rows: Rows, names: Sequence[str]) -> str:
    def of(one: Result, first: Result | None) -> str:
        if not one.turns:
            return ""
        beside = f" ({one.seconds / first.seconds:.2f})" if first and first.turns and first is not one else ""
        return f"{one.seconds:.3g} s{beside}"

    def counted(row: Row) -> str:
        turns = max(len(one.turns) for one in rows[row].values())
        return f"{row}; {turns} turn{'s' * (turns != 1)}"

    return fields(rows, names, of, counted)


def apart(rows: Rows, names: Sequence[str]) -> str:
    words = (
        "|a - b| / |b| over the whole answer, b being diffusers' in float32 where all run in less, else (and of whole "
        "pictures) Safelight's. OpenVINO's networks are kept with all constants in float16, not the weights alone, "
        "which are float16 for everyone.\n\n"
    )
    return words + fields(rows, names, lambda one, _: "" if one.apart is None else f"{one.apart:.1e}")


def starts(rows: Rows, names: Sequence[str]) -> str:
    """Import, load and first answer: what comes before the turns above."""
    words = (
        "A fresh process each: import + load + first answer = all, in seconds. What was converted or quantised before "
        "is not counted; compiling is.\n\n"
    )

    def of(one: Result, first: Result | None) -> str:
        whole = one.imports + one.load + one.first
        beside = f" ({whole / (first.imports + first.load + first.first):.2f})" if first and first is not one else ""
        return f"{one.imports:.1f} + {one.load:.1f} + {one.first:.1f} = {whole:.1f}{beside}"

    return words + fields(rows, names, of)


def memory(rows: Rows, names: Sequence[str]) -> str:
    words = "The most a process held at once while it loaded and ran the part (resident set), in GB.\n\n"

    def of(one: Result, first: Result | None) -> str:
        beside = f" ({one.peak / first.peak:.2f})" if first and first is not one and first.peak else ""
        return f"{one.peak / 1e9:.2f}{beside}"

    return words + fields(rows, names, of)


def growth(rows: Rows, names: Sequence[str]) -> str:
    """How time grows: the exponents of a power law, fitted to the logarithms by least squares."""
    lines = [
        [f"{WORDS[kind]}, with the pixels", *(exponent(rows, kind, name) for name in names)]
        for kind in KINDS
        if kind != "text"
    ]
    lines.append(["U-Net step, batch 2 over batch 1", *(doubled(rows, name) for name in names)])
    lines = [line for line in lines if any(line[1:])]
    words = "Time is about pixelsⁿ; the fields are n, fitted over the sizes above, and the ratio of two batches.\n\n"
    return words + table(["", *(CONTESTANTS[name].label for name in names)], lines) if lines else ""


def exponent(rows: Rows, kind: str, name: str) -> str:
    points = [
        (2 * log(row.side), log(results[name].seconds / max(row.steps, 1)))
        for row, results in rows.items()
        if row.kind == kind and name in results and results[name].turns
    ]
    return f"{np.polyfit(*zip(*points, strict=True), 1)[0]:.2f}" if len({side for side, _ in points}) > 1 else ""


def doubled(rows: Rows, name: str) -> str:
    ratios = []
    for row, results in rows.items():
        one = rows.get(Row("unet1", row.side), {}).get(name)
        if row.kind == "unet2" and name in results and results[name].turns and one and one.turns:
            ratios.append(results[name].seconds / one.seconds)
    return f"{np.mean(ratios):.2f}" if ratios else ""


def missing(rows: Rows, left_out: Mapping[str, str]) -> str:
    lines = [[CONTESTANTS[name].label, "everything", reason] for name, reason in left_out.items()]
    for row, results in rows.items():
        lines += [[CONTESTANTS[name].label, str(row), one.error] for name, one in results.items() if one.error]
    absent = [words for kind, words in WORDS.items() if all(row.kind != kind for row in rows)]
    lines += [["everyone", words, "not asked for in these runs"] for words in absent]
    present = {name for results in rows.values() for name in results} | set(left_out)
    lines += [[one.label, "everything", "not asked for in these runs"] for name, one in CONTESTANTS.items()
              if name not in present]  # fmt: skip
    return table(["who", "what", "why"], lines) if lines else "Everything was.\n"


def read(results: Mapping[str, Mapping[str, Any]]) -> dict[Row, dict[str, Result]]:
    """Results as they are kept in a file, in the order of the page."""
    order = list(KINDS)
    rows = sorted(map(row_of, results), key=lambda row: (order.index(row.kind), row.side))
    return {row: {name: Result(**one) for name, one in results[row.key].items()} for row in rows}
