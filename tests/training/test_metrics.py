"""The measures, against scipy and scikit-image, closed forms, and plain loops over the papers' formulas."""

import numpy as np
import pytest
import scipy.linalg
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from skimage.metrics import peak_signal_noise_ratio, structural_similarity

from safelight.errors import InputError, NonFiniteError
from safelight.training.evaluation.metrics import (
    Moments,
    SizesDiffer,
    TooFewPictures,
    density_coverage,
    frechet_distance,
    kernel_distance,
    mean_pairwise_distance,
    moments,
    nearest_neighbours,
    precision_recall,
    psnr,
    squared_mmd,
    ssim,
)


def normal(*shape, seed=0, dtype=torch.float64):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def features(n, d, seed=0):
    """Features with correlations, of several scales, and a mean."""
    mix = normal(d, d, seed=100 + seed) * torch.logspace(0, -1, d, dtype=torch.float64)
    return normal(n, d, seed=seed) @ mix + normal(d, seed=200 + seed)


# Pictures


def pictures(size=24, seed=0):
    x = normal(2, 3, size, size + 5, seed=seed).clamp(-1, 1)
    return x, (x + 0.2 * normal(*x.shape, seed=seed + 1)).clamp(-1, 1)


def test_psnr_is_scikit_images():
    x, y = pictures()
    wanted = [peak_signal_noise_ratio(a.numpy(), b.numpy(), data_range=2) for a, b in zip(x, y, strict=True)]
    assert psnr(x, y).tolist() == pytest.approx(wanted, rel=1e-12)
    assert psnr((x + 1) / 2, (y + 1) / 2, data_range=1).tolist() == pytest.approx(wanted, rel=1e-12)


@pytest.mark.parametrize("size", [11, 12, 40])
def test_ssim_is_scikit_images(size):
    x, y = pictures(size)
    options = {"data_range": 2, "channel_axis": 0, "gaussian_weights": True, "use_sample_covariance": False}
    wanted = [structural_similarity(a.numpy(), b.numpy(), **options) for a, b in zip(x, y, strict=True)]
    assert ssim(x, y).tolist() == pytest.approx(wanted, rel=1e-9)


def test_ssim_is_its_formula():
    """One window, written out from equation 13 of the paper."""
    x, y = (z[:1, :1, :11, :11] for z in pictures())
    grid = torch.arange(-5, 6, dtype=torch.float64)
    w = torch.exp(-(grid[:, None] ** 2 + grid[None] ** 2) / (2 * 1.5**2))
    w /= w.sum()
    mx, my = (w * x).sum(), (w * y).sum()
    vx, vy, cov = (w * (x - mx) ** 2).sum(), (w * (y - my) ** 2).sum(), (w * (x - mx) * (y - my)).sum()
    c1, c2 = 0.02**2, 0.06**2
    wanted = (2 * mx * my + c1) * (2 * cov + c2) / ((mx**2 + my**2 + c1) * (vx + vy + c2))
    assert float(ssim(x, y)) == pytest.approx(float(wanted), rel=1e-9)


def test_equal_pictures():
    x, _ = pictures()
    assert ssim(x, x).tolist() == [1, 1]
    assert psnr(x, x).tolist() == [torch.inf, torch.inf]


def test_psnr_of_a_known_error():
    assert psnr(torch.zeros(1, 3, 4, 4), torch.full((1, 3, 4, 4), 0.02)).item() == pytest.approx(40, abs=1e-4)


@pytest.mark.parametrize("measure", [psnr, ssim])
def test_pictures_that_cannot_be_compared(measure):
    x, y = pictures()
    with pytest.raises(SizesDiffer, match="cannot be compared"):
        measure(x, y[..., 1:])
    with pytest.raises(NonFiniteError):
        measure(x, y / 0)


def test_ssim_needs_a_window():
    x = torch.zeros(1, 3, 10, 20)
    with pytest.raises(InputError, match="20x10 pixels are smaller"):
        ssim(x, x)


