"""The classifier that judges pictures: its data, its training, what it writes, and the questions it marks."""

import json

import pytest
import torch
from sprite_sets import CODES, write_sprites

from safelight.checkpoint.errors import WrongModel
from safelight.errors import InputError
from safelight.models.classifier import Classifier, ClassifierConfig, Seen, pooled
from safelight.training.data.collections import open_collection
from safelight.training.evaluation.classifier import (
    ClassifierData,
    ClassifierStage,
    Judge,
    Labels,
    cross_entropy,
    lone_things,
    new_classifier,
    top_k,
)
from safelight.training.evaluation.classifier_config import ClassifierRecipe
from safelight.training.evaluation.questions import ASKING, Question, questions, score, seen_colors, seen_places
from safelight.training.loop.train import train
from safelight.training.stages.noise import BatchNoise

RECIPE = ClassifierRecipe(
    data="", size=32, channels=(8, 16), features=16, steps=60, batch_size=16, warmup=5, ema_decay=0.9,
    learning_rate=3e-3, smoothing=0.0, log_every=10, sheet_every=60, checkpoint_every=60,
)  # fmt: skip


@pytest.fixture(scope="module")
def collection(tmp_path_factory):
    return open_collection(write_sprites(tmp_path_factory.mktemp("sprites")))


@pytest.fixture(scope="module")
def data(collection):
    return ClassifierData(lone_things(collection, 32), Labels.of(collection))


@pytest.fixture(scope="module")
def trained(data, tmp_path_factory):
    """A run of 60 steps: some seconds of what `safelight train classifier` does."""
    torch.manual_seed(0)
    stage = ClassifierStage(new_classifier(data.labels, RECIPE), data.labels, RECIPE, data)
    run = tmp_path_factory.mktemp("run")
    outcome = train(stage, data, run, RECIPE)
    return run, outcome.result


def test_labels(collection):
    labels = Labels.of(collection)
    assert set(labels.concepts) == set(CODES.values()) and labels.styles == ("fluent flat", "noto gradient")
    assert labels.names[labels.concepts.index(CODES["wedge"])] == "wedge"
    by_name = Labels.of(collection, "name")
    assert by_name.concepts == ("block", "disc", "wedge")
    with pytest.raises(InputError, match=r"no sprite of .* has a 'colour'"):
        Labels.of(collection, "colour")


def test_held_out_pairs_are_never_shown(collection, data):
    """Four pairs are for training, two are held out, and together they are all."""
    shown = {(s.entry.meta["name"], s.entry.meta["style"]) for s in data.scenes.bank.sprites}
    held_out = {
        (s.entry.meta["name"], s.entry.meta["style"]) for s in lone_things(collection, 32, held_out=True).bank.sprites
    }
    assert held_out == {("disc", "fluent flat"), ("block", "noto gradient")}
    assert len(shown) == 4 and not shown & held_out


def test_nothing_held_out(collection):
    without = collection.where(lambda entry: entry.meta.get("name") in ("wedge", "grey sky"))
    with pytest.raises(InputError, match="holds out no pairs"):
        lone_things(without, 32, held_out=True)


def test_batches_are_labelled_right(data):
    batch = data.batch(3, range(8))
    plans = [data.scenes.sample(3, n).plan for n in range(8)]
    entries = [plan.objects[0].sprite.entry for plan in plans]
    assert [data.labels.concepts[i] for i in batch.concepts] == [entry.meta["hex"] for entry in entries]
    assert [data.labels.styles[i] for i in batch.styles] == [entry.meta["style"] for entry in entries]
    assert batch.masks.shape == (8, 32, 32) and batch.masks.flatten(1).any(dim=1).all()


def test_losses_leave_out_what_has_no_label():
    logits, labels = torch.randn(4, 3), torch.tensor([0, -1, 2, -1])
    assert torch.allclose(
        cross_entropy(logits, labels, 0.0), torch.nn.functional.cross_entropy(logits[::2], labels[::2])
    )
    assert cross_entropy(logits, torch.full((4,), -1), 0.1) == 0
    best = torch.tensor([[3.0, 1, 2], [0, 1, 2], [3, 2, 1], [0, 1, 2]])
    assert top_k(best, labels, 1) == 0.5 and top_k(best, labels, 3) == 1


def test_pooling_is_the_mean_under_the_mask():
    """Of every level, from the finest on; and of the last one over everything."""
    fine, coarse, mask = torch.randn(1, 3, 8, 8), torch.randn(1, 2, 4, 4), torch.full((1, 8, 8), -50.0)
    mask[:, :4, :4] = 50
    wanted = (fine[:, :, :4, :4], coarse[:, :, :2, :2], coarse)
    wanted = torch.cat([part.mean(dim=(2, 3)) for part in wanted], dim=1)
    assert torch.allclose(pooled([fine, coarse], mask), wanted, atol=1e-3)


