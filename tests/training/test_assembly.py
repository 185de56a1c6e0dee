"""What a recipe says about data and shapes is what is assembled."""

import pytest
from sprite_sets import write_sprites

from safelight.training.data.captions import OFF
from safelight.training.data.scenes import SceneData
from safelight.training.loop.assembly import data_set, groups
from safelight.training.loop.recipes import DiffusionRecipe
from safelight.training.loop.words import text_parts

PLACES = ("at the left", "at the right", "at the top", "at the bottom", "in the top", "in the bottom")


def scenes_of(recipe):
    data = data_set(recipe, recipe)
    assert isinstance(data, SceneData)
    return data


def test_objects_say_how_many_things_a_scene_has(tmp_path):
    sprites = write_sprites(tmp_path / "sprites")
    recipe = DiffusionRecipe(data=str(sprites), scenes=True, size=32, objects=(0, 0, 1))
    counts = {len(scenes_of(recipe).sample(0, n).plan.objects) for n in range(50)}
    assert counts == {0, 3}  # 0 are backgrounds alone


def test_simple_scenes_show_mostly_one_large_thing_on_a_plain_ground(tmp_path):
    sprites = write_sprites(tmp_path / "sprites")
    scenes = scenes_of(DiffusionRecipe(data=str(sprites), scenes=True, size=32, mix="simple"))
    plans = [scenes.sample(0, n).plan for n in range(400)]
    lone = [plan for plan in plans if len(plan.objects) == 1 and plan.objects[0].sprite.kind == "smooth"]
    sides = [max(box[2] - box[0], box[3] - box[1]) / 32 for plan in lone for box in [plan.objects[0].box]]
    assert len([plan for plan in plans if len(plan.objects) > 1]) < 100
    assert all(side <= 0.95 for side in sides) and sorted(sides)[len(sides) // 2] > 0.6
    varied = scenes_of(DiffusionRecipe(data=str(sprites), scenes=True, size=32))
    plates = [sum(kind.sample(0, n).plan.backdrop.plate is not None for n in range(400)) for kind in (scenes, varied)]
    assert plates[0] < plates[1] / 2


def test_placed_scenes_show_smaller_things_aside_and_their_captions_say_where(tmp_path):
    sprites = write_sprites(tmp_path / "sprites")
    scenes = scenes_of(DiffusionRecipe(data=str(sprites), scenes=True, size=64, mix="placed", objects=(1,)))
    said, sides = {"middle": 0, "aside": 0}, {"middle": [], "aside": []}
    for scene in (scenes.sample(0, n) for n in range(400)):
        if not scene.plan.objects or scene.plan.objects[0].sprite.kind != "smooth":
            continue
        x0, y0, x1, y1 = scene.plan.objects[0].box
        aside = max(abs(x0 + x1 - 64), abs(y0 + y1 - 64)) / 128 > OFF
        sides[kind := "aside" if aside else "middle"].append(max(x1 - x0, y1 - y0) / 64)
        said[kind] += any(f" {place}" in scene.caption.split(" background")[0] for place in PLACES)
    assert len(sides["aside"]) > 40 and max(sides["aside"]) < 0.75
    assert said["aside"] == len(sides["aside"])


def test_the_cache_is_filled_and_changes_no_pixel(tmp_path):
    sprites, cache = write_sprites(tmp_path / "sprites"), tmp_path / "cache"
    recipe = DiffusionRecipe(data=str(sprites), scenes=True, size=32, cache=str(cache))
    first, again = scenes_of(recipe), scenes_of(recipe)
    assert list(cache.iterdir())
    assert first.batch(0, range(4)).pictures.equal(again.batch(0, range(4)).pictures)


def test_a_new_text_encoder_reads_as_many_tokens_as_asked_for(tmp_path):
    sprites = write_sprites(tmp_path / "sprites")
    recipe = DiffusionRecipe(data=str(sprites), scenes=True, size=32, text_width=64, text_layers=1, text_length=24)
    tokenizer, encoder = text_parts(recipe, data_set(recipe, recipe), tmp_path / "run")
    assert tokenizer.max_length == encoder.config.max_position_embeddings == 24
    assert len(tokenizer.ids("a red disc", truncate=True)) == 24


@pytest.mark.parametrize(
    ("widths", "expected"), [((128, 256), 32), ((64, 128), 32), ((32, 64), 16), ((24, 48), 4), ((16, 32, 64), 8)]
)
def test_no_norm_has_a_group_of_one_channel(widths, expected):
    assert groups(widths) == expected
    assert all(width % expected == 0 and width // expected >= 2 for width in widths)
