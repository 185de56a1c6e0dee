"""How good pictures are, in numbers: the mathematics alone, in float64 on the CPU.

    psnr, ssim                      a picture and its reconstruction
    moments, frechet_distance       two sets of pictures, as Gaussians in the space of some features
    kernel_distance                 the same two sets, without the bias that few pictures give a Fréchet distance
    precision_recall                how much of what was drawn is among the real, and the reverse
    density_coverage                the same, less moved by outliers
    mean_pairwise_distance          how different the pictures of one set are
    nearest_neighbours              which real picture each is nearest to

Features come from `features`, one row a picture. A number means something only together with the
features it was taken in: with those of the Inception network the Fréchet distance is the FID, with others it is not.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from safelight.errors import InputError, NonFiniteError

WINDOW, SIGMA = 11, 1.5  # of SSIM's Gaussian window, in pixels
K1, K2 = 0.01, 0.03  # SSIM's constants
ROWS = 512  # of a distance matrix that are in memory at a time


class TooFewPictures(InputError):  # noqa: N818  (it names what is wrong)
    """There are fewer pictures than the measure needs."""


class SizesDiffer(InputError):  # noqa: N818
    """Two things that are to be compared have different sizes."""


# Pictures -------------------------------------------------------------------------------------------------------------


def psnr(x: Tensor, y: Tensor, *, data_range: float = 2.0) -> Tensor:
    """Peak signal-to-noise ratio of pictures (B, C, H, W), in decibels: (B,) float64, infinite where they are equal.

    10·log10(data_range² / mean squared error). `data_range` is the distance from black to white: 2 for [-1, 1].
    Raises SizesDiffer, and NonFiniteError where a picture holds NaN or infinity.
    """
    x, y = _pair(x, y)
    return 10 * torch.log10(data_range**2 / ((x - y) ** 2).mean(dim=(1, 2, 3)))


def ssim(x: Tensor, y: Tensor, *, data_range: float = 2.0) -> Tensor:
    """Structural similarity of pictures (B, C, H, W): (B,) float64, 1 where they are equal.

    Wang et al. 2004, equation 13, with population (co)variances under an 11x11 Gaussian window of 1.5 pixels, averaged
    over every place where the window lies inside the picture, and over channels. (scikit-image's
    `structural_similarity(gaussian_weights=True, sigma=1.5, use_sample_covariance=False)`.)
    Raises SizesDiffer, NonFiniteError, and InputError where a side is shorter than the window.
    """
    x, y = _pair(x, y)
    if min(x.shape[2:]) < WINDOW:
        what = f"pictures of {x.shape[3]}x{x.shape[2]} pixels are smaller than SSIM's window"
        raise InputError(what, remedy=f"give pictures of {WINDOW}x{WINDOW} pixels or more")
    mean_x, mean_y = _blurred(x), _blurred(y)
    var_x, var_y = _blurred(x * x) - mean_x**2, _blurred(y * y) - mean_y**2
    cov = _blurred(x * y) - mean_x * mean_y
    c1, c2 = (K1 * data_range) ** 2, (K2 * data_range) ** 2
    luminance = (2 * mean_x * mean_y + c1) / (mean_x**2 + mean_y**2 + c1)
    structure = (2 * cov + c2) / (var_x + var_y + c2)
    return (luminance * structure).mean(dim=(1, 2, 3))


def _pair(x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    """Give both in float64 on the CPU, once they can be compared."""
    if x.ndim != 4 or x.shape != y.shape:
        what = f"pictures of shapes {tuple(x.shape)} and {tuple(y.shape)} cannot be compared"
        raise SizesDiffer(what, remedy="give two tensors of one shape (batch, channels, height, width)")
    x, y = (z.detach().cpu().double() for z in (x, y))
    if not (x.isfinite().all() and y.isfinite().all()):
        raise NonFiniteError("a picture holds NaN or infinity", remedy="look at what drew it")
    return x, y


def _blurred(x: Tensor) -> Tensor:
    """(B, C, H, W) -> (B, C, H-10, W-10), under the Gaussian window."""
    window = torch.exp(-0.5 * ((torch.arange(WINDOW, dtype=x.dtype) - WINDOW // 2) / SIGMA) ** 2)
    window /= window.sum()
    rows = F.conv2d(x.flatten(0, 1)[:, None], window.view(1, 1, -1, 1))
    return F.conv2d(rows, window.view(1, 1, 1, -1))[:, 0].unflatten(0, x.shape[:2])


# Sets of pictures -----------------------------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class Moments:
    """What a Fréchet distance needs of `count` pictures: their features' mean (D,) and covariance (D, D), float64."""

    mean: Tensor
    covariance: Tensor
    count: int

    @property
    def degenerate(self) -> bool:
        """Whether there are too few pictures for the covariance to have full rank: the distance is then too large."""
        return self.count <= len(self.mean)


