"""Styles: prompts to write around prompts, from a file like AUTOMATIC1111's styles.csv.

    name,prompt,negative_prompt
    ink,"ink drawing of {prompt}, fine lines","photo, colour"

Where a style says `{prompt}`, the prompt goes; a style that does not say it is put behind the prompt, after a comma.
"""

import csv
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from safelight.errors import InputError, nearest

PLACE = "{prompt}"


@dataclass(frozen=True)
class Style:
    """A name, and what is added to a prompt and to a negative prompt."""

    name: str
    prompt: str = ""
    negative_prompt: str = ""


def read_styles(path: str | Path) -> dict[str, Style]:
    """Read a CSV file with the columns name, prompt and negative_prompt; `text` is the old name of `prompt`.

    Of several rows of one name the last counts; rows without a name do not. Raises InputError if the file cannot be
    read or has no such columns.
    """
    try:
        with Path(path).open(encoding="utf-8-sig", newline="") as file:
            rows = list(csv.DictReader(file, skipinitialspace=True))
    except FileNotFoundError:
        raise InputError(f"styles: no file {path}", remedy="check the path") from None
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise InputError(f"styles: cannot read {path}: {error}", remedy="it should be CSV in UTF-8") from None
    if rows and not ("name" in rows[0] and ("prompt" in rows[0] or "text" in rows[0])):
        columns = ", ".join(str(column) for column in rows[0])
        raise InputError(f"styles: {path} has the columns {columns}", remedy="it needs name,prompt,negative_prompt")
    styles = (
        Style(row["name"].strip(), row.get("prompt") or row.get("text") or "", row.get("negative_prompt") or "")
        for row in rows
        if (row["name"] or "").strip()
    )
    return {style.name: style for style in styles}


def apply_styles(
    prompt: str, negative_prompt: str, names: Sequence[str], styles: Mapping[str, Style]
) -> tuple[str, str]:
    """Write styles around a prompt and a negative prompt, one after another.

    Raises InputError for a style that is not there, with the nearest names.
    """
    for name in names:
        if name not in styles:
            raise InputError(f"there is no style {name!r}", remedy=nearest(name, styles))
        prompt = merged(styles[name].prompt, prompt)
        negative_prompt = merged(styles[name].negative_prompt, negative_prompt)
    return prompt, negative_prompt


def merged(style: str, prompt: str) -> str:
    """One style's text and a prompt, as AUTOMATIC1111 1.10 puts them together (modules/styles.py)."""
    if PLACE in style:
        return style.replace(PLACE, prompt)
    return ", ".join(part for part in (prompt.strip(), style.strip()) if part)
