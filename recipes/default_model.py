"""The default model, from pictures to the folder that ships: one command, which goes on wherever it was stopped.

    python recipes/default_model.py PICTURES --run RUN                   train, and write RUN/default
    python recipes/default_model.py PICTURES --run RUN --recipe gpu      the same, larger, on a GPU
    python recipes/default_model.py PICTURES --run RUN --recipe further  go on from the model that ships
    python recipes/default_model.py PICTURES --run RUN --steps 2 --batch-size 4       see that it works
    python recipes/default_model.py --pack PICTURES SMALL --side 160     pictures for a machine that is far away
    python recipes/default_model.py --pack PICTURES SMALL --concepts recipes/concepts.txt      of these things alone

PICTURES is a collection of sprites, backgrounds and photographs as `safelight.training.data.sprites` describes it. Each
stage is a command of `safelight train` or of this folder, which is printed; `--minutes` stops it after that time with
everything saved, and the same command goes on. What is written at the end is the averaged weights as float16
safetensors in diffusers' layout, with the attribution of the pictures beside them: to ship it, put it in place of
src/safelight/default.
"""

import argparse
import io
import json
import math
import shlex
import shutil
import signal
import subprocess
import sys
import time
import zipfile
from pathlib import Path
from typing import Any

from PIL import Image

from safelight.checkpoint.convert import convert
from safelight.checkpoint.writing import replacing

SHIPPED = Path(__file__).parents[1] / "src" / "safelight" / "default"
MOST_BYTES = 64_000_000
TABLE, ATTRIBUTION, LICENSES = "captions.jsonl", "ATTRIBUTION.md", "licenses/"

SCENES = {"scenes": True, "cache": "{run}/cache"}
# What a picture is of must come from the words where noise hides it, and nowhere else is there as much to learn: there
# the error with the right words is half of that with others, where there is little noise it is the same.
NOISY = {"timesteps": "logit_normal", "logit-mean": 0.4, "logit-std": 1.1, "stratified": True}
QUIET = {"log-every": 50, "checkpoint-every": 500, "sheet-every": 500}
PLACED = {"mix": "placed", "objects": "0.8,0.15,0.03,0.02"}  # half of the things smaller, and aside
DRAWN = {"course": "cosine", "ema-decay": 0.998, "weight-decay": 0.01, "sheet-steps": 20, "sheet-guidance": 4}
PIXELS = {"reduction": "mean", "perceptual-weight": 0, "features-steps": 0, "disc-weight": 0, "beta1": 0.9,
          "beta2": 0.99, "clip": 1, "batch-size": 8, "course": "cosine", "ema-decay": 0.998,
          "sheet-pictures": 16}  # fmt: skip

# What a day of one core can do: of 128 pixels, 16 to each of the latents' 8x8 places, since what the second
# stage costs goes by places. The first stage learns pixels alone. The second learns things in the middle, then things
# aside, in eight channels, since few are learnt soonest; then it gets the others, for edges and small things. The
# decoder goes on when latents are settled, since what it learns then leaves the second stage valid: with twice the
# channels, and to bear what little training leaves in latents, which otherwise shows as stains on flat grounds. Then
# all this once more with as many latent channels again, and a decoder that is trained on PSNR itself: between one for
# calm latents, which gives pictures back best, and one for disturbed latents, which draws the calmest edges.
CPU = {
    "autoencoder": {
        **SCENES, **QUIET, **PIXELS, "size": 128, "channels": 8, "multipliers": "1,2,4,8,16", "layers": 1,
        "latent-channels": 8, "kl-weight": 4e-6, "learning-rate": 1e-3, "steps": 5000, "warmup": 50,
    },
    "diffusion": {
        **SCENES, **QUIET, **NOISY, **DRAWN, "size": 128, "channels": 96, "multipliers": "1,2", "attention": "1,2",
        "layers": 1, "text-width": 128, "text-layers": 2, "text-length": 40, "vocabulary-size": 2048, "mix": "simple",
        "objects": "0.85,0.1,0.03,0.02", "prediction-type": "v_prediction", "learning-rate": 8e-4, "batch-size": 16,
        "steps": 14000, "warmup": 200,
    },
    "places": {
        **SCENES, **QUIET, **PLACED, **NOISY, **DRAWN, "size": 128, "train-text-encoder": True, "learning-rate": 8e-4,
        "batch-size": 16, "steps": 12000, "warmup": 200,
    },
    "latents": {"channels": 32, "mixes": ("varied", "placed"), "steps": 6000, "batch-size": 8},
    "scenes": {**SCENES, **PLACED, "size": 128, "count": 120000, "batch-size": 32},
    "details": {
        **QUIET, **NOISY, **DRAWN, "logit-mean": 0.2, "train-text-encoder": True, "learning-rate": 6e-4,
        "batch-size": 32, "steps": 24000, "warmup": 100,
    },
    "wider": {"times": 2},
    "decoder": {
        **SCENES, **QUIET, **PIXELS, "size": 128, "mix": "placed", "decoder-only": True, "latent-noise": 0.25,
        "learning-rate": 3e-4, "steps": 12500, "warmup": 200,
    },
    "joined": {},
    "finer": {"channels": 64, "mixes": ("varied", "placed"), "steps": 10000, "batch-size": 8, "learning-rate": 6e-4},
    "finer_scenes": {**SCENES, **PLACED, "size": 128, "count": 110000, "batch-size": 32},
    "finer_details": {
        **QUIET, **NOISY, **DRAWN, "logit-mean": 0.2, "train-text-encoder": True, "learning-rate": 6e-4,
        "batch-size": 32, "steps": 20000, "warmup": 100,
    },
    "finer_decoder": {
        **SCENES, **QUIET, **PIXELS, "size": 128, "mix": "placed", "decoder-only": True, "latent-noise": 0.25,
        "pixel-loss": "l2", "reduction": "log", "learning-rate": 3e-4, "steps": 6000, "warmup": 200,
    },
    "disturbed": {
        **SCENES, **QUIET, **PIXELS, "size": 128, "mix": "placed", "decoder-only": True, "latent-noise": 0.6,
        "pixel-loss": "l2", "reduction": "log", "learning-rate": 3e-4, "steps": 7500, "warmup": 200,
    },
    "mean": {"share": 0.5},
}  # fmt: skip

