"""The default model, from pictures to the folder that ships: one command, which goes on wherever it was stopped.

    python recipes/default_model.py PICTURES --run RUN                   train, and write RUN/default
    python recipes/default_model.py PICTURES --run RUN --recipe gpu      the same, larger, on a GPU
    python recipes/default_model.py PICTURES --run RUN --recipe further  go on from the model that ships
    python recipes/default_model.py PICTURES --run RUN --steps 2 --batch-size 4       see that it works
    python recipes/default_model.py --pack PICTURES SMALL --side 160     pictures for a machine that is far away
    python recipes/default_model.py --pack PICTURES SMALL --concepts recipes/concepts.txt      of these things alone

PICTURES is a collection of sprites, backgrounds and photographs as `safelight.training.data.sprites` describes it. Each
stage is a `safelight train` command, which is printed; `--minutes` stops it after that time with everything saved, and
the same command goes on. What is written at the end is the averaged weights as float16 safetensors in diffusers'
layout, with the attribution of the pictures beside them: to ship it, put it in place of src/safelight/default.
"""

import argparse
import io
import json
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

# What a few hours of one core can do: of 128 pixels, 16 to each of the latents' 8x8 places, since what the second stage
# costs goes by places. The first stage learns pixels alone. The second learns things in the middle, then things aside.
# The decoder goes on when latents are settled, since what it learns then leaves the second stage valid; it learns to
# bear what little training leaves in latents, which otherwise shows as stains on grounds that should be flat.
CPU = {
    "autoencoder": {
        **SCENES, **QUIET, "size": 128, "channels": 8, "multipliers": "1,2,4,8,16", "layers": 1, "latent-channels": 8,
        "reduction": "mean", "kl-weight": 4e-6, "perceptual-weight": 0, "features-steps": 0, "disc-weight": 0,
        "learning-rate": 1e-3, "beta1": 0.9, "beta2": 0.99, "clip": 1, "batch-size": 8, "steps": 2600, "warmup": 50,
        "course": "cosine", "ema-decay": 0.998, "sheet-pictures": 16,
    },
    "diffusion": {
        **SCENES, **QUIET, "size": 128, "channels": 96, "multipliers": "1,2", "attention": "1,2", "layers": 1,
        "text-width": 128, "text-layers": 2, "text-length": 40, "vocabulary-size": 2048,
        "mix": "simple", "objects": "0.85,0.1,0.03,0.02",
        "prediction-type": "v_prediction", **NOISY, "learning-rate": 8e-4, "batch-size": 16, "steps": 14000,
        "warmup": 200, "course": "cosine", "ema-decay": 0.998, "weight-decay": 0.01, "sheet-steps": 20,
        "sheet-guidance": 4,
    },
    "places": {
        **SCENES, **QUIET, "size": 128, "train-text-encoder": True, "mix": "placed", "objects": "0.8,0.15,0.03,0.02",
        **NOISY, "learning-rate": 8e-4, "batch-size": 16, "steps": 12000, "warmup": 200, "course": "cosine",
        "ema-decay": 0.998, "weight-decay": 0.01, "sheet-steps": 20, "sheet-guidance": 4,
    },
    "decoder": {
        **SCENES, **QUIET, "size": 128, "mix": "placed", "decoder-only": True, "latent-noise": 0.25,
        "reduction": "mean", "perceptual-weight": 0, "features-steps": 0, "disc-weight": 0, "learning-rate": 1e-3,
        "beta1": 0.9, "beta2": 0.99, "clip": 1, "batch-size": 8, "steps": 6000, "warmup": 100,
        "course": "cosine", "ema-decay": 0.998, "sheet-pictures": 16,
    },
}  # fmt: skip