def test_sizes():
    with pytest.raises(InputError, match="cannot be halved 4 times"):
        ClassifierConfig(concepts=2, styles=2, size=40)
    network = Classifier(ClassifierConfig(concepts=5, styles=2, size=16, channels=(8, 16), features=12))
    seen = network(torch.randn(3, 3, 40, 40))
    assert seen.concepts.shape == (3, 5) and seen.masks.shape == (3, 8, 8) and seen.features.shape == (3, 12)


def test_it_learns(trained, data):
    """Chance is a third for the shape and a half for the style."""
    run, _ = trained
    rows = [json.loads(line) for line in (run / "log.jsonl").read_text().splitlines()]
    assert rows[-1]["concept_loss"] < 0.7 * rows[0]["concept_loss"] and rows[-1]["mask_loss"] < rows[0]["mask_loss"]
    assert rows[-1]["top1"] > 0.6
    assert list((run / "sheets").glob("*.png"))


def test_what_was_written_is_read_back(trained, data):
    _, folder = trained
    judge = Judge.load(folder)
    assert judge.labels == data.labels and len(judge.sha256) == 64
    batch = data.batch(0, range(6))
    seen = judge.look(batch.pictures.split(4))
    assert seen.concepts.shape == (6, 3)
    assert torch.allclose(seen.features, judge.extractor(batch.pictures), atol=1e-5)
    assert judge.extractor.frechet == "FD-own" and judge.sha256[:12] in judge.extractor.name


def test_another_folder_is_no_classifier(tmp_path):
    (tmp_path / "config.json").write_text('{"_class_name": "AutoencoderKL"}')
    with pytest.raises(WrongModel, match="is no classifier"):
        Judge.load(tmp_path)


def test_losses_are_finite_and_random_only_by_the_sample(data):
    stage = ClassifierStage(new_classifier(data.labels, RECIPE), data.labels, RECIPE, data)
    numbers = range(4)
    values = [next(stage.losses(data.batch(0, numbers), BatchNoise(0, numbers))).value for _ in range(2)]
    assert values[0].isfinite() and values[0] == values[1]


# Questions


@pytest.fixture(scope="module")
def asked(collection):
    labels = Labels.of(collection)
    data = ClassifierData(lone_things(collection, 64, held_out=True, wording=ASKING), labels)
    return questions(data.scenes, labels, 5, 40), data.batch(5, range(40))


def perfect(batch, labels=3, styles=2):
    """What a classifier would say that is always right."""
    masks = torch.where(torch.nn.functional.max_pool2d(batch.masks.float(), 2) > 0, 50.0, -50.0)
    one_hot = torch.nn.functional.one_hot
    return Seen(
        one_hot(batch.concepts, labels).float(), one_hot(batch.styles, styles).float(), masks, torch.zeros(40, 1)
    )


def shares(got):
    return got.top1, got.top5, got.style, got.color, got.places


def test_questions_say_what_they_ask(asked):
    for question in asked[0]:
        assert question.color is None or question.color in question.prompt
        assert all(place in question.prompt for place in question.places)
    assert {q.color for q in asked[0]} >= {"red", "blue"}
    assert {place for q in asked[0] for place in q.places} == {"left", "right", "top", "bottom"}


def test_a_perfect_judge_finds_every_answer(asked):
    """So what is measured in pixels, colour and place, is what the captions mean."""
    got = score(asked[0], asked[1].pictures, perfect(asked[1]))
    assert {share.value for share in shares(got)} == {1.0} and all(got.correct)
    assert got.top1.asked == 40 and got.color.asked == sum(q.color is not None for q in asked[0])


def test_wrong_pictures_score_low(asked):
    """The pictures of other questions: mirrored both ways, so that every place is wrong, and inverted in colour."""
    turned = asked[1].pictures.flip(2, 3).neg()
    seen = perfect(asked[1])
    wrong = Seen(seen.concepts.flip(1).roll(1, 1), seen.styles.flip(1), seen.masks.flip(1, 2), seen.features)
    got = score(asked[0], turned, wrong)
    assert got.style.value == got.places.value == got.color.value == 0


def test_what_is_not_asked_is_not_scored():
    seen = Seen(torch.zeros(1, 3), torch.zeros(1, 2), torch.zeros(1, 4, 4), torch.zeros(1, 1))
    got = score([Question("a thing", -1, -1, None, ())], torch.zeros(1, 3, 8, 8), seen)
    assert {share.value for share in shares(got)} == {None}


def test_colors_have_kin():
    light_blue = torch.tensor([130, 205, 250])[None, :, None, None] / 127.5 - 1
    assert seen_colors(light_blue.expand(1, 3, 8, 8), torch.full((1, 4, 4), 9.0)) == [("light blue", "blue")]


def test_places_forgive_stray_pixels():
    mask = torch.full((1, 32, 32), -9.0)
    mask[0, 4:14, 3:13] = 9
    mask[0, 31, 31] = 9
    assert seen_places(mask) == [("left", "top")]