def moments(features: Tensor) -> Moments:
    """Take the mean and the unbiased covariance of features (N, D), N of 2 or more.

    Raises TooFewPictures, and NonFiniteError for NaN or infinity.
    """
    features = _features(features, 2, "a covariance")
    mean = features.mean(dim=0)
    centred = features - mean
    return Moments(mean, centred.T @ centred / (len(features) - 1), len(features))


def frechet_distance(a: Moments, b: Moments) -> float:
    """|m_a - m_b|² + tr(S_a + S_b - 2(S_a·S_b)^½): the squared Fréchet distance of Gaussians (Dowson & Landau 1982).

    Used on features of pictures by Heusel et al. 2017 (arXiv 1706.08500, equation 6). For S = R·Rᵀ the trace of
    (S_a·S_b)^½ is the sum of the singular values of R_aᵀ·R_b. No matrix that is not symmetric is ever decomposed, and
    no square root taken of a difference, so that few pictures, whose covariance is singular, cost no precision.
    Raises SizesDiffer where the features have different widths.
    """
    if a.mean.shape != b.mean.shape:
        what = f"features are {len(a.mean)} and {len(b.mean)} wide"
        raise SizesDiffer(what, remedy="take both from the same extractor")
    apart = ((a.mean - b.mean) ** 2).sum() + a.covariance.trace() + b.covariance.trace()
    common = torch.linalg.svdvals(_root(a.covariance).T @ _root(b.covariance)).sum()
    return float((apart - 2 * common).clamp(min=0))


def _root(covariance: Tensor) -> Tensor:
    """R (D, rank) with R·Rᵀ = covariance. What rounding makes of eigenvalues that are zero is left out."""
    values, vectors = torch.linalg.eigh(covariance)
    real = values > values[-1].clamp(min=0) * len(values) * torch.finfo(values.dtype).eps
    return vectors[:, real] * values[real].sqrt()


@dataclass(frozen=True)
class KernelDistance:
    """The mean over subsets, and their standard deviation; `subset_size` pictures of each set in each."""

    mean: float
    std: float
    subset_size: int


def kernel_distance(
    a: Tensor, b: Tensor, *, subsets: int = 100, subset_size: int = 1000, seed: int = 0
) -> KernelDistance:
    """Squared maximum mean discrepancy of features (N, D), (M, D) under the kernel (x·y/D + 1)³: with Inception's, KID.

    Bińkowski et al. 2018 (arXiv 1801.01401): unbiased, averaged over random subsets; around 0, also below it, for sets
    of one distribution. With no more pictures than `subset_size` all are used, once. Each subset is a function of the
    seed and its number. Raises TooFewPictures, SizesDiffer, NonFiniteError.
    """
    a, b = _both(a, b, 2, "a kernel distance")
    size = min(subset_size, len(a), len(b))
    if size < 2 or subsets < 1:
        what = f"{subsets} subsets of {size} pictures give no kernel distance"
        raise InputError(what, remedy="take one subset or more, of two pictures or more")
    if len(a) <= subset_size and len(b) <= subset_size:
        return KernelDistance(squared_mmd(a, b), 0.0, size)
    generator = torch.Generator().manual_seed(seed)
    picks = [[torch.randperm(len(x), generator=generator)[:size] for x in (a, b)] for _ in range(subsets)]
    values = torch.tensor([squared_mmd(a[i], b[j]) for i, j in picks], dtype=torch.float64)
    return KernelDistance(float(values.mean()), float(values.std(correction=0)), size)


def squared_mmd(a: Tensor, b: Tensor) -> float:
    """Estimate it from features a (N, D), b (M, D), unbiased: mean k(a,a') + mean k(b,b') - 2 mean k(a,b), a ≠ a'."""

    def kernel(x: Tensor, y: Tensor) -> Tensor:
        return (x @ y.T / x.shape[1] + 1) ** 3

    def off_diagonal(k: Tensor) -> Tensor:
        return (k.sum() - k.trace()) / (len(k) * (len(k) - 1))

    return float(off_diagonal(kernel(a, a)) + off_diagonal(kernel(b, b)) - 2 * kernel(a, b).mean())


