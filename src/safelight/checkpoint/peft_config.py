"""What PEFT's config says of an adapter's scale, alpha/r: adapter_config.json beside adapter_model.safetensors, or what
diffusers writes of it into a file's header."""

import json
from collections.abc import Mapping
from math import isfinite, sqrt
from pathlib import Path
from typing import Any, TypeGuard

from safelight.checkpoint.errors import WrongModel
from safelight.checkpoint.files import Tensors, read_json

STEM, CONFIG, HEADER = "adapter_model", "adapter_config.json", "lora_adapter_metadata"
DEFAULT = 8  # PEFT's, of both alpha and r
# Ways to begin that leave the model's own weights as they are; PiSSA and OLoRA take out of them what they begin with.
BEGINNINGS = (None, True, False, "gaussian", "eva", "orthogonal", "lycoris")
OTHER_SUMS = ("use_qalora", "use_bdlora", "kasa_config", "arrow_config", "layer_replication")


def settings(file: Tensors, network: str) -> dict[str, Any]:
    """PEFT's settings for what a file adds to a network, {} where none are told.

    Raises WrongModel for those by which more is done to a model than A and B say.
    """
    beside = file.path.with_name(CONFIG)
    if file.path.stem == STEM and beside.is_file():
        said = {"lora_alpha": DEFAULT, "r": DEFAULT, **read_json(beside)}
        said["lora_alpha"] = said.get("alpha", said["lora_alpha"])  # LoHa and LoKr call it so
        return _checked(said, beside)
    try:
        header = json.loads(file.metadata.get(HEADER, "{}"))
    except (ValueError, RecursionError):
        return {}
    if not isinstance(header, dict) or not _is_number(header.get(f"{network}.lora_alpha")):
        return {}
    start = f"{network}."
    return _checked({key.removeprefix(start): value for key, value in header.items() if key.startswith(start)},
                    file.path)  # fmt: skip


def scale(said: Mapping[str, Any], layer: str, rank: int | None, path: Path) -> float:
    """alpha/r of a layer, or alpha/√r for rank-stabilised LoRA (Kalajdzievski 2023, arXiv 2312.03732); 1 by default.

    `layer` is called as the file calls it, `rank` is that of its matrices, None where it has whole ones. Raises
    WrongModel for settings that are no numbers, or go by patterns that are no names.
    """
    if not said:
        return 1.0
    alpha = _for(layer, said.get("alpha_pattern"), path, said["lora_alpha"])
    r = rank or _for(layer, said.get("rank_pattern"), path, said.get("r"))
    if not _is_number(alpha) or not _is_number(r) or r <= 0:
        what = f"gives {layer!r} alpha {alpha!r} and rank {r!r}, which are not two numbers"
        raise WrongModel(what, path=path, remedy="download or copy the files again")
    return float(alpha) / (sqrt(r) if said.get("use_rslora") else r)


def _for(layer: str, pattern: Any, path: Path, default: Any) -> Any:
    """What a pattern says of a layer: by the first name in it that is the layer's, or its end."""
    for key, value in pattern.items() if isinstance(pattern, Mapping) else ():
        name = key.replace("\\.", ".").removesuffix("$")
        if not name.removeprefix("^").replace(".", "").replace("_", "").isalnum():
            what = f"names layers by the expression {key!r}, where only names are read"
            raise WrongModel(what, path=path, remedy="write the names of the layers in its place")
        if layer == name.removeprefix("^") or layer.endswith(f".{name}"):
            return value
    return default


def _checked(said: dict[str, Any], path: Path) -> dict[str, Any]:
    odd = [name for name in OTHER_SUMS if said.get(name)]
    if said.get("init_lora_weights") not in BEGINNINGS:
        odd = [f"init_lora_weights={said['init_lora_weights']!r}"]
    if odd:
        what = f"is of the kind {odd[0]}, by which PEFT changes a model in another way"
        raise WrongModel(what, path=path, remedy="convert it to a plain LoRA with PEFT, or use another")
    return said


def _is_number(value: Any) -> TypeGuard[float]:
    return isinstance(value, int | float) and not isinstance(value, bool) and isfinite(value)
