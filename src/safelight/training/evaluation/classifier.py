"""A classifier of what pictures show, trained on the collection that a model was trained on, to judge what that draws.

It sees scenes with one thing, so that concept, style, place and mask of it are known. Pairs of concept and style that
are held out from the models are held out from it as well: it is asked about them as the model is, and how often it is
right about real pictures of them, its ceiling, stands beside how often it finds what a model was asked for.

Its features also are a feature extractor (`extractor`), named as its own: distances in them are no FID.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor, nn
from torch.nn import functional as F

from safelight.checkpoint.build import Plan, on_meta
from safelight.checkpoint.errors import WrongModel
from safelight.checkpoint.files import open_file, read_json
from safelight.checkpoint.keymap import identity
from safelight.checkpoint.writing import outgoing, replacing_folder, write_json, write_safetensors
from safelight.diffusion.noise import sent
from safelight.errors import InputError, nearest
from safelight.models.classifier import Classifier, ClassifierConfig, Seen
from safelight.models.config import frozen
from safelight.training.data.batches import Device
from safelight.training.data.collections import Collection, Entry, open_collection
from safelight.training.data.holdout import trained_on
from safelight.training.data.planning import Mix
from safelight.training.data.scenes import SceneData, Wording
from safelight.training.evaluation.classifier_config import ClassifierRecipe
from safelight.training.evaluation.features import Extractor, file_hash
from safelight.training.loop.assembly import Assembled, seeded
from safelight.training.loop.optim import adamw
from safelight.training.loop.sheets import contact_sheet
from safelight.training.stages.noise import BatchNoise
from safelight.training.stages.reconstructions import as_image
from safelight.training.stages.stage import Loss, Stage, Weights

__all__ = [
    "ClassifierData",
    "ClassifierStage",
    "Judge",
    "Labels",
    "assemble_classifier",
    "held_out_part",
    "lone_things",
    "new_classifier",
]

KIND = "safelight.classifier"
ONE_THING = Mix(photos=0.0, backgrounds=0.0, counts=(1.0,), centered=0.4)
SHEET = 32  # pictures


@dataclass(frozen=True)
class Labels:
    """What a classifier can answer: `concepts` as the collection's table has them, `names` for people, `styles`."""

    concepts: tuple[str, ...]
    names: tuple[str, ...]
    styles: tuple[str, ...]
    column: str = "hex"

    @classmethod
    def of(cls, collection: Collection, column: str = "hex") -> "Labels":
        """Collect the labels of a collection's sprites. Raises InputError where its table has no such column."""
        rows = [entry.meta for entry in collection if _kind(entry) == "sprite"]
        names: dict[str, str] = {}
        for row in rows:
            if row.get(column) is not None:
                key, name = str(row[column]), str(row.get("name", row[column]))
                names[key] = min(names.get(key, name), name, key=len)  # without the skin tone of one of them
        if not names:
            known = sorted({key for row in rows for key in row})
            what = f"no sprite of {collection.path} has a {column!r} in its table"
            raise InputError(what, remedy=f"name a column with --concept; {nearest(column, known)}")
        styles = sorted({str(row.get("style", "")) for row in rows})
        return cls(tuple(sorted(names)), tuple(names[key] for key in sorted(names)), tuple(styles), column)

    def of_entry(self, entry: Entry) -> tuple[int, int]:
        """Give the numbers of an entry's concept and style, -1 for one that is not among the labels."""
        concepts, styles = self._numbers
        return concepts.get(str(entry.meta.get(self.column)), -1), styles.get(str(entry.meta.get("style", "")), -1)

    @cached_property
    def _numbers(self) -> tuple[dict[str, int], dict[str, int]]:
        concepts, styles = ({label: i for i, label in enumerate(some)} for some in (self.concepts, self.styles))
        return concepts, styles


@dataclass(frozen=True, eq=False)
class LabelledScenes:
    """B scenes of one thing: `pictures` (B, 3, S, S) in [-1, 1]; `concepts`, `styles` (B,); `masks` (B, S, S) bool."""

    pictures: Tensor
    concepts: Tensor
    styles: Tensor
    masks: Tensor

    def to(self, device: Device) -> "LabelledScenes":
        """Move to a device, without waiting."""
        moved = (sent(t, device) for t in (self.pictures, self.concepts, self.styles, self.masks))
        return LabelledScenes(*moved)


