"""What pictures are compared by: networks (and plain numbers) that turn each picture into a vector.

    pixel_features()         the pixels themselves
    dct_features()           the low frequencies of the pixels: no network, a floor to compare the others with
    inception_features(...)  the network that defines FID and KID, from the weight file the user gives
    clip_features(...)       CLIP's image encoder, likewise
    classifier.load(...)     the classifier trained here (`safelight.training.evaluation.classifier`)

Every extractor has a name, which stands beside every number taken with it, and the hash of its weights. Only the
Fréchet distance of Inception features is called FID.
"""

import hashlib
import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from safelight.checkpoint.build import Plan, on_meta
from safelight.checkpoint.errors import KeyMismatch
from safelight.checkpoint.files import STEMS, SUFFIXES, Tensors, open_file, read_json
from safelight.checkpoint.keymap import identity
from safelight.errors import CheckpointError, InputError
from safelight.models.clip_vision import VisionConfig, VisionEncoder
from safelight.models.inception import Inception

Device = torch.device | str


class FeatureExtractor(Protocol):
    """Turns pictures (B, 3, H, W) in [-1, 1] into features (B, D) float32, on the CPU."""

    @property
    def name(self) -> str:
        """What measured: stands beside every number."""
        ...

    @property
    def sha256(self) -> str:
        """Of its weight file; empty where there is none."""
        ...

    @property
    def frechet(self) -> str:
        """What its Fréchet distance is called."""
        ...

    @property
    def kernel(self) -> str:
        """What its kernel distance is called."""
        ...

    def __call__(self, pictures: Tensor) -> Tensor:
        """Give the features of a batch."""
        ...


@dataclass(frozen=True, eq=False)
class Extractor:
    """A feature extractor made of a function. `frechet` and `kernel` are what its distances are called."""

    name: str
    function: Callable[[Tensor], Tensor]
    sha256: str = ""
    frechet: str = "FD"
    kernel: str = "KD"
    device: Device = "cpu"

    @torch.inference_mode()
    def __call__(self, pictures: Tensor) -> Tensor:
        """See `FeatureExtractor`."""
        return self.function(pictures.to(self.device, torch.float32)).cpu()


def extracted(extractor: FeatureExtractor, batches: Iterable[Tensor]) -> Tensor:
    """Features (N, D) of all pictures of some batches. Raises InputError if there are none."""
    features = [extractor(batch) for batch in batches]
    if not features:
        raise InputError("there are no pictures to take features of", remedy="give a folder or model with some")
    return torch.cat(features)


def dct_features(*, side: int = 32, keep: int = 8) -> Extractor:
    """The keep·keep lowest frequencies of each channel of a picture shrunk to side x side pixels: 3·keep² numbers.

    An orthonormal cosine transform (DCT-II), so that distances are those of the pixels of a blurred picture. It knows
    composition and colour and nothing of objects: any other extractor should see more.
    """
    if not 0 < keep <= side:
        raise InputError(f"{keep} frequencies of {side} pixels", remedy="keep from 1 to `side` of them")
    at = (torch.arange(side, dtype=torch.float64) + 0.5) * math.pi / side
    basis = torch.cos(torch.arange(keep, dtype=torch.float64)[:, None] * at) * math.sqrt(2 / side)
    basis[0] /= math.sqrt(2)
    rows = basis.float()

    def transform(pictures: Tensor) -> Tensor:
        small = shrunk(pictures, side)
        return (rows.to(small.device) @ small @ rows.T.to(small.device)).flatten(1)

    return Extractor(f"DCT ({keep}x{keep} lowest of {side}x{side})", transform, frechet="FD-dct", kernel="KD-dct")


def pixel_features(*, side: int = 32) -> Extractor:
    """The pixels of a picture shrunk to side x side, in 8-bit levels: 3·side² numbers.

    Scaled so that a distance is the root of the mean squared difference of two pictures' levels.
    """

    def levels(pictures: Tensor) -> Tensor:
        return (shrunk(pictures, side).flatten(1) + 1) * (127.5 / math.sqrt(3 * side**2))

    return Extractor(f"pixels at {side}x{side}", levels, frechet="FD-pixels", kernel="KD-pixels")


