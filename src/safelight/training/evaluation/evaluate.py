"""Measure a model, an autoencoder, or a folder of pictures that somebody drew.

    reconstruction   what the autoencoder loses of pictures that it has not seen
    samples          what is drawn for the captions of real pictures, against real pictures: likeness of the two sets,
                     variety, and whether pictures of the training were copied
    prompts          whether a picture shows what was asked for: of things that trainings see, and of pairs of concept
                     and style that are held out from all

Beside every figure stands the same one of other real pictures, where there is such: what a perfect model would score.
The same options on the same machine give the same figures.
"""

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from safelight.checkpoint.configs import AUTOENCODERS
from safelight.checkpoint.files import read_json
from safelight.checkpoint.load import load_autoencoder
from safelight.diffusion.condition import Condition
from safelight.errors import InputError, NonFiniteError
from safelight.models.autoencoder import Autoencoder
from safelight.models.lpips import LPIPS
from safelight.pipeline.bundle import LatentDiffusion
from safelight.pipeline.loading import load
from safelight.pipeline.tasks import text_to_image
from safelight.training.data.batches import Device
from safelight.training.data.collections import Collection, open_collection
from safelight.training.evaluation.classifier import Judge
from safelight.training.evaluation.comparing import (
    compare_copies,
    compare_prompts,
    compare_reconstructions,
    compare_samples,
    compare_variety,
)
from safelight.training.evaluation.evaluate_config import EvaluateOptions
from safelight.training.evaluation.features import Extractor, clip_features, dct_features, file_hash, inception_features
from safelight.training.evaluation.questions import questions
from safelight.training.evaluation.references import References
from safelight.training.evaluation.report import Figure, Report, machine
from safelight.training.stages.perceptual import load_perceptual

__all__ = ["Subject", "Tools", "evaluate", "open_subject"]

Tell = Callable[[str, int, int], None]  # what is being done, how many of how many


@dataclass(frozen=True, eq=False)
class Subject:
    """What is evaluated: a model, with its autoencoder; an autoencoder alone; or pictures that somebody drew."""

    name: str
    model: LatentDiffusion | None = None
    autoencoder: Autoencoder | None = None
    pictures: Collection | None = None

    @property
    def size(self) -> int:
        """The side of its pictures. Raises InputError where they are not square."""
        if self.model is not None:
            h, w = (side * self.model.autoencoder.config.factor for side in self.model.latent_size())
        elif self.autoencoder is not None:
            side = self.autoencoder.config.sample_size
            h, w = (side, side) if isinstance(side, int) else side
        else:
            assert self.pictures is not None
            w, h = self.pictures.intact(0)[1].size
        if h != w:
            raise InputError(f"pictures of {w}x{h} pixels are not square", remedy="name the side to compare at: --size")
        return h


@dataclass(frozen=True, eq=False)
class Tools:
    """What is measured with."""

    extractors: tuple[Extractor, ...]
    perceptual: LPIPS | None = None
    perceptual_hash: str = ""
    judge: Judge | None = None

    @classmethod
    def of(cls, options: EvaluateOptions, device: Device) -> "Tools":
        """Load what the options name. Raises CheckpointError for files of another kind."""
        judge = Judge.load(options.classifier, device=device) if options.classifier else None
        extractors = [dct_features()]
        extractors += [judge.extractor] if judge else []
        extractors += [inception_features(options.inception, device=device)] if options.inception else []
        extractors += [clip_features(options.clip, device=device)] if options.clip else []
        perceptual = load_perceptual(options.lpips_vgg, options.lpips_heads, options.features)
        if perceptual is None:
            return cls(tuple(extractors), judge=judge)
        files = (options.lpips_vgg, options.lpips_heads) if options.lpips_vgg else (options.features,)
        hashes = " + ".join(file_hash(Path(file)) for file in files if file)
        return cls(tuple(extractors), perceptual.to(device), hashes, judge)

    def named(self) -> dict[str, str]:
        """Name everything, with the hash of its weights."""
        hashes = {extractor.name: extractor.sha256 or "no weights" for extractor in self.extractors}
        return hashes | ({} if self.perceptual is None else {self.perceptual.name: self.perceptual_hash})


