"""The model card: what a trained model was made of, for people and for hubs."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from safelight.writing import replacing

TITLES = {"diffusion": "A latent diffusion model", "autoencoder": "A first stage (autoencoder)",
          "decoder": "A tiny decoder", "lora": "A LoRA"}  # fmt: skip
TAGS = {"diffusion": ["text-to-image", "diffusers", "latent-diffusion"], "autoencoder": ["autoencoder", "diffusers"],
        "decoder": ["decoder", "safelight"], "lora": ["lora", "text-to-image", "diffusers"]}  # fmt: skip


def write_card(folder: Path, stage: str, record: Mapping[str, Any]) -> None:
    """Write folder/README.md: the record of the run as two tables. `record["config"]` holds the stage's options."""
    record = dict(record)
    config = record.pop("config", {})
    figures = record.pop("figures", {})
    tags = "".join(f"  - {tag}\n" for tag in TAGS[stage])
    library = "diffusers" if "diffusers" in TAGS[stage] else "safelight"  # which can load it
    text = (
        f"---\nlibrary_name: {library}\ntags:\n{tags}---\n\n# {TITLES[stage]}, trained with Safelight\n\n"
        f"{_table('what', 'is', record)}\n"
        f"## Figures at the end\n\n{_table('figure', 'value', figures)}\n"
        f"## Options\n\n{_table('option', 'value', config)}"
    )
    with replacing(folder / "README.md") as file:
        file.write(text.encode())


def _table(left: str, right: str, rows: Mapping[str, Any]) -> str:
    lines = [f"| {name} | {_shown(value)} |\n" for name, value in rows.items()]
    return f"| {left} | {right} |\n| --- | --- |\n" + "".join(lines)


def _shown(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:.5g}"
    if isinstance(value, list | tuple):
        value = ", ".join(map(str, value))
    return str(value).replace("|", "\\|").replace("\n", " ")
