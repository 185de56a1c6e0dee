"""Captions are English, and every word of them is true of the scene."""

import re

import numpy as np
import pytest
from PIL import ImageColor

from safelight.errors import InputError
from safelight.training.data.captions import STYLES, Wording, caption, describe
from safelight.training.data.collections import Entry
from safelight.training.data.colors import HUES, WORDS, hue_matrix, measured_words, turned, word_of
from safelight.training.data.names import general_names, noun_phrase
from safelight.training.data.order import Draws
from safelight.training.data.planning import Backdrop, Placed, Plan
from safelight.training.data.sprites import Plate, Sprite
from safelight.training.data.synonyms import SYNONYMS, synonyms

SIZE = 100
ALWAYS = {
    "style": 1.0,
    "background": 1.0,
    "color": 1.0,
    "place": 1.0,
    "lone_place": 1.0,
    "size": 1.0,
    "general": 0.0,
    "synonym": 0.0,
}


@pytest.mark.parametrize(
    ("name", "phrase"),
    [
        ("apple", "an apple"), ("dog", "a dog"), ("unicorn", "a unicorn"), ("hour glass", "an hour glass"),
        ("UFO", "a UFO"), ("SOS button", "an SOS button"), ("SOON arrow", "a SOON arrow"), ("X-ray", "an X-ray"),
        ("one-piece swimsuit", "a one-piece swimsuit"), ("8-ball", "an 8-ball"), ("grapes", "grapes"),
        ("glass of milk", "a glass of milk"), ("bus", "a bus"), ("cactus", "a cactus"), ("curry rice", "curry rice"),
        ("woman: beard", "a woman with a beard"), ("man: bald", "a bald man"), ("flag: Japan", "the flag of Japan"),
        ("woman: blond hair, dark skin tone", "a woman with blond hair and dark skin"),
        ("man pilot, medium-light skin tone", "a man pilot with medium-light skin"),
        ("family: man, woman, boy", "a family of man, woman and boy"), ("keycap: 5", "keycap 5"),
        ("five o’clock", "a clock showing five o'clock"), ("no smoking", "a no smoking sign"), ("Leo", "Leo"),
        ("women with bunny ears", "women with bunny ears"), ("woman surfing", "a woman surfing"), ("tennis", "tennis"),
        ("green hills with village houses", "green hills with village houses"), ("puffy blue sky", "a puffy blue sky"),
    ],
)  # fmt: skip
def test_noun_phrases(name, phrase):
    assert noun_phrase(name) == phrase


def test_adjectives_choose_the_article():
    assert noun_phrase("apple", "red") == "a red apple"
    assert noun_phrase("dog", "orange") == "an orange dog"
    assert noun_phrase("grapes", "small", "green") == "small green grapes"
    assert noun_phrase("flag: Japan", "small") == "the small flag of Japan"


def test_general_names_are_of_the_same_kind():
    things = [
        ("kiwi fruit", "fruit", ["fruit"]), ("melon", "fruit", ["fruit", "sweet"]), ("plum", "fruit", ["fruit"]),
        ("hot dog", "fast food", ["dog", "sausage"]), ("dog", "mammal", ["dog", "pet"]), ("cat", "mammal", ["dog"]),
        ("poodle", "mammal", ["dog", "pet"]),
    ]  # fmt: skip
    assert dict(zip([t[0] for t in things], general_names(things), strict=True)) == {
        "kiwi fruit": ("fruit",), "melon": ("fruit",), "plum": ("fruit",), "hot dog": (), "dog": (), "cat": ("dog",),
        "poodle": ("dog",),
    }  # fmt: skip


@pytest.mark.parametrize(
    ("word", "css"),
    [
        ("red", "crimson"), ("orange", "orange"), ("yellow", "gold"), ("green", "green"), ("green", "lime"),
        ("teal", "turquoise"), ("light blue", "skyblue"), ("blue", "royalblue"), ("blue", "navy"), ("purple", "indigo"),
        ("pink", "hotpink"), ("brown", "saddlebrown"), ("beige", "tan"), ("white", "white"), ("light gray", "silver"),
        ("gray", "gray"), ("black", "black"),
    ],
)  # fmt: skip
def test_colors_are_called_as_people_call_them(word, css):
    assert word_of([part / 255 for part in ImageColor.getrgb(css)]) == word