# For half an hour of a data-centre GPU, in three leases of ten minutes; not yet run. A step may take it 20 ms, and the
# scenes for one take a core 140 to 380 ms, so that a dozen make them.
GPU = {
    "autoencoder": {
        **SCENES, "workers": 12, "size": 128, "channels": 32, "multipliers": "1,2,4,4", "layers": 1,
        "latent-channels": 8, "reduction": "mean", "kl-weight": 1e-6, "features-steps": 1000, "perceptual-weight": 1,
        "learning-rate": 5e-4, "beta1": 0.9, "beta2": 0.99, "clip": 1, "batch-size": 128, "steps": 12000, "warmup": 200,
        "course": "cosine", "disc-start": 6000, "disc-warmup": 500, "disc-weight": 0.3, "precision": "bfloat16",
        "channels-last": True, "compile": True, "ema-decay": 0.999, "log-every": 100, "checkpoint-every": 1000,
        "sheet-every": 2000, "sheet-pictures": 16,
    },
    "diffusion": {
        **SCENES, **NOISY, "workers": 12, "size": 128, "channels": 96, "multipliers": "1,2,3", "attention": "2,4",
        "layers": 1,
        "text-width": 192, "text-layers": 4, "text-length": 48, "vocabulary-size": 4096,
        "mix": "placed", "objects": "0.7,0.16,0.09,0.05", "prediction-type": "v_prediction", "learning-rate": 4e-4,
        "batch-size": 512, "steps": 10000, "warmup": 500, "course": "cosine", "ema-decay": 0.9995,
        "precision": "bfloat16", "channels-last": True, "compile": True, "log-every": 100, "checkpoint-every": 1000,
        "sheet-every": 2000, "sheet-steps": 20, "sheet-guidance": 4,
    },
}  # fmt: skip