# For half an hour of a data-centre GPU, in three leases of ten minutes; not yet run.
GPU = {
    "autoencoder": {
        **SCENES, "size": 128, "channels": 32, "multipliers": "1,2,4,4", "layers": 1, "latent-channels": 8,
        "reduction": "mean", "kl-weight": 1e-6, "features-steps": 1000, "perceptual-weight": 1, "learning-rate": 5e-4,
        "beta1": 0.9, "beta2": 0.99, "clip": 1, "batch-size": 128, "steps": 12000, "warmup": 200, "course": "cosine",
        "disc-start": 6000, "disc-warmup": 500, "disc-weight": 0.3, "precision": "bfloat16", "channels-last": True,
        "compile": True, "ema-decay": 0.999, "log-every": 100, "checkpoint-every": 1000, "sheet-every": 2000,
        "sheet-pictures": 16,
    },
    "diffusion": {
        **SCENES, "size": 128, "channels": 96, "multipliers": "1,2,3", "attention": "2,4", "layers": 1,
        "text-width": 192, "text-layers": 4, "text-length": 48, "vocabulary-size": 4096,
        "mix": "placed", "objects": "0.7,0.16,0.09,0.05",
        "prediction-type": "v_prediction", **NOISY, "learning-rate": 4e-4, "batch-size": 512,
        "steps": 10000, "warmup": 500, "course": "cosine", "ema-decay": 0.9995, "precision": "bfloat16",
        "channels-last": True, "compile": True, "log-every": 100, "checkpoint-every": 1000, "sheet-every": 2000,
        "sheet-steps": 20, "sheet-guidance": 4,
    },
}  # fmt: skip

# The second stage alone, from the weights that ship: they get better with every hour.
FURTHER = {
    "diffusion": {
        **SCENES, **QUIET, "size": 128, "init": str(SHIPPED), "train-text-encoder": True,
        "mix": "placed", "objects": "0.8,0.15,0.03,0.02", **NOISY, "learning-rate": 8e-4, "batch-size": 16,
        "steps": 9000, "warmup": 100, "course": "cosine", "ema-decay": 0.998, "weight-decay": 0.01, "sheet-steps": 20,
        "sheet-guidance": 4,
    },
}  # fmt: skip
RECIPES = {"cpu": CPU, "gpu": GPU, "further": FURTHER}
# Each stage: its `safelight train` command, and by which option it begins with what an earlier stage made.
STAGES = {
    "autoencoder": ("autoencoder", {}),
    "diffusion": ("diffusion", {"autoencoder": "--autoencoder"}),
    "places": ("diffusion", {"diffusion": "--init"}),
    "decoder": ("autoencoder", {"autoencoder": "--init"}),
}
CONCEPTS = {"cpu": Path(__file__).with_name("concepts.txt"), "further": Path(__file__).with_name("concepts.txt")}

PROMPTS = (
    "a 3D render of a red apple on a blue background", "a flat emoji of a dog on a white background",
    "a gradient emoji of a grinning face on a yellow background", "a cartoon of a cat on a green background",
    "a twemoji of a red heart", "a pixel art sprite of a green slime", "a photo of a banana",
    "a 3D render of a green frog at the left and a flat emoji of a red car at the right, on a white background",
)  # fmt: skip


def main() -> int:
    """Train each stage that is not finished, then write the folder."""
    asked = arguments()
    if asked.pack:
        return pack(*asked.pack, concepts=asked.concepts, side=asked.side)
    end = time.monotonic() + 60 * asked.minutes if asked.minutes else None
    made: dict[str, Path] = {}
    pictures = chosen(asked)
    for stage, options in RECIPES[asked.recipe].items():
        made[stage] = asked.run / stage / "model"
        if not made[stage].is_dir() and (code := train(stage, options, pictures, asked, made, end)) != 0:
            return code
        if not made[stage].is_dir():
            print("stopped in time; the same command goes on")
            return 0
    folder = asked.run / "default"
    convert(made.get("places", made["diffusion"]), folder, dtype="float16", vae=made.get("decoder"))
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


def train(
    stage: str,
    options: dict[str, Any],
    pictures: Path,
    asked: argparse.Namespace,
    made: dict[str, Path],
    end: float | None,
) -> int:
    """Run one `safelight train` command, until it is finished or the time is up. Its exit code."""
    command, begins = STAGES[stage]
    words = [command, str(pictures), "--run", str(asked.run / stage)]
    words += ["--device", asked.device] if asked.device else []
    for earlier, option in begins.items():
        words += [option, str(made[earlier])] if earlier in made else []
    if asked.steps:
        counts = ("steps", "features-steps", "sheet-steps")
        fewer = {name: min(options[name], asked.steps) for name in counts if name in options}
        options = {**options, **fewer}
    if asked.batch_size:
        options = {**options, "batch-size": asked.batch_size}
    for name, value in options.items():
        words += [f"--{name}"] if value is True else [f"--{name}", str(value).format(run=asked.run)]
    for prompt in PROMPTS if command == "diffusion" else ():
        words += ["--sheet-prompts", prompt]
    print("safelight train", shlex.join(words), flush=True)
    process = subprocess.Popen([sys.executable, "-m", "safelight", "train", *words])
    try:
        return process.wait(None if end is None else max(end - time.monotonic(), 1))
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
