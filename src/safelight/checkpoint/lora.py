"""LoRA and its kin: additions to a model's weights, such as W + s·(alpha/r)·up·down; `lora_kinds` has the equations.

`read_lora` understands what trainers write, of layers called as in `lora_names`:

    LAYER.lora_down.weight, .lora_up.weight, .alpha      kohya's; LoCon's, of convolutions, may have a .lora_mid.weight
    LAYER.lora_A.weight, .lora_B.weight                  PEFT's and diffusers'
    LAYER_lora.down.weight, .up.weight                   diffusers' before that
    LAYER.hada_w1_a, ..., LAYER.lokr_w1, ...             LoHa and LoKr, LyCORIS' and PEFT's
    LAYER.dora_scale, LAYER.lora_magnitude_vector        beside those: DoRA, LyCORIS' and PEFT's
    LAYER.diff, .diff_b, .w_norm, .b_norm                differences of whole weights and biases, LyCORIS' and ComfyUI's

alpha may stand in PEFT's config instead (`peft_config`). `with_loras` adds them to copies of the networks, which share
all weights that stay as they are. A tensor without a place is an error: an addition that is passed over in silence
looks like one that does nothing.
"""

import copy
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn

from safelight.checkpoint.errors import KeyMismatch, NonFiniteWeights, WrongModel, WrongShape
from safelight.checkpoint.files import Tensors, in_folder, open_file
from safelight.checkpoint.learned_words import BUNDLED, bundled_words, taught
from safelight.checkpoint.lora_kinds import KINDS, Addition, Kind, delta, kinds
from safelight.checkpoint.lora_names import Names, bare
from safelight.checkpoint.parts import Parts
from safelight.checkpoint.peft_config import STEM, scale, settings
from safelight.models.text_pair import TextEncoderPair

FILE = "pytorch_lora_weights.safetensors"  # what diffusers writes into a folder
LORAS = (FILE, "pytorch_lora_weights.bin", f"{STEM}.safetensors", f"{STEM}.bin")  # and PEFT
ROLES = (
    (re.compile(r"\.lora_(?:down|A(?:\.\w+)?)\.weight$"), "down"),
    (re.compile(r"\.lora_(?:up|B(?:\.\w+)?)\.weight$"), "up"),
    (re.compile(r"(?:\.lora|\.lora_linear_layer|_lora)\.down\.weight$"), "down"),
    (re.compile(r"(?:\.lora|\.lora_linear_layer|_lora)\.up\.weight$"), "up"),
    (re.compile(r"\.lora_mid\.weight$"), "mid"),
    (re.compile(r"\.lora_magnitude_vector(?:\.\w+)*$"), "magnitude"),
    (re.compile(r"\.(?:diff_b|b_norm)$"), "bias"),
    (re.compile(r"\.w_norm$"), "diff"),
    (re.compile(r"\.(hada_w[12]_[ab]|hada_t[12]|lokr_w[12](?:_[ab])?|lokr_t2|diff|dora_scale|alpha)$"), ""),
)
OTHERS = {"boft_": "BOFT", "oft_": "OFT", "ia3_": "IA3", "on_input": "IA3", "lora_embedding_": "LoRA of word tables",
          "lora_E": "AdaLoRA", "a1.weight": "GLoRA", "bias_indices": "sparse biases"}  # fmt: skip
AGAIN = "download or copy the file again"
MAGNITUDES = ("magnitude", "dora_scale")
SDXL = ("lora_te2_", "text_encoder_2.", "text_encoders.clip_g.")


