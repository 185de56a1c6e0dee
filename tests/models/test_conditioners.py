import pytest
import torch

from safelight.errors import InputError
from safelight.models.conditioners import ClassEmbedder, LayoutEmbedder, MapEmbedder, config_of, make_conditioner

LAYOUT = LayoutEmbedder.Config(num_classes=3, embed_dim=8, max_objects=4, num_layers=2, num_heads=2)
BOXES = torch.tensor([[[0.1, 0.2, 0.5, 0.6], [0.5, 0.5, 1.0, 1.0], [0.0, 0.0, 0.0, 0.0]]])
LABELS = torch.tensor([[2, 0, -1]])


def test_a_class_is_one_token():
    network = ClassEmbedder(ClassEmbedder.Config(num_classes=4, embed_dim=8))
    assert torch.equal(network(torch.tensor([3, 1])), network.embedding.weight[[3, 1]][:, None])


def test_objects_are_tokens_in_no_order_and_see_each_other():
    torch.manual_seed(0)
    network = LayoutEmbedder(LAYOUT)
    tokens = network(BOXES, LABELS)
    assert tokens.shape == (1, 3, 8)
    order = [2, 0, 1]
    torch.testing.assert_close(network(BOXES[:, order], LABELS[:, order]), tokens[:, order])
    other = network(BOXES, torch.tensor([[1, 0, -1]]))
    assert not torch.allclose(other[:, 1], tokens[:, 1])  # what the first object is reaches the second


def test_boxes_matter_but_not_where_nothing_is():
    torch.manual_seed(0)
    network = LayoutEmbedder(LAYOUT)
    tokens = network(BOXES, LABELS)
    moved, ghost = BOXES.clone(), BOXES.clone()
    moved[0, 0, 0] += 0.01
    ghost[0, 2] = 0.7
    assert not torch.allclose(network(moved, LABELS), tokens, atol=1e-4)
    assert torch.equal(network(ghost, LABELS), tokens)


def test_a_map_is_a_mean_of_its_classes_rows():
    network = MapEmbedder(MapEmbedder.Config(num_classes=5, out_channels=2))
    half = torch.zeros(1, 4, 4, dtype=torch.int64)
    half[:, :, 2:] = 3
    rows = network.embedding.weight
    torch.testing.assert_close(network(half, (1, 2))[0, :, 0].T, rows[[0, 3]])
    torch.testing.assert_close(network(half, (1, 1))[0, :, 0, 0], (rows[0] + rows[3]) / 2)


def test_configs_are_written_and_read_and_what_is_wrong_is_named():
    network = LayoutEmbedder(LAYOUT)
    assert make_conditioner(config_of(network)).config == LAYOUT
    with pytest.raises(InputError, match="LayoutEmbeder"):
        make_conditioner({"_class_name": "LayoutEmbeder"})
    with pytest.raises(InputError, match="num_clases") as caught:
        make_conditioner({"_class_name": "ClassEmbedder", "num_clases": 3, "embed_dim": 8})
    assert "num_classes" in caught.value.remedy
