"""Real pictures to compare a model's with, and the pictures it was trained on.

Of a collection of sprites these are composed scenes (`data.scenes`): the same numbers with the training's
seed are the training's own pictures, with another seed they are new ones, and those of sprites that are held out show
things that no training saw. Of any other collection, entries of another split than "train" are new pictures.
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import cached_property, partial
from pathlib import Path

from torch import Tensor

from safelight.errors import InputError
from safelight.training.data.batches import Batch, Data, PictureData
from safelight.training.data.collections import Collection, Entry
from safelight.training.data.scenes import SceneData, trained_on
from safelight.training.data.synonyms import synonyms
from safelight.training.evaluation.classifier import held_out_part, lone_things
from safelight.training.evaluation.questions import ASKING
from safelight.training.evaluation.report import Section

__all__ = ["References", "Source", "has_sprites"]

NEW = 1 << 40  # seeds from here on are no training's


@dataclass(frozen=True)
class Source:
    """Pictures of a data set with one seed, in an order that depends on nothing else. `note` says what they are."""

    data: Data[Batch]
    seed: int
    note: str
    limit: int | None = None  # how many different ones there are; None: no end

    def batches(self, count: int, batch_size: int, start: int = 0) -> Iterator[Tensor]:
        """Give pictures number `start` to start+count-1, fewer if there are fewer: (B, 3, H, W) in [-1, 1].

        Raises InputError for none at all.
        """
        end = start + count if self.limit is None else min(start + count, self.limit)
        if end <= start:
            raise InputError("there are no pictures to measure", remedy="give more pictures, or a smaller --count")
        firsts = range(start, end, batch_size)
        return (self.data.batch(self.seed, range(i, min(i + batch_size, end))).pictures for i in firsts)

    def captions(self, count: int) -> list[str]:
        """Give the captions of the first `count` pictures."""
        return list(self.data.captions(self.seed, count if self.limit is None else min(count, self.limit)))


class References:
    """A collection's pictures at `size` pixels, by what they are needed for. Each part is read when first asked for."""

    def __init__(
        self,
        collection: Collection,
        size: int,
        *,
        seed: int = 0,
        train_seed: int = 0,
        scenes: bool | None = None,
        cache: Path | None = None,
    ) -> None:
        """scenes: compose sprites to scenes; None: if there are sprites. cache: see `SceneData`."""
        self.collection, self.size, self.seed, self.train_seed = collection, size, NEW + seed, train_seed
        self.scenic = has_sprites(collection) if scenes is None else scenes
        self.cache = cache

    @cached_property
    def _scenes(self) -> SceneData:
        return SceneData(self.collection, size=self.size, cache=self.cache)

    @cached_property
    def training(self) -> Source:
        """What the model may have been trained on."""
        if self.scenic:
            return Source(self._scenes, self.train_seed, "scenes of the training")
        seen = self.collection.where(lambda entry: entry.split in (None, "train"))
        return self._plain(seen, "training pictures")

    @cached_property
    def new(self) -> Source:
        """Pictures like those of the training, but others."""
        if self.scenic:
            return Source(self._scenes, self.seed, "new scenes of the training's sprites")
        if not self.apart:
            return self._plain(self.collection, "any pictures of the collection, which knows no splits")
        unseen = self.collection.where(lambda entry: entry.split not in (None, "train"))
        return self._plain(unseen, "pictures of other splits than train")

    @cached_property
    def unseen(self) -> Source:
        """Pictures of things that no training saw, if the collection holds any out; else `new`."""
        if not self.scenic or (held_out := held_out_part(self.collection)) is None:
            return self.new
        scenes = SceneData(held_out, size=self.size, hold_out=None, cache=self.cache)
        return Source(scenes, self.seed, "scenes of held-out sprites")

    @cached_property
    def asked(self) -> dict[Section, tuple[SceneData, Source]]:
        """Scenes of one thing each, captioned to be asked for, and as pictures that show what is asked for.

        "prompts" are of pairs of concept and style that trainings see; "new_pairs", if any, of those held out;
        "other_names" of things of the training that have some, called by these.
        """
        things = partial(lone_things, size=self.size, cache=self.cache)
        new = "new scenes of one thing of the training"
        asked: dict[Section, tuple[SceneData, str]] = {"prompts": (things(self.collection, wording=ASKING), new)}
        if held_out_part(self.collection) is not None:
            held_out = things(self.collection, held_out=True, wording=ASKING)
            asked["new_pairs"] = (held_out, "scenes of one held-out thing")
        if any(goes_by_others(entry) for entry in self.collection):
            some = self.collection.where(lambda entry: goes_by_others(entry) or is_background(entry))
            asked["other_names"] = (things(some, wording=replace(ASKING, synonym=1.0)), new)
        return {name: (scenes, Source(scenes, self.seed, note)) for name, (scenes, note) in asked.items()}

    @property
    def apart(self) -> bool:
        """Whether `new` are surely no pictures of the training."""
        return self.scenic or any(entry.split not in (None, "train") for entry in self.collection)

    def _plain(self, collection: Collection, note: str) -> Source:
        return Source(PictureData(collection, size=self.size), self.seed, note, len(collection))


def goes_by_others(entry: Entry) -> bool:
    """Say whether an entry is a sprite, which trainings see, of a thing that has other names."""
    names = synonyms(str(entry.meta.get("name", "")), entry.meta)
    return entry.meta.get("kind") == "sprite" and trained_on(entry) and bool(names)


def is_background(entry: Entry) -> bool:
    """Say whether an entry stands behind things."""
    return entry.meta.get("kind") == "background"


def has_sprites(collection: Collection) -> bool:
    """Say whether a collection's table tells sprites from backgrounds, so that scenes can be made of it."""
    return any(entry.meta.get("kind") == "sprite" for entry in collection)