# The Fréchet distance


@pytest.mark.parametrize("n, d", [(200, 12), (300, 64)])
def test_frechet_distance_is_scipys(n, d):
    a, b = features(n, d), features(n + 30, d, seed=1)
    sa, sb = (np.cov(z.numpy(), rowvar=False) for z in (a, b))
    wanted = float(((a.mean(0) - b.mean(0)) ** 2).sum()) + np.trace(sa + sb - 2 * scipy.linalg.sqrtm(sa @ sb).real)
    assert frechet_distance(moments(a), moments(b)) == pytest.approx(wanted, rel=1e-9)


def test_few_pictures_cost_no_precision():
    """With 20 pictures in 64 dimensions S_a·S_b is singular; its root's trace is a nuclear norm of the centred data."""
    a, b = features(20, 64), features(30, 64, seed=1)
    ca, cb = ((z - z.mean(0)) / (len(z) - 1) ** 0.5 for z in (a, b))
    common = torch.linalg.matrix_norm(ca @ cb.T, "nuc")
    wanted = ((a.mean(0) - b.mean(0)) ** 2).sum() + (ca**2).sum() + (cb**2).sum() - 2 * common
    assert moments(a).degenerate and not moments(features(65, 64)).degenerate
    assert frechet_distance(moments(a), moments(b)) == pytest.approx(float(wanted), rel=1e-10)


def test_frechet_distance_of_known_gaussians():
    """For commuting covariances it is |Δm|² + Σ(√λ_a - √λ_b)²."""
    turn = torch.linalg.qr(normal(3, 3)).Q

    def gaussian(mean, values):
        return Moments(torch.tensor(mean).double(), turn @ torch.diag(torch.tensor(values).double()) @ turn.T, 9)

    assert frechet_distance(gaussian([0, 0, 3], [4, 9, 0]), gaussian([0, 4, 0], [1, 1, 0])) == pytest.approx(25 + 1 + 4)


@settings(max_examples=20, deadline=None)
@given(st.integers(2, 40), st.integers(1, 12), st.integers(0, 1000))
def test_frechet_distance_is_symmetric_and_zero_for_equals(n, d, seed):
    a, b = moments(normal(n, d, seed=seed)), moments(normal(n + 1, d, seed=seed + 1))
    assert frechet_distance(a, b) == pytest.approx(frechet_distance(b, a), rel=1e-8, abs=1e-9)
    assert frechet_distance(a, a) == pytest.approx(0, abs=1e-9)


# The kernel distance


def test_squared_mmd_is_its_formula():
    a, b = features(7, 5), features(9, 5, seed=1)

    def k(x, y):
        return (float(x @ y) / 5 + 1) ** 3

    within_a = np.mean([k(x, y) for i, x in enumerate(a) for j, y in enumerate(a) if i != j])
    within_b = np.mean([k(x, y) for i, x in enumerate(b) for j, y in enumerate(b) if i != j])
    between = np.mean([k(x, y) for x in a for y in b])
    assert squared_mmd(a, b) == pytest.approx(within_a + within_b - 2 * between, rel=1e-9)


def test_kernel_distance_is_unbiased():
    """Of two sets from one distribution it is 0 in the mean over many draws, also for small sets."""
    values = [kernel_distance(normal(10, 4, seed=2 * s), normal(10, 4, seed=2 * s + 1)).mean for s in range(400)]
    assert abs(np.mean(values)) < 3 * np.std(values) / 400**0.5
    assert min(values) < 0


def test_kernel_distance_over_subsets():
    a, b = features(60, 4), features(50, 4, seed=1)
    whole, parts = kernel_distance(a, b), kernel_distance(a, b, subset_size=20, subsets=50)
    assert whole.mean == squared_mmd(a, b) and whole.std == 0 and whole.subset_size == 50
    assert parts.subset_size == 20 and abs(parts.mean - whole.mean) < 3 * parts.std
    assert parts == kernel_distance(a, b, subset_size=20, subsets=50)
    assert parts != kernel_distance(a, b, subset_size=20, subsets=50, seed=1)


