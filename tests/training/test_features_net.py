"""The stand-in for VGG16: that it learns its task, measures likeness, and comes out the same again."""

import pytest
import torch
from torch.nn import functional as F

from safelight.models.lpips import VGG, VGGConfig
from safelight.training.data.batches import Batch
from safelight.training.stages.features_net import Pupil, quarter_turns, stand_in, train_features
from safelight.training.stages.perceptual import STAND_IN_NAME, load_features, save_features

SMALL = VGGConfig(channels=(8, 16, 16), layers=(1, 1, 1))


class Upright:
    """A bright bar above a dark one, somewhere, in random colours: easy to see which way up it was."""

    def __len__(self):
        return 10_000

    def batch(self, seed, numbers, device="cpu"):
        generator = torch.Generator().manual_seed(seed * 7 + numbers[0])
        pictures = torch.rand(len(numbers), 3, 16, 20, generator=generator) * 0.6 - 0.3
        for picture in pictures:
            row = int(torch.randint(2, 10, (), generator=generator))
            picture[:, row : row + 2] += 0.7
            picture[:, row + 2 : row + 4] -= 0.7
        return Batch(pictures.to(device), [""] * len(numbers))


def test_quarter_turns():
    pictures = torch.rand(2, 3, 4, 6)
    turned, turns = quarter_turns(pictures)
    assert turned.shape == (8, 3, 4, 4) and turns.tolist() == [0, 0, 1, 1, 2, 2, 3, 3]
    assert torch.equal(turned[:2], pictures[..., 1:5])
    assert torch.equal(turned[4], pictures[0, :, :, 1:5].flip(1, 2))


def test_it_learns_its_task_and_is_saved_under_its_name(tmp_path):
    losses = []
    trained = train_features(
        Upright(), config=SMALL, steps=60, batch_size=8, watch=lambda s, loss, a: losses.append(loss)
    )
    assert trained.accuracy > 0.8 and torch.stack(losses[-5:]).mean() < 0.7 * torch.stack(losses[:5]).mean()
    metric = trained.metric
    assert metric.name == STAND_IN_NAME and not any(p.requires_grad for p in metric.parameters())
    x = Upright().batch(3, [5]).pictures
    near, far = x.roll(1, dims=3), x.flip(2)
    assert metric(x, x) == 0 < metric(x, near) < metric(x, far)
    save_features(metric, tmp_path / "features.safetensors")
    again = load_features(tmp_path / "features.safetensors")
    assert all(torch.equal(a, b) for a, b in zip(again.parameters(), metric.parameters(), strict=True))
    # Weights may lie in memory in another order now, and torch's convolutions sum in another order for that.
    torch.testing.assert_close(again(x, far), metric(x, far), rtol=1e-5, atol=0)


def test_the_same_seed_gives_the_same_network_and_leaves_the_global_generator_alone():
    state = torch.get_rng_state()
    first, second, other = (train_features(Upright(), config=SMALL, steps=2, batch_size=4, seed=s) for s in (1, 1, 2))
    weights = [list(trained.metric.vgg.parameters()) for trained in (first, second, other)]
    assert all(torch.equal(a, b) for a, b in zip(weights[0], weights[1], strict=True))
    assert not torch.equal(weights[0][0], weights[2][0])
    assert torch.equal(torch.get_rng_state(), state)


def test_gradients_lead_back_to_the_picture():
    trained = train_features(Upright(), config=SMALL, steps=20, batch_size=8).metric
    target = Upright().batch(3, [5]).pictures
    x = F.avg_pool2d(target, 3, 1, 1).requires_grad_()
    optimizer, before = torch.optim.Adam([x], lr=0.02), float(trained(x, target).detach())
    for _ in range(20):
        optimizer.zero_grad()
        trained(x, target).sum().backward()
        optimizer.step()
    assert float(trained(x, target).detach()) < 0.5 * before


def test_folding_changes_nothing():
    """What the network does with its normalisations in evaluation, the plain VGG does without them."""
    torch.manual_seed(0)
    pupil, pictures = Pupil(VGG(SMALL)), Upright().batch(0, range(8)).pictures
    for norm in pupil.norms:
        torch.nn.init.normal_(norm.weight), torch.nn.init.normal_(norm.bias)
    for _ in range(3):
        pupil(pictures)
    before = pupil.eval()(pictures)
    pupil.fold()
    torch.testing.assert_close(pupil(pictures), before, rtol=1e-4, atol=1e-5)


def test_a_stand_in_is_trained_once(tmp_path):
    steps = []
    with pytest.warns(UserWarning, match="stand in for it"):
        first = stand_in(tmp_path / "f.safetensors", Upright(), steps=1, watch=lambda *row: steps.append(row))
    again = stand_in(tmp_path / "f.safetensors", Upright(), steps=1, watch=lambda *row: steps.append(row))
    assert len(steps) == 1 and first.name == STAND_IN_NAME
    x, y = Upright().batch(0, range(4)).pictures.split(2)
    assert torch.equal(first(x, y), again(x, y))
