import pytest
import torch

from safelight.errors import InputError
from safelight.pipeline.fields import validate
from safelight.pipeline.seeing.attention import Heat, attention_maps, level_size, observed, prompt_words
from safelight.pipeline.tasks import text_to_image

ASKED = {"steps": 2, "seed": 3, "width": 64, "height": 72}


def settings(**given):
    return validate(text_to_image, given)


@pytest.fixture
def inputs(model):
    generator = torch.Generator().manual_seed(0)
    context = model.condition(["a red fox", ""]).context
    return torch.randn(2, 4, 9, 8, generator=generator), torch.tensor([500.0, 20.0]), context


def test_the_weights_are_those_that_attention_uses_and_the_network_stays_as_it_was(model, inputs):
    x, t, context = inputs
    seen = []
    with torch.no_grad():
        before = model.unet(x, t, context=context)
        with observed(model.unet, seen.append):
            during = model.unet(x, t, context=context)
        after = model.unet(x, t, context=context)
    assert torch.equal(before, during) and torch.equal(before, after)
    assert len(seen) == 16  # SD 1 has 16 cross-attentions
    assert {tuple(weights.shape) for weights in seen} >= {(2, 8, 72, 77), (2, 8, 20, 77)}
    for weights in seen:
        assert torch.allclose(weights.sum(-1), torch.ones(()), atol=1e-5)
    assert not any("attend" in module.__dict__ for module in model.unet.modules())


def test_values_weighed_by_what_is_seen_are_what_attention_gives(model):
    layer = model.unet.mid_block.attentions[0].transformer_blocks[0].attn2
    x, context = torch.randn(1, 6, 96), torch.randn(1, 77, 64)
    seen = []
    with torch.no_grad(), observed(model.unet, seen.append):
        result = layer(x, context)
        mixed = seen[0] @ layer.keys_values(context)[1]
        again = layer.to_out(mixed.transpose(1, 2).flatten(2))
    assert torch.allclose(result, again, atol=1e-5)


def test_observation_ends_when_the_block_fails(model):
    with pytest.raises(RuntimeError, match="on purpose"), observed(model.unet, lambda weights: None):
        raise RuntimeError("on purpose")
    assert not any("attend" in module.__dict__ for module in model.unet.modules())


def test_maps_are_of_the_very_run_and_its_words(model):
    seen = attention_maps(model, "a (red:1.2) flooble", **ASKED)
    drawn = text_to_image(model, "a (red:1.2) flooble", **ASKED)
    assert seen.picture.tobytes() == drawn[0].tobytes()
    assert seen.words == ("a", "red", "flooble")
    assert seen.maps.shape == (3, 9, 8) and seen.maps.isfinite().all()
    assert seen.maps.min() >= 0 and seen.maps.sum(0).max() < 1  # the rest went to the frame of the text


def test_the_words_of_long_prompts_lie_in_their_own_chunks(model):
    words = prompt_words(model.tokenizer, "cat " * 80 + "flooble BREAK dog", settings())
    assert [word for word, _ in words] == ["cat"] * 80 + ["flooble", "dog"]
    places = [place for _, group in words for place in group]
    assert places[:75] == list(range(1, 76)) and places[75] == 78  # 0 and 77 begin a text, 76 ends one
    assert words[80][1] == [78 + 5, 78 + 6]  # it has two tokens
    assert words[81][1] == [2 * 77 + 1]


def test_heat_keeps_the_places_of_what_was_looked_at():
    """Where the left half looks at token 1 and the right half at token 2, their maps are halves."""
    heat = Heat([[1], [2]], (4, 8))
    for h, w in ((4, 8), (2, 4)):  # two levels
        weights = torch.zeros(h, w, 3)
        weights[:, : w // 2, 1] = 1
        weights[:, w // 2 :, 2] = 1
        heat.add(weights.reshape(1, 1, h * w, 3))
    left, right = heat.mean()
    assert (left[:, :2] > 0.9).all() and (left[:, -2:] < 0.1).all()
    assert torch.allclose(left, right.flip(1), atol=1e-6)


def test_levels_are_found_by_their_number_of_places():
    assert [level_size(n, (9, 8)) for n in (72, 20, 6, 2)] == [(9, 8), (5, 4), (3, 2), (2, 1)]
    with pytest.raises(InputError, match="17 places"):
        level_size(17, (9, 8))


def test_what_has_no_words_is_named(model):
    for options, words in (({"prompt": ""}, "no words"), ({"prompt": "a fox", "count": 2}, "count=2")):
        with pytest.raises(InputError, match=words):
            attention_maps(model, **options, **ASKED)
    with pytest.raises(InputError, match="without text"):
        attention_maps(model.without_text_encoder(), "a fox", **ASKED)