# Manifolds


def radius(points, i, k):
    return sorted(float((points[i] - p).norm()) for p in points)[k]


def plain_manifold(real, drawn, k):
    """Precision, recall, density and coverage as the papers write them, one pair at a time."""
    near = [[float((d - r).norm()) for r in real] for d in drawn]
    real_radii = [radius(real, i, k) for i in range(len(real))]
    drawn_radii = [radius(drawn, i, k) for i in range(len(drawn))]
    precision = np.mean([any(x <= r for x, r in zip(row, real_radii, strict=True)) for row in near])
    recall = np.mean([any(near[j][i] <= drawn_radii[j] for j in range(len(drawn))) for i in range(len(real))])
    density = np.sum([x <= r for row in near for x, r in zip(row, real_radii, strict=True)]) / (k * len(drawn))
    coverage = np.mean([min(row[i] for row in near) <= real_radii[i] for i in range(len(real))])
    return precision, recall, density, coverage


@pytest.mark.parametrize("k", [1, 3, 5])
def test_manifolds_are_their_formulas(k, monkeypatch):
    monkeypatch.setattr("safelight.training.evaluation.metrics.ROWS", 7)  # several blocks
    real, drawn = normal(30, 3), normal(25, 3, seed=1) + 1.5
    wanted = plain_manifold(real, drawn, k)
    assert (*precision_recall(real, drawn, k=k), *density_coverage(real, drawn, k=k)) == pytest.approx(wanted)
    assert all(0 < share < 1 for share in wanted)


def test_manifolds_of_what_was_left_out():
    """Drawing only one of two clusters well is precise and recalls half; drawing noise far away is neither."""
    real = torch.cat([normal(50, 2), normal(50, 2, seed=1) + 100])
    half = normal(50, 2, seed=2) * 0.5
    precision, recall = precision_recall(real, half)
    assert precision > 0.95 and recall < 0.5
    assert precision_recall(real, half + 1000) == (0, 0)
    assert density_coverage(real, half + 1000) == (0, 0)


def test_copies_are_on_the_manifold():
    """A picture lies in its own ball, even where its neighbours are its copies and the ball has no size."""
    real = normal(4, 3).repeat(5, 1)
    assert precision_recall(real, real.clone()) == (1, 1)


# Distances


def test_mean_pairwise_distance():
    points = torch.tensor([[0.0, 0.0], [3.0, 4.0], [0.0, 4.0]])
    assert mean_pairwise_distance(points) == pytest.approx((5 + 4 + 3) / 3)


def test_nearest_neighbours():
    base = normal(600, 3)
    distances, indices = nearest_neighbours(base[[5, 599]] + 1e-3, base)
    assert indices.tolist() == [5, 599]
    assert distances.tolist() == pytest.approx([3**0.5 * 1e-3] * 2)


# What cannot be measured


@pytest.mark.parametrize("measure", [
    lambda a, b: moments(a), kernel_distance, precision_recall, density_coverage,
    lambda a, b: mean_pairwise_distance(a),
])  # fmt: skip
def test_bad_features(measure):
    good = normal(8, 3)
    with pytest.raises(TooFewPictures, match="1 pictures are too few"):
        measure(good[:1], good)
    with pytest.raises(InputError, match="features of shape"):
        measure(good[0], good)
    spoiled = good.clone()
    spoiled[3, 1] = torch.nan
    with pytest.raises(NonFiniteError, match="1 of 8 pictures hold NaN or infinity, first number 3"):
        measure(spoiled, good)


@pytest.mark.parametrize("measure", [kernel_distance, precision_recall, density_coverage, nearest_neighbours,
                                     lambda a, b: frechet_distance(moments(a), moments(b))])  # fmt: skip
def test_features_of_two_extractors(measure):
    with pytest.raises(SizesDiffer, match="3 and 4 wide"):
        measure(normal(8, 3), normal(8, 4))
