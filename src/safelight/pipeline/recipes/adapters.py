"""The LoRAs that a prompt asks for, or a stranger's picture was drawn with, by name, and the files that are meant."""

from collections.abc import Collection, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from math import isfinite
from pathlib import Path, PureWindowsPath
from typing import Any

from safelight.checkpoint.load import LoraName
from safelight.checkpoint.lora import parse
from safelight.errors import InputError, MissingPartError
from safelight.pipeline.recipes.recipe import Reading
from safelight.text.grammar import Network
from safelight.text.schedule import plan_prompt

Amounts = dict[str, float]  # a LoRA's name or file -> by how much it is added
KINDS = ("lora", "lyco")


def named(request: dict[str, Any], files: Sequence[LoraName]) -> tuple[dict[str, Any], list[tuple[str | Path, float]]]:
    """A request whose `<lora:name:0.8>` are settled, and the LoRAs to load for it, as A1111 reads its prompts.

    A file, or one in a folder, is the LoRA of its name, by the weight the prompt tells unless it has its own
    ("FILE:0.5"). Other files are added as they are; other `<kind:…>` are left to whoever reads the prompt.

    Raises MissingPartError for LoRAs that no file is named like.
    """
    asked = _asked(request)
    loras = [network for network in asked if network.kind in KINDS]
    if not loras or len(loras) < len(asked) or request.get("extra_networks") == "ignore":
        return request, [parse(file) for file in files]
    amounts, found = _amounts(loras), []
    for file in _out_of_folders(files, amounts):
        path, weight = parse(file)
        name = _namesake(path, amounts)
        amount = 1.0 if name is None else amounts.pop(name)
        found.append((path, amount if path == file else weight))
    if amounts:
        remedy = "name the file of each, or the folder where they lie, by --lora"
        raise MissingPartError(f"the prompt asks for LoRAs that are not given: {_told(amounts)}", remedy=remedy)
    return {**request, "extra_networks": "ignore"}, found


def filled(
    reading: Reading, files: Sequence[LoraName], *, without: bool = False
) -> tuple[Reading, list[tuple[str | Path, float]]]:
    """A reading whose `<lora:name:0.8>` are settled, and the LoRAs to load for it; one of ours needs nothing.

    A file, or one in a folder, fills in for the LoRA of its name, else for the next that none of the files is named
    like, by the weight the picture tells unless it has its own ("FILE:0.5"). Further files are added by 1. without:
    leave out what has no file.

    Raises MissingPartError for LoRAs that no file fills in for.
    """
    if reading.recipe is not None:
        return reading, [parse(file) for file in files]
    asked = _asked(reading.request)
    left, remarks, loras = wanted(reading, asked), [], []
    given = [(parse(file), parse(file)[0] != file) for file in _out_of_folders(files, left)]
    namesakes = [_namesake(file, left) for (file, _), _ in given]
    for ((file, weight), own), name in zip(given, namesakes, strict=True):
        place = name or next((one for one in left if one not in namesakes), None)
        amount = left.pop(place, 1.0) if place is not None else 1.0
        loras.append((file, weight if own else amount))
        if name is None and place is not None:
            remarks.append(f"{Path(file).name} fills in for the LoRA {place!r}, by {loras[-1][1]:g}")
    if left and not without:
        remedy = "give each with --lora FILE, or go --without-loras"
        raise MissingPartError(f"the picture was drawn with LoRAs that are not given: {_told(left)}", remedy=remedy)
    remarks += [f"the LoRA {name!r} was left out" for name in left]
    remarks += [f"{network} was left out" for network in asked if network.kind not in KINDS]
    words = {"extra_networks": "ignore"} if asked else {}
    settled = replace(reading, request={**reading.request, **words}, remarks=(*reading.remarks, *remarks))
    return settled, loras


def wanted(reading: Reading, asked: Sequence[Network]) -> Amounts:
    """The names of the LoRAs that a picture tells of, and by how much they were added; not those by 0."""
    loras = reading.model.get("loras")
    return _amounts([network for network in asked if network.kind in KINDS], loras if isinstance(loras, dict) else {})


def _amounts(asked: Sequence[Network], known: Mapping[str, float] = {}) -> Amounts:
    """By how much each is added, what is `known` being overruled; those by 0 are none."""
    found = dict(known)
    for network in asked:
        if network.arguments:
            name, *amounts = network.arguments
            found[name] = 1.0
            with suppress(ValueError, IndexError):
                found[name] = float(amounts[0])
    return {name: amount if isfinite(amount) else 1.0 for name, amount in found.items() if amount != 0}


def _asked(request: Mapping[str, Any]) -> list[Network]:
    """All `<kind:name:…>` in the prompts. One that cannot be read has none: drawing will say what is wrong with it."""
    found: list[Network] = []
    if request.get("prompt_syntax", "a1111") == "a1111":
        for words in (request, request.get("hires_options") or {}):
            for word in ("prompt", "negative_prompt"):
                with suppress(InputError):
                    text = words.get(word) or ""
                    found += plan_prompt(text, composable=word == "prompt", extra_networks="ignore").networks
    return found


def _out_of_folders(files: Sequence[LoraName], names: Collection[str]) -> list[LoraName]:
    """The files, and in place of a folder those in it that are called by these names, if any are; one for each name."""
    stems, found = {_stem(name) for name in names}, list[LoraName]()
    for file in files:
        folder, there = Path(parse(file)[0]), dict[str, Path]()
        for one in sorted(folder.rglob("*.safetensors")) if folder.is_dir() else ():
            if _stem(one) in stems:
                there.setdefault(_stem(one), one)
        found += there.values() or [file]
    return found


def _namesake(file: str | Path, names: Collection[str]) -> str | None:
    """The LoRA, of these names, that a file is called by."""
    return next((name for name in names if _stem(name) == _stem(file)), None)


def _told(amounts: Amounts) -> str:
    return ", ".join(f"{name!r} by {amount:g}" for name, amount in amounts.items())


def _stem(file: str | Path) -> str:
    """A file's name without folders, ending and case."""
    return PureWindowsPath(str(file)).name.lower().removesuffix(".safetensors")
