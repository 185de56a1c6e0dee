"""Batches of captioned pictures, each a pure function of (seed, sample number).

Samples are numbered through the whole training, epoch after epoch. What sample n is depends on the seed and n alone, so
that a run resumed at n, on any number of machines and worker processes, sees what it would have seen.

A *data set* is anything with the face of `Data`: `PictureData` below, `SceneData` in `scenes`, `LatentData` in
`latents`. `batches` makes an endless iterator of one.
"""

import re
import signal
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal, Protocol, TypeVar

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from safelight.diffusion.noise import sent
from safelight.errors import InputError
from safelight.training.data.buckets import BucketOrder, Buckets
from safelight.training.data.collections import Collection, Entry
from safelight.training.data.framing import Background, Crop, Pixels, Size, as_array, as_size, fitted, on_background
from safelight.training.data.order import Draws, Order

__all__ = ["Batch", "Buckets", "Data", "PictureData", "Sample", "batches"]

Device = torch.device | str
CAPTION = 1  # the stream of `Draws` that captions read, so that no option for pictures changes a caption


@dataclass(frozen=True, eq=False)
class Batch:
    """B samples. What a data set does not know is None.

    `pictures` (B, 3, H, W) float32 in [-1, 1] (bytes while they travel from a worker). `labels` (B,) int64 are classes,
    -1 where there is none. Of scenes with up to K objects: `boxes` (B, K, 4) float32 hold each object's x0, y0, x1, y1
    as shares of width and height, all 0 where there are fewer; `box_labels` (B, K) int64 their classes, -1 where there
    are fewer; `class_maps` (B, H, W) int64 the class seen at each pixel plus 1, and 0 for the background; `masks`
    (B, K, H, W) bool where each object is seen.
    """

    pictures: Tensor
    captions: list[str]
    labels: Tensor | None = None
    boxes: Tensor | None = None
    box_labels: Tensor | None = None
    class_maps: Tensor | None = None
    masks: Tensor | None = None

    def __len__(self) -> int:
        return len(self.captions)

    def to(self, device: Device) -> "Batch":
        """Move to a device, without waiting where memory is pinned; pictures become float32 in [-1, 1] there."""
        moved: dict[str, Any] = {name: sent(tensor, device) for name, tensor in self._tensors()}
        if moved["pictures"].dtype == torch.uint8:
            moved["pictures"] = moved["pictures"].float().div_(127.5).sub_(1)
        return replace(self, **moved)

    def pin_memory(self) -> "Batch":
        """Pin every tensor (`DataLoader` calls this)."""
        pinned: dict[str, Any] = {name: tensor.pin_memory() for name, tensor in self._tensors()}
        return replace(self, **pinned)

    def _tensors(self) -> list[tuple[str, Tensor]]:
        return [(name, value) for name, value in vars(self).items() if isinstance(value, Tensor)]


B_co = TypeVar("B_co", covariant=True)


class Data(Protocol[B_co]):
    """The face of a data set. `len` is the number of samples in an epoch."""

    def __len__(self) -> int: ...

    def batch(self, seed: int, numbers: Sequence[int], device: Device = "cpu") -> B_co:
        """Give the samples of these numbers, ready on the device."""
        ...

    def captions(self, seed: int, count: int) -> Iterator[str]:
        """Give the captions of the first samples, without their pictures."""
        ...

    def gather(self, seed: int, numbers: Sequence[int]) -> Any:
        """Like `batch`, by a worker process: something on the CPU whose `.to(device)` gives the batch."""
        ...


@dataclass(frozen=True, eq=False)
class Sample:
    """One picture, (H, W, 3) uint8, its caption and class; `index` is its entry in the collection."""

    index: int
    picture: Pixels
    caption: str
    label: int = -1