def open_subject(name: str | Path, *, device: Device | None = None, dtype: str | None = None) -> Subject:
    """Find out what `name` is: a folder of an autoencoder, of a model, or of pictures; else whatever `load` takes."""
    path = Path(name)
    if path.is_dir() and not (path / "model_index.json").exists():
        config = path / "config.json"
        if config.exists() and read_json(config).get("_class_name") in AUTOENCODERS:
            autoencoder = load_autoencoder(path, device=device or "cpu", dtype=torch.float32)
            return Subject(str(name), autoencoder=autoencoder)
        return Subject(str(name), pictures=open_collection(path, captions="optional"))
    model = load(name, device=device, dtype=dtype)
    return Subject(str(name), model=model, autoencoder=model.autoencoder)


def evaluate(
    name: str | Path,
    options: EvaluateOptions,
    *,
    device: Device | None = None,
    tell: Tell = lambda what, done, total: None,
) -> Report:
    """Measure what `options` ask for, or all that can be measured of `name` with what they give.

    Raises InputError for what cannot be measured, TooFewPictures, NonFiniteError, CheckpointError, CollectionError.
    """
    subject = open_subject(name, device=device, dtype=options.dtype)
    if subject.model is not None and options.guidance_scale is None:
        options = options.model_copy(update={"guidance_scale": subject.model.guidance_scale})
    device = device or (subject.model.device if subject.model else "cpu")
    if options.data is None:
        raise InputError("there are no real pictures to compare with", remedy="name a collection with --data")
    size = options.size or subject.size
    real = References(
        open_collection(options.data, captions="optional"),
        size,
        seed=options.seed,
        train_seed=options.train_seed,
        scenes=options.scenes,
        cache=None if options.cache is None else Path(options.cache),
    )
    work = _Evaluation(subject, real, Tools.of(options, device), options, torch.device(device), tell)
    for what in sections(subject, options, work.tools):
        work.measure(what)
    return work.report(size)


def sections(subject: Subject, options: EvaluateOptions, tools: Tools) -> list[str]:
    """List what to measure. Raises InputError where what is asked for by name cannot be."""
    lacks = {
        "reconstruction": None if subject.autoencoder else "an autoencoder",
        "samples": None if subject.model or subject.pictures else "a model, or pictures",
        "prompts": _lacks_for_prompts(subject, tools),
    }
    if options.what == "all":
        return [what for what, missing in lacks.items() if missing is None]
    if missing := lacks[options.what]:
        raise InputError(f"measuring {options.what} of {subject.name} needs {missing}", remedy="see evaluate --help")
    return [options.what]


def _lacks_for_prompts(subject: Subject, tools: Tools) -> str | None:
    if subject.model is None or subject.model.text_encoder is None:
        return "a model that reads text"
    return None if tools.judge else "a --classifier to judge by"


