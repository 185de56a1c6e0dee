"""How many steps a model needs: each sampler's pictures beside the ones that many steps give.

    python bench/steps.py                                        the model that ships
    python bench/steps.py --model MODEL --samplers euler,dpmpp_2m --steps 5,10,20,40 --out steps

Every sampler draws the same prompts from the same noise. Samplers that add no noise on the way all solve one equation,
whose solution `--reference` steps of the finest come near: the table gives the mean PSNR to that, and the seconds a
picture takes. A sampler that adds noise draws other pictures, so for it the table gives the time alone, and for all
there is a sheet to look at, a row for each count of steps.
"""

import argparse
import statistics
import time
from pathlib import Path

import torch
from PIL import Image, ImageDraw

import safelight
from safelight.diffusion.samplers import SAMPLERS
from safelight.pipeline.bundle import LatentDiffusion
from safelight.pipeline.pictures import Pictures
from safelight.training.evaluation.evaluate import from_image
from safelight.training.evaluation.metrics import psnr

PROMPTS = (
    "a 3D render of a red apple on a blue background", "a flat emoji of a dog on a white background",
    "an emoji of a grinning face on a yellow background", "a cartoon of a cat on a green background",
    "a red heart on a white background", "a pixel art sprite of a dragon", "a photo of a banana",
    "a blue car and a green tree",
)  # fmt: skip
LABEL = 78  # pixels left of a row


def main() -> None:
    """Draw, print the table as it grows, save the sheets."""
    asked = arguments()
    model = safelight.load(asked.model)
    guidance = model.guidance_scale if asked.guidance is None else asked.guidance
    asked.out.mkdir(parents=True, exist_ok=True)
    draw(model, asked.samplers[0], 2, asked)  # the first run finds memory and kernels
    exact = draw(model, "dpmpp_2m", asked.reference, asked)[0]
    print(f"{len(PROMPTS)} prompts, guidance {guidance:g}, beside dpmpp_2m in {asked.reference} steps\n")
    print("| sampler | " + " | ".join(f"{n} steps" for n in asked.steps) + " | s a step and picture |")
    print("| --- |" + " --- |" * (len(asked.steps) + 1))
    for sampler in asked.samplers:
        rows, cells, times = [], [], []
        for steps in asked.steps:
            pictures, seconds = draw(model, sampler, steps, asked)
            times.append(seconds / steps / len(PROMPTS))
            rows.append((f"{steps} steps", pictures))
            cells.append("" if SAMPLERS[sampler].noise else f"{likeness(pictures, exact):.1f} dB")
        print(f"| {sampler} | " + " | ".join(cells) + f" | {statistics.median(times):.3f} |", flush=True)
        sheet([*rows, (f"{asked.reference}", exact)]).save(asked.out / f"{sampler}.png")


def arguments() -> argparse.Namespace:
    """What was asked for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="default")
    parser.add_argument("--samplers", type=lambda text: text.split(","), default="euler,heun,lms,deis,dpmpp_2m,unipc")
    parser.add_argument("--steps", type=lambda text: [int(n) for n in text.split(",")], default="5,8,10,15,20,30")
    parser.add_argument("--grid", default="karras")
    parser.add_argument("--guidance", type=float, help="by default the model's own")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--reference", type=int, default=200, help="steps that count as many")
    parser.add_argument("--out", type=Path, default=Path("outputs/steps"))
    return parser.parse_args()


def draw(
    model: LatentDiffusion, sampler: str, steps: int, asked: argparse.Namespace
) -> tuple[list[Image.Image], float]:
    """A picture of each prompt, and the seconds that all took."""
    start = time.perf_counter()
    drawn: list[Pictures] = [
        safelight.text_to_image(
            model, prompt, sampler=sampler, steps=steps, grid=asked.grid, guidance_scale=asked.guidance, seed=asked.seed
        )
        for prompt in PROMPTS
    ]
    return [pictures[0] for pictures in drawn], time.perf_counter() - start


def likeness(pictures: list[Image.Image], exact: list[Image.Image]) -> float:
    """The mean PSNR in dB."""
    ours, theirs = (torch.stack([from_image(picture) for picture in some]).float() for some in (pictures, exact))
    return float(psnr(ours, theirs, data_range=255).mean())


def sheet(rows: list[tuple[str, list[Image.Image]]]) -> Image.Image:
    """Rows of pictures with their names on the left."""
    width, height = rows[0][1][0].size
    whole = Image.new("RGB", (LABEL + len(PROMPTS) * width, len(rows) * height), "white")
    pen = ImageDraw.Draw(whole)
    for y, (name, pictures) in enumerate(rows):
        pen.text((6, y * height + height // 2 - 5), name, fill="black")
        for x, picture in enumerate(pictures):
            whole.paste(picture, (LABEL + x * width, y * height))
    return whole


if __name__ == "__main__":
    main()
