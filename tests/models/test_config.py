"""Config fields are checked against their annotations."""

from dataclasses import dataclass

import pytest

from safelight.errors import InputError
from safelight.models.config import check_choice, check_types, frozen


@dataclass(frozen=True, kw_only=True)
class Example:
    count: int | tuple[int, ...] = 1
    pair: tuple[int, int] | None = None
    eps: float = 1e-5
    flag: bool = False
    name: str | None = None
    padding: int = 1


@pytest.mark.parametrize(
    "good",
    [{}, {"count": (1, 2, 3)}, {"pair": (2, 3)}, {"eps": 1}, {"flag": True}, {"name": "a"}, {"padding": 0}],
    ids=str,
)
def test_right_types_pass(good):
    check_types(Example(**good), may_be_zero=["padding"])


@pytest.mark.parametrize(
    "bad",
    [
        {"count": "1"},
        {"count": True},
        {"count": 1.5},
        {"count": 0},
        {"count": None},
        {"count": ()},
        {"count": (1, "2")},
        {"count": (1, 0)},
        {"count": [1]},
        {"pair": (1, 2, 3)},
        {"eps": "1e-5"},
        {"eps": True},
        {"flag": 1},
        {"name": 3},
        {"padding": -1},
    ],
    ids=str,
)
def test_wrong_types_are_named(bad):
    ((field, value),) = bad.items()
    with pytest.raises(InputError, match=f"^{field} cannot be") as error:
        check_types(Example(**bad), may_be_zero=["padding"])
    assert repr(value) in error.value.what and error.value.remedy


def test_lists_become_tuples():
    assert frozen([1, [2, (3,)], "ab"]) == (1, (2, (3,)), "ab")


def test_unknown_choice_names_the_nearest():
    with pytest.raises(InputError, match=r"(?s)way cannot be 'dwon'.*down"):
        check_choice("way", "dwon", ("up", "down", None))
    check_choice("way", None, ("up", "down", None))
