"""What every saving costs: its time and how far its pictures are from the exact ones, for a model, prompts and seeds.

    python bench/fast.py --model default                  what stands in docs/speed.md
    python bench/fast.py --model random --prompts "a fox" --seeds 2 --out /tmp/fast

Savings take turns with the exact run, picture by picture, so that a busy machine is busy for all. Distances are to the
exact picture of the same seed: PSNR, SSIM, and the distance of Laplacian pyramids, which weighs an edge that moved by
its contrast at every scale (Bojanowski et al. 2018, arXiv 1707.05776, with 4 levels). With --classifier, a folder from
`safelight train classifier`, the share of pictures is given in which it still sees what it saw in the exact one.

Written are a table into speed.md, between two comments there; fast.png, a plot of time against loss; and
fast-sheet.png, the pictures side by side.
"""

import argparse
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from statistics import mean, median
from typing import Any

import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.transforms import Bbox
from PIL import Image
from torch import Tensor
from torch.nn import functional as F

import safelight
from peers import machine
from safelight.pipeline.contact import contact_sheet
from safelight.pipeline.fields import FAST
from safelight.pipeline.pictures import load_picture
from safelight.pipeline.recipes.recipe import public_name
from safelight.training.evaluation.metrics import psnr, ssim

EXACT = "exact"
BEGIN, END = "<!-- written by bench/fast.py -->", "<!-- to here -->"
SAVINGS: dict[str, dict[str, Any]] = {
    EXACT: {},
    "20 steps": {"steps": 20},
    "15 steps": {"steps": 15},
    "10 steps": {"steps": 10},
    "AYS, 10 steps": {"steps": 10, "grid": "align_your_steps"},
    "guidance up to 0.8": {"guidance_end": 0.8},
    "guidance up to 0.6": {"guidance_end": 0.6},
    "guidance from 0.1": {"guidance_start": 0.1},
    "features kept, from 0.5": {"feature_cache": 2, "feature_cache_start": 0.5},
    "features kept, from 0.3": {"feature_cache": 2, "feature_cache_start": 0.3},
    "int8": {"int8": True},
    "fast": {"fast": True},
}
# Where a point's name may stand, in points, and which end of it is there; the first that is free.
SIDES = (((6, 4), "left"), ((-6, 4), "right"), ((6, -12), "left"), ((-6, -12), "right"))
LOADING = ("int8", "decoder")  # what is asked for when a model is loaded, not when it draws
SHOWN = ("exact", "10 steps", "AYS, 10 steps", "guidance up to 0.6", "features kept, from 0.3", "fast")
PROMPTS = (
    "a 3D render of a red apple on a blue background",
    "a flat emoji of a dog on a white background",
    "a cartoon of a cat on a green background",
    "a gradient emoji of a grinning face on a yellow background",
)


@dataclass
class Price:
    """What a saving cost, picture by picture: seconds, and how near the pictures are to the exact ones."""

    seconds: list[float] = field(default_factory=list)
    pictures: list[Image.Image] = field(default_factory=list)
    psnr: list[float] = field(default_factory=list)
    ssim: list[float] = field(default_factory=list)
    pyramid: list[float] = field(default_factory=list)
    same: float | None = None


def draw(model: str, prompts: Sequence[str], seeds: int, shared: Mapping[str, Any]) -> dict[str, Price]:
    """Everyone's pictures, by turns; the first of all is drawn twice, since it warms the machine up."""
    prices = {name: Price() for name in SAVINGS}
    usual = safelight.load(model)
    models = {name: safelight.load(model, **told) if (told := loading(name)) else usual for name in SAVINGS}
    safelight.text_to_image(usual, prompts[0], **shared, seed=0)
    for prompt in prompts:
        for seed in range(seeds):
            for name, saving in SAVINGS.items():
                told = {key: value for key, value in {**shared, **saving}.items() if key not in LOADING}
                start = time.process_time()
                drawn = safelight.text_to_image(models[name], prompt, **told, seed=seed)
                prices[name].seconds.append((time.process_time() - start) / torch.get_num_threads())
                prices[name].pictures.append(drawn[0])
            print(".", end="", flush=True)
    print()
    return prices


