"""Pictures against pictures -> figures and a sheet to look at. All pictures are (N, 3, H, W) uint8, as files hold them.

What is drawn, and what it is compared with, is settled in `evaluate`; the measures are `metrics`.
"""

from collections.abc import Iterator, Sequence

import torch
from PIL import Image
from torch import Tensor

from safelight.models.lpips import LPIPS
from safelight.training.evaluation.classifier import Judge
from safelight.training.evaluation.features import Extractor, extracted, pixel_features
from safelight.training.evaluation.metrics import (
    WINDOW,
    SizesDiffer,
    density_coverage,
    frechet_distance,
    kernel_distance,
    mean_pairwise_distance,
    moments,
    nearest_neighbours,
    precision_recall,
    psnr,
    ssim,
)
from safelight.training.evaluation.questions import Question, Score, score
from safelight.training.evaluation.report import Figure, Section
from safelight.training.loop.sheets import contact_sheet
from safelight.training.stages.reconstructions import as_image, reconstruction_sheet

__all__ = ["compare_copies", "compare_prompts", "compare_reconstructions", "compare_samples", "compare_variety"]

BATCH = 64  # pictures in a network at a time
SHOWN = 32  # pictures on a sheet
LEAST = 6  # pictures that a manifold of 5 neighbours needs
NEAR = 0.01  # share of real pictures that are as near to a training picture as a drawn one must be to be suspected
Compared = tuple[list[Figure], Image.Image]


def compare_reconstructions(
    pictures: Tensor, made: Tensor, extractors: Sequence[Extractor], perceptual: LPIPS | None = None
) -> Compared:
    """What a first stage loses: PSNR, SSIM and LPIPS of each picture, the Fréchet distance of the two sets."""
    n = len(pictures)
    pairs = [(unit(x), unit(y)) for x, y in zip(pictures.split(BATCH), made.split(BATCH), strict=True)]
    figures = [_mean("PSNR (dB)", torch.cat([psnr(x, y) for x, y in pairs]), "higher", "8-bit levels")]
    if min(pictures.shape[2:]) >= WINDOW:
        figures.append(_mean("SSIM", torch.cat([ssim(x, y) for x, y in pairs]), "higher", "11x11 Gaussian window"))
    if perceptual is not None:
        device = perceptual.heads[0].device
        distances = torch.cat([perceptual(x.to(device), y.to(device)).cpu() for x, y in pairs]).double()
        figures.append(_mean("perceptual distance", distances, "lower", perceptual.name))
    for extractor in extractors:
        a, b = (moments(extracted(extractor, batches(some))) for some in (pictures, made))
        value = frechet_distance(a, b)
        name, note = f"r{extractor.frechet}", _few(a.degenerate)
        figures.append(Figure("reconstruction", name, value, n, extractor.name, "lower", real=0.0, note=note))
    return figures, reconstruction_sheet(unit(pictures[:SHOWN]), unit(made[:SHOWN]))


def _mean(name: str, values: Tensor, better: str, by: str) -> Figure:
    value, spread = float(values.mean()), float(values.std(correction=0))
    kept = spread if values.isfinite().all() else None
    return Figure("reconstruction", name, value, len(values), by, better, spread=kept)  # type: ignore[arg-type]


def compare_samples(
    drawn: Tensor, real: Tensor, others: Tensor, extractors: Sequence[Extractor], *, seed: int = 0
) -> Compared:
    """How alike two sets are: Fréchet and kernel distance, precision, recall, density, coverage, in all features.

    `others` are further real pictures, compared with `real` in the place of the drawn; there may be none.
    Raises SizesDiffer where drawn and real pictures do.
    """
    if drawn.shape[1:] != real.shape[1:]:
        (h, w), (H, W) = drawn.shape[2:], real.shape[2:]
        what = f"the pictures are {w}x{h} pixels, the real ones {W}x{H}"
        raise SizesDiffer(what, remedy="give the size of the pictures as --size, or bring them to it first")
    figures: list[Figure] = []
    for extractor in extractors:
        a, b, c = (extracted(extractor, batches(some)) if len(some) else None for some in (real, drawn, others))
        assert a is not None and b is not None
        figures += _distances(extractor, a, b, c, seed)
    return figures, contact_sheet(images(drawn[:SHOWN]), columns=8, title="samples")


def _distances(extractor: Extractor, real: Tensor, drawn: Tensor, others: Tensor | None, seed: int) -> Iterator[Figure]:
    n, by = len(drawn), extractor.name
    ours, theirs = _alike(real, drawn, seed), None if others is None else _alike(real, others, seed)

    def figure(name: str, key: str, better: str, **more: object) -> Figure:
        beside = None if theirs is None or key not in theirs else theirs[key]
        return Figure("samples", name, ours[key], n, by, better, real=beside, **more)  # type: ignore[arg-type]

    yield figure(extractor.frechet, "frechet", "lower", note=_few(min(n, len(real)) <= real.shape[1]))
    yield figure(extractor.kernel, "kernel", "lower", spread=ours["kernel_std"] or None)
    for name in ("precision", "recall", "density", "coverage"):
        if name in ours:
            yield figure(name, name, "higher")


def _alike(real: Tensor, drawn: Tensor, seed: int) -> dict[str, float]:
    kernel = kernel_distance(real, drawn, seed=seed)
    found = {
        "frechet": frechet_distance(moments(real), moments(drawn)),
        "kernel": kernel.mean,
        "kernel_std": kernel.std,
    }
    if min(len(real), len(drawn)) < LEAST:
        return found
    precision, recall = precision_recall(real, drawn)
    density, coverage = density_coverage(real, drawn)
    return found | {"precision": precision, "recall": recall, "density": density, "coverage": coverage}