def read_lora(file: Tensors, networks: Mapping[str, nn.Module | None]) -> tuple[Addition, ...]:
    """Find what a LoRA's tensors add to which parameters of a model's `networks`: "unet", "text_encoder" and, of
    Stable Diffusion XL, "text_encoder_2".

    Raises KeyMismatch for a tensor whose layer the model has not, WrongShape for one that does not fit it, and
    WrongModel for a file that is no LoRA, or is one of another kind (OFT, IA3, ...) or for another family. Words that
    kohya's trainer bundles with a LoRA are passed over here: see `bundled_words`.
    """
    names = Names(networks)
    found: dict[tuple[str, str], dict[str, Tensor]] = {}
    called: dict[tuple[str, str], str] = {}  # what the file calls them
    if not file:
        raise WrongModel("holds no tensors", path=file.path, remedy=AGAIN)
    for key in file:
        if key.startswith(BUNDLED):
            continue
        if key.startswith(SDXL) and "text_encoder_2" not in networks:
            remedy = "use one for the model at hand"
            raise WrongModel("is a LoRA for Stable Diffusion XL", path=file.path, remedy=remedy)
        role, stem = _role(key, file)
        told = found.setdefault(place := names.find(stem, file), {})
        called[place] = bare(stem)
        if role in told:
            what = f"changes the layer of {key!r} twice, by two names"
            raise KeyMismatch(what, path=file.path, key=key, remedy="use a file that names it once")
        told[role] = file[key]
    said = {network: settings(file, network) for network, _ in found}
    return tuple(
        one
        for (network, layer), told in found.items()
        for one in _additions(file, cast(nn.Module, networks[network]), network, layer, told,
                              default=partial(scale, said[network], called[network, layer], path=file.path))
    )  # fmt: skip


def with_loras(parts: Parts, loras: Sequence[tuple[str | Path, float]], find: Callable[[str | Path], Path]) -> Parts:
    """The same parts with LoRAs added, each by its weight: 1 is as it was trained, 0 not at all, below 0 away from it.

    Networks that are changed are new ones, which share with the old what stays as it is. Words that a file bundles with
    its LoRA are taught to the text encoder. `find` tells where a name lies. See `read_lora` for errors.
    """
    used, files = dict(parts.loras), dict(parts.weights)
    for name, weight in loras:
        networks = networks_of(parts)
        file = open_file(in_folder(find(name), LORAS))
        additions = read_lora(file, networks)
        changed = {
            name: _changed(cast(nn.Module, networks[name]), [one for one in additions if one.network == name], weight)
            for name in {one.network for one in additions}
        }
        parts = taught(with_networks(parts, changed), bundled_words(file))
        label = _unused(f"lora: {Path(name).name}", used)
        used[label], files[label] = weight, file.path
    return replace(parts, loras=used, weights=files)


def networks_of(parts: Parts) -> dict[str, nn.Module | None]:
    """The networks that a LoRA may be for, by diffusers' names."""
    text = parts.text_encoder
    if isinstance(text, TextEncoderPair):
        return {"unet": parts.unet, "text_encoder": text.text_encoder, "text_encoder_2": text.text_encoder_2}
    return {"unet": parts.unet, "text_encoder": text}


def with_networks(parts: Parts, changed: Mapping[str, Any]) -> Parts:
    """The same parts with some of these networks changed."""
    if not isinstance(parts.text_encoder, TextEncoderPair):
        return replace(parts, **changed)
    known: dict[str, Any] = {**networks_of(parts), **changed}
    pair = TextEncoderPair(known["text_encoder"], known["text_encoder_2"]).eval()
    return replace(parts, unet=known["unet"], text_encoder=pair)


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
        old = copied.get_parameter(one.parameter)
        total = one.total(old.detach(), weight).to(old.dtype)
        put(copied, one.parameter, nn.Parameter(total, requires_grad=old.requires_grad))
    return copied


def put(network: nn.Module, name: str, parameter: nn.Parameter) -> None:
    """Give a network another parameter of this name."""
    layer, _, own = name.rpartition(".")
    setattr(network.get_submodule(layer), own, parameter)


def _role(key: str, file: Tensors) -> tuple[str, str]:
    """What a tensor is to its layer, and how the file calls that layer."""
    for ending, role in ROLES:
        if match := ending.search(key):
            return role or match[1], key[: match.start()]
    other = next((kind for piece, kind in OTHERS.items() if piece in key), None)
    what = f"is of the kind {other}" if other else f"holds {key!r}, which is no part of a LoRA"
    remedy = "use a LoRA, LoHa, LoKr or DoRA; a plain one is of lora_up and lora_down, or lora_A and lora_B"
    raise WrongModel(what, path=file.path, remedy=remedy)