@dataclass(eq=False)
class _Evaluation:
    """One evaluation at work: gathers figures, sheets and times."""

    subject: Subject
    real: References
    tools: Tools
    options: EvaluateOptions
    device: torch.device
    tell: Tell
    figures: list[Figure] = field(default_factory=list)
    sheets: dict[str, Image.Image] = field(default_factory=dict)
    seconds: dict[str, float] = field(default_factory=dict)
    notes: dict[str, str] = field(default_factory=dict)
    remarks: list[str] = field(default_factory=list)

    def measure(self, what: str) -> None:
        """Do one section."""
        with self._timed(what), torch.inference_mode():
            {"reconstruction": self._reconstruction, "samples": self._samples, "prompts": self._prompts}[what]()

    def _reconstruction(self) -> None:
        autoencoder, source = self.subject.autoencoder, self.real.unseen
        assert autoencoder is not None
        pictures, made = [], []
        for batch in self._told("reconstructing", source.batches(self.options.count, self.options.batch_size)):
            pictures.append(as_bytes(batch))
            made.append(as_bytes(reconstructed(autoencoder, batch)))
        figures, sheet = compare_reconstructions(
            torch.cat(pictures), torch.cat(made), self.tools.extractors, self.tools.perceptual
        )
        self._keep(figures, sheet, "reconstruction", source.note)

    def _samples(self) -> None:
        o, source = self.options, self.real.new
        real = self._bytes("reading pictures", source.batches(o.count, o.batch_size))
        others = self._others()
        if self.subject.model is not None:
            drawn = self._drawn(source.captions(len(real)))
        else:
            drawn = self._given()
        figures, sheet = compare_samples(drawn, real, others, self.tools.extractors, seed=o.seed)
        self._keep(figures, sheet, "samples", source.note)
        if o.variety > 1 and self.subject.model is not None:
            prompts = source.captions(o.varied_prompts)
            varied = self._drawn(prompts, each=o.variety)
            self._keep(*compare_variety(varied, prompts, real, self.tools.extractors), "variety")
        if o.neighbours:
            training = self._bytes("reading the training", self.real.training.batches(o.neighbours, o.batch_size))
            known = others if self.real.apart and len(others) else None
            if not self.real.apart:
                self.remarks.append("No figures of real pictures stand beside the distances to training pictures: this "
                                    "collection knows no splits, so that none is sure to be new.")  # fmt: skip
            self._keep(*compare_copies(drawn, training, known, self.tools.extractors), "nearest")

    def _prompts(self) -> None:
        judge, o = self.tools.judge, self.options
        assert judge is not None
        for name, (scenes, source) in self.real.asked.items():
            asked = questions(scenes, judge.labels, self.real.seed, o.count)
            real = self._bytes("reading pictures", source.batches(o.count, o.batch_size))
            drawn = self._drawn([question.prompt for question in asked])
            self._keep(*compare_prompts(name, asked, drawn, real, judge), name, source.note)

    def _others(self) -> Tensor:
        """Further real pictures, to compare real ones with; none where there are no others."""
        o, source = self.options, self.real.new
        if source.limit is not None and source.limit < 2 * o.count:
            self.remarks.append(
                f"Samples have no figures of real pictures beside theirs: those would be of {o.count} more pictures, "
                f"and the {source.limit} of this collection are too few; give more, or --count {source.limit // 2}."
            )
            return torch.zeros(0, 3, self.real.size, self.real.size, dtype=torch.uint8)
        return self._bytes("reading pictures", source.batches(o.count, o.batch_size, start=o.count))

    def _drawn(self, prompts: Sequence[str], each: int = 1) -> Tensor:
        """Draw `each` pictures a prompt, (P·each, 3, S, S) uint8; picture k with the options' seed + k."""
        o, model = self.options, self.subject.model
        assert model is not None
        done: list[Tensor] = []
        a_time = max(o.batch_size // each, 1)
        for start in range(0, len(prompts), a_time):
            self.tell("drawing", start * each, len(prompts) * each)
            pictures = text_to_image(
                model,
                **asked(model, prompts[start : start + a_time], start, each, o.guidance_scale),
                width=o.size,
                height=o.size,
                steps=o.steps,
                sampler=o.sampler,
                grid=o.grid,
                seed=o.seed + start * each,
                batch_size=o.batch_size,
            )
            done.append(torch.stack([from_image(image) for image in pictures]))
        return torch.cat(done)

    def _given(self) -> Tensor:
        """The pictures of the folder, as they are. Raises InputError where their sizes differ."""
        collection = self.subject.pictures
        assert collection is not None
        pictures = [from_image(collection.intact(i)[1]) for i in range(min(len(collection), self.options.count))]
        sizes = sorted({tuple(p.shape[1:]) for p in pictures})
        if len(sizes) > 1:
            what = f"{self.subject.name} holds pictures of {len(sizes)} sizes, such as {sizes[0]} and {sizes[-1]}"
            raise InputError(what, remedy="bring them to one size first: how is part of what is measured")
        return torch.stack(pictures)

    def _bytes(self, what: str, batches: Iterator[Tensor]) -> Tensor:
        return torch.cat([as_bytes(batch) for batch in self._told(what, batches)])

    def _told(self, what: str, batches: Iterator[Tensor]) -> Iterator[Tensor]:
        done = 0
        for batch in batches:
            self.tell(what, done, self.options.count)
            yield batch.to(self.device)
            done += len(batch)

    def _keep(self, figures: Sequence[Figure], sheet: Image.Image, name: str, note: str = "") -> None:
        self.figures += figures
        self.sheets[name] = sheet
        if note:
            self.notes[name] = note

    @contextmanager
    def _timed(self, what: str) -> Iterator[None]:
        start = time.monotonic()
        yield
        self.seconds[what] = round(time.monotonic() - start, 1)

    def _weights(self) -> Tensor:
        model, autoencoder = self.subject.model, self.subject.autoencoder
        return next((model.unet if model is not None else autoencoder).parameters())  # type: ignore[union-attr]

    def report(self, size: int) -> Report:
        """Put it all together."""
        settings = ("steps", "guidance_scale", "sampler", "grid") if self.subject.model is not None else ()
        about: dict[str, Any] = {
            "model": shortened(self.subject.name),
            "data": shortened(str(self.options.data)),
            "size": size,
            "seed": self.options.seed,
            **{name: getattr(self.options, name) for name in settings},
            "precision": str(self._weights().dtype).removeprefix("torch.") if self.subject.autoencoder else "none",
            "compared with": self.notes,
            "measured with": self.tools.named(),
            "seconds": self.seconds,
            "machine": machine(self.device),
        }
        return Report(about, tuple(self.figures), self.sheets, tuple(self.remarks))


def asked(
    model: LatentDiffusion, prompts: Sequence[str], first: int, each: int, guidance_scale: float | None
) -> dict[str, Any]:
    """What to tell `text_to_image` to draw `each` pictures for every prompt, the first being prompt `first` of all.

    A model without text draws what it will; one of classes draws them in turn, guided away from the last row of its
    table, which stands for none.
    """
    unet, n = model.unet.config, len(prompts)
    if unet.num_class_embeds is not None:
        none = unet.num_class_embeds - 1
        labels = (first + torch.arange(n, device=model.device)) % max(none, 1)
        classes = {"prompt": Condition(class_labels=labels), "count": each, "guidance_scale": guidance_scale}
        return {**classes, "negative_prompt": Condition(class_labels=torch.full_like(labels, none))}
    if not unet.conditional:
        return {"prompt": "", "count": n * each, "guidance_scale": 1.0}
    return {"prompt": list(prompts), "count": each, "guidance_scale": guidance_scale}


def shortened(name: str) -> str:
    """The last part of a path, so that a model card tells nothing of the machine; a hub's id as it is."""
    return Path(name).resolve().name if Path(name).exists() else name


def reconstructed(autoencoder: Autoencoder, pictures: Tensor) -> Tensor:
    """Encode and decode pictures (B, 3, H, W) in [-1, 1], by the posterior's mode."""
    weight = autoencoder.decoder.conv_out.weight
    return autoencoder.decode(autoencoder.encode(pictures.to(weight)).mode().to(weight.dtype)).float()


def as_bytes(pictures: Tensor) -> Tensor:
    """(B, 3, H, W) in [-1, 1] -> uint8 on the CPU, as a file would hold them. Raises NonFiniteError."""
    if not pictures.isfinite().all():
        raise NonFiniteError("a picture holds NaN or infinity", remedy="look at what drew it, and at its precision")
    return ((pictures.float() + 1) * 127.5).round().clamp(0, 255).to("cpu", torch.uint8)


def from_image(image: Image.Image) -> Tensor:
    """Any picture -> (3, H, W) uint8; transparent ones on white."""
    if image.mode == "RGBA":
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    return torch.from_numpy(np.array(image.convert("RGB"))).movedim(-1, 0)