# The second stage alone, from the weights that ship: they get better with every hour.
FURTHER = {"scenes": CPU["scenes"], "details": {**CPU["details"], "steps": 12000}}
RECIPES = {"cpu": CPU, "gpu": GPU, "further": FURTHER}
# Each stage: its command, and what there is when it is finished (of scenes the command itself finds out). `grown` is
# the model that goes on with all latents: the recipe's own, or the one that ships.
STAGES = {
    "autoencoder": ("train autoencoder {pictures} --run {run}/autoencoder", "autoencoder/model"),
    "diffusion": ("train diffusion {pictures} --run {run}/diffusion --autoencoder {run}/autoencoder/model",
                  "diffusion/model"),
    "places": ("train diffusion {pictures} --run {run}/places --init {run}/diffusion/model", "places/model"),
    "latents": ("grow_latents.py {run}/places/model {pictures} --run {run}/latents", "latents/grown"),
    "scenes": ("train precompute {pictures} --out {run}/scenes --autoencoder {grown}", None),
    "details": ("train diffusion {run}/scenes --run {run}/details --init {grown}", "details/model"),
    "wider": ("widen_autoencoder.py {grown} {run}/wider/model", "wider/model"),
    "decoder": ("train autoencoder {pictures} --run {run}/decoder --init {run}/wider/model", "decoder/model"),
    "joined": ("convert {run}/details/model {run}/joined --vae {run}/decoder/model", "joined"),
    "finer": ("grow_latents.py {run}/joined {pictures} --run {run}/finer", "finer/grown"),
    "finer_scenes": ("train precompute {pictures} --out {run}/finer_scenes --autoencoder {run}/finer/model", None),
    "finer_details": ("train diffusion {run}/finer_scenes --run {run}/finer_details --init {run}/finer/grown",
                      "finer_details/model"),
    "finer_decoder": ("train autoencoder {pictures} --run {run}/finer_decoder --init {run}/finer/model",
                      "finer_decoder/model"),
    "disturbed": ("train autoencoder {pictures} --run {run}/disturbed --init {run}/finer_decoder/model",
                  "disturbed/model"),
    "mean": ("average_autoencoders.py {run}/finer_decoder/model {run}/disturbed/model {run}/mean/model", "mean/model"),
}  # fmt: skip
# The stages whose U-Net and whose decoder are written: the first of these that a recipe has
DRAWING, DECODING = ("finer_details", "details", "diffusion"), ("mean", "decoder")
CONCEPTS = dict.fromkeys(("cpu", "further"), Path(__file__).with_name("concepts.txt"))

PROMPTS = (
    "a 3D render of a red apple on a blue background", "a flat emoji of a dog on a white background",
    "a gradient emoji of a grinning face on a yellow background", "a cartoon of a cat on a green background",
    "a twemoji of a red heart", "a pixel art sprite of a green slime", "a photo of a banana",
    "a 3D render of a green frog at the left and a flat emoji of a red car at the right, on a white background",
)  # fmt: skip


def main() -> int:
    """Run each stage that is not finished, then write the folder."""
    asked = arguments()
    if asked.pack:
        return pack(*asked.pack, concepts=asked.concepts, side=asked.side)
    end = time.monotonic() + 60 * asked.minutes if asked.minutes else math.inf
    stages = RECIPES[asked.recipe]
    grown = asked.run / "latents" / "grown" if "latents" in stages else SHIPPED
    places = {"run": asked.run, "pictures": chosen(asked), "grown": grown}
    for stage, options in stages.items():
        made = asked.run / STAGES[stage][1] if STAGES[stage][1] else None
        if made and made.is_dir():
            continue
        code, late = perform(command(stage, options, asked, places), end), time.monotonic() >= end
        if code != 0 and not late:
            return code
        if late or (made and not made.is_dir()):
            print("stopped in time; the same command goes on")
            return 0
    folder = asked.run / "default"
    shutil.rmtree(folder, ignore_errors=True)  # of a former end
    drawing, decoding = ([asked.run / one / "model" for one in each if one in stages] for each in (DRAWING, DECODING))
    convert(drawing[0], folder, dtype="float16", vae=decoding[0] if decoding else None)
    attribute(asked.pictures, folder)
    size = sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())
    print(f"{folder}: {size / 1e6:.1f} MB")
    return 0 if size <= MOST_BYTES else 1


def chosen(asked: argparse.Namespace) -> Path:
    """The pictures that a recipe learns from: all, or a collection packed of those that it names."""
    concepts = asked.concepts or CONCEPTS.get(asked.recipe)
    if concepts is None:
        return asked.pictures
    small = asked.run / "pictures.zip"
    if not small.is_file():
        small.parent.mkdir(parents=True, exist_ok=True)
        pack(asked.pictures, small, concepts=concepts, side=asked.side)
    return small


