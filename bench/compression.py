"""The paper's study of compression (Rombach et al. 2022, section 4.1, figures 6 and 17) at a scale that a CPU can do.

    python bench/compression.py pictures.zip --minutes 1 --out /tmp/compression

The same data, the same U-Net and the same compute for f = 1, 2, 4, 8, 16: which factor of down-sampling draws best?
`pictures.zip` is a collection of sprites (see `safelight.training.data.scenes`); every picture is one of them, in the
middle of a white ground. Every f gets 2·minutes of compute: half for its first stage, half for its second. f = 1 is the
model of pixels: it needs no first stage, and its second gets all. A minute is one of processor time on the CPU, so that
other work on the machine does not count, and one by the clock elsewhere. How long a step takes is measured first, in
turns; that settles the numbers of steps, which are kept in OUT/plan.json. The classifier whose features all is measured
by is trained for half of `minutes`, on the same collection.

The same command goes on where it was stopped. It writes OUT/compression.md, compression.png, samples.png and
reconstructions.png. Stages, loop and measures are those of `safelight train` and `safelight evaluate`.
"""

import argparse
import json
import statistics
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from math import isfinite
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from compression_report import COLUMNS, PER_SHEET, plot, report, sheet
from safelight.checkpoint.load import load_autoencoder, load_unet
from safelight.checkpoint.writing import outgoing, replacing_folder, write_json, write_safetensors
from safelight.diffusion.schedule import noise_schedule
from safelight.models.autoencoder import Autoencoder, AutoencoderConfig
from safelight.models.bottleneck import LatentScale, PointPosterior, Posterior
from safelight.models.unet import UNet
from safelight.pipeline.bundle import LatentDiffusion
from safelight.pipeline.tasks import text_to_image
from safelight.training.data.batches import Batch
from safelight.training.data.collections import open_collection
from safelight.training.data.encoding import precompute
from safelight.training.data.latents import LatentBatch, LatentData
from safelight.training.data.scenes import Mix, SceneData
from safelight.training.evaluation.classifier import ClassifierData, ClassifierStage, Judge, Labels, new_classifier
from safelight.training.evaluation.classifier_config import ClassifierRecipe
from safelight.training.evaluation.comparing import compare_reconstructions, compare_samples, images, unit
from safelight.training.evaluation.evaluate import as_bytes, from_image
from safelight.training.evaluation.features import dct_features
from safelight.training.evaluation.references import NEW
from safelight.training.evaluation.report import Figure
from safelight.training.loop.assembly import SCHEDULER, autoencoder_config, seeded, unet_config
from safelight.training.loop.distributed import World
from safelight.training.loop.recipes import AutoencoderRecipe, DiffusionRecipe
from safelight.training.loop.train import Trainer, train
from safelight.training.stages.autoencoder import AutoencoderStage
from safelight.training.stages.diffusion import DiffusionStage
from safelight.training.stages.stage import Weights

LATENT_CHANNELS = {1: 3, 2: 2, 4: 3, 8: 4, 16: 16}  # as in the paper's table 8, KL
FACTORS = tuple(LATENT_CHANNELS)
MULTIPLIERS = (1, 2, 4, 8, 8)  # of the first stages' channels; the first log2(f) + 1 of them
SCENES = Mix(photos=0, backgrounds=0, counts=(1.0,), plain=1, gradient=0, plate=0, white=1, centered=1)
BATCH = {"classifier": 32, "autoencoder": 8, "diffusion": 16}
TURN, TURNS = 0.5, 3  # seconds of measuring a step at a time, and how often


class Pixels(nn.Module):
    """The first stage of f = 1: an exact identity, with an autoencoder's face."""

    dtype = torch.float32

    def __init__(self, size: int) -> None:
        super().__init__()
        self.config = AutoencoderConfig(latent_channels=3, sample_size=size)

    def encode(self, picture: Tensor, *, tile: int | None = None) -> Posterior:
        """The latent is the picture, known exactly."""
        return PointPosterior(picture, LatentScale())

    def decode(self, latent: Tensor, *, tile: int | None = None) -> Tensor:
        """The picture is the latent."""
        return latent

    def forward(self, picture: Tensor) -> Tensor:
        """Nothing is lost."""
        return picture