def loading(name: str) -> dict[str, Any]:
    """What of a saving is asked for when the model is loaded."""
    return {key: value for key, value in SAVINGS[name].items() if key in LOADING}


def pyramid_distance(a: Tensor, b: Tensor, levels: int = 4) -> Tensor:
    """The mean absolute difference of Laplacian pyramids of (B, C, H, W), level j weighed by 2^(2j): (B,)."""
    total, difference = torch.zeros(len(a)), a - b
    for level in range(levels):
        smaller = F.avg_pool2d(difference, 2) if level < levels - 1 and min(difference.shape[-2:]) > 1 else None
        detail = difference if smaller is None else difference - F.interpolate(smaller, difference.shape[-2:])
        total += detail.abs().mean(dim=(1, 2, 3)) * 2.0 ** (2 * level) / 4 ** (levels - 1)
        if smaller is None:
            break
        difference = smaller
    return total


def compare(prices: Mapping[str, Price], judge: Any) -> None:
    """Fill in the distances to the exact pictures, and the share in which a classifier sees the same thing."""
    exact = stacked(prices[EXACT].pictures)
    saw = judge(exact).concepts.argmax(dim=1) if judge else None
    for price in prices.values():
        pictures = stacked(price.pictures)
        price.psnr, price.ssim = psnr(pictures, exact).tolist(), ssim(pictures, exact).tolist()
        price.pyramid = pyramid_distance(pictures, exact).tolist()
        if judge:
            price.same = float((judge(pictures).concepts.argmax(dim=1) == saw).float().mean())


def stacked(pictures: Sequence[Image.Image]) -> Tensor:
    """(B, 3, H, W) in [-1, 1]."""
    return torch.cat([load_picture(picture) for picture in pictures])


def table(prices: Mapping[str, Price]) -> str:
    """A table in Markdown: time beside the exact run, and distances; the median and the worst picture."""
    judged = prices[EXACT].same is not None
    lines = [
        f"| saving | time | PSNR (worst) | SSIM (worst) | pyramid distance |{' seen as the same |' if judged else ''}",
        f"| --- | --- | --- | --- | --- |{' --- |' if judged else ''}",
    ]
    for name, price in prices.items():
        told = f"{median(price.psnr):.1f} dB ({min(price.psnr):.1f}) | {median(price.ssim):.3f} ({min(price.ssim):.3f})"
        told = f"{told} | {mean(price.pyramid):.4f}" if name != EXACT else "the same | 1 | 0"
        last = f" {price.same:.0%} |" if judged else ""
        what = f"{name}: {words(SAVINGS[name])}" if len(words(SAVINGS[name])) else name
        lines.append(f"| {what} | {ratio(price, prices):.2f} | {told} |{last}")
    return "\n".join(lines) + "\n"


def words(saving: Mapping[str, Any]) -> str:
    """A saving's settings, but for those of the exact run."""
    chosen = FAST if saving.get("fast") else saving
    same = {} if saving is SAVINGS[EXACT] else SAVINGS[EXACT]
    told = {name: public_name(value)[0] if name == "decoder" else value for name, value in chosen.items()}
    return ", ".join(f"`{name}={value}`" for name, value in told.items() if same.get(name) != value)


def ratio(price: Price, prices: Mapping[str, Price]) -> float:
    """Time beside the exact run: the median over pictures of their ratios."""
    return median(a / b for a, b in zip(price.seconds, prices[EXACT].seconds, strict=True))