def arguments() -> argparse.Namespace:
    """What was asked for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("pictures", type=Path, nargs="?", help="the collection")
    parser.add_argument("--run", type=Path, help="folder for all that is made")
    parser.add_argument("--recipe", choices=RECIPES, default="cpu")
    parser.add_argument("--device", help="cpu or cuda; by default the best there is")
    parser.add_argument("--minutes", type=float, help="stop after so many")
    parser.add_argument("--steps", type=int, help="of every stage at most, to see that it works")
    parser.add_argument("--batch-size", type=int, help="instead of the recipe's")
    parser.add_argument("--pack", type=Path, nargs=2, metavar=("PICTURES", "SMALL"), help="write a smaller collection")
    parser.add_argument("--concepts", type=Path, help="take what this file names alone, and what stands behind it")
    parser.add_argument("--side", type=int, default=160, help="longest side of a packed picture, in pixels")
    asked = parser.parse_args()
    if not asked.pack and not (asked.pictures and asked.run):
        parser.error("name the pictures and --run")
    return asked


def command(stage: str, options: dict[str, Any], asked: argparse.Namespace, places: dict[str, Path]) -> list[str]:
    """The words of a stage's command, behind python's: of `safelight`, or of a recipe beside this file."""
    kind, *words = [word.format(**places) for word in STAGES[stage][0].split()]
    if kind == "train":
        kind = f"train {words.pop(0)}"
        words += ["--device", asked.device] if asked.device else []
    if asked.steps:
        counts = ("steps", "features-steps", "sheet-steps", "count")
        options = {**options, **{name: min(options[name], asked.steps) for name in counts if name in options}}
    if asked.batch_size and "batch-size" in options:
        options = {**options, "batch-size": asked.batch_size}
    for name, value in options.items():
        several = value if isinstance(value, tuple) else () if value is True else (str(value).format(**places),)
        words += [f"--{name}", *several]
    for prompt in PROMPTS if kind == "train diffusion" else ():
        words += ["--sheet-prompts", prompt]
    head = [str(Path(__file__).with_name(kind))] if kind.endswith(".py") else ["-m", "safelight", *kind.split()]
    return [*head, *words]


def perform(words: list[str], end: float) -> int:
    """Run a command until it is finished or the time is up. Its exit code."""
    print("python", shlex.join(words), flush=True)
    process = subprocess.Popen([sys.executable, *words])
    try:
        return process.wait(None if end == math.inf else max(end - time.monotonic(), 1))
    except (subprocess.TimeoutExpired, KeyboardInterrupt):
        process.send_signal(signal.SIGTERM)  # finishes its step and saves
        return process.wait()


def attribute(pictures: Path, folder: Path) -> None:
    """Put the collection's attribution and licences beside the weights, as they ask for."""
    with zipfile.ZipFile(pictures) as archive:
        for name in archive.namelist():
            if name == ATTRIBUTION or (name.startswith(LICENSES) and not name.endswith("/")):
                target = folder / name
                target.parent.mkdir(exist_ok=True)
                with archive.open(name) as source, replacing(target) as file:
                    shutil.copyfileobj(source, file)


def pack(pictures: Path, small: Path, *, concepts: Path | None, side: int) -> int:
    """Write the collection again, or a part of it, no picture longer than `side`, as WebP of high quality."""
    with zipfile.ZipFile(pictures) as archive, replacing(small) as file, zipfile.ZipFile(file, "w") as packed:
        lines = archive.read(TABLE).decode().splitlines()
        rows = [row for line in lines if wanted(row := json.loads(line), named(concepts) if concepts else None)]
        files = {row["file"] for row in rows}
        packed.writestr(TABLE, "\n".join(json.dumps(row, ensure_ascii=False) for row in rows))
        for name in archive.namelist():
            if name in files:
                packed.writestr(name, smaller(archive.read(name), side))
            elif name == ATTRIBUTION or name.startswith(LICENSES):
                packed.writestr(name, archive.read(name))
    print(f"{small}: {len(rows)} pictures, {small.stat().st_size / 1e6:.1f} MB")
    return 0


def named(concepts: Path) -> set[str]:
    """The names in a file, which stand between semicolons and line ends; lines with # are remarks."""
    lines = [line for line in concepts.read_text(encoding="utf-8").splitlines() if not line.startswith("#")]
    return {name.strip() for line in lines for name in line.split(";")} - {""}


def wanted(row: dict[str, Any], names: set[str] | None) -> bool:
    """Whether a picture is taken: all are, or one of the names and one of all the tones of skin."""
    whole = names is None or row["kind"] in ("texture", "background")
    return whole or (names is not None and row["name"] in names and not row.get("skin"))


def smaller(content: bytes, side: int) -> bytes:
    """A WebP picture no longer than `side`, if that makes it smaller."""
    picture = Image.open(io.BytesIO(content))
    if max(picture.size) <= 64:  # pixel art stays as it is
        return content
    picture.thumbnail((side, side), Image.Resampling.LANCZOS)
    made = io.BytesIO()
    picture.save(made, "WEBP", quality=85, method=4)
    return min(content, made.getvalue(), key=len)


if __name__ == "__main__":
    sys.exit(main())
