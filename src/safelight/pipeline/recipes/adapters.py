"""The LoRAs that a stranger's picture was drawn with, as its prompt or graph names them, and files to fill in."""

from collections.abc import Sequence
from contextlib import suppress
from dataclasses import replace
from math import isfinite
from pathlib import Path, PureWindowsPath

from safelight.checkpoint.load import LoraName
from safelight.checkpoint.lora import parse
from safelight.errors import InputError, MissingPartError
from safelight.pipeline.recipes.recipe import Reading
from safelight.text.grammar import Network
from safelight.text.schedule import plan_prompt

Amounts = dict[str, float]  # a LoRA's name or file -> by how much it is added


def filled(
    reading: Reading, files: Sequence[LoraName], *, without: bool = False
) -> tuple[Reading, list[tuple[str | Path, float]]]:
    """A reading whose `<lora:name:0.8>` are settled, and the LoRAs to load for it; one of ours needs nothing.

    A file fills in for the LoRA of its name, else for the next that none of the files is named like, by the weight the
    picture tells unless it has its own ("FILE:0.5"). Further files are added by 1. without: leave out what has no file.

    Raises MissingPartError for LoRAs that no file fills in for.
    """
    given = [(parse(file), isinstance(file, tuple) or parse(file)[0] != file) for file in files]
    if reading.recipe is not None:
        return reading, [pair for pair, _ in given]
    asked = _asked(reading)
    left, remarks, loras = wanted(reading, asked), [], []
    named = [next((name for name in left if _stem(name) == _stem(file)), None) for (file, _), _ in given]
    for ((file, weight), own), name in zip(given, named, strict=True):
        place = name or next((one for one in left if one not in named), None)
        amount = left.pop(place, 1.0) if place is not None else 1.0
        loras.append((file, weight if own else amount))
        if name is None and place is not None:
            remarks.append(f"{Path(file).name} fills in for the LoRA {place!r}, by {loras[-1][1]:g}")
    if left and not without:
        told = ", ".join(f"{name!r} by {amount:g}" for name, amount in left.items())
        remedy = "give each with --lora FILE, or go --without-loras"
        raise MissingPartError(f"the picture was drawn with LoRAs that are not given: {told}", remedy=remedy)
    remarks += [f"the LoRA {name!r} was left out" for name in left]
    remarks += [f"{network} was left out" for network in asked if network.kind not in ("lora", "lyco")]
    words = {"extra_networks": "ignore"} if asked else {}
    settled = replace(reading, request={**reading.request, **words}, remarks=(*reading.remarks, *remarks))
    return settled, loras


def wanted(reading: Reading, asked: Sequence[Network]) -> Amounts:
    """The names of the LoRAs that a picture tells of, and by how much they were added; not those by 0."""
    loras = reading.model.get("loras")
    found: Amounts = dict(loras) if isinstance(loras, dict) else {}
    for network in asked:
        if network.kind in ("lora", "lyco") and network.arguments:
            name, *amounts = network.arguments
            found[name] = 1.0
            with suppress(ValueError, IndexError):
                found[name] = float(amounts[0])
    return {name: amount if isfinite(amount) else 1.0 for name, amount in found.items() if amount != 0}


def _asked(reading: Reading) -> list[Network]:
    """All `<kind:name:…>` in the prompts. One that cannot be read has none: drawing will say what is wrong with it."""
    found: list[Network] = []
    if reading.request.get("prompt_syntax", "a1111") == "a1111":
        for word in ("prompt", "negative_prompt"):
            with suppress(InputError):
                text = reading.request.get(word, "")
                found += plan_prompt(text, composable=word == "prompt", extra_networks="ignore").networks
    return found


def _stem(file: str | Path) -> str:
    """A file's name without folders, ending and case."""
    return PureWindowsPath(str(file)).name.lower().removesuffix(".safetensors")
