"""Batches of pictures: what is in them, and that sample n is the same whoever asks, and when."""

import os
import signal
from itertools import islice

import numpy as np
import pytest
import torch
from PIL import Image

from safelight.errors import InputError
from safelight.training.data.batches import PictureData, batches
from safelight.training.data.buckets import BucketOrder, Buckets
from safelight.training.data.collections import CollectionError, open_collection
from safelight.training.data.framing import fitted, on_background
from safelight.training.data.order import Draws


def collection(folder, n=12, size=(8, 8), caption="picture {}", mode="RGB", **options):
    """Pictures whose colour tells their number: red is 20 times it on the left half, and one more on the right."""
    for i in range(n):
        pixels = np.zeros((size[1], size[0], len(mode)), np.uint8)
        pixels[..., 0] = 20 * i
        pixels[:, size[0] // 2 :, 0] += 1
        Image.fromarray(pixels).save(folder / f"{i:02}.png")
        (folder / f"{i:02}.txt").write_text(caption.format(i))
    return open_collection(folder, **options)


def read(data, steps, **options):
    """(captions, pictures) of some steps."""
    options = {"seed": 0, "batch_size": 4} | options
    return [(b.captions, b.pictures) for b in islice(batches(data, **options), steps)]


def same(a, b):
    return len(a) == len(b) and all(x[0] == y[0] and torch.equal(x[1], y[1]) for x, y in zip(a, b, strict=True))


VARIED = {"size": (6, 4), "crop": "random", "zoom": 0.5, "flip": 0.5, "caption_dropout": 0.3, "background": "random"}


def test_pictures_meet_their_captions(tmp_path):
    (batch,) = islice(batches(PictureData(collection(tmp_path), size=8), seed=0, batch_size=12), 1)
    assert batch.pictures.shape == (12, 3, 8, 8) and batch.pictures.dtype == torch.float32
    assert sorted(batch.captions) == sorted(f"picture {i}" for i in range(12))
    for caption, picture in zip(batch.captions, batch.pictures, strict=True):
        red = 20 * int(caption.split()[1])
        assert picture[0, 0, 0] == pytest.approx(red / 127.5 - 1, abs=1e-6)
        assert picture[0, 0, 7] == pytest.approx((red + 1) / 127.5 - 1, abs=1e-6)
        assert torch.all(picture[1:] == -1)


def test_an_epoch_reads_every_picture_once_and_resuming_none_twice(tmp_path):
    data = PictureData(collection(tmp_path, 10), size=8)
    captions = [c for some, _ in read(data, 10, batch_size=3) for c in some]
    for epoch in range(3):
        assert len(set(captions[10 * epoch : 10 * epoch + 10])) == 10
    assert captions[:10] != captions[10:20]
    for stop in range(1, 10):
        again = read(data, 10 - stop, batch_size=3, start=3 * stop)
        assert captions[: 3 * stop] + [c for some, _ in again for c in some] == captions


def test_the_order_does_not_depend_on_world_size(tmp_path):
    data = PictureData(collection(tmp_path), **VARIED)
    alone = read(data, 5)
    for world in (2, 4):
        ranks = [read(data, 5, rank=rank, world=world) for rank in range(world)]
        together = [
            ([c for part in step for c in part[0]], torch.cat([part[1] for part in step]))
            for step in zip(*ranks, strict=True)
        ]
        assert same(together, alone)


def test_workers_give_what_one_process_gives(tmp_path):
    data = PictureData(collection(tmp_path), **VARIED)
    assert same(read(data, 4, workers=2, start=8), read(data, 4, start=8))


class Interrupted(PictureData):
    """Its workers get the signals that Ctrl-C and a scheduler send to every process of a job."""

    def gather(self, seed, numbers):
        for number in (signal.SIGINT, signal.SIGTERM):
            os.kill(os.getpid(), number)
        return super().gather(seed, numbers)


def test_workers_leave_signals_to_the_trainer(tmp_path):
    assert len(read(Interrupted(collection(tmp_path), size=8), 3, workers=1)) == 3


def test_samples_are_what_batches_hold(tmp_path):
    data = PictureData(collection(tmp_path), **VARIED)
    batch = data.batch(5, [7, 3])
    for k, n in enumerate((7, 3)):
        sample = data.sample(5, n)
        assert batch.captions[k] == sample.caption
        wanted = torch.tensor(sample.picture).permute(2, 0, 1).float() / 127.5 - 1
        assert torch.allclose(batch.pictures[k], wanted, atol=1e-6)


def test_choices_change_with_the_epoch(tmp_path):
    data = PictureData(collection(tmp_path, 1), size=8, flip=0.5)
    assert {int(data.sample(0, n).picture[0, 0, 0]) for n in range(20)} == {0, 1}


@pytest.mark.parametrize(
    ("caption", "words", "wanted"),
    [
        ("a cat", "keep", {("a cat", 0), ("a cat", 1)}),
        ("a cat on the left", "keep", {("a cat on the left", 0)}),
        ("Left, then turning RIGHT", "swap", {("Left, then turning RIGHT", 0), ("Right, then turning LEFT", 1)}),
        ("the leftmost bright copy", "swap", {("the leftmost bright copy", 0), ("the rightmost bright copy", 1)}),
    ],
)
def test_mirrored_pictures_have_true_captions(tmp_path, caption, words, wanted):
    data = PictureData(collection(tmp_path, 1, caption=caption), size=8, flip=0.5, flip_words=words)
    samples = [data.sample(0, n) for n in range(40)]
    assert {(s.caption, int(s.picture[0, 0, 0])) for s in samples} == wanted


def test_caption_dropout_and_several_captions(tmp_path):
    data = PictureData(
        collection(tmp_path, 1, caption="one\ntwo"), size=8, caption_dropout=0.25, null_caption="nothing"
    )
    captions = [data.sample(0, n).caption for n in range(800)]
    for caption, share in {"nothing": 0.25, "one": 0.375, "two": 0.375}.items():
        assert captions.count(caption) / 800 == pytest.approx(share, abs=0.05)


def test_options_for_pictures_leave_captions_as_they_are(tmp_path):
    c = collection(tmp_path, 3, caption="one\ntwo\nthree")
    plain, varied = PictureData(c, size=8), PictureData(c, **(VARIED | {"caption_dropout": 0.0}))
    assert [plain.sample(1, n).caption for n in range(30)] == [varied.sample(1, n).caption for n in range(30)]


def test_captions_come_without_pictures(tmp_path):
    data = PictureData(collection(tmp_path, caption="on the left {}"), **VARIED, flip_words="swap")
    assert list(data.captions(3, 30)) == [data.sample(3, n).caption for n in range(30)]


def test_keyword_substitution(tmp_path):
    Image.new("RGB", (8, 8)).save(tmp_path / "x.png")
    (tmp_path / "metadata.jsonl").write_text(
        '{"file_name": "x.png", "text": "a red apple", "name": "apple", "keywords": ["fruit", "food"]}'
    )
    data = PictureData(open_collection(tmp_path), size=8, keyword_substitution=0.5)
    assert {data.sample(0, n).caption for n in range(50)} == {"a red apple", "a red fruit", "a red food"}


def test_labels_are_numbered_by_name(tmp_path):
    for name in ("dog", "cat"):
        (tmp_path / name).mkdir()
        Image.new("RGB", (8, 8)).save(tmp_path / name / "x.png")
    data = PictureData(open_collection(tmp_path, captions="optional", label="folder"), size=8)
    batch = data.batch(0, [0, 1])
    assert data.class_names == ["cat", "dog"]
    assert sorted(batch.labels.tolist()) == [0, 1] and batch.captions == ["", ""]


def test_transparent_pictures_stand_on_the_background():
    picture = Image.new("RGBA", (4, 4), (10, 20, 30, 0))
    assert on_background(picture, "white", Draws(0, 0)).getpixel((0, 0)) == (255, 255, 255)
    assert on_background(picture, (1, 2, 3), Draws(0, 0)).getpixel((0, 0)) == (1, 2, 3)
    assert len({on_background(picture, "random", Draws(0, n)).getpixel((0, 0)) for n in range(9)}) == 9
    picture.putalpha(255)
    assert on_background(picture, "random", Draws(0, 0)).getpixel((0, 0)) == (10, 20, 30)


def test_fitting_crops_the_middle_and_the_ends():
    ramp = Image.fromarray(np.arange(0, 240, 8, dtype=np.uint8)[None].repeat(10, 0))  # 30 x 10
    for across, wanted in ((0, 0), (0.5, 10), (1, 20)):
        assert np.array_equal(fitted(ramp, (10, 10), across=across), np.asarray(ramp)[:, wanted : wanted + 10])
    half = np.asarray(fitted(ramp, (10, 10), across=0, down=0, share=0.5))
    assert half[0, 0] <= 4 and 32 <= half[0, -1] <= 40
    assert fitted(Image.new("RGB", (1, 1), "red"), (16, 9)).getcolors() == [(144, (255, 0, 0))]


def test_buckets_have_about_one_area_and_both_orientations():
    sizes = Buckets(64, step=8, max_aspect=2).sizes
    assert sizes[0] == (64, 64) and (88, 40) not in sizes and all((h, w) in sizes for w, h in sizes)
    assert all(0.85 * 64**2 <= w * h <= 64**2 and w % 8 == h % 8 == 0 and w <= 2 * h <= 4 * w for w, h in sizes)
    with pytest.raises(InputError, match="multiple of the step"):
        Buckets(65, step=8)


def test_bucketed_batches_have_one_shape_and_no_entry_twice():
    rng = np.random.default_rng(0)
    sizes = [(int(w), int(h)) for w, h in rng.integers(40, 100, (103, 2))] + [(300, 10)]
    order = BucketOrder(Buckets(64, step=16), sizes, 5)
    assert 80 <= len(order) <= 104 and len(order) % 5 == 0
    seen = set()
    for epoch in range(30):
        numbers = range(epoch * len(order), (epoch + 1) * len(order))
        placed = [order.index(3, n) for n in numbers]
        assert len({entry for entry, _ in placed}) == len(placed)
        assert all(len({size for _, size in placed[k : k + 5]}) == 1 for k in range(0, len(placed), 5))
        seen |= {entry for entry, _ in placed}
    assert seen == set(range(104))  # who sits out changes


def test_buckets_in_a_data_set(tmp_path):
    (tmp_path / "a").mkdir(), (tmp_path / "b").mkdir()
    collection(tmp_path / "a", 8, (16, 8)), collection(tmp_path / "b", 8, (8, 16))
    data = PictureData(open_collection(tmp_path), size=8, buckets=Buckets(16, step=4), batch_size=4)
    shapes = [tuple(p.shape[2:]) for _, p in read(data, 4)]
    assert sorted(shapes) == [(12, 20), (12, 20), (20, 12), (20, 12)]
    assert same(read(data, 3, workers=1, start=4), read(data, 3, start=4))
    with pytest.raises(InputError, match="do not fill a batch"):
        PictureData(open_collection(tmp_path), size=8, buckets=Buckets(16, step=4), batch_size=17)


def test_broken_pictures_are_replaced_by_their_followers(tmp_path):
    c = collection(tmp_path, 10, max_broken=0.1)
    (tmp_path / "04.png").write_bytes(b"nothing")
    data = PictureData(c, size=8)
    captions = [data.sample(0, n).caption for n in range(10)]
    assert captions.count("picture 5") == 2 and "picture 4" not in captions
    assert list(c.faults.found) == ["04.png"]
    (tmp_path / "05.png").write_bytes(b"nothing")
    with pytest.raises(CollectionError, match="2 of 10"):
        [PictureData(c, size=8).sample(0, n) for n in range(10)]


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"size": 0}, "no size"),
        ({"size": 8, "flip": 2}, "flip is 2"),
        ({"size": 8, "crop": "middle"}, "do not go together"),
        ({"size": 8, "zoom": 0.5}, "do not go together"),
        ({"size": 8, "caption_dropout": -0.1}, "caption_dropout"),
    ],
)
def test_options_are_checked(tmp_path, options, match):
    with pytest.raises(InputError, match=match):
        PictureData(collection(tmp_path, 1), **options)


@pytest.mark.parametrize(
    "options", [{"batch_size": 3, "world": 2}, {"rank": 2, "world": 2}, {"start": -1}, {"batch_size": 0}]
)
def test_batches_that_cannot_be_shared(tmp_path, options):
    with pytest.raises(InputError, match="cannot be shared"):
        batches(PictureData(collection(tmp_path, 1), size=8), **({"seed": 0, "batch_size": 4} | options))