class PictureData:
    """A collection's pictures at one size, or at the sizes of aspect buckets, with their captions.

    size                  a side, or (width, height); pictures are resized (Lanczos) to cover it, and cropped
    crop                  "center", or "random": any part
    zoom                  a random crop is at least this share of the largest in width and height
    flip                  the probability of mirroring a picture
    flip_words            if its caption says left or right: "keep" the picture as it is, or "swap" the words
    caption_dropout       the probability of `null_caption` instead of the caption, for classifier-free guidance
    keyword_substitution  the probability of one of the entry's `keywords` instead of its `name` in the caption
    background            what shows through transparent pictures: "white", "random" or a colour (r, g, b)
    buckets, batch_size   aspect buckets (see `BucketOrder`); every batch has one shape, so its size is needed here

    Of several captions one is drawn each time. Raises InputError for options outside their range.
    """

    def __init__(
        self,
        collection: Collection,
        *,
        size: int | Size,
        crop: Crop = "center",
        zoom: float = 1.0,
        flip: float = 0.0,
        flip_words: Literal["keep", "swap"] = "keep",
        caption_dropout: float = 0.0,
        null_caption: str = "",
        keyword_substitution: float = 0.0,
        background: Background = "white",
        buckets: Buckets | None = None,
        batch_size: int = 0,
    ) -> None:
        check_shares(zoom=zoom, flip=flip, caption_dropout=caption_dropout, keyword_substitution=keyword_substitution)
        if crop not in ("center", "random") or flip_words not in ("keep", "swap") or (crop == "center" and zoom < 1):
            what = f"crop={crop!r}, zoom={zoom}, flip_words={flip_words!r} do not go together"
            raise InputError(what, remedy="crop is 'center' or 'random', which zoom needs; flip_words 'keep' or 'swap'")
        self.collection, self.size, self.crop, self.zoom = collection, as_size(size), crop, zoom
        self.flip, self.flip_words, self.background = flip, flip_words, background
        self.caption_dropout, self.null_caption = caption_dropout, null_caption
        self.keyword_substitution = keyword_substitution
        self.buckets = None if buckets is None else BucketOrder(buckets, collection.sizes(), batch_size)
        self.class_names = list(collection.labels)
        self._classes = {label: i for i, label in enumerate(self.class_names)}

    def __len__(self) -> int:
        return len(self.collection if self.buckets is None else self.buckets)

    def index(self, seed: int, n: int) -> tuple[int, Size]:
        """Give (the entry, its width and height) of sample n."""
        return (Order(seed, len(self)).at(n), self.size) if self.buckets is None else self.buckets.index(seed, n)

    def sample(self, seed: int, n: int) -> Sample:
        """Give sample n. Raises CollectionError when too many pictures are broken."""
        wanted, size = self.index(seed, n)
        index, picture = self.collection.intact(wanted)
        entry, draws = self.collection[index], Draws(seed, n)
        caption, flip = self._worded(entry, seed, n, draws)
        across, down, share = draws.unit(), draws.unit(), draws.between(self.zoom, 1)
        where = {"across": across, "down": down, "share": share} if self.crop == "random" else {}
        picture = on_background(fitted(picture, size, **where), self.background, draws)
        return Sample(index, as_array(picture, flip=flip), caption, self._classes.get(entry.label or "", -1))

    def captions(self, seed: int, count: int) -> Iterator[str]:
        """Give the captions of the first samples, without reading a picture (and as if none were broken)."""
        for n in range(count):
            yield self._worded(self.collection[self.index(seed, n)[0]], seed, n, Draws(seed, n))[0]

    def _worded(self, entry: Entry, seed: int, n: int, draws: Draws) -> tuple[str, bool]:
        """Give the caption of sample n, and whether its picture is mirrored."""
        return self._mirrored(self._caption(entry, Draws(seed, n, CAPTION)), draws.chance(self.flip))

    def _caption(self, entry: Entry, draws: Draws) -> str:
        caption = draws.choice(entry.captions or ("",))
        swap, keyword = draws.chance(self.keyword_substitution), draws.choice(entry.meta.get("keywords") or ("",))
        if swap and keyword:
            caption = caption.replace(str(entry.meta.get("name", "\0")), str(keyword))
        return self.null_caption if draws.chance(self.caption_dropout) else caption

    def _mirrored(self, caption: str, flip: bool) -> tuple[str, bool]:
        """Give a caption that is true of the picture, and whether to mirror it."""
        if not flip or not SIDES.search(caption):
            return caption, flip
        return (SIDES.sub(_other_side, caption), True) if self.flip_words == "swap" else (caption, False)

    def gather(self, seed: int, numbers: Sequence[int]) -> Batch:
        """Give the samples of these numbers on the CPU, pictures as bytes: what workers send."""
        samples = [self.sample(seed, n) for n in numbers]
        if len({sample.picture.shape for sample in samples}) > 1:
            raise InputError("these samples have several shapes", remedy="with buckets, start at a whole batch")
        pictures = torch.from_numpy(np.stack([sample.picture for sample in samples])).permute(0, 3, 1, 2).contiguous()
        labels = torch.tensor([sample.label for sample in samples]) if self.class_names else None
        return Batch(pictures, [sample.caption for sample in samples], labels)

    def batch(self, seed: int, numbers: Sequence[int], device: Device = "cpu") -> Batch:
        """Give the samples of these numbers. With buckets they must be of one batch."""
        return self.gather(seed, numbers).to(device)