def precision_recall(real: Tensor, drawn: Tensor, *, k: int = 3) -> tuple[float, float]:
    """Improved precision and recall (Kynkäänniemi et al. 2019, arXiv 1904.06991) of features (N, D) and (M, D).

    The real pictures' manifold is the union of the balls around each that reach to its k-th neighbour. Precision is the
    share of drawn pictures on it; recall the share of real pictures on the manifold of the drawn.
    Raises TooFewPictures unless there are more than k of both, SizesDiffer, NonFiniteError.
    """
    real, drawn = _both(real, drawn, k + 1, f"a manifold of {k} neighbours")
    return _share_on_manifold(drawn, real, k), _share_on_manifold(real, drawn, k)


def density_coverage(real: Tensor, drawn: Tensor, *, k: int = 5) -> tuple[float, float]:
    """Density and coverage (Naeem et al. 2020, arXiv 2002.09797) of features (N, D) and (M, D).

    Density counts in how many real balls (see `precision_recall`) a drawn picture lies, over k: about 1 for equal
    distributions, and above it where only the densest parts are drawn. Coverage is the share of real balls that hold a
    drawn picture. Raises as `precision_recall` does.
    """
    real, drawn = _both(real, drawn, k + 1, f"a manifold of {k} neighbours")
    radii = _radii(real, k)
    inside = torch.zeros(len(real), dtype=torch.int64)
    for distances in _distances(drawn, real):
        inside += (distances <= radii).sum(dim=0)
    return float(inside.sum()) / (k * len(drawn)), float((inside > 0).double().mean())


def _share_on_manifold(points: Tensor, manifold: Tensor, k: int) -> float:
    radii = _radii(manifold, k)
    on = [(distances <= radii).any(dim=1) for distances in _distances(points, manifold)]
    return float(torch.cat(on).double().mean())


def _radii(features: Tensor, k: int) -> Tensor:
    """Each picture's distance to its k-th neighbour, (N,). The nearest of all is itself."""
    return torch.cat([distances.kthvalue(k + 1, dim=1).values for distances in _distances(features, features)])


def mean_pairwise_distance(features: Tensor) -> float:
    """The mean Euclidean distance of the N(N-1)/2 pairs of features (N, D). Raises TooFewPictures for less than two."""
    features = _features(features, 2, "a distance")
    total = sum(float(distances.sum()) for distances in _distances(features, features))
    return total / (len(features) * (len(features) - 1))


def nearest_neighbours(queries: Tensor, among: Tensor) -> tuple[Tensor, Tensor]:
    """For features (N, D), the Euclidean distance to the nearest of `among` (M, D), and its number: (N,), (N,)."""
    queries, among = _both(queries, among, 1, "a neighbour")
    found = [distances.min(dim=1) for distances in _distances(queries, among)]
    return torch.cat([f.values for f in found]), torch.cat([f.indices for f in found])


def _distances(a: Tensor, b: Tensor) -> Iterator[Tensor]:
    """The Euclidean distances of a (N, D) to b (M, D), some rows at a time.

    Taken from differences: the usual shortcut by a matrix product leaves the distance of a picture to itself, or to
    its copy, at some rounding error above 0, and these are just the ones that matter.
    """
    for rows in a.split(ROWS):
        yield torch.cdist(rows, b, compute_mode="donot_use_mm_for_euclid_dist")


def _both(a: Tensor, b: Tensor, least: int, use: str) -> tuple[Tensor, Tensor]:
    a, b = _features(a, least, use), _features(b, least, use)
    if a.shape[1] != b.shape[1]:
        what = f"features are {a.shape[1]} and {b.shape[1]} wide"
        raise SizesDiffer(what, remedy="take both from the same extractor")
    return a, b


def _features(features: Tensor, least: int, use: str) -> Tensor:
    """Give features in float64 on the CPU, once they are a matrix of enough rows of finite numbers."""
    if features.ndim != 2 or not features.shape[1]:
        raise InputError(f"features of shape {tuple(features.shape)}", remedy="give one row of numbers a picture")
    if len(features) < least:
        remedy = f"give {least} or more; a few hundred make a number that can be trusted"
        raise TooFewPictures(f"{len(features)} pictures are too few for {use}", remedy=remedy)
    features = features.detach().cpu().double()
    if not (finite := features.isfinite().all(dim=1)).all():
        bad = (~finite).nonzero()[:, 0].tolist()
        what = f"the features of {len(bad)} of {len(features)} pictures hold NaN or infinity, first number {bad[0]}"
        raise NonFiniteError(what, remedy="look at that picture, and at the extractor's weights")
    return features
