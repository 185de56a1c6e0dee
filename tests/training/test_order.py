"""The order of a training set and the choices of a sample: pure, complete, and random enough."""

import numpy as np
import pytest

from safelight.errors import InputError
from safelight.training.data.order import Draws, Order


@pytest.mark.parametrize("length", [1, 2, 3, 4, 5, 31, 32, 33, 1000, 4097])
def test_every_epoch_is_a_permutation(length):
    order = Order(7, length)
    for epoch in (0, 1, 99):
        assert sorted(order.indices(epoch, np.arange(length))) == list(range(length))


def test_one_place_at_a_time_equals_all_at_once():
    order = Order(-3, 50)
    whole = [int(i) for epoch in (0, 1) for i in order.indices(epoch, np.arange(50))]
    assert [order.at(n) for n in range(100)] == whole
    assert order.index(1, 4) == whole[54]
    assert order.many([99, 0, 50, 3]) == [whole[99], whole[0], whole[50], whole[3]]
    assert whole[:50] != whole[50:]


def test_places_are_uniform_over_seeds_and_neighbours_are_unrelated():
    places = np.array([Order(seed, 10).indices(0, np.arange(10)) for seed in range(2000)])
    counts = np.array([np.bincount(column, minlength=10) for column in places.T])
    assert counts.min() > 130 and counts.max() < 270  # 200 expected, sigma 13.4
    long = Order(0, 10_000).indices(0, np.arange(10_000))
    assert abs(np.corrcoef(long[:-1], long[1:])[0, 1]) < 0.05
    assert abs(np.corrcoef(long, np.arange(10_000))[0, 1]) < 0.05


def test_golden_order_and_draws():
    """Kept for good: another result would reshuffle the runs of users who resume with a newer Safelight."""
    assert Order(1, 10).indices(2, np.arange(10)).tolist() == [0, 6, 3, 1, 5, 2, 4, 7, 9, 8]
    assert [Draws(1, 2).below(1000), Draws(1, 2, 1).below(1000)] == [309, 575]


def test_order_refuses_what_it_cannot_do():
    with pytest.raises(InputError, match="at least one"):
        Order(0, 0)
    with pytest.raises(InputError, match="outside an epoch"):
        Order(0, 5).index(0, 5)


def test_draws_belong_to_seed_number_and_stream():
    def first(*key):
        draws = Draws(*key)
        return [draws.unit() for _ in range(200)]

    assert first(1, 2) == first(1, 2)
    assert len({tuple(first(*key)) for key in [(1, 2), (2, 1), (1, 3), (1, 2, 1), (-1, 2), (2**63, 2)]}) == 6
    assert min(first(5, 5)) >= 0 and max(first(5, 5)) < 1


def test_draws_follow_their_distributions():
    draws = Draws(0, 0)
    assert abs(np.mean([draws.chance(0.3) for _ in range(5000)]) - 0.3) < 0.03
    picks = [draws.weighted("abc", (1, 0, 3)) for _ in range(5000)]
    assert "b" not in picks and abs(picks.count("c") / 5000 - 0.75) < 0.03
    assert {draws.below(3) for _ in range(100)} == {0, 1, 2} == {draws.choice((0, 1, 2)) for _ in range(100)}
    assert all(-2 <= draws.between(-2, 5) < 5 for _ in range(100))