SIDES = re.compile(r"\b(left|right)(?=\b|wards?\b|most\b)", re.IGNORECASE)


def _other_side(match: re.Match[str]) -> str:
    word = match[0]
    other = "right" if word.lower() == "left" else "left"
    return other.upper() if word.isupper() else other.capitalize() if word[0].isupper() else other


def check_shares(**shares: float) -> None:
    """Raise InputError unless every option is a number from 0 to 1."""
    for name, value in shares.items():
        if not 0 <= value <= 1:
            raise InputError(f"{name} is {value}", remedy="give a number from 0 to 1")


def sample_numbers(start: int, batch_size: int, rank: int = 0, world: int = 1) -> Iterator[list[int]]:
    """Number this rank's share of the samples of each step, from `start` on; `batch_size` counts those of all ranks."""
    if batch_size < 1 or world < 1 or batch_size % world or not 0 <= rank < world or start < 0:
        raise InputError(
            f"a batch of {batch_size} from sample {start} on cannot be shared by rank {rank} of {world}",
            remedy="batch_size counts the pictures of all ranks together, and must be a multiple of their number",
        )
    own = batch_size // world
    return ([first + i for i in range(own)] for first in _count(start + rank * own, batch_size))


def _count(start: int, step: int) -> Iterator[int]:
    while True:
        yield start
        start += step


def batches(
    data: Data[B_co],
    *,
    seed: int,
    start: int = 0,
    batch_size: int,
    rank: int = 0,
    world: int = 1,
    workers: int = 0,
    device: Device = "cpu",
) -> Iterator[B_co]:
    """Give batches without end, from sample number `start` on.

    `batch_size` counts the samples of one step over all `world` processes; this process, `rank`, gets its share of
    batch_size/world. Which samples make step k depends neither on `world` nor on `workers`, the number of processes
    that prepare batches ahead; with 0 workers `data.batch` prepares them here, on the device where it can.

    Raises InputError where batch_size cannot be shared.
    """
    numbers = sample_numbers(start, batch_size, rank, world)
    if workers == 0:
        return (data.batch(seed, some, device) for some in numbers)
    loader = DataLoader(
        _Gathered(data, seed),
        batch_size=None,
        sampler=numbers,
        num_workers=workers,
        worker_init_fn=_leave_signals_to_the_trainer,
        pin_memory=torch.device(device).type == "cuda",
    )
    return (gathered.to(device) for gathered in loader)


class _Gathered(Dataset[Any]):
    """A data set as `DataLoader` workers want it: `[numbers]` gives a batch."""

    def __init__(self, data: Data[Any], seed: int) -> None:
        self.data, self.seed = data, seed

    def __getitem__(self, numbers: Sequence[int]) -> Any:
        return self.data.gather(self.seed, numbers)


def _leave_signals_to_the_trainer(worker: int) -> None:
    """Ctrl-C reaches every process of a terminal; workers go on, so that the trainer can finish its step and save."""
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)