def plot(prices: Mapping[str, Price], path: Path) -> None:
    """Time against PSNR: up and left is better."""
    figure = Figure(figsize=(7, 4.4), layout="constrained")
    axes = figure.subplots()
    points = {name: (ratio(price, prices), median(price.psnr)) for name, price in prices.items() if name != EXACT}
    for name, (x, y) in points.items():
        axes.plot([x, x], [min(prices[name].psnr), max(prices[name].psnr)], color="0.8", linewidth=1, zorder=1)
        color, size = ("tab:red", 60) if name == "fast" else ("tab:blue", 25)
        axes.scatter([x], [y], s=size, color=color)
    axes.axvline(1, color="0.6", linestyle=":", linewidth=1)
    axes.set(xlabel="time, the exact run being 1", ylabel="PSNR to the exact picture, dB (line: worst to best)",
             xlim=(0, 1.25))  # fmt: skip
    axes.spines[["top", "right"]].set_visible(False)
    figure.draw_without_rendering()  # lays out, so that it is known where names will stand
    taken = [Bbox.from_bounds(*(axes.transData.transform(point) - 5), 10, 10) for point in points.values()]
    for name, point in points.items():
        taken.append(beside(axes, name, point, taken))
    figure.savefig(path, dpi=120)


def beside(axes: Axes, name: str, point: tuple[float, float], taken: Sequence[Bbox]) -> Bbox:
    """Write a name beside its point, where nothing else stands if there is such a place; tell where."""
    for offset, side in SIDES:
        label = axes.annotate(name, point, offset, textcoords="offset points", fontsize=8, ha=side)
        box = label.get_window_extent()
        if box.count_overlaps(taken) == 0:
            return box
        label.remove()
    axes.annotate(name, point, SIDES[0][0], textcoords="offset points", fontsize=8, ha=SIDES[0][1])
    return box


def sheet(prices: Mapping[str, Price], prompts: Sequence[str], seeds: int) -> Image.Image:
    """The first seed of each prompt, a row each, as the exact run and some savings draw it."""
    pictures = [prices[name].pictures[k * seeds] for k in range(len(prompts)) for name in SHOWN]
    return contact_sheet(pictures, column_labels=SHOWN, row_labels=prompts, notes="the same seed in each row")


def put(page: Path, text: str) -> None:
    """Write a text between the two comments of a page, or at its end if it has none."""
    before, _, rest = (page.read_text() if page.exists() else "").partition(BEGIN)
    page.write_text(f"{before}{BEGIN}\n{text}{END}{rest.partition(END)[2] or chr(10)}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="default")
    parser.add_argument("--prompts", nargs="+", default=PROMPTS)
    parser.add_argument("--seeds", type=int, default=4, help="pictures of each prompt")
    parser.add_argument("--steps", type=int, default=30, help="of the exact run")
    parser.add_argument("--guidance-scale", type=float, help="by default the model's own")
    parser.add_argument("--size", type=int, help="side in pixels; by default the model's own")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--classifier", help="folder of a classifier from `safelight train classifier`")
    parser.add_argument("--decoder", help="a tiny decoder of the model's, to price as well")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent.parent / "docs")
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    judge = None
    if given.classifier:
        from safelight.training.evaluation.classifier import Judge

        judge = Judge.load(given.classifier)
    if given.decoder:
        SAVINGS["tiny decoder"] = {"decoder": given.decoder}
    shared = {"guidance_scale": given.guidance_scale, "width": given.size, "height": given.size}
    SAVINGS[EXACT] = {"steps": given.steps}
    for saving in SAVINGS.values():
        if "fast" not in saving:
            saving.setdefault("steps", given.steps)
    prices = draw(given.model, given.prompts, given.seeds, shared)
    compare(prices, judge)
    given.out.mkdir(parents=True, exist_ok=True)
    count = f"{len(given.prompts)} prompts, {given.seeds} of each, {prices[EXACT].pictures[0].width}² pixels"
    where = f"{machine.cpu()[0]}, {given.threads} threads, {machine.today()}"
    told = f"Model `{public_name(given.model)[0]}`, {count}; CPU time on {where}.\n\n{table(prices)}"
    put(given.out / "speed.md", told)
    plot(prices, given.out / "fast.png")
    sheet(prices, given.prompts, given.seeds).save(given.out / "fast-sheet.png", optimize=True)
    print(table(prices))


if __name__ == "__main__":
    main()
