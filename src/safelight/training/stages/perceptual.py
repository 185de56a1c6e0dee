"""The perceptual distance of a training: LPIPS from published weight files, or features trained here in its stead.

Whichever it is, `.name` says so, and stands in every log and model card.
"""

import re
from collections.abc import Mapping
from pathlib import Path

import torch

from safelight import kernels
from safelight.checkpoint.build import check
from safelight.checkpoint.errors import WrongModel
from safelight.checkpoint.files import Tensors, open_file
from safelight.checkpoint.keymap import SAME, KeyMap, Link, Transform
from safelight.checkpoint.writing import outgoing, write_safetensors
from safelight.errors import InputError
from safelight.models.lpips import LPIPS, VGG16, VGGConfig

__all__ = ["LPIPS_NAME", "STAND_IN_NAME", "figure_name", "load_features", "load_lpips", "load_perceptual", "placed",
           "save_features"]  # fmt: skip

LPIPS_NAME = "LPIPS (VGG16)"
STAND_IN_NAME = "stand-in features, not LPIPS"
KIND = "safelight.features"  # the key of a file's metadata that tells stand-in features from anything else

# The published heads are 1x1 convolutions (1, C, 1, 1); ours are vectors (C,).
HEAD = Transform("head", lambda theirs: (theirs.reshape(-1),), lambda ours: ours[0][None, :, None, None])


def load_perceptual(vgg: str | Path | None, heads: str | Path | None, features: str | Path | None) -> LPIPS | None:
    """Load LPIPS if its two files are named, else stand-in features if theirs is, else nothing.

    Raises InputError if only one of LPIPS' files is named.
    """
    if (vgg is None) != (heads is None):
        remedy = "name both: torchvision's vgg16 and the linear heads, vgg.pth, or name neither"
        raise InputError("LPIPS needs two weight files, and one is named", remedy=remedy)
    if vgg is not None and heads is not None:
        return load_lpips(vgg, heads)
    return None if features is None else load_features(features)


def placed(metric: LPIPS | None, weight: float, device: torch.device) -> LPIPS | None:
    """A loss's perceptual distance on its device. Raises InputError where it has a weight and there is none."""
    if metric is None and weight:
        remedy = "give LPIPS' weight files or stand-in features, or set perceptual_weight to 0"
        raise InputError("there is no network for the perceptual loss", remedy=remedy)
    if metric is None:
        return None
    kernels.prepare(metric.to(device).eval())
    return metric


def figure_name(metric: LPIPS | None) -> str:
    """What a perceptual distance is called in logs."""
    return "lpips" if metric is not None and metric.name == LPIPS_NAME else "stand_in"


def load_lpips(vgg: str | Path, heads: str | Path) -> LPIPS:
    """Read the published metric from its two files, as safetensors or as the original .pth (never unpickled here).

    vgg: torchvision's VGG16 trained on ImageNet (`features.0.weight`, ...; its classifier is not used).
    heads: the linear heads of Zhang et al., `vgg.pth` (`lin0.model.1.weight`, ...).
    Raises CheckpointError for other files: KeyMismatch, WrongShape, CorruptFile.
    """
    metric = LPIPS(VGG16, name=LPIPS_NAME)
    fill_vgg(metric, open_file(Path(vgg)))
    file = open_file(Path(heads))
    links = [Link(f"lin{i}.model.1.weight", (f"{i}",), HEAD) for i in range(len(metric.heads))]
    check(metric.heads, file, KeyMap(links), known=[key for key in file if not re.match(r"lin\d", key)])
    metric.heads.load_state_dict(KeyMap(links).to_ours(file))
    return metric.eval()


def fill_vgg(metric: LPIPS, file: Tensors) -> None:
    """Give a metric's network the convolutions of a file; what else is in it (a classifier) stays there."""
    links = KeyMap(Link(name, (name,), SAME) for name in metric.vgg.state_dict())
    check(metric.vgg, file, links, known=[key for key in file if not key.startswith("features.")])
    metric.vgg.load_state_dict(links.to_ours(file))


def save_features(metric: LPIPS, path: str | Path, record: Mapping[str, str] | None = None) -> None:
    """Write a network of stand-in features as safetensors; `record` says in its metadata how it was trained."""
    config = metric.vgg.config
    shape = {"channels": ",".join(map(str, config.channels)), "layers": ",".join(map(str, config.layers))}
    metadata = {"format": "pt", KIND: metric.name, **shape, **(record or {})}
    write_safetensors(Path(path), outgoing(metric.vgg.state_dict()), metadata)


def load_features(path: str | Path) -> LPIPS:
    """Read what `save_features` wrote: a distance in features trained here, with equal weights for all of them.

    Raises WrongModel for a file of something else.
    """
    file = open_file(Path(path))
    if KIND not in file.metadata:
        remedy = "train one with safelight.training.stages.features_net, or name LPIPS' two weight files"
        raise WrongModel("is no network of stand-in features", path=file.path, remedy=remedy)
    channels, layers = (tuple(map(int, file.metadata[key].split(","))) for key in ("channels", "layers"))
    metric = LPIPS(VGGConfig(channels=channels, layers=layers), name=file.metadata[KIND])
    fill_vgg(metric, file)
    return metric.eval()
