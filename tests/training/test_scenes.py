"""Scenes: the same on every device and for everybody who asks, their layout right, and nothing held out in them."""

import json
import zipfile
from dataclasses import replace
from itertools import islice, pairwise
from pathlib import Path
from zlib import crc32

import numpy as np
import pytest
import torch
from PIL import Image, ImageDraw

from safelight.errors import InputError
from safelight.training.data.banking import load_bank, save_bank
from safelight.training.data.batches import batches
from safelight.training.data.collections import CollectionError, open_collection
from safelight.training.data.composing import compose, draw, level_for
from safelight.training.data.planning import OVERLAP, Backdrop, Mix, Placed, Plan, overlap
from safelight.training.data.scenes import SceneData, is_held_out
from safelight.training.data.sprites import level_sizes

SHARED = Path(__file__).parents[3] / "shared" / "data" / "pictures.zip"
COLORS = {"apple": (220, 30, 40), "leaf": (60, 170, 70), "book": (40, 95, 220), "sun": (250, 215, 60)}


def picture(kind, color, size):
    image = Image.new("RGBA", size, (0, 0, 0, 0))
    pen = ImageDraw.Draw(image)
    if kind == "disc":
        pen.ellipse((4, 4, size[0] - 5, size[1] - 5), fill=color)
    elif kind == "wide":
        pen.rectangle((2, size[1] // 2, size[0] - 3, size[1] // 2 + 9), fill=color)
    else:
        pen.rectangle((0, 0, *size), fill=color)
    return image


def row(file, name, kind, style, size, **more):
    fields = {
        "file": file,
        "name": name,
        "kind": kind,
        "style": style,
        "w": size[0],
        "h": size[1],
        "caption": f"a {name}",
    }
    return fields | {"keywords": [], "group": "objects"} | more


@pytest.fixture(scope="session")
def folder(tmp_path_factory):
    """A tiny collection like the shared one: discs in two styles, pixel art, a photo, a sky, a texture."""
    home, rows = tmp_path_factory.mktemp("sprites"), []

    def add(file, image, name, kind, style, **more):
        (home / file).parent.mkdir(exist_ok=True)
        image.save(home / file)
        rows.append(row(file, name, kind, style, image.size, **more))

    for i, (name, color) in enumerate(COLORS.items()):
        for style, shape in (("fluent 3D render", "disc"), ("fluent flat", "wide")):
            file = f"{style.split()[-1]}/{name}.png"
            add(file, picture(shape, color, (64, 64)), name, "sprite", style, hex=f"1F34{i}", group=f"group {i % 2}")
    checks = np.zeros((16, 16, 4), np.uint8)
    checks[4:12, 4:12] = np.indices((8, 8)).sum(0)[..., None] % 2 * np.array([255, 0, 255, 0]) + np.array(
        [0, 0, 0, 255]
    )
    add("crawl/imp.png", Image.fromarray(checks), "imp", "sprite", "pixel art 32px", group="creatures")
    ramp = Image.linear_gradient("L").convert("RGB")
    add("photos/plum.png", ramp.resize((60, 50)), "plum", "photo", "photo", split="train")
    add("photos/test.png", Image.new("RGB", (60, 50), "lime"), "test photo", "photo", "photo", split="test")
    add("skies/sky.png", Image.new("RGB", (96, 40), (10, 60, 200)), "blue sky", "background", "digital painting")
    add("crawl/floor.png", picture("full", (90, 60, 30), (16, 16)), "floor", "texture", "pixel art 32px")
    (home / "captions.jsonl").write_text("\n".join(map(json.dumps, rows)))
    return home


def scenes(folder, size=48, **options):
    return SceneData(open_collection(folder), **({"size": size, "hold_out": None} | options))


def equal(a, b):
    tensors = [name for name, value in vars(a).items() if isinstance(value, torch.Tensor)]
    return a.captions == b.captions and all(torch.equal(getattr(a, n), getattr(b, n)) for n in tensors)


def test_scenes_are_pictures_with_captions(folder):
    batch = scenes(folder).batch(0, range(8))
    assert batch.pictures.shape == (8, 3, 48, 48) and batch.pictures.dtype == torch.float32
    assert batch.pictures.abs().max() <= 1 and len(set(batch.captions)) == 8
    assert batch.boxes is None
    assert list(scenes(folder).captions(0, 8)) == batch.captions


def test_a_scene_is_a_function_of_seed_and_number(folder):
    data = scenes(folder, layout=True)
    one = data.batch(3, [5, 9, 200])
    again = scenes(folder, layout=True).batch(3, [200, 9])
    assert one.captions[1:] == again.captions[::-1]
    assert torch.allclose(one.pictures[1:], again.pictures.flip(0), atol=1e-6)
    assert torch.equal(one.masks[1:], again.masks.flip(0))
    assert data.batch(4, [5]).captions != one.captions[:1] or not torch.equal(
        data.batch(4, [5]).pictures, one.pictures[:1]
    )


def test_workers_compose_what_one_process_composes(folder):
    data = scenes(folder, layout=True)
    alone = list(islice(batches(data, seed=1, batch_size=4, start=8), 3))
    spread = list(islice(batches(data, seed=1, batch_size=4, start=8, workers=2), 3))
    for a, b in zip(alone, spread, strict=True):
        assert a.captions == b.captions and torch.equal(a.class_maps, b.class_maps)
        assert (a.pictures - b.pictures).abs().max() <= 1.01 / 127.5  # workers send bytes


def test_layout_agrees_with_the_pixels(folder):
    """On white all that is not white lies in the boxes, and the class map is the masks with their labels."""
    mix = Mix(photos=0, backgrounds=0, plain=1, gradient=0, plate=0, white=1, hue=0)
    data = scenes(folder, 64, mix=mix, layout=True)
    batch = data.batch(0, range(40))
    assert data.class_names == ["creatures", "group 0", "group 1"]
    for b in range(40):
        plan = data.sample(0, b).plan
        objects = len(plan.objects)
        assert (batch.box_labels[b] >= 0).sum() == objects == (batch.boxes[b].abs().sum(-1) > 0).sum()
        rebuilt, boxed = torch.zeros(64, 64, dtype=torch.int64), torch.zeros(64, 64, dtype=torch.bool)
        for k in range(objects):
            x0, y0, x1, y1 = (batch.boxes[b, k] * 64).tolist()
            assert -1e-3 <= x0 < x1 <= 64.001 and -1e-3 <= y0 < y1 <= 64.001
            rebuilt[batch.masks[b, k]] = batch.box_labels[b, k] + 1
            boxed[max(int(y0) - 1, 0) : int(y1) + 2, max(int(x0) - 1, 0) : int(x1) + 2] = True
            ys, xs = torch.nonzero(batch.masks[b, k], as_tuple=True)
            if objects == 1:
                assert abs(xs.min() - x0) <= 1 and abs(xs.max() + 1 - x1) <= 1
                assert abs(ys.min() - y0) <= 1 and abs(ys.max() + 1 - y1) <= 1
        assert torch.equal(rebuilt, batch.class_maps[b])
        drawn = (batch.pictures[b] < 0.98).any(0)
        assert not (drawn & ~boxed).any() and drawn.any()
        assert (drawn | ~batch.masks[b].any(0)).all()
        assert batch.labels[b] == (plan.objects[0].sprite.label if objects == 1 else -1)


def test_objects_do_not_hide_each_other(folder):
    data = scenes(folder, mix=Mix(counts=(0, 0, 0, 1), photos=0, backgrounds=0))
    for n in range(60):
        objects = data.sample(0, n).plan.objects
        assert 1 <= len(objects) <= 4
        assert all(overlap(a.box, b.box) <= OVERLAP for i, a in enumerate(objects) for b in objects[:i])


def test_counts_follow_the_mix(folder):
    data = scenes(folder, mix=Mix(counts=(0.5, 0.5), photos=0.25, backgrounds=0.0))
    counts = [len(data.sample(0, n).plan.objects) for n in range(600)]
    assert counts.count(0) / 600 == pytest.approx(0.25, abs=0.05)
    assert counts.count(1) / 600 == pytest.approx(0.375, abs=0.06)


def placed(data, name, x, y, side, **more):
    number = next(i for i, s in enumerate(data.bank.sprites) if s.entry.name == name)
    return Placed(number, data.bank.sprites[number], x, y, side, **more)


def alone(data, thing, color=(1.0, 1.0, 1.0)):
    return compose(data.bank, [Plan((thing,), Backdrop(colors=(color, color)))]).pictures[0]


def test_pixel_art_stays_blocky_and_sharp(folder):
    data = scenes(folder, 64)
    drawn = alone(data, placed(data, "crawl/imp.png", 16, 0, 32))
    source = torch.from_numpy(np.array(Image.open(folder / "crawl/imp.png"))).permute(2, 0, 1).float() / 255
    wanted = (source[:3] * source[3:] + 1 - source[3:]).repeat_interleave(2, 1).repeat_interleave(2, 2)
    assert torch.equal(drawn[:, :32, 16:48], wanted)
    for n in range(200):
        for thing in data.sample(0, n).plan.objects:
            if thing.sprite.kind == "pixel":
                assert thing.side % 16 == 0 and thing.x % 1 == 0 == thing.y % 1


def test_edges_have_no_halo(folder):
    """A disc of one colour on a ground of one colour gives only colours between the two, at every size and place."""
    data = scenes(folder, 64)
    disc, ground = torch.tensor(COLORS["apple"]) / 255, torch.tensor([0.2, 0.9, 0.4])
    for side, x in ((12, 3.3), (20, 10.7), (33.4, 0.2), (50, 5.5), (63, 0.5)):
        drawn = alone(data, placed(data, "render/apple.png", x, x, side), tuple(ground.tolist()))
        share = ((drawn - ground[:, None, None]) / (disc - ground)[:, None, None]).mean(0)
        between = ground[:, None, None] + share * (disc - ground)[:, None, None]
        assert share.min() > -0.01 and share.max() < 1.01
        assert (drawn - between).abs().max() < 4 / 255
        area = np.pi / 4 * side**2
        assert share.sum() == pytest.approx(area, rel=0.03)


def test_flips_mirror_and_turns_change_hue(folder):
    data = scenes(folder, 64)
    thing = placed(data, "render/apple.png", 10, 10, 44.8)
    for level in data.bank.pyramids["smooth"]:
        level[thing.sprite.row, :, :, : level.shape[-1] // 2] = 0  # its left half is gone
    plain = alone(data, thing)
    flipped = alone(data, replace(thing, x=64 - thing.x - thing.side, flip=True))
    assert torch.allclose(plain.flip(-1), flipped, atol=1e-4) and (plain - flipped).abs().max() > 0.5
    turned = alone(data, placed(data, "render/book.png", 8, 8, 40, turn=6))
    assert turned[2, 28, 28] < turned[0, 28, 28]  # blue is blue no more


def test_small_sprites_are_free_of_aliases(folder):
    """Drawn at any size from its pyramid, a fine pattern becomes its mean, and does not flicker."""
    data = scenes(folder, 64)
    stripes = np.zeros((256, 256, 4), np.uint8)
    stripes[..., 3], stripes[:, ::2, :3] = 255, 255
    whole = Image.fromarray(stripes).convert("RGBa")
    data.bank.pyramids["smooth"] = tuple(
        torch.from_numpy(np.array(whole.resize((s, s), Image.Resampling.HAMMING)))
        .permute(2, 0, 1)
        .expand(9, -1, -1, -1)
        for s in level_sizes(64)
    )
    for side in (64, 50, 40, 23, 11):
        drawn = alone(data, placed(data, "render/apple.png", 0.3, 0.3, side), (0.5, 0.5, 0.5))
        inner = drawn[:, 2 : int(side) - 3, 2 : int(side) - 3]
        assert (inner - 0.5).abs().max() < 0.03 and not torch.equal(drawn, torch.full_like(drawn, 0.5))


def test_levels_are_chosen_by_size(folder):
    data = scenes(folder, 64)
    sizes = level_sizes(64)
    assert sizes[0] == 64 and sizes[-1] >= 8 and all(1.3 < a / b < 1.5 for a, b in pairwise(sizes))
    for side in (64, 63, 46, 45, 30, 9):
        level = level_for(data.bank, placed(data, "render/apple.png", 0, 0, side))
        assert sizes[level] >= side - 0.5 and (level + 1 == len(sizes) or sizes[level + 1] < side - 0.5)


def test_held_out_pairs_and_test_splits_are_never_shown(folder):
    c = open_collection(folder)
    shown = {(e.meta["hex"], e.name.split("/")[0]) for e in c if "hex" in e.meta}
    assert len(shown) == 8
    some = set(sorted(shown)[:3])
    data = SceneData(c, size=32, hold_out=lambda hex, style: (hex, style) in some)
    assert len(data.bank.sprites) == 9 - 3
    assert not {(s.entry.meta.get("hex"), s.entry.name.split("/")[0]) for s in data.bank.sprites} & some
    assert [p.entry.name for p in data.bank.photos] == ["photos/plum.png"]
    assert len(SceneData(c, size=32, hold_out=None, splits=("train", "test")).bank.photos) == 2


def test_the_rule_of_holding_out_is_the_data_sets():
    """The rule as the README of the shared pictures states it."""
    import hashlib

    for code in ("1F34E", "2764", "1F9D4-200D-2640"):
        for style in ("fluent-3d", "noto"):
            wanted = int(hashlib.sha256(f"{code}|{style}".encode()).hexdigest(), 16) % 20 == 0
            assert is_held_out(code, style) == wanted
    assert sum(is_held_out(f"{i:X}", "noto") for i in range(4000)) / 4000 == pytest.approx(0.05, abs=0.01)


def test_a_cached_bank_is_the_bank(folder, tmp_path):
    fresh = scenes(folder, 32, layout=True)
    made = scenes(folder, 32, layout=True, cache=tmp_path)
    mapped = scenes(folder, 32, layout=True, cache=tmp_path)
    assert len(list(tmp_path.iterdir())) == 1
    for other in (made, mapped):
        assert other.class_names == fresh.class_names and equal(other.batch(0, range(12)), fresh.batch(0, range(12)))
    scenes(folder, 48, cache=tmp_path)
    scenes(folder, 32, cache=tmp_path, hold_out=lambda *_: True)
    assert len(list(tmp_path.iterdir())) == 3


def test_a_bank_without_sprites_or_plates_can_be_kept(folder, tmp_path):
    for keep in ("photo", "sprite"):
        c = open_collection(folder).where(lambda e, keep=keep: e.meta["kind"] == keep)
        data = SceneData(c, size=32, hold_out=None)
        save_bank(tmp_path / f"{keep}.safetensors", data.bank, data.class_names)
        bank, _ = load_bank(tmp_path / f"{keep}.safetensors", c)
        assert len(bank.sprites) == len(data.bank.sprites) and bank.plates.shape == data.bank.plates.shape
        assert data.batch(0, [0, 1]).pictures.shape == (2, 3, 32, 32)


def test_collections_without_tables_make_scenes_too(tmp_path):
    for i, color in enumerate(COLORS.values()):
        picture("disc", color, (40, 30)).save(tmp_path / f"{i}.png")
        (tmp_path / f"{i}.txt").write_text(f"thing {i}")
    data = SceneData(open_collection(tmp_path), size=32)
    assert len(data.bank.sprites) == 4
    assert any("thing" in caption for caption in data.batch(0, range(4)).captions)


def test_what_makes_no_scene_is_refused(folder, tmp_path):
    Image.new("RGBA", (16, 16)).save(tmp_path / "empty.png")
    (tmp_path / "empty.txt").write_text("nothing")
    with pytest.raises(CollectionError, match="nothing to make scenes of"):
        SceneData(open_collection(tmp_path), size=32)
    with pytest.raises(InputError, match="too small"):
        scenes(folder, 4)
    with pytest.raises(InputError, match="asks for nothing"):
        _ = scenes(folder, 16, mix=Mix(photos=1, backgrounds=0)).batch(0, [0]) and SceneData(
            open_collection(folder).where(lambda e: e.meta["kind"] == "sprite"),
            size=16,
            mix=Mix(photos=1, backgrounds=0),
        ).batch(0, [0])
    for options in ({"photos": 2}, {"counts": ()}, {"counts": (0, 0)}, {"counts": (1,) * 5}, {"hue": -1}):
        with pytest.raises(InputError, match="a mix of scenes"):
            Mix(**options)


def test_broken_sprites_are_counted(tmp_path, folder):
    with zipfile.ZipFile(tmp_path / "x.zip", "w") as file:
        for path in folder.rglob("*.*"):
            data = path.read_bytes()
            file.writestr(path.relative_to(folder).as_posix(), data[:50] if path.name == "apple.png" else data)
    data = SceneData(open_collection(tmp_path / "x.zip", max_broken=0.2), size=32, hold_out=None)
    assert len(data.collection.faults.found) == 2 and len(data.bank.sprites) == 7
    with pytest.raises(CollectionError, match=r"apple.png"):
        SceneData(open_collection(tmp_path / "x.zip"), size=32, hold_out=None)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_a_gpu_draws_the_same_within_two_steps_of_255(folder):
    data = scenes(folder, 64, layout=True)
    here, there = data.batch(0, range(64)), data.batch(0, range(64), "cuda")
    assert (here.pictures - there.pictures.cpu()).abs().max() <= 2 / 127.5
    assert here.captions == there.captions and torch.equal(here.boxes, there.boxes.cpu())
    assert (here.class_maps != there.class_maps.cpu()).float().mean() < 1e-3
    torch.cuda.set_sync_debug_mode("error")  # nothing waits for the device
    try:
        data.batch(0, range(8), "cuda")
    finally:
        torch.cuda.set_sync_debug_mode("default")


@pytest.mark.skipif(not SHARED.exists(), reason="the shared pictures are not here")
def test_the_shared_pictures(tmp_path):
    some = open_collection(SHARED).where(lambda e: crc32(e.name.encode()) % 40 == 0)
    data = SceneData(some, size=64, layout=True)
    assert len(data.bank.sprites) > 100 and data.bank.backgrounds and data.bank.photos
    for sprite in data.bank.sprites:
        assert "hex" not in sprite.entry.meta or not is_held_out(
            sprite.entry.meta["hex"], sprite.entry.name.split("/")[0]
        )
    batch = data.batch(0, range(32))
    assert batch.pictures.isfinite().all() and batch.pictures.flatten(1).std(1).min() > 0.01


def test_drawing_leaves_the_bank_as_it_is(folder):
    data = scenes(folder, 32)
    before = [level.clone() for level in data.bank.pyramids["smooth"]]
    draw(data.bank, "smooth", 0, [Placed(0, data.bank.sprites[0], 0, 0, 20, turn=3)])
    data.batch(0, range(8))
    assert all(torch.equal(a, b) for a, b in zip(before, data.bank.pyramids["smooth"], strict=True))
