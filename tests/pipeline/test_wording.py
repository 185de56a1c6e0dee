"""What pictures are drawn for: styles, choices made by seed, and prompts of several lengths in one batch."""

import pytest
import torch

import safelight
from safelight.errors import InputError
from safelight.text.dynamic import expand
from safelight.text.grammar import PromptError

QUICK = {"steps": 2, "width": 64, "height": 64, "sampler": "euler"}
CHOICES = "a {red|green|blue} __animal__"


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "animal.txt").write_text("fox\n{small|big} wolf\n")
    (tmp_path / "styles.csv").write_text('name,prompt,negative_prompt\nink,"{prompt} in {black|grey} ink",colour\n')
    return tmp_path


def drawn(model, prompt, **options):
    return safelight.text_to_image(model, prompt, **QUICK | {"seed": 3} | options)


def test_each_seed_makes_its_choices_and_says_which(model, folder):
    pictures = drawn(model, CHOICES, wildcards=folder, count=5)
    assert pictures.prompts == tuple(expand(CHOICES, seed, folder) for seed in range(3, 8))
    assert len(set(pictures.prompts)) > 1
    for k in (0, 4):
        alone = drawn(model, CHOICES, wildcards=folder, seed=3 + k)
        plain = drawn(model, pictures.prompts[k], seed=3 + k)
        assert alone.prompts == plain.prompts == (pictures.prompts[k],)
        assert torch.equal(alone.latents, plain.latents)
        assert torch.allclose(pictures.latents[k : k + 1], plain.latents, atol=2e-3)  # a batch rounds otherwise


def test_braces_are_text_unless_dynamic_prompts_are_asked_for(model):
    pictures = drawn(model, "a {red|green} fox")
    assert pictures.prompts == ("a {red|green} fox",) and pictures.negative_prompts == ("",)
    assert drawn(model, "a {red|green} fox", dynamic_prompts=True).prompts[0] in ("a red fox", "a green fox")


def test_the_negative_prompt_makes_choices_of_its_own(model):
    both = "{a|b|c|d}"
    pictures = drawn(model, both, negative_prompt=both, dynamic_prompts=True, count=20, steps=1)
    assert set(pictures.negative_prompts) == {"a", "b", "c", "d"}
    assert pictures.prompts != pictures.negative_prompts


def test_styles_are_written_around_the_words_and_their_choices_made(model, folder):
    options = {"styles": ["ink"], "styles_file": folder / "styles.csv", "negative_prompt": "blurry"}
    styled = drawn(model, ["a fox", "a hat"], **options)
    assert styled.prompts == ("a fox in {black|grey} ink", "a hat in {black|grey} ink")
    assert styled.negative_prompts == ("blurry, colour",) * 2
    assert drawn(model, "a fox", **options, dynamic_prompts=True).prompts[0] in (
        "a fox in black ink",
        "a fox in grey ink",
    )


def test_a_long_neighbour_changes_no_picture(model):
    """Prompts of two lengths are drawn apart: filled up to one length, the short one would be another picture."""
    pictures = drawn(model, ["a fox", "a fox and " * 30, "a hat"])
    for k, prompt in enumerate(pictures.prompts):
        assert torch.allclose(pictures.latents[k : k + 1], drawn(model, prompt, seed=3 + k).latents, atol=2e-3)


def test_bad_words_are_named(model, folder):
    with pytest.raises(InputError, match=r"no style 'inc'[^?]*ink"):
        drawn(model, "a", styles=["inc"], styles_file=folder / "styles.csv")
    with pytest.raises(InputError, match="no file"):
        drawn(model, "a", styles=["ink"], styles_file=folder / "none.csv")
    with pytest.raises(PromptError, match="never closed"):
        drawn(model, "a {red", dynamic_prompts=True)
    with pytest.raises(PromptError, match="did you mean animal"):
        drawn(model, "__animl__", wildcards=folder)
    with pytest.raises(InputError, match="no folder"):
        drawn(model, "a", wildcards=folder / "none")
    with pytest.raises(InputError, match="has none left"):
        drawn(model, model.condition(["a"]), dynamic_prompts=True)
    with pytest.raises(InputError, match="negative_prompt: 3 is not text"):
        drawn(model, "a", negative_prompt=3)
