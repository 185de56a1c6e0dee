"""Windows: what is the same everywhere is the same in windows, and what differs is blended without an edge."""

from itertools import pairwise

import pytest
import torch

from safelight.diffusion.windows import ramp, starts, windowed
from safelight.errors import InputError


def seen(shapes):
    """A denoiser of each place by itself, which notes what it was shown."""

    def denoise(x, sigma):
        shapes.append(tuple(x.shape))
        return torch.tanh(x) / (1 + sigma)

    return denoise


@pytest.mark.parametrize("size", [(16, 16), (17, 40), (8, 23), (33, 9)])
@pytest.mark.parametrize("overlap", [0.0, 0.25, 0.5, 0.9])
def test_what_goes_by_places_alone_is_the_whole(size, overlap):
    shapes = []
    x = torch.randn(2, 3, *size, generator=torch.Generator().manual_seed(0))
    found = windowed(seen(shapes), (8, 8), overlap=overlap)(x, 0.7)
    torch.testing.assert_close(found, torch.tanh(x) / 1.7, rtol=1e-6, atol=1e-6)
    assert all(shape == (2, 3, 8, 8) for shape in shapes)


def test_a_picture_of_one_window_is_what_it_was():
    shapes = []
    x = torch.randn(1, 3, 8, 6)
    assert torch.equal(windowed(seen(shapes), (8, 8))(x, 0.5), torch.tanh(x) / 1.5)
    assert shapes == [(1, 3, 8, 6)]


@pytest.mark.parametrize(("whole", "window", "overlap"), [(64, 16, 0.5), (65, 16, 0.5), (40, 16, 0.0), (17, 16, 0.25)])
def test_windows_lie_evenly_and_share_what_was_asked_for(whole, window, overlap):
    found = starts(whole, window, overlap)
    assert found[0] == 0 and found[-1] == whole - window
    shared = [window - (b - a) for a, b in pairwise(found)]
    assert min(shared) >= int(window * overlap) - 1 and max(shared) - min(shared) <= 1


def test_windows_that_disagree_are_blended_without_a_step():
    """Each window says its own number: between neighbours the result goes from one to the other a little at a time."""
    count = iter(range(100))
    found = windowed(lambda x, sigma: torch.full_like(x, float(next(count))), (32, 32))(torch.zeros(1, 1, 32, 64), 1.0)
    steps = found[0, 0, 0].diff()
    assert found[0, 0, 0, 0] == 0 and found[0, 0, 0, -1] == 2 and bool((steps >= 0).all())
    assert float(steps.max()) < 0.1


def test_ramps_are_nowhere_zero():
    assert ramp(5).tolist() == [0.5, 1.5, 2.5, 1.5, 0.5] and bool((ramp(1) > 0).all())


def test_gradients_go_through():
    x = torch.randn(1, 1, 12, 12, requires_grad=True)
    windowed(seen([]), (8, 8))(x, 0.0).sum().backward()
    torch.testing.assert_close(x.grad, 1 - torch.tanh(x.detach()) ** 2)


def test_what_is_no_window_is_told():
    for window, overlap in (((0, 8), 0.5), ((8, 8), 1.0), ((8, 8), -0.1)):
        with pytest.raises(InputError, match="windows of"):
            windowed(seen([]), window, overlap=overlap)
