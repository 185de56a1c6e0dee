"""Precomputed latents as a data set: `safelight.training.data.encoding` writes them, `LatentData` reads them.

Shards are mapped into memory, so that a data set may be larger than it. Where all of it fits into the training device's
memory it is kept there, and a batch is a selection of rows, made without the host waiting for the device.
"""

import json
from bisect import bisect_right
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import accumulate
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from safelight.checkpoint.errors import CorruptFile
from safelight.checkpoint.files import Tensors, open_safetensors
from safelight.diffusion.noise import sent
from safelight.errors import CheckpointError, InputError
from safelight.models.autoencoder import Autoencoder
from safelight.models.bottleneck import Posterior
from safelight.training.data.batches import Device
from safelight.training.data.encoding import Index, file_hash, weights_hash
from safelight.training.data.order import Order

RESIDENT_SHARE = 0.4  # of a device's free memory: the rest is for training
FIELDS = ("moments", "ids", "context", "labels")


@dataclass(frozen=True, eq=False)
class LatentBatch:
    """B samples. `moments` (B, 2C, h, w) as `Autoencoder.moments` gives them ((B, C, h, w) of a VQ autoencoder).

    `ids` (B, L) int32 or `context` (B, L, D) is the text, `labels` (B,) int64 the classes; what was not kept is None.
    """

    moments: Tensor
    captions: list[str]
    ids: Tensor | None = None
    context: Tensor | None = None
    labels: Tensor | None = None

    def __len__(self) -> int:
        return len(self.captions)

    def posterior(self, autoencoder: Autoencoder) -> Posterior:
        """What the autoencoder says about the latents: draw from it with `sample`."""
        return autoencoder.quantize.posterior(self.moments.float(), autoencoder.scale)

    def to(self, device: Device) -> "LatentBatch":
        """Move to a device, without waiting where memory is pinned."""
        moved: dict[str, Any] = {name: sent(tensor, device) for name, tensor in self._tensors().items()}
        return replace(self, **moved)

    def pin_memory(self) -> "LatentBatch":
        """Pin every tensor (`DataLoader` calls this)."""
        return replace(self, **{name: tensor.pin_memory() for name, tensor in self._tensors().items()})

    def _tensors(self) -> dict[str, Any]:
        return {name: value for name in FIELDS if (value := getattr(self, name)) is not None}


class LatentData:
    """The latents of a folder, in a new order every epoch.

    `resident`: whether to keep them all on the device that batches are asked for on; None decides by its free memory,
    and leaves them mapped for the CPU. `verify` compares every shard with its hash first.

    Raises CheckpointError where there are none, or not all that were to be; CorruptFile where a shard is damaged.
    """

    def __init__(self, folder: str | Path, *, resident: bool | None = None, verify: bool = False) -> None:
        self.folder, self.resident = Path(folder), resident
        self.index = Index.read(self.folder)
        if self.index.done != self.index.count or not self.index.shards:
            what = f"holds {self.index.done} of {self.index.count} latents"
            raise CheckpointError(what, path=self.folder, remedy="run the precomputation again: it goes on there")
        for shard in self.index.shards if verify else ():
            if file_hash(self.folder / shard.file) != shard.sha256:
                raise CorruptFile("does not have its hash", path=self.folder / shard.file, remedy="precompute it anew")
        self.shards = [self._open(shard.file, shard.count) for shard in self.index.shards]
        self.ends = list(accumulate(shard.count for shard in self.index.shards))
        self._kept: dict[torch.device, bool] = {}
        self._rows: dict[torch.device, dict[str, Tensor]] = {}

    def __len__(self) -> int:
        return self.index.count

    def _open(self, file: str, count: int) -> Tensors:
        shard = open_safetensors(self.folder / file)
        if "moments" not in shard or any(shard.shape(key)[:1] != (count,) for key in shard):
            raise CorruptFile(f"does not hold {count} latents", path=self.folder / file, remedy="precompute it anew")
        return shard

    def check(self, autoencoder: Autoencoder) -> None:
        """Raise InputError unless the latents were made by this autoencoder."""
        if self.index.made_with["autoencoder"] != weights_hash(autoencoder):
            what = f"the latents of {self.folder} were made by another autoencoder"
            raise InputError(what, remedy="precompute them with this one")

    @cached_property
    def all_captions(self) -> list[str]:
        """The caption of every row."""
        return [caption for shard in self.shards for caption in json.loads(shard.metadata["captions"])]

    def captions(self, seed: int, count: int) -> Iterator[str]:
        """Give the captions of the first samples."""
        return (self.all_captions[row] for row in self._chosen(seed, range(count)))

    def batch(self, seed: int, numbers: Sequence[int], device: Device = "cpu") -> LatentBatch:
        """Give the samples of these numbers on the device."""
        device = torch.device(device)
        if not self._keeps(device):
            return self.gather(seed, numbers).to(device)
        rows = self._chosen(seed, numbers)
        index = sent(torch.tensor(rows), device)
        selected: dict[str, Any] = {key: all.index_select(0, index) for key, all in self._on(device).items()}
        return LatentBatch(captions=[self.all_captions[row] for row in rows], **selected)

    def gather(self, seed: int, numbers: Sequence[int]) -> LatentBatch:
        """Like `batch`, read from the files, on the CPU."""
        rows = self._chosen(seed, numbers)
        places = [bisect_right(self.ends, row) for row in rows]
        inside = [row - ([0, *self.ends])[place] for row, place in zip(rows, places, strict=True)]
        tensors: dict[str, Any] = {
            key: torch.stack([self._mapped[place][key][row] for place, row in zip(places, inside, strict=True)])
            for key in self._mapped[0]
        }
        return LatentBatch(captions=[self.all_captions[row] for row in rows], **tensors)

    def _chosen(self, seed: int, numbers: Sequence[int]) -> list[int]:
        return Order(seed, len(self)).many(numbers)

    @cached_property
    def _mapped(self) -> list[dict[str, Tensor]]:
        return [{key: shard[key] for key in shard} for shard in self.shards]

    @property
    def nbytes(self) -> int:
        """Bytes of all tensors."""
        return sum(tensor.nbytes for shard in self._mapped for tensor in shard.values())

    def _keeps(self, device: torch.device) -> bool:
        """Whether all rows are, or are to be, on the device. Decided once: asking for its free memory takes time."""
        if device not in self._kept:
            fits = device.type == "cuda" and self.nbytes < RESIDENT_SHARE * torch.cuda.mem_get_info(device)[0]
            self._kept[device] = fits if self.resident is None else self.resident
        return self._kept[device]

    def _on(self, device: torch.device) -> dict[str, Tensor]:
        if device not in self._rows:
            keys = self._mapped[0].keys()
            self._rows[device] = {key: torch.cat([shard[key].to(device) for shard in self._mapped]) for key in keys}
        return self._rows[device]

    def __getstate__(self) -> dict[str, Any]:
        """Worker processes map the files themselves."""
        return {"folder": self.folder, "resident": self.resident}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__init__(**state)  # type: ignore[misc]