def _few(degenerate: bool) -> str:
    return "fewer pictures than features: too large" if degenerate else ""


def compare_variety(varied: Tensor, prompts: Sequence[str], real: Tensor, extractors: Sequence[Extractor]) -> Compared:
    """How different the pictures of one prompt are: the mean distance of their pairs, beside that of all real ones.

    `varied` (prompts·each, 3, H, W) has the pictures of a prompt together.
    """
    each = len(varied) // len(prompts)
    figures = []
    for extractor in extractors:
        features = extracted(extractor, batches(varied)).unflatten(0, (len(prompts), each))
        value = sum(mean_pairwise_distance(group) for group in features) / len(prompts)
        real_value = mean_pairwise_distance(extracted(extractor, batches(real))) if len(real) > 1 else None
        name, note = "variety within a prompt", f"{len(prompts)} prompts, {each} each; real: any two pictures"
        figures.append(Figure("samples", name, value, len(varied), extractor.name, real=real_value, note=note))
    rows = min(SHOWN // 4, len(prompts))
    labels = [prompt if k == 0 else "" for prompt in prompts[:rows] for k in range(each)]
    return figures, contact_sheet(images(varied[: rows * each]), labels, columns=each, title="one prompt a row")


def compare_copies(drawn: Tensor, training: Tensor, known: Tensor | None, extractors: Sequence[Extractor]) -> Compared:
    """How near drawn pictures are to their nearest training picture, by pixels and by features.

    `known` are real pictures that no training saw: how near these are is what chance and likeness alone make. A drawn
    picture nearer than all but `NEAR` of them is suspected of being a copy. The sheet shows the nearest pairs by the
    last extractor's features: samples, and beside each what of the training is nearest.
    """
    figures: list[Figure] = []
    for extractor in (pixel_features(), *extractors):
        base = extracted(extractor, batches(training))
        distances, indices = nearest_neighbours(extracted(extractor, batches(drawn)), base)
        real = None if known is None else nearest_neighbours(extracted(extractor, batches(known)), base)[0]
        figures += _nearness(extractor, distances, real, len(training))
    order = distances.argsort()[: SHOWN // 2].tolist()
    tiles = [tile for i in order for tile in images(torch.stack([drawn[i], training[int(indices[i])]]))]
    labels = [label for i in order for label in (f"distance {float(distances[i]):.3g}", "nearest of the training")]
    return figures, contact_sheet(tiles, labels, columns=8, title=f"nearest pairs by {extractor.name}")


def _nearness(extractor: Extractor, distances: Tensor, real: Tensor | None, among: int) -> Iterator[Figure]:
    n, note = len(distances), f"of {among} training pictures"
    middle = None if real is None else float(real.median())
    name = "distance to the nearest training picture"
    yield Figure("samples", name, float(distances.median()), n, extractor.name, real=middle, note=f"median; {note}")
    if real is not None:
        suspected = float((distances < real.quantile(NEAR)).double().mean())
        name = "suspected copies (share)"
        note = f"nearer than {1 - NEAR:.0%} of real ones are"
        yield Figure("samples", name, suspected, n, extractor.name, "lower", real=NEAR, note=note)


def compare_prompts(section: Section, asked: Sequence[Question], drawn: Tensor, real: Tensor, judge: Judge) -> Compared:
    """Whether pictures show what was asked for; `real` are pictures that do, one a question."""
    ours, ceiling = (_score(asked, some, judge) for some in (drawn, real))
    concepts, styles = len(judge.labels.concepts), len(judge.labels.styles)
    by = judge.extractor.name
    rows = [
        ("concept (top 1)", ours.top1, ceiling.top1, by, f"of {concepts}"),
        ("concept (top 5)", ours.top5, ceiling.top5, by, f"of {concepts}"),
        ("style", ours.style, ceiling.style, by, f"of {styles}"),
        ("colour", ours.color, ceiling.color, "pixels under the mask seen", "where the prompt names one"),
        ("place", ours.places, ceiling.places, "the mask seen", "each side asked for; chance is 0.5"),
    ]
    figures = [
        Figure(section, name, share.value, share.asked, by, "higher", real=beside.value, note=note)
        for name, share, beside, by, note in rows
        if share.value is not None
    ]
    pairs = list(zip(asked, drawn, real, ours.correct, strict=True))[: SHOWN // 2]
    tiles = [tile for _, mine, theirs, _ in pairs for tile in images(torch.stack([mine, theirs]))]
    labels = [text for q, _, _, right in pairs for text in (f"{'+' if right else '-'} {q.prompt}", "a real one")]
    title = "drawn for a prompt (+ concept found, - not), and a real picture of it"
    return figures, contact_sheet(tiles, labels, columns=8, title=title)


def _score(asked: Sequence[Question], pictures: Tensor, judge: Judge) -> Score:
    return score(asked, unit(pictures), judge.look(batches(pictures)))


def batches(pictures: Tensor) -> Iterator[Tensor]:
    """(N, 3, H, W) uint8 -> batches in [-1, 1]."""
    return (unit(some) for some in pictures.split(BATCH))


def unit(pictures: Tensor) -> Tensor:
    """Bytes -> float32 in [-1, 1]."""
    return pictures.float() / 127.5 - 1


def images(pictures: Tensor) -> list[Image.Image]:
    """(N, 3, H, W) uint8 -> N pictures."""
    return [as_image(unit(picture)) for picture in pictures]