class ClassifierData:
    """Scenes of one thing each, with its labels; has the face of a data set."""

    def __init__(self, scenes: SceneData, labels: Labels) -> None:
        if not scenes.layout or len(scenes.mix.counts) != 1:
            raise InputError("these scenes do not fit a classifier", remedy="make them with `lone_things`")
        self.scenes, self.labels = scenes, labels
        self._numbers = torch.tensor([labels.of_entry(sprite.entry) for sprite in scenes.bank.sprites])

    def __len__(self) -> int:
        return len(self.scenes)

    def batch(self, seed: int, numbers: Sequence[int], device: Device = "cpu") -> LabelledScenes:
        """Give the scenes of these numbers, on the device."""
        batch = self.scenes.batch(seed, numbers, device)
        assert batch.masks is not None
        rows = [self.scenes.sample(seed, n).plan.objects[0].number for n in numbers]
        concepts, styles = sent(self._numbers[rows], batch.pictures.device).unbind(1)
        return LabelledScenes(batch.pictures, concepts, styles, batch.masks[:, 0])

    def captions(self, seed: int, count: int) -> Iterator[str]:
        """Give the captions of the first scenes."""
        return self.scenes.captions(seed, count)

    def gather(self, seed: int, numbers: Sequence[int]) -> LabelledScenes:
        """Give the scenes of these numbers on the CPU."""
        return self.batch(seed, numbers)


def lone_things(
    collection: Collection,
    size: int,
    *,
    held_out: bool = False,
    wording: Wording | None = None,
    cache: str | Path | None = None,
) -> SceneData:
    """Scenes of one thing each: of those a model may be trained on, or of the pairs that are held out.

    `cache` is a folder to keep the sprites in, made ready. Raises InputError where the collection holds out none.
    """
    kept = held_out_part(collection) if held_out else collection.where(lambda e: _may_stand(e, held_out=False))
    if kept is None:
        what = f"{collection.path} holds out no pairs of concept and style"
        raise InputError(what, remedy="pairs are held out by the table's column `hex` and the picture's folder")
    folder = None if cache is None else Path(cache)
    return SceneData(kept, size=size, mix=ONE_THING, layout=True, hold_out=None, wording=wording, cache=folder)


def held_out_part(collection: Collection) -> Collection | None:
    """Give the sprites that no training may show, with all backgrounds; None if there are none."""
    if not any(_kind(entry) == "sprite" and _may_stand(entry, held_out=True) for entry in collection):
        return None
    return collection.where(lambda entry: _may_stand(entry, held_out=True))


def _may_stand(entry: Entry, *, held_out: bool) -> bool:
    return _kind(entry) == "background" or (_kind(entry) == "sprite" and trained_on(entry) != held_out)


def _kind(entry: Entry) -> str:
    return str(entry.meta.get("kind", "sprite"))


def assemble_classifier(recipe: ClassifierRecipe, run: Path, device: torch.device) -> Assembled:
    """Make the stage and the data of a recipe. Raises InputError, CollectionError."""
    collection = open_collection(recipe.data, captions="optional")
    labels = Labels.of(collection, recipe.concept)
    data = ClassifierData(lone_things(collection, recipe.size, cache=recipe.cache), labels)
    with seeded(recipe.seed):
        network = new_classifier(labels, recipe).to(device)
    about = {
        "data": f"{len(data)} sprites of {Path(recipe.data).name}, on backgrounds",
        "answers": f"{len(labels.concepts)} concepts, {len(labels.styles)} styles",
        "parameters": f"{sum(p.numel() for p in network.parameters()):,}",
    }
    return Assembled(ClassifierStage(network, labels, recipe, data), data, about)


def new_classifier(labels: Labels, recipe: ClassifierRecipe) -> Classifier:
    """Draw an untrained classifier, with torch's global generator."""
    shape = ClassifierConfig(
        concepts=len(labels.concepts),
        styles=len(labels.styles),
        size=recipe.size,
        channels=recipe.channels,
        features=recipe.features,
    )
    return Classifier(shape)


class ClassifierStage(Stage):
    """Trains a classifier: cross-entropy of concept and style, and of the mask's places."""

    name = "classifier"

    def __init__(self, classifier: Classifier, labels: Labels, recipe: ClassifierRecipe, data: ClassifierData) -> None:
        """classifier: on the training device. data: what sheets are of."""
        self.labels, self.recipe, self.data = labels, recipe, data
        self.config = classifier.config
        self.device = classifier.conv_in.weight.device
        self.modules: dict[str, nn.Module] = {"classifier": classifier}
        rate, decay = recipe.learning_rate, recipe.weight_decay
        self.optimizers: dict[str, torch.optim.Optimizer] = {
            "classifier": adamw([classifier], learning_rate=rate, weight_decay=decay)
        }
        self.averaged = ("classifier",)

    def losses(self, batch: LabelledScenes, noise: BatchNoise) -> Iterator[Loss]:
        """See `Stage`. Some pictures are blurred, so that softer lines than real pictures have say nothing."""
        seen: Seen = self.modules["classifier"](blurred(batch.pictures, noise, self.recipe.blur))
        concept = cross_entropy(seen.concepts, batch.concepts, self.recipe.smoothing)
        style = cross_entropy(seen.styles, batch.styles, self.recipe.smoothing)
        shown = F.adaptive_avg_pool2d(batch.masks[:, None].float(), seen.masks.shape[1:])[:, 0]  # type: ignore[arg-type]
        mask = F.binary_cross_entropy_with_logits(seen.masks, shown)
        right = {
            "top1": top_k(seen.concepts, batch.concepts, 1),
            "top5": top_k(seen.concepts, batch.concepts, 5),
            "style": top_k(seen.styles, batch.styles, 1),
        }
        figures = {"concept_loss": concept, "style_loss": style, "mask_loss": mask, **right}
        yield Loss("classifier", concept + style + mask, {name: value.detach() for name, value in figures.items()})

    def sheet(self) -> Image.Image:
        """Real pictures, and what the classifier calls them, in brackets where that is wrong."""
        batch = self.data.batch(0, range(SHEET), self.device)
        seen: Seen = self.modules["classifier"](batch.pictures)
        found = seen.concepts.argmax(1).tolist()
        names = [
            self.labels.names[i] if i == wanted or wanted < 0 else f"[{self.labels.names[i]}]"
            for i, wanted in zip(found, batch.concepts.tolist(), strict=True)
        ]
        return contact_sheet(
            [as_image(p) for p in batch.pictures], names, columns=8, title="called (wrong in brackets)"
        )

    def finish(self, folder: Path, weights: Weights, record: Mapping[str, Any]) -> None:
        """See `Stage`: config.json with the labels, and model.safetensors."""
        config = {"kind": KIND, "network": asdict(self.config), "labels": asdict(self.labels), "record": dict(record)}
        with replacing_folder(folder, is_ours=is_classifier) as new:
            write_json(new / "config.json", config)
            write_safetensors(new / "model.safetensors", outgoing(weights["classifier"]), {"format": "pt"})


