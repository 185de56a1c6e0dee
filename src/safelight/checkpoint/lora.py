"""LoRA: additions of low rank to a model's weights, W + s·(alpha/r)·up·down (Hu et al. 2021, arXiv 2106.09685, 4.1).

`read_lora` understands what trainers write, of layers called as in `lora_names`:

    LAYER.lora_down.weight, .lora_up.weight, .alpha      kohya's, and of convolutions, LoCon's
    LAYER.lora_A.weight, .lora_B.weight                  PEFT's and diffusers'
    LAYER_lora.down.weight, .up.weight                   diffusers' before that

alpha may stand in PEFT's config instead (`peft_config`). `with_loras` adds them to copies of the networks, which share
all weights that stay as they are. A tensor without a place is an error: an addition that is passed over in silence
looks like one that does nothing.
"""

import copy
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, cast

from torch import Tensor, nn

from safelight.checkpoint.errors import KeyMismatch, NonFiniteWeights, WrongModel, WrongShape
from safelight.checkpoint.files import Tensors, open_file
from safelight.checkpoint.learned_words import BUNDLED, bundled_words, taught
from safelight.checkpoint.lora_names import Names, bare
from safelight.checkpoint.parts import Parts
from safelight.checkpoint.peft_config import STEM, scale, settings

FILE = "pytorch_lora_weights.safetensors"  # what diffusers writes into a folder
USUAL = (FILE, "pytorch_lora_weights.bin", f"{STEM}.safetensors", f"{STEM}.bin")  # and PEFT
ROLES = (
    (re.compile(r"\.lora_(?:down|A(?:\.\w+)?)\.weight$"), "down"),
    (re.compile(r"\.lora_(?:up|B(?:\.\w+)?)\.weight$"), "up"),
    (re.compile(r"(?:\.lora|\.lora_linear_layer|_lora)\.down\.weight$"), "down"),
    (re.compile(r"(?:\.lora|\.lora_linear_layer|_lora)\.up\.weight$"), "up"),
    (re.compile(r"\.alpha$"), "alpha"),
)
OTHERS = {"hada_": "LoHa", "lokr_": "LoKr", "lora_mid": "LoCon in its three-part form", "oft_": "OFT",
          "dora_scale": "DoRA", "lora_magnitude_vector": "DoRA"}  # fmt: skip
SDXL = ("lora_te2_", "text_encoder_2.", "text_encoders.clip_g.")


@dataclass(frozen=True, eq=False)
class Addition:
    """What is added to one layer of a network: `scale`·up·down. down is (r, in, ...), up (out, r, ...)."""

    network: str
    layer: str
    down: Tensor
    up: Tensor
    scale: float

    def total(self, weight: Tensor, share: float = 1.0) -> Tensor:
        """The sum of a weight and `share` of this, in the weight's shape and float32."""
        product = self.up.float().flatten(1) @ self.down.float().flatten(1)
        return weight.float() + share * self.scale * product.reshape(weight.shape).to(weight.device)


def read_lora(file: Tensors, networks: Mapping[str, nn.Module | None]) -> tuple[Addition, ...]:
    """Find what a LoRA's tensors add to which layers of a model's `networks`, "unet" and "text_encoder".

    Raises KeyMismatch for a tensor whose layer the model has not, WrongShape for one that does not fit it, and
    WrongModel for a file that is no LoRA, or is one of another kind (LoHa, DoRA, ...) or for another family. Words that
    kohya's trainer bundles with a LoRA are passed over here: see `bundled_words`.
    """
    names = Names(networks)
    found: dict[tuple[str, str], dict[str, Tensor]] = {}
    called: dict[tuple[str, str], str] = {}  # what the file calls them
    if not file:
        raise WrongModel("holds no tensors", path=file.path, remedy="download or copy the file again")
    for key in file:
        if key.startswith(BUNDLED):
            continue
        role, stem = _role(key, file)
        told = found.setdefault(place := names.find(stem, file), {})
        called[place] = bare(stem)
        if role in told:
            what = f"changes the layer of {key!r} twice, by two names"
            raise KeyMismatch(what, path=file.path, key=key, remedy="use a file that names it once")
        told[role] = file[key]
    said = {network: settings(file, network) for network, _ in found}
    return tuple(
        _addition(file, cast(nn.Module, networks[network]), network, layer, told,
                  default=partial(scale, said[network], called[network, layer], path=file.path))
        for (network, layer), told in found.items()
    )  # fmt: skip