def _additions(
    file: Tensors, net: nn.Module, network: str, layer: str, told: dict[str, Tensor],
    default: Callable[[int | None], float],
) -> Iterator[Addition]:  # fmt: skip
    """What is added to one layer, checked. `default` gives the scale by the rank where no alpha stands beside it."""
    for role, tensor in told.items():
        if not tensor.float().isfinite().all():
            what = f"has NaN or infinity in {layer!r} ({role})"
            raise NonFiniteWeights(what, path=file.path, key=layer, remedy=AGAIN)
    if "bias" in told:
        pieces, bias = {"diff": told["bias"]}, getattr(net.get_submodule(layer), "bias", None)
        if bias is None:
            what = f"changes the bias of {layer!r}, which has none in this model"
            raise KeyMismatch(what, path=file.path, key=layer, remedy="use a LoRA for this family of models")
        _check_shape(file, layer, pieces, bias)
        yield Addition(network, f"{layer}.bias", pieces)
    pieces = {role: tensor for role, tensor in told.items() if role not in ("bias", "alpha", *MAGNITUDES)}
    if pieces or "bias" not in told:
        kind, weight = _kind(file, layer, pieces), net.get_parameter(f"{layer}.weight")
        _check_shape(file, layer, pieces, weight)
        scale = _scale(file, layer, kind.rank(pieces), told.get("alpha"), default) if kind.name != "full" else 1.0
        yield Addition(network, f"{layer}.weight", pieces, scale, _magnitude(file, layer, told, weight))


def _kind(file: Tensors, layer: str, pieces: dict[str, Tensor]) -> Kind:
    """The one kind that these pieces are of, none of which is missing."""
    found = kinds(pieces) or [KINDS[0]]
    if len(found) > 1:
        what = f"mixes {' and '.join(kind.name for kind in found)} in {layer!r}"
        raise WrongModel(what, path=file.path, key=layer, remedy=AGAIN)
    if missing := found[0].lacking(pieces):
        what = f"lacks the {' and '.join(missing)} matrix of {layer!r}"
        raise KeyMismatch(what, path=file.path, key=layer, remedy=AGAIN)
    return found[0]


def _check_shape(file: Tensors, layer: str, pieces: dict[str, Tensor], parameter: Tensor) -> None:
    """See by shapes alone that the pieces make a change for this parameter."""
    try:
        made = delta({role: tensor.to("meta", torch.float32) for role, tensor in pieces.items()})
        fits = made.shape[:1] == parameter.shape[:1] and made.numel() == parameter.numel()
    except (RuntimeError, IndexError, ValueError):
        fits = False
    if not fits or not all(tensor.numel() for tensor in pieces.values()):
        shapes = " x ".join(str(tuple(tensor.shape)) for tensor in reversed(pieces.values()))
        what = f"would add {shapes} to {layer!r}, which is {tuple(parameter.shape)}"
        raise WrongShape(what, path=file.path, key=layer, remedy="use a LoRA for this family of models")


def _scale(
    file: Tensors, layer: str, rank: int | None, alpha: Tensor | None, default: Callable[[int | None], float]
) -> float:
    """alpha/r, where alpha is told here; without a rank it counts for nothing."""
    if alpha is None:
        return default(rank)
    if alpha.numel() != 1:
        what = f"has {alpha.numel()} numbers as the alpha of {layer!r}"
        raise WrongShape(what, path=file.path, key=layer, remedy=AGAIN)
    return float(alpha) / rank if rank else 1.0


def _magnitude(file: Tensors, layer: str, told: dict[str, Tensor], weight: Tensor) -> Tensor | None:
    """DoRA's m along the outputs (out, 1, ...) or the inputs (1, in, ...), if there is one."""
    name = next((name for name in MAGNITUDES if name in told), None)
    if name is None:
        return None
    m, ones = told[name], [1] * (weight.ndim - 1)
    if m.numel() == len(weight) and (name == "magnitude" or m.shape[0] == len(weight)):  # PEFT's may be (1, out, 1, 1)
        return m.reshape(-1, *ones)
    if weight.ndim > 1 and m.numel() == weight.shape[1]:
        return m.reshape(1, -1, *ones[1:])
    what = f"has a magnitude {tuple(m.shape)} for {layer!r}, which is {tuple(weight.shape)}"
    raise WrongShape(what, path=file.path, key=layer, remedy="use a LoRA for this family of models")


def _unused(label: str, used: Mapping[str, float]) -> str:
    """This name, or with a number behind it if another file has it."""
    names = (label, *(f"{label} ({number})" for number in range(2, len(used) + 2)))
    return next(name for name in names if name not in used)