def shrunk(pictures: Tensor, side: int) -> Tensor:
    """Resize (B, 3, H, W) to (B, 3, side, side), averaging where it shrinks."""
    if pictures.shape[2:] == (side, side):
        return pictures
    return F.interpolate(pictures, (side, side), mode="bilinear", antialias=True, align_corners=False)


def inception_features(weights: str | Path, *, device: Device = "cpu") -> Extractor:
    """The Inception-v3 of FID, from `pt_inception-2015-12-05-6726825d.pth` (or the same tensors as safetensors).

    Raises CheckpointError for another file: KeyMismatch, WrongShape (torchvision's Inception is another network).
    """
    network = on_meta(Inception)
    file = open_file(Path(weights))
    wanted = network.state_dict()
    counters = {key for key in file if key.endswith(".num_batches_tracked")}
    filled = Plan(network, file, identity(wanted), {"fc.weight", "fc.bias"} | counters).fill(
        device=device, dtype=torch.float32
    )
    return _of_network(f"Inception-v3 ({Path(weights).name})", filled, Path(weights), "FID", "KID", device)


def clip_features(weights: str | Path, *, device: Device = "cpu") -> Extractor:
    """CLIP's image encoder, from transformers' file or folder of a CLIP model (its text encoder is passed over).

    The shape of the network is read from the config.json beside the weights. Without one, it is taken from the tensors,
    with heads 64 wide and quick GELU, as in all of OpenAI's models.
    Raises CheckpointError for another file: KeyMismatch, WrongShape.
    """
    path = _weights_in(Path(weights))
    file = open_file(path)
    if "vision_model.embeddings.patch_embedding.weight" not in file:
        first = next(iter(file))
        what = f"lacks 'vision_model.embeddings.patch_embedding.weight'; its first tensor is {first!r}"
        remedy = "give the weights of transformers' CLIPModel or CLIPVisionModelWithProjection"
        raise KeyMismatch(what, path=path, key="vision_model.embeddings.patch_embedding.weight", remedy=remedy)
    config = _vision_config(file, path.with_name("config.json"))
    network = on_meta(lambda: VisionEncoder(config))
    others = [key for key in file if key.startswith(("text_", "logit_scale")) or key.endswith(".position_ids")]
    filled = Plan(network, file, identity(network.state_dict()), others).fill(device=device, dtype=torch.float32)
    name = f"CLIP ViT {config.hidden_size}/{config.patch_size} at {config.image_size} px ({path.name})"
    return _of_network(name, filled, path, "FD-clip", "KD-clip", device)


def _of_network(name: str, network: nn.Module, path: Path, frechet: str, kernel: str, device: Device) -> Extractor:
    return Extractor(name, network, file_hash(path), frechet, kernel, device)


def _weights_in(path: Path) -> Path:
    """A weight file, given itself or by its folder."""
    if not path.is_dir():
        return path
    found = [file for file in sorted(path.iterdir()) if file.suffix in SUFFIXES and file.stem in STEMS]
    if not found:
        raise CheckpointError("holds no weights", path=path, remedy=f"expected is {STEMS[1]}.safetensors")
    return max(found, key=lambda file: file.suffix == ".safetensors")


def _vision_config(file: Tensors, beside: Path) -> VisionConfig:
    if beside.exists():
        return VisionConfig.from_transformers(read_json(beside))
    width, _, patch, _ = file.shape("vision_model.embeddings.patch_embedding.weight")
    layers = {key.split(".")[3] for key in file if key.startswith("vision_model.encoder.layers.")}
    places = file.shape("vision_model.embeddings.position_embedding.weight")[0] - 1
    return VisionConfig(
        hidden_size=width,
        intermediate_size=file.shape("vision_model.encoder.layers.0.mlp.fc1.weight")[0],
        projection_dim=file.shape("visual_projection.weight")[0],
        num_hidden_layers=len(layers),
        num_attention_heads=max(width // 64, 1),
        image_size=math.isqrt(places) * patch,
        patch_size=patch,
    )


def file_hash(path: Path) -> str:
    """The SHA-256 of a file's bytes, in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
