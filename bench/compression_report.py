"""The table, the plot and the sheets of `compression.py`."""

from argparse import Namespace
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from PIL import Image

from safelight.training.evaluation.report import machine
from safelight.training.loop.sheets import contact_sheet

Results = Sequence[Mapping[str, Any]]  # of each f, as `Study.result` gives them
Plan = Mapping[str, Any]  # what stands in plan.json
COLUMNS = {
    "PSNR (dB)": "PSNR ↑", "SSIM": "SSIM ↑", "rFD-own": "rFD-own ↓", "FD-own": "FD-own ↓", "KD-own": "KD-own ↓",
    "FD-dct": "FD-dct ↓", "precision": "precision ↑", "recall": "recall ↑",
}  # fmt: skip
PER_SHEET = 10  # pictures of each f


def table(results: Results, plan: Plan) -> str:
    """All figures, a row for each f, and one of real pictures."""
    head = ["f", "latent", "steps, first", "steps, second", "samples/s, first", "samples/s, second", "drawn/s"]
    rows: list[list[Any]] = [[*head, *COLUMNS.values()], ["---"] * (len(head) + len(COLUMNS))]
    for r in results:
        names = [f"{stage} {r['f']}" for stage in ("autoencoder", "diffusion")]
        steps = [plan["steps"].get(name, "–") for name in names]
        speeds = [number(plan["samples_per_second"].get(name)) for name in names]
        rows.append([r["f"], r["latent"], *steps, *speeds, number(r["drawn_per_second"]), *cells(r["figures"])])
    rows.append(["real", *["–"] * (len(head) - 1), *cells(results[0]["real"])])
    return "\n".join("| " + " | ".join(map(str, row)) + " |" for row in rows)


def cells(figures: Mapping[str, Any]) -> list[str]:
    return [number(figures.get(name)) for name in COLUMNS]


def number(value: float | None) -> str:
    """Three digits; None, of which JSON makes infinity too, is a dash."""
    return "–" if value is None else f"{value:.3g}"


def plot(results: Results, plan: Plan, path: Path) -> None:
    """Reconstructions, likeness, precision and recall, and speed, against f."""
    from matplotlib.figure import Figure

    canvas = Figure(figsize=(10, 6.4), layout="constrained", dpi=90)
    (loss, likeness), (manifold, speed) = canvas.subplots(2, 2)
    draw(loss, "reconstruction: PSNR in dB, higher is better", {"PSNR": figure_of(results, "PSNR (dB)")})
    distances = {"reconstructions (rFD-own)": "rFD-own", "samples (FD-own)": "FD-own"}
    draw(likeness, "Fréchet distance to real pictures, lower is better",
         {label: figure_of(results, name) for label, name in distances.items()})  # fmt: skip
    likeness.axhline(results[0]["real"]["FD-own"], color="grey", ls=":", label="other real pictures")
    names = ("precision", "recall")
    draw(manifold, "samples: precision and recall, higher is better", {n: figure_of(results, n) for n in names})
    manifold.set_ylim(0, 1)
    rates = {
        f"training, {which} stage": {
            r["f"]: rate for r in results if (rate := plan["samples_per_second"].get(f"{stage} {r['f']}"))
        }
        for stage, which in (("autoencoder", "first"), ("diffusion", "second"))
    }
    draw(speed, "pictures a second", {**rates, "drawing": {r["f"]: r["drawn_per_second"] for r in results}})
    speed.set_yscale("log")
    speed.yaxis.set_major_formatter("{x:g}")
    for axis in (loss, likeness, manifold, speed):
        axis.set_xscale("log", base=2)
        axis.set_xticks([r["f"] for r in results], [str(r["f"]) for r in results])
        axis.set_xlabel("f, the factor of down-sampling (1: pixels)")
        axis.grid(alpha=0.3)
        axis.legend(fontsize=8)
    canvas.savefig(path)


def figure_of(results: Results, name: str) -> dict[int, float]:
    return {r["f"]: r["figures"][name] for r in results if r["figures"].get(name) is not None}


def draw(axis: Any, title: str, curves: Mapping[str, Mapping[int, float]]) -> None:
    for (label, points), mark in zip(curves.items(), "o^s", strict=False):
        axis.plot(list(points), list(points.values()), marker=mark, label=label)
    axis.set_title(title, fontsize=10)


def sheet(out: Path, rows: Sequence[tuple[int, str]], title: str, path: Path) -> None:
    """Rows of pictures, (f, what): as they stand in OUT/f…/what-0.png and so on."""
    tiles, labels = [], []
    for f, what in rows:
        tiles += [Image.open(out / f"f{f}" / f"{what}-{i}.png") for i in range(PER_SHEET)]
        labels += [what if what == "picture" else f"f = {f}", *[""] * (PER_SHEET - 1)]
    contact_sheet(tiles, labels, columns=PER_SHEET, title=title).quantize(128).save(path, optimize=True)


def report(asked: Namespace, device: Any, results: Results, plan: Plan, sprites: int, measured_by: str) -> str:
    """What was done, where and when, and the table, as Markdown."""
    facts = machine(device)
    clock = "the clock" if facts["device"].startswith("cuda") else f"processor time, {asked.threads} thread(s)"
    return (
        f"`python bench/compression.py {Path(asked.data).name} --minutes {asked.minutes:g} --count {asked.count} "
        f"--sampling-steps {asked.sampling_steps}`, {datetime.now(UTC):%Y-%m-%d %H:%M} UTC, {facts['system']}, "
        f"{facts['device']}, torch {facts['torch']}.\n\n"
        f"{sprites:,} sprites of {', '.join(asked.groups)} at {asked.size} px; {2 * asked.minutes:g} minutes "
        f"({clock}) for each f; a U-Net of {results[-1]['parameters']['U-Net'] / 1e6:.2f} M parameters, "
        f"{asked.prediction_type}; {asked.count} samples of {asked.sampling_steps} DDIM steps against {asked.count} "
        f"new scenes; features of: {measured_by}. "
        f"The last row compares these scenes with {asked.count} others.\n\n{table(results, plan)}\n"
    )
