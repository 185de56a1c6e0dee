"""Pictures and captions encoded once, so that the second stage trains on numbers: written as safetensors shards.

    folder/index.json            what is there: shards with their hashes, shapes, and what it was made with
    folder/00000.safetensors     moments (n, 2C, h, w), ids (n, L) or context (n, L, D), labels (n,); and the captions

Moments, not latents, are kept, so that training still draws from the posterior. Each shard and the index are written
whole or not at all; the index is renewed after every shard, so that work that was interrupted goes on where it was.
"""

import hashlib
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from safelight.checkpoint.errors import CorruptFile
from safelight.checkpoint.writing import outgoing, write_json, write_safetensors
from safelight.errors import CheckpointError, InputError
from safelight.models.autoencoder import Autoencoder
from safelight.training.data.batches import Data, Device

INDEX, FORMAT = "index.json", "safelight latents 1"
SHARD_BYTES = 1 << 30
MOST_BYTES = 2_000_000_000  # of one shard

TextSide = Callable[[list[str]], Tensor]


@dataclass(frozen=True)
class Shard:
    """One file of `count` samples and its SHA-256."""

    file: str
    count: int
    sha256: str


@dataclass(frozen=True)
class Index:
    """What a folder of latents holds. `made_with` tells settings apart that give other numbers."""

    count: int
    made_with: dict[str, Any]
    shards: tuple[Shard, ...] = ()

    @property
    def done(self) -> int:
        """Samples written."""
        return sum(shard.count for shard in self.shards)

    def write(self, folder: Path) -> None:
        """Write the index. Raises CheckpointError where the disk refuses."""
        shards = [vars(shard) for shard in self.shards]
        write_json(
            folder / INDEX, {"format": FORMAT, **vars(self), "shards": shards, "complete": self.done == self.count}
        )

    @classmethod
    def read(cls, folder: Path) -> "Index":
        """Read the index of a folder. Raises CheckpointError where there is none, CorruptFile where it is damaged."""
        path = folder / INDEX
        try:
            table = json.loads(path.read_text())
            if table["format"] != FORMAT:
                raise ValueError(f"format {table['format']!r}")
            return cls(table["count"], table["made_with"], tuple(Shard(**row) for row in table["shards"]))
        except OSError as error:
            raise CheckpointError("holds no latents", path=folder, remedy="precompute them first") from error
        except (ValueError, KeyError, TypeError) as error:
            raise CorruptFile(f"is no index of latents: {error}", path=path, remedy="precompute them anew") from error


@torch.no_grad()
def precompute(
    data: Data[Any],
    autoencoder: Autoencoder,
    folder: str | Path,
    *,
    text: TextSide | None = None,
    count: int | None = None,
    seed: int = 0,
    batch_size: int = 16,
    dtype: torch.dtype = torch.float16,
    shard_bytes: int = SHARD_BYTES,
    device: Device = "cpu",
    about: str = "",
    watch: Callable[[int, int], None] | None = None,
) -> Index:
    """Encode samples 0 to `count`-1 of a data set, by default one epoch, into a folder.

    `text` turns captions into ids (B, L) or, from a frozen text encoder, embeddings (B, L, D); None leaves text out.
    Moments and embeddings are kept as `dtype`. `about` names the text encoder and whatever else the numbers depend on.
    `watch(done, count)` is called after every batch. In a folder with part of the same work it goes on there.

    Raises InputError for latents of several shapes or another folder's contents, CheckpointError where the disk
    refuses: then the shards written before are whole, and the same call goes on behind them.
    """
    folder, count = Path(folder), len(data) if count is None else count
    settings = {"seed": seed, "dtype": str(dtype).removeprefix("torch."), "about": about}
    index = _begun(folder, Index(count, settings | {"autoencoder": weights_hash(autoencoder)}))
    encoder = _Encoder(data, autoencoder, text, seed, dtype, device)
    parts: list[dict[str, Any]] = []
    position = index.done
    while position < count:
        numbers = range(position, min(position + batch_size, count))
        parts.append(encoder.encode(numbers))
        position = numbers[-1] + 1
        if position == count or _full(parts, batch_size, shard_bytes):
            index = _with_shard(folder, index, parts)
            parts = []
        if watch is not None:
            watch(position, count)
    return index


def weights_hash(module: torch.nn.Module) -> str:
    """Give a hash of a network's weights, to know again by what numbers were made."""
    found = hashlib.sha256()
    for name, tensor in sorted(module.state_dict().items()):
        found.update(f"{name} {tuple(tensor.shape)} {tensor.dtype}".encode())
        found.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return found.hexdigest()[:32]


def _begun(folder: Path, wanted: Index) -> Index:
    """Give the index to go on from: what is there, if it is part of the same work."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise CheckpointError(
            f"cannot be made ({error.strerror})", path=folder, remedy="name another folder"
        ) from error
    if not (folder / INDEX).exists():
        if any(folder.iterdir()):
            raise InputError(f"{folder} holds other things than latents", remedy="name a new or an empty folder")
        return wanted
    found = Index.read(folder)
    if (found.count, found.made_with) != (wanted.count, wanted.made_with):
        raise InputError(f"{folder} holds latents made with other settings", remedy="name another folder, or remove it")
    return found


@dataclass(frozen=True)
class _Encoder:
    data: Data[Any]
    autoencoder: Autoencoder
    text: TextSide | None
    seed: int
    dtype: torch.dtype
    device: Device

    def encode(self, numbers: Sequence[int]) -> dict[str, Any]:
        """Tensors on the CPU, and captions, of some samples."""
        batch = self.data.batch(self.seed, numbers, self.device)
        part: dict[str, Any] = {"moments": self.autoencoder.moments(batch.pictures).to(self.dtype).cpu()}
        part["captions"] = list(batch.captions)
        if batch.labels is not None:
            part["labels"] = batch.labels.cpu()
        if self.text is not None:
            said = self.text(part["captions"]).cpu()
            part |= {"context": said.to(self.dtype)} if said.is_floating_point() else {"ids": said.to(torch.int32)}
        if not all(value.isfinite().all() for value in part.values() if isinstance(value, Tensor)):
            what = f"encoding samples {numbers[0]} to {numbers[-1]} gave numbers that {self.dtype} cannot hold"
            raise InputError(what, remedy="keep them as float32 or bfloat16")
        return part


def _full(parts: Sequence[dict[str, Any]], batch_size: int, shard_bytes: int) -> bool:
    """Say whether one more batch would make a shard too large."""
    size = sum(value.nbytes for part in parts for value in part.values() if isinstance(value, Tensor))
    return size + size / len(parts) > min(shard_bytes, MOST_BYTES)


def _with_shard(folder: Path, index: Index, parts: Sequence[dict[str, Any]]) -> Index:
    """Write one more shard, then the index that has it."""
    if len({part["moments"].shape[1:] for part in parts}) > 1:
        raise InputError("the latents have several shapes", remedy="precompute without aspect buckets")
    tensors = {key: torch.cat([part[key] for part in parts]) for key in parts[0] if key != "captions"}
    captions = [caption for part in parts for caption in part["captions"]]
    path = folder / f"{len(index.shards):05}.safetensors"
    write_safetensors(path, outgoing(tensors), {"captions": json.dumps(captions, ensure_ascii=False)})
    index = replace(index, shards=(*index.shards, Shard(path.name, len(captions), file_hash(path))))
    index.write(folder)
    return index


def file_hash(path: Path) -> str:
    """Give the SHA-256 of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