class UNetStage(DiffusionStage):
    """The second stage around any first one: it writes the U-Net alone."""

    def finish(self, folder: Path, weights: Weights, record: Mapping[str, Any]) -> None:
        """A folder for `load_unet`."""
        with replacing_folder(folder, is_ours=lambda _: True) as new:
            write_json(new / "config.json", self.model.unet.config.to_diffusers())
            write_safetensors(new / "diffusion_pytorch_model.safetensors", outgoing(weights["unet"]), {"format": "pt"})


@dataclass(frozen=True)
class Same:
    """A data set that gives one batch again and again at no cost, to measure steps with."""

    given: Batch | LatentBatch

    def __len__(self) -> int:
        return len(self.given)

    def batch(self, seed: int, numbers: Sequence[int], device: torch.device | str = "cpu") -> Batch | LatentBatch:
        """The batch, whatever its number."""
        return self.given


@dataclass(frozen=True, eq=False)
class Study:
    """All that the study is made of. `asked` are the options of the command."""

    asked: argparse.Namespace

    @property
    def out(self) -> Path:
        """The folder that everything is kept in."""
        return self.asked.out

    @cached_property
    def device(self) -> torch.device:
        """Where networks are trained."""
        return torch.device(self.asked.device)

    @cached_property
    def data(self) -> SceneData:
        """Scenes of one thing of the chosen groups."""
        wanted = {("sprite", group) for group in self.asked.groups}
        kept = open_collection(self.asked.data).where(lambda e: (e.meta.get("kind"), e.meta.get("group")) in wanted)
        return SceneData(kept, size=self.asked.size, mix=SCENES, layout=True, cache=self.out / "cache")

    def seconds(self) -> float:
        """The clock that minutes are counted by."""
        if self.device.type == "cpu":
            return time.process_time() / torch.get_num_threads()
        torch.cuda.synchronize()
        return time.perf_counter()

    def recipe(self, kind: type, steps: int, **more: Any) -> Any:
        """The options of one training."""
        return kind(data=str(self.asked.data), size=self.asked.size, steps=steps, course="cosine", warmup=20,
                    ema_decay=0.99, checkpoint_every=max(steps // 4, 1), log_every=max(steps // 20, 1),
                    sheet_every=max(steps // 2, 1), channels_last=True, seed=self.asked.seed, **more)  # fmt: skip

    def first(self, f: int, steps: int = 1) -> AutoencoderRecipe:
        """The first stage of f: a KL model that is trained for its pixels, without perceptual loss and adversary."""
        shape = {"channels": self.asked.channels // 2, "multipliers": MULTIPLIERS[: f.bit_length()], "layers": 1}
        losses = {"perceptual_weight": 0, "disc_weight": 0, "features_steps": 0, "latent_channels": LATENT_CHANNELS[f]}
        rates = {"learning_rate": 2e-3, "beta1": 0.9, "beta2": 0.99, "batch_size": BATCH["autoencoder"]}
        return self.recipe(AutoencoderRecipe, steps, **shape, **losses, **rates)

    def second(self, steps: int = 1) -> DiffusionRecipe:
        """The second stage: the same U-Net for every f, but for its first and last layer."""
        shape = {"channels": self.asked.channels, "multipliers": (1, 2, 4), "attention": (4,), "layers": 1}
        target = {"prediction_type": self.asked.prediction_type, "conditioning": "none", "head_channels": 16}
        return self.recipe(DiffusionRecipe, steps, learning_rate=1e-3, batch_size=BATCH["diffusion"], **shape, **target)

    def judging(self, steps: int = 1) -> ClassifierRecipe:
        """The classifier that gives the features to measure by: few, so that few pictures are enough."""
        shape = {"channels": (16, 32, 64, 128), "features": 64}
        return self.recipe(ClassifierRecipe, steps, batch_size=BATCH["classifier"], **shape)

    def first_stage(self, recipe: AutoencoderRecipe) -> AutoencoderStage:
        """A new first stage."""
        with seeded(recipe.seed):
            autoencoder = Autoencoder(autoencoder_config(recipe)).to(self.device)
            return AutoencoderStage(autoencoder, recipe, self.data, seed=recipe.seed)

    def second_stage(self, recipe: DiffusionRecipe, autoencoder: Any) -> UNetStage:
        """A new second stage around a first one."""
        side = recipe.size // autoencoder.config.factor
        with seeded(recipe.seed):
            unet = UNet(unet_config(recipe, autoencoder.config, None, 0, side))
        return UNetStage(self.model(unet, autoencoder).to(self.device), recipe)

    def model(self, unet: UNet, autoencoder: Any) -> LatentDiffusion:
        """Both stages together."""
        networks = {"unet": unet, "autoencoder": autoencoder}
        target = {"schedule": noise_schedule(), "prediction_type": self.asked.prediction_type}
        return LatentDiffusion(**networks, **target, scheduler_config=SCHEDULER)

    def classifier_stage(self, recipe: ClassifierRecipe) -> tuple[ClassifierStage, ClassifierData]:
        """A new classifier, and its data."""
        labels = Labels.of(self.data.collection)
        data = ClassifierData(self.data, labels)
        with seeded(recipe.seed):
            return ClassifierStage(new_classifier(labels, recipe).to(self.device), labels, recipe, data), data

    # How many steps ---------------------------------------------------------------------------------------------------

    def plan(self) -> dict[str, Any]:
        """The steps of each training and seconds a step: what stands in plan.json, or measured now."""
        path = self.out / "plan.json"
        settings = {name: value for name, value in vars(self.asked).items() if name != "out"}
        if path.exists():
            found = json.loads(path.read_text())
            if found["settings"] != settings:
                raise SystemExit(f"{self.out} was begun with {found['settings']}: name another --out")
            return found
        seconds = self.seconds_per_step()
        share = {name: {"diffusion 1": 2, "classifier": 0.5}.get(name, 1) for name in seconds}
        steps = {name: max(round(60 * self.asked.minutes * share[name] / s), 1) for name, s in seconds.items()}
        rates = {name: BATCH[name.split()[0]] / s for name, s in seconds.items()}
        plan = {"settings": settings, "steps": steps, "samples_per_second": rates}
        write_json(path, plan)
        return plan

    def seconds_per_step(self) -> dict[str, float]:
        """The median over turns, which all trainings take one after the other."""
        taken: dict[str, list[float]] = {}
        with tempfile.TemporaryDirectory() as folder:
            running = {name: self.running(*parts, Path(folder) / name) for name, parts in self.trainings().items()}
            for turn in range(TURNS + 1):
                for name, step in running.items():
                    value = self.timed(step)
                    if turn:  # the first is to get warm
                        taken.setdefault(name, []).append(value)
        return {name: statistics.median(some) for name, some in taken.items()}

    def trainings(self) -> dict[str, tuple[Any, Any, Any]]:
        """Stage, data and recipe of every training, as they are to be measured."""
        pictures = Batch(torch.zeros(16, 3, *2 * [self.asked.size], device=self.device), [""] * 16)
        recipe = self.judging()
        found: dict[str, Any] = {"classifier": (*self.classifier_stage(recipe), recipe)}
        for f in FACTORS:
            autoencoder: Any = Pixels(self.asked.size)
            given: Any = pictures
            if f > 1:
                first = self.first_stage(self.first(f))
                found[f"autoencoder {f}"] = (first, self.data, self.first(f))
                autoencoder = Autoencoder(first.generator.autoencoder.config)
                shape = (16, 2 * LATENT_CHANNELS[f], *2 * [self.asked.size // f])
                given = LatentBatch(torch.zeros(shape, device=self.device), [""] * 16)
            found[f"diffusion {f}"] = (self.second_stage(self.second(), autoencoder), Same(given), self.second())
        return found

    def running(self, stage: Any, data: Any, recipe: Any, folder: Path) -> Callable[[], None]:
        """A function that makes a step of a training."""
        trainer = Trainer(stage, data, folder, recipe, World(device=self.device))
        batches = trainer.batches()

        def step() -> None:
            trainer.forward_backward(batches)
            trainer.update()

        return step

    def timed(self, step: Callable[[], None]) -> float:
        """Seconds a step, of one turn."""
        count, start = 0, self.seconds()
        while not count or self.seconds() - start < TURN:
            step()
            count += 1
        return (self.seconds() - start) / count

    # Training ---------------------------------------------------------------------------------------------------------

    def trained(self, run: Path, make: Callable[[], tuple[Any, Any]], recipe: Any) -> Path:
        """The folder of a trained model; trains it, or goes on with it, if it is not there yet."""
        if not (run / "model").exists():
            run.mkdir(parents=True, exist_ok=True)
            stage, data = make()
            train(stage, data, run, recipe, world=World(device=self.device))
        return run / "model"

    def judge(self, steps: int) -> Judge:
        """The trained classifier."""
        recipe = self.judging(steps)
        folder = self.trained(self.out / "classifier", lambda: self.classifier_stage(recipe), recipe)
        return Judge.load(folder, device=self.device)

    def autoencoder(self, f: int, steps: int) -> Any:
        """The trained first stage of f."""
        if f == 1:
            return Pixels(self.asked.size)
        recipe = self.first(f, steps)
        folder = self.trained(self.out / f"f{f}" / "autoencoder", lambda: (self.first_stage(recipe), self.data), recipe)
        return load_autoencoder(folder, device=self.device, dtype=torch.float32).eval()

    def diffusion(self, f: int, autoencoder: Any, steps: int) -> LatentDiffusion:
        """The model of f, trained on the latents of its first stage, or on pictures where that is none."""
        recipe, folder = self.second(steps), self.out / f"f{f}"

        def make() -> tuple[Any, Any]:
            data: Any = self.data
            if f > 1:
                shared = {"count": self.asked.scenes, "seed": recipe.seed, "device": self.device, "batch_size": 32}
                precompute(self.data, autoencoder, folder / "latents", **shared)
                data = LatentData(folder / "latents", resident=True)
            return self.second_stage(recipe, autoencoder), data

        path = self.trained(folder / "diffusion", make, recipe)
        return self.model(load_unet(path, device=self.device, dtype=torch.float32), autoencoder)

    # Measuring --------------------------------------------------------------------------------------------------------

    @cached_property
    def real(self) -> tuple[Tensor, Tensor]:
        """New scenes, to compare with, and as many others to compare these with: (N, 3, S, S) uint8 each."""
        n = self.asked.count
        pictures = torch.cat([self.data.gather(NEW, [i]).pictures for i in range(2 * n)])
        return pictures[:n], pictures[n:]

    def result(self, f: int, plan: Mapping[str, Any], extractors: Sequence[Any]) -> dict[str, Any]:
        """Train and measure f; what is there already is read."""
        path = self.out / f"f{f}" / "result.json"
        if path.exists():
            return json.loads(path.read_text())
        autoencoder = self.autoencoder(f, plan["steps"].get(f"autoencoder {f}", 0))
        model = self.diffusion(f, autoencoder, plan["steps"][f"diffusion {f}"])
        with torch.inference_mode():
            real, others = self.real
            made = torch.cat([as_bytes(autoencoder(unit(b).to(self.device))) for b in real.split(16)])
            figures, _ = compare_reconstructions(real, made, extractors)
            start, drawn = self.seconds(), self.drawn(model)
            rate = len(drawn) / (self.seconds() - start)
            more, _ = compare_samples(drawn, real, others, extractors, seed=self.asked.seed)
        self.keep(f, picture=real, reconstruction=made, sample=drawn)
        found = {
            "f": f,
            "latent": f"{self.asked.size // f}x{self.asked.size // f}x{LATENT_CHANNELS[f]}",
            "parameters": {"U-Net": count(model.unet), "autoencoder": count(autoencoder)},
            "figures": by_name(figures + more),
            "real": by_name(more, real=True),
            "drawn_per_second": rate,
        }
        write_json(path, found)
        return found

    def drawn(self, model: LatentDiffusion) -> Tensor:
        """Pictures of seeds 0, 1, 2, …, (N, 3, S, S) uint8."""
        pictures = text_to_image(model, "", steps=self.asked.sampling_steps, guidance_scale=1.0, sampler="ddim",
                                 grid="trailing", seed=0, count=self.asked.count, batch_size=32)  # fmt: skip
        return torch.stack([from_image(picture) for picture in pictures])

    def keep(self, f: int, **kinds: Tensor) -> None:
        """Keep a row of pictures of each kind for the sheets of all f."""
        for name, pictures in kinds.items():
            for i, picture in enumerate(images(pictures[:PER_SHEET])):
                picture.save(self.out / f"f{f}" / f"{name}-{i}.png")


def count(module: nn.Module) -> int:
    return sum(p.numel() for p in module.parameters())


def by_name(figures: Sequence[Figure], *, real: bool = False) -> dict[str, float]:
    """The figures of the table. Precision and recall are in the classifier's features, which come first."""
    found: dict[str, float] = {}
    for figure in figures:
        value = figure.real if real else figure.value
        if figure.name in COLUMNS and value is not None:
            found.setdefault(figure.name, value)
    return {name: value for name, value in found.items() if isfinite(value)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", help="a collection of sprites: a zip or a folder")
    parser.add_argument("--minutes", type=float, default=10, help="of each training (see above)")
    parser.add_argument("--out", type=Path, default=Path("compression"))
    parser.add_argument("--size", type=int, default=64)
    parser.add_argument("--channels", type=int, default=16, help="of the U-Net's first level; twice the first stages'")
    parser.add_argument("--groups", nargs="+", default=["smileys-emotion"], help="of the collection, to draw")
    parser.add_argument("--scenes", type=int, default=4096, help="whose latents the second stages train on")
    parser.add_argument("--count", type=int, default=256, help="pictures to measure on")
    parser.add_argument("--sampling-steps", type=int, default=20)
    parser.add_argument("--prediction-type", choices=["epsilon", "v_prediction"], default="v_prediction",
                        help="the paper's is epsilon; v learns what is large sooner")  # fmt: skip
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--device", default="cpu")
    asked = parser.parse_args()
    torch.set_num_threads(asked.threads)
    asked.out.mkdir(parents=True, exist_ok=True)
    study = Study(asked)
    plan = study.plan()
    print(json.dumps(plan["steps"]), flush=True)
    judge = study.judge(plan["steps"]["classifier"])
    results = []
    for f in reversed(FACTORS):
        results.insert(0, study.result(f, plan, [judge.extractor, dct_features()]))
        print(json.dumps(results[0]), flush=True)
    plot(results, plan, asked.out / "compression.png")
    sheet(asked.out, [(f, "sample") for f in FACTORS], "samples", asked.out / "samples.png")
    pairs = [(FACTORS[-1], "picture"), *((f, "reconstruction") for f in FACTORS)]
    sheet(asked.out, pairs, "reconstructions", asked.out / "reconstructions.png")
    text = report(asked, study.device, results, plan, len(study.data), judge.extractor.name)
    (asked.out / "compression.md").write_text(text, encoding="utf-8")
    print(text)


if __name__ == "__main__":
    main()