def test_a_thing_is_called_by_a_color_only_if_most_of_it_has_it():
    red, green, clear = (0.8, 0.1, 0.1, 1), (0.2, 0.6, 0.2, 1), (0, 0, 0, 0)

    def thing(*parts):
        return np.array([color for color, n in parts for _ in range(n)], np.float32)

    pixels = np.stack([thing((red, 7), (green, 3)), thing((red, 5), (green, 5)), thing((red, 3), (clear, 7))])
    assert measured_words(pixels) == ["red", None, "red"]
    dim = thing((red, 10)) * 0.25  # seen through: premultiplied, at a quarter
    assert measured_words(dim[None]) == ["red"]


def test_light_and_dark_of_a_color_are_that_color():
    light, dark = (0.51, 0.8, 0.98, 1), (0.16, 0.37, 0.86, 1)
    assert measured_words(np.array([[light] * 5 + [dark] * 5], np.float32)) == ["blue"]


def test_turns_of_hue_are_a_circle_that_keeps_gray_and_luma():
    assert np.allclose(np.linalg.matrix_power(hue_matrix(1).astype(float), HUES), np.eye(3), atol=0.02)
    assert np.allclose(hue_matrix(5) @ np.ones(3), 1, atol=1e-5)
    assert np.allclose(np.array([0.213, 0.715, 0.072]) @ hue_matrix(3), [0.213, 0.715, 0.072], atol=2e-3)
    pixels = np.random.default_rng(0).random((50, 4), np.float32)
    pixels[:, :3] *= pixels[:, 3:]
    for turn in range(HUES):
        result = turned(pixels, turn)
        assert (result[:, :3] <= result[:, 3:] + 1e-6).all() and (result >= 0).all()
    assert np.array_equal(turned(pixels, 0), pixels)
    assert word_of(turned(np.array([0.8, 0.1, 0.1, 1], np.float32), 4)[:3]) == "green"


def sprite(name, style="fluent flat", words=(None,) * HUES, **more):
    entry = Entry(f"x/{name}.png", (f"a {name}",), meta={"name": name, "style": style})
    return Sprite(entry, "smooth", 0, (0, 0, 1, 1), 64, words=words, **more)


def at(x, y, side=30, *, of=None, **more):
    return Placed(0, of or sprite("owl"), x - side / 2, y - side / 2, side, **more)


def said(objects, backdrop=None, n=0, **wording):
    backdrop = backdrop or Backdrop(words=("blue",))
    return caption(Plan(tuple(objects), backdrop), SIZE, Wording(**(ALWAYS | wording)), Draws(0, n))


def every(objects, **wording):
    return {said(objects, n=n, **wording) for n in range(300)}


PLACES = {
    (10, 10): "top left", (50, 10): "top", (90, 10): "top right", (10, 50): "left", (90, 50): "right",
    (10, 90): "bottom left", (50, 90): "bottom", (90, 90): "bottom right",
}  # fmt: skip


@pytest.mark.parametrize(("center", "place"), PLACES.items())
def test_places_are_where_things_are(center, place):
    for text in every([at(*center, side=20)]):
        assert re.search(rf"owl (at the {place}|in the {place} corner) ", text), text
    other = at(100 - center[0], 100 - center[1], of=sprite("dog"))
    texts = every([at(*center, side=20), other])
    assert any(f"owl at the {place}" in text for text in texts)
    for text in texts:
        words = re.findall(r"(owl|dog)[^,]*? at the ([a-z ]+?)(?: and|,)", text)
        assert all(
            found == (place if name == "owl" else PLACES[100 - center[0], 100 - center[1]]) for name, found in words
        )


def test_things_in_the_middle_may_be_said_to_be():
    texts = every([at(52, 47)])
    assert {" in the middle " in text for text in texts} == {True, False}
    assert not any("at the" in text or "corner" in text for text in texts)


def test_relations_are_true():
    beside = every([at(30, 50, of=sprite("dog")), at(75, 55)])
    assert any("dog to the left of " in text for text in beside)
    assert not any(re.search(r"owl to the left of|above|below", text) for text in beside)
    stacked = every([at(50, 80, of=sprite("dog")), at(52, 20)])
    assert any(re.search("dog below .*owl", text) for text in stacked)
    assert not any(re.search("dog above|owl below|to the left", text) for text in stacked)


def test_two_at_one_place_are_not_told_apart_by_it():
    assert not any(
        "at the" in text for text in every([at(10, 10, 8), at(12, 30, 8, of=sprite("dog"))]) if "left" not in text
    )
    assert all("at the top left" not in text for text in every([at(10, 10, 8), at(25, 25, 8, of=sprite("dog"))]))


def test_sizes_are_true():
    assert all("small" in text for text in every([at(50, 50, 20)]))
    assert all(re.search("large|big", text) for text in every([at(50, 50, 90)]))
    assert not any(re.search("small|large|big", text) for text in every([at(50, 50, 50)]))