def blurred(pictures: Tensor, noise: BatchNoise, share: float) -> Tensor:
    """Mix a share of the pictures (B, 3, H, W) with their 3x3 mean, each as far as chance has it."""
    chance, amount = (sent(noise.uniform().to(torch.float32), pictures.device) for _ in range(2))
    soft = F.avg_pool2d(pictures, 3, stride=1, padding=1, count_include_pad=False)
    return torch.lerp(pictures, soft, (amount * (chance < share))[:, None, None, None])


def cross_entropy(logits: Tensor, labels: Tensor, smoothing: float) -> Tensor:
    """The mean over those that have a label (0 or more); 0 where none has."""
    total = F.cross_entropy(logits, labels, ignore_index=-1, label_smoothing=smoothing, reduction="sum")
    return total / (labels >= 0).sum().clamp(min=1)


def top_k(logits: Tensor, labels: Tensor, k: int) -> Tensor:
    """The share of pictures whose label is among the k largest logits, of those that have a label: a scalar."""
    best = logits.topk(min(k, logits.shape[1])).indices
    known = labels >= 0
    return ((best == labels[:, None]).any(dim=1) & known).sum() / known.sum().clamp(min=1)


def is_classifier(folder: Path) -> bool:
    """Whether a folder holds what `ClassifierStage.finish` wrote."""
    path = folder / "config.json"
    return path.exists() and read_json(path).get("kind") == KIND


class Judge:
    """A trained classifier: pictures -> `Seen`, and features."""

    def __init__(self, network: Classifier, labels: Labels, *, sha256: str = "", device: Device = "cpu") -> None:
        self.network, self.labels = network.to(device).eval().requires_grad_(False), labels
        self.sha256, self.device = sha256, device

    @classmethod
    def load(cls, folder: str | Path, *, device: Device = "cpu") -> "Judge":
        """Read what `safelight train classifier` wrote. Raises WrongModel for another folder, and CheckpointError."""
        folder = Path(folder)
        data = read_json(folder / "config.json")
        if data.get("kind") != KIND:
            remedy = "train one with `safelight train classifier`, and name its run's folder `model`"
            raise WrongModel("is no classifier", path=folder, remedy=remedy)
        config = ClassifierConfig(**{key: frozen(value) for key, value in data["network"].items()})
        labels = Labels(**{key: frozen(value) for key, value in data["labels"].items()})
        path = folder / "model.safetensors"
        plan = Plan(
            on_meta(lambda: Classifier(config)),
            open_file(path),
            identity(on_meta(lambda: Classifier(config)).state_dict()),
        )
        return cls(plan.fill(dtype=torch.float32), labels, sha256=file_hash(path), device=device)

    @torch.inference_mode()
    def __call__(self, pictures: Tensor) -> Seen:
        """Pictures (B, 3, H, W) in [-1, 1], of any size -> what is seen, on the CPU."""
        seen = self.network(pictures.to(self.device, torch.float32))
        return Seen(**{name: tensor.cpu() for name, tensor in vars(seen).items()})

    def look(self, batches: Iterable[Tensor]) -> Seen:
        """What is seen in all pictures of some batches."""
        parts = [vars(self(batch)) for batch in batches]
        return Seen(**{name: torch.cat([part[name] for part in parts]) for name in parts[0]})

    @property
    def extractor(self) -> Extractor:
        """Its features, as a feature extractor."""
        name = f"Safelight classifier ({self.sha256[:12] or 'untrained'})"
        return Extractor(name, lambda x: self.network(x).features, self.sha256, "FD-own", "KD-own", self.device)