def with_loras(parts: Parts, loras: Sequence[tuple[str | Path, float]]) -> Parts:
    """The same parts with LoRAs added, each by its weight: 1 is as it was trained, 0 not at all, below 0 away from it.

    Networks that are changed are new ones, which share with the old what stays as it is. Words that a file bundles with
    its LoRA are taught to the text encoder. See `read_lora` for errors.
    """
    used, files = dict(parts.loras), dict(parts.weights)
    for name, weight in loras:
        path = Path(name).expanduser()
        networks = {"unet": parts.unet, "text_encoder": parts.text_encoder}
        file = open_file(lora_file(path))
        additions = read_lora(file, networks)
        changed: dict[str, Any] = {
            name: _changed(getattr(parts, name), [one for one in additions if one.network == name], weight)
            for name in {one.network for one in additions}
        }
        parts = taught(replace(parts, **changed), bundled_words(file))
        label = _unused(f"lora: {path.name}", used)
        used[label], files[label] = weight, file.path
    return replace(parts, loras=used, weights=files)


def lora_file(path: Path) -> Path:
    """The file that is meant by this path: of a folder the one that diffusers or PEFT writes, or the only one."""
    if not path.is_dir():
        return path
    there = [path / name for name in USUAL if (path / name).is_file()] or list(path.glob("*.safetensors"))
    alone = len(there) == 1 or any(file.name in USUAL for file in there)
    return there[0] if alone else path / FILE


def parse(text: str | Path | tuple[str | Path, float]) -> tuple[str | Path, float]:
    """`FILE:0.8`, or FILE alone for 1, or a pair already: the file, and the weight."""
    if isinstance(text, tuple):
        return text
    file, colon, weight = str(text).rpartition(":")
    if colon and re.fullmatch(r"[+-]?(\d+\.?\d*|\.\d+)", weight):
        return file, float(weight)
    return text, 1.0


def _changed(network: nn.Module, additions: Sequence[Addition], weight: float) -> nn.Module:
    """A copy of a network with these additions, which shares all weights that stay as they are."""
    copied = copy.deepcopy(network, {id(tensor): tensor for tensor in (*network.parameters(), *network.buffers())})
    for one in additions:
        old = _weight(network, one.layer)
        total = one.total(old.detach(), weight).to(old.dtype)
        copied.get_submodule(one.layer).weight = nn.Parameter(total, requires_grad=old.requires_grad)
    return copied


def _weight(network: nn.Module, layer: str) -> Tensor:
    return network.get_parameter(f"{layer}.weight")


def _role(key: str, file: Tensors) -> tuple[str, str]:
    """What a tensor is to its layer, and how the file calls that layer."""
    if key.startswith(SDXL):
        raise WrongModel("is a LoRA for Stable Diffusion XL", path=file.path, remedy="use one for the model at hand")
    for ending, role in ROLES:
        if match := ending.search(key):
            return role, key[: match.start()]
    other = next((kind for piece, kind in OTHERS.items() if piece in key), None)
    what = f"is of the kind {other}" if other else f"holds {key!r}, which is no part of a LoRA"
    remedy = "use a plain LoRA, of lora_up and lora_down, or lora_A and lora_B"
    raise WrongModel(what, path=file.path, remedy=remedy)


def _addition(
    file: Tensors, net: nn.Module, network: str, layer: str, told: dict[str, Tensor], default: Callable[[int], float]
) -> Addition:
    """The parts of one layer's addition, together and checked. `default` gives the scale for its rank, if no alpha is
    beside it."""
    if missing := {"down", "up"} - set(told):
        what = f"lacks the {' and '.join(sorted(missing))} matrix of {layer!r}"
        raise KeyMismatch(what, path=file.path, key=layer, remedy="download or copy the file again")
    down, up, weight = told["down"], told["up"], _weight(net, layer)
    rank = len(down) if down.ndim else 0
    sides = {"up": (len(weight), rank), "down": (rank, weight[0].numel())}
    if not rank or any(told[role].ndim < 2 or told[role].flatten(1).shape != side for role, side in sides.items()):
        what = f"would add {tuple(up.shape)} x {tuple(down.shape)} to {layer!r}, which is {tuple(weight.shape)}"
        raise WrongShape(what, path=file.path, key=layer, remedy="use a LoRA for this family of models")
    for role, tensor in told.items():
        if not tensor.float().isfinite().all():
            what = f"has NaN or infinity in {layer!r} ({role})"
            raise NonFiniteWeights(what, path=file.path, key=layer, remedy="download or copy the file again")
    if "alpha" in told and told["alpha"].numel() != 1:
        what = f"has {told['alpha'].numel()} numbers as the alpha of {layer!r}"
        raise WrongShape(what, path=file.path, key=layer, remedy="download or copy the file again")
    return Addition(network, layer, down, up, float(told["alpha"]) / rank if "alpha" in told else default(rank))


def _unused(label: str, used: Mapping[str, float]) -> str:
    """This name, or with a number behind it if another file has it."""
    names = (label, *(f"{label} ({number})" for number in range(2, len(used) + 2)))
    return next(name for name in names if name not in used)