def test_turned_hues_are_always_said():
    words = ("red", "orange", *[None] * (HUES - 2))
    owl = sprite("owl", words=words, turns=(1,))
    assert all("orange owl" in text for text in every([at(50, 50, of=owl, turn=1)], color=0.0))
    assert not any("red" in text for text in every([at(50, 50, of=owl)], color=0.0))
    assert all("red owl" in text for text in every([at(50, 50, of=owl)]))


def test_things_are_called_by_their_other_names():
    car = sprite("automobile", words=("red",) * HUES)
    assert all("a red car" in text for text in every([at(50, 50, 50, of=car)], synonym=1.0))
    assert all("a red automobile" in text for text in every([at(50, 50, 50, of=car)]))
    both = {re.search("car|automobile", text)[0] for text in every([at(50, 50, 50, of=car)], synonym=0.5)}
    assert both == {"car", "automobile"}
    fruit = sprite("tangerine", words=("orange",) * HUES)
    assert not any("orange orange" in text for text in every([at(50, 50, 50, of=fruit)], synonym=1.0))


def test_a_table_tells_other_names():
    assert synonyms("automobile", {}) == ("car",)
    assert synonyms("automobile", {"synonyms": ["banger", "motor"]}) == ("banger", "motor")
    assert synonyms("gizmo", {}) == ()
    for wrong in ("car", 5, ["car", 5], [" "]):
        with pytest.raises(InputError, match=r"(?s)synonyms of 'automobile' are .*give a list of names"):
            synonyms("automobile", {"synonyms": wrong})


def test_synonyms_are_other_names_that_can_be_said():
    for name, others in SYNONYMS.items():
        assert others and name not in others and len(set(others)) == len(others), name
        assert all(noun_phrase(other).split()[-1] == other.split()[-1] for other in others), name


def test_styles_are_said_once_or_for_each():
    same = every([at(20, 50), at(80, 50, of=sprite("dog"))], general=0.0)
    style = STYLES["fluent flat"]
    assert any(text.startswith("flat emoji of ") for text in same)
    assert any(f", {style.behind}," in text for text in same)
    mixed = every([at(20, 50), at(80, 50, of=sprite("dog", "pixel art 32px"))])
    for text in mixed:
        assert re.search(r"flat[^,]* owl", text) and re.search(r"pixel art[^,]* dog", text)
    assert all("flat" not in text for text in every([at(50, 50)], style=0.0))


def test_every_style_of_one_thing_tells_it_from_the_others():
    usual = [style.one[0] for style in STYLES.values()]
    assert len(set(usual)) == len(usual)


def test_backgrounds_are_named():
    plain = {said([at(50, 50)], n=n) for n in range(100)}
    assert all("blue background" in text for text in plain)
    fade = Backdrop(words=("red", "teal"), ramp=(0.0, 0.5, 0.0, 0.5))
    texts = {said([at(50, 50)], fade, n) for n in range(200)}
    assert any(text.endswith("from red at the top to teal at the bottom") for text in texts)
    assert all("red" in text and "teal" in text and "gradient" in text for text in texts)
    sky = Plate(Entry("sky.png", meta={"name": "puffy blue sky", "style": "digital painting", "kind": "background"}), 0)
    assert all("a puffy blue sky" in said([at(50, 50)], Backdrop(plate=sky), n) for n in range(50))
    assert "background" not in said([at(50, 50)], background=0.0)


def test_whole_pictures_are_described():
    plum = Entry("p.png", ("my own words",), meta={"name": "plum", "style": "photo", "keywords": ["grocery store"]})
    assert describe(plum) == "a photograph of a plum"
    texts = {describe(plum, Draws(0, n)) for n in range(60)}
    assert "a photo of a plum in a grocery store" in texts and "a photo of a plum" in texts
    assert describe(Entry("p.png", ("my own words",))) == "my own words"
    assert describe(Entry("p.png", meta={"name": "owl", "style": "etching"})) == "an etching of an owl"


def test_dropout_gives_the_null_caption():
    texts = [said([at(50, 50)], n=n, dropout=0.25, null="-") for n in range(600)]
    assert texts.count("-") / 600 == pytest.approx(0.25, abs=0.06)


def test_wording_is_checked():
    with pytest.raises(InputError, match="color is 3"):
        Wording(color=3)


def test_all_words_have_anchors_that_are_called_so():
    from safelight.training.data.colors import ANCHORS

    for word, colors in ANCHORS.items():
        for color in colors:
            assert word_of([part / 255 for part in color]) == word
    assert tuple(ANCHORS) == WORDS
