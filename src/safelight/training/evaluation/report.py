"""What an evaluation found: figures with what they were taken with, as JSON and as a table for a model card."""

import math
import os
import platform
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

import torch
from PIL import Image

from safelight import __version__
from safelight.checkpoint.writing import write_json
from safelight.writing import replacing

__all__ = ["Figure", "Report", "machine"]

Section = Literal["reconstruction", "samples", "prompts", "new_pairs", "other_names"]
TITLES: dict[Section, str] = {
    "reconstruction": "Reconstruction",
    "samples": "Samples",
    "prompts": "Prompt following",
    "new_pairs": "Prompt following, of pairs of thing and style that were held out",
    "other_names": "Prompt following, where things are called by other names",
}
ARROWS = {"higher": "↑", "lower": "↓", "": ""}


@dataclass(frozen=True)
class Figure:
    """One number.

    `pictures` is how many it was taken of; `by` names the features, the network or the rule it was taken with. `real`
    is the same measure of other real pictures in place of the model's: what a perfect model would score. `spread` is a
    standard deviation, if there is one. Infinity is a value; NaN is not.
    """

    section: Section
    name: str
    value: float
    pictures: int
    by: str = ""
    better: Literal["higher", "lower", ""] = ""
    real: float | None = None
    spread: float | None = None
    note: str = ""


@dataclass(frozen=True)
class Report:
    """All figures of one evaluation. `about` says of what, on what, and how; `sheets` are to be looked at.

    `remarks` say why something that could be expected is not there.
    """

    about: Mapping[str, Any]
    figures: tuple[Figure, ...]
    sheets: Mapping[str, Image.Image] = field(default_factory=dict)
    remarks: tuple[str, ...] = ()

    def value(self, section: Section, name: str) -> float:
        """Look a figure up. Raises KeyError."""
        for figure in self.figures:
            if (figure.section, figure.name) == (section, name):
                return figure.value
        raise KeyError(f"{section}: {name}")

    def as_dict(self) -> dict[str, Any]:
        """Give plain values for JSON; infinity, which JSON lacks, is the text "infinity"."""
        rows = [{key: _plain(value) for key, value in asdict(figure).items()} for figure in self.figures]
        return {**self.about, "figures": rows, "remarks": list(self.remarks)}

    def markdown(self) -> str:
        """Give a table for each section, and what the figures were taken with, for a model card."""
        parts = [f"## Evaluation\n\n{_facts(self.about)}"]
        for section, title in TITLES.items():
            rows = [figure for figure in self.figures if figure.section == section]
            if rows:
                parts.append(f"### {title}\n\n{_table(rows)}")
        parts += [f"* {_cell(remark)}\n" for remark in self.remarks]
        return "\n".join(parts)

    def write(self, folder: Path) -> None:
        """Write report.json, report.md and the sheets as PNG, each whole or not at all."""
        folder.mkdir(parents=True, exist_ok=True)
        write_json(folder / "report.json", self.as_dict())
        with replacing(folder / "report.md") as file:
            file.write(self.markdown().encode())
        for name, sheet in self.sheets.items():
            with replacing(folder / f"{name}.png") as file:
                sheet.save(file, format="PNG")


def machine(device: torch.device | str) -> dict[str, Any]:
    """Say what the figures were computed on."""
    device = torch.device(device)
    card = torch.cuda.get_device_name(device) if device.type == "cuda" else platform.machine()
    return {
        "safelight": __version__,
        "torch": torch.__version__,
        "system": f"{platform.system()} {platform.machine()}, {os.cpu_count()} cores",
        "device": f"{device.type} ({card})",
    }


def _plain(value: Any) -> Any:
    if isinstance(value, float) and not math.isfinite(value):
        return "infinity" if value > 0 else "-infinity"
    return value


def _facts(about: Mapping[str, Any]) -> str:
    lines = [f"| {name} | {_cell(value)} |\n" for name, value in about.items()]
    return "| | |\n| --- | --- |\n" + "".join(lines)


def _table(figures: list[Figure]) -> str:
    lines = [
        f"| {figure.name} {ARROWS[figure.better]} | {_number(figure.value)}"
        f"{'' if figure.spread is None else f' ± {_number(figure.spread)}'} "
        f"| {'' if figure.real is None else _number(figure.real)} | {figure.pictures} | {_cell(figure.by)} "
        f"| {_cell(figure.note)} |\n"
        for figure in figures
    ]
    return "| measure | model | real pictures | pictures | by | |\n| --- | --- | --- | --- | --- | --- |\n" + "".join(
        lines
    )


def _number(value: float) -> str:
    return f"{value:.4g}" if math.isfinite(value) else "∞"


def _cell(value: Any) -> str:
    if isinstance(value, Mapping):
        value = ", ".join(f"{name}: {_cell(inner)}" for name, inner in value.items())
    elif isinstance(value, float):
        value = _number(value)
    return str(value).replace("|", "\\|").replace("\n", " ")
