import pytest
import torch

from safelight.diffusion.condition import Condition
from safelight.errors import InputError


def condition(batch: int, length: int = 3) -> Condition:
    start = torch.arange(float(batch))
    return Condition(
        context=start.reshape(-1, 1, 1).expand(batch, length, 2),
        pooled=start.reshape(-1, 1),
        concat=start.reshape(-1, 1, 1, 1),
        class_labels=torch.arange(batch),
    )


def test_batch_and_shapes():
    assert condition(3).batch == 3
    assert Condition().batch == 1
    assert condition(3).shapes == {"context": (3, 2), "pooled": (1,), "concat": (1, 1, 1), "class_labels": ()}


def test_repeat_keeps_neighbours_together():
    assert condition(2).repeat(3).class_labels.tolist() == [0, 0, 0, 1, 1, 1]
    assert condition(2).repeat(3).context[:, 0, 0].tolist() == [0, 0, 0, 1, 1, 1]


def test_expand():
    assert condition(1).expand(4).batch == 4
    four = condition(4)
    assert four.expand(4) is four
    with pytest.raises(InputError, match="2 conditions for 3 pictures"):
        condition(2).expand(3)
    assert Condition().expand(5).batch == 1


def test_select_and_cat_undo_each_other():
    whole = condition(5)
    again = Condition.cat([whole.select(slice(0, 2)), whole.select(slice(2, 5))])
    for name, tensor in whole.present().items():
        assert torch.equal(again.present()[name], tensor)


def test_what_cannot_share_a_batch():
    with pytest.raises(InputError, match="shapes"):
        Condition.cat([condition(1, 77), condition(1, 154)])
    with pytest.raises(InputError, match="shapes"):
        Condition.cat([condition(1), Condition(context=condition(1).context)])
    with pytest.raises(InputError, match="one batch size"):
        Condition(context=torch.zeros(2, 3, 4), pooled=torch.zeros(3, 4))


def test_to_leaves_whole_numbers_whole():
    half = condition(2).to("cpu", torch.bfloat16)
    assert half.context.dtype == half.concat.dtype == torch.bfloat16
    assert half.class_labels.dtype == torch.int64
