"""Memory of large results is used again when nobody reads it, and never before."""

import mmap
import weakref
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch

from safelight import kernels
from safelight.kernels import buffers
from safelight.kernels.buffers import LARGE, empty, reused

FLOATS = LARGE // 4
WAITS = hasattr(mmap, "MADV_FREE")


def large(times: int = 1) -> torch.Tensor:
    return empty((times, FLOATS), torch.float32)


def test_memory_is_used_again_once_it_is_free():
    with reused():
        first = large()
        place = first.data_ptr()
        second = large()
        assert second.data_ptr() != place
        del first
        assert large().data_ptr() == place


def test_a_view_keeps_memory_from_others():
    with reused():
        whole = large()
        place, part = whole.data_ptr(), whole[0, 5:7].fill_(3)
        del whole
        other = large().zero_()
        assert other.data_ptr() != place and part.tolist() == [3, 3]
        del part
        assert large().data_ptr() == place


def test_the_smallest_that_is_large_enough_is_taken():
    with reused():
        three, one, two = large(3), large(1), large(2)
        places = [t.data_ptr() for t in (one, two, three)]
        del three, one, two
        taken = [large(n) for n in (2, 1, 1)]
        assert [t.data_ptr() for t in taken] == [places[1], places[0], places[2]]


def test_free_memory_grows():
    with reused():
        first = large()
        first.fill_(1)
        del first
        grown = large(3)
        assert grown.fill_(2).sum() == 6 * FLOATS and len(buffers._kept.get()) == (1 if buffers.GROWS else 2)


def test_where_memory_cannot_grow_there_is_more(monkeypatch):
    monkeypatch.setattr(buffers, "GROWS", False)
    with reused():
        large()
        assert large(2).fill_(2).sum() == 4 * FLOATS and len(buffers._kept.get()) == 2


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.int8])
def test_shapes_and_dtypes(dtype):
    shape = (3, 5, LARGE // 7)
    with reused():
        got = empty(shape, dtype)
    plain = empty(shape, dtype)
    for t in (got, plain):
        assert t.shape == shape and t.dtype == dtype and t.is_contiguous()
        assert (t.fill_(7) == 7).all()  # what is got can be written and read after `reused` too


def test_small_results_and_those_elsewhere_are_torchs():
    with reused():
        empty((4,), torch.float32), large()
        assert len(buffers._kept.get()) == 1
        with ThreadPoolExecutor(1) as pool:
            assert pool.submit(buffers._kept.get).result() is None
    assert buffers._kept.get() is None
    large()


def test_within_another_it_joins():
    with reused():
        first = large()
        place = first.data_ptr()
        with reused():
            assert large().data_ptr() != place
        del first
        assert len(buffers._kept.get()) == 2


@pytest.fixture(autouse=True)
def nothing_waits():
    buffers.release()
    yield
    buffers.release()


@pytest.mark.skipif(not WAITS, reason="this system cannot take back what waits")
def test_at_the_end_free_memory_waits_for_the_next():
    with reused():
        first, read = large().fill_(1), large().fill_(2)
        place = first.data_ptr()
        del first
    assert len(buffers._idle) == 1 and (read == 2).all()
    with reused():
        again = large().fill_(3)
        assert again.data_ptr() == place and buffers._idle == []
        assert large().data_ptr() not in (place, read.data_ptr())
    buffers.release()
    assert buffers._idle == []


@pytest.mark.skipif(not WAITS, reason="this system cannot take back what waits")
def test_what_waits_is_bounded(monkeypatch):
    monkeypatch.setattr(buffers, "IDLE", 2 * LARGE)
    with reused():
        several = [large() for _ in range(4)]
        del several
    assert len(buffers._idle) == 2


@pytest.mark.skipif(not WAITS, reason="this system cannot take back what waits")
def test_threads_share_what_waits_and_nothing_else():
    with reused():
        del (several := {"a": large(), "b": large()})["a"], several
    with reused(), ThreadPoolExecutor(1) as pool:
        mine = large().fill_(1)

        @reused()
        def other() -> bool:
            return large().fill_(2).data_ptr() == mine.data_ptr()

        assert not pool.submit(other).result() and (mine == 1).all()


def test_memory_goes_at_the_end(monkeypatch):
    monkeypatch.setattr(buffers, "IDLE", 0)

    @reused()
    def draw() -> tuple[torch.Tensor, list]:
        parts = large(), large(2)
        return parts[1], [weakref.ref(block.memory) for block in buffers._kept.get()]

    kept, memories = draw()
    assert [m() is None for m in memories] == [True, False]  # one went, the other is read
    del kept
    assert memories[1]() is None


def test_kernels_compute_the_same_within(monkeypatch):
    """A stack of convolutions and norms in memory that is used over and over gives what it gives in fresh memory."""
    monkeypatch.setattr(buffers, "LARGE", 1024)
    g = torch.Generator().manual_seed(0)
    weights = [torch.randn(32, 32, 3, 3, generator=g) / 17 for _ in range(6)]
    x = torch.randn(2, 32, 12, 20, generator=g)

    def stack(x):
        for weight in weights:
            h = kernels.group_norm(x, 8, None, None, 1e-6, silu=True, fast=True)
            x = kernels.conv3x3(h, weight, residual=x, fast=True)
            rows = x.permute(0, 2, 3, 1)
            x = x + kernels.linear(rows, weight[:, :, 1, 1].contiguous(), fast=True).permute(0, 3, 1, 2)
        return x

    with torch.no_grad():
        plain = stack(x)
        with reused():
            again = [stack(x) for _ in range(3)]
    assert all(torch.equal(plain, got) for got in again)
