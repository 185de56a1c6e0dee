"""Learned words: every form of file, as rows of new tokenizers and text encoders; the old ones stay as they were."""

import pytest
import torch
from torch import nn
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

from safelight.errors import InputError, MissingPartError
from safelight.models.clip import TextConfig, TextEncoder
from safelight.text.embeddings import TextualInversion, add_textual_inversions, read_textual_inversions
from safelight.text.prompt import encode_prompt, prompt_ids
from safelight.text.tokenizer import Tokenizer

CLIP = Tokenizer.clip()
SHAPE = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4}
ONE, THREE = torch.arange(32.0), torch.arange(96.0).reshape(3, 32) / 96


@pytest.fixture(scope="module")
def encoder():
    torch.manual_seed(0)
    return TextEncoder(TextConfig(**SHAPE)).requires_grad_(False)


FORMS = {
    "learned_embeds.bin": ({"<birb>": ONE}, None, {"<birb>": ONE[None]}),
    "several": ({"<a>": ONE, "<b>": THREE}, None, {"<a>": ONE[None], "<b>": THREE}),
    "A1111 .pt": (
        {"string_to_token": {"*": 265}, "string_to_param": {"*": THREE}, "name": "birb"},
        None,
        {"birb": THREE},
    ),
    "A1111 .pt, old": ({"string_to_param": nn.ParameterDict({"*": nn.Parameter(THREE)})}, "birb", {"birb": THREE}),
    "A1111 .safetensors": ({"emb_params": THREE}, "easynegative", {"easynegative": THREE}),
    "renamed": ({"<birb>": ONE}, "<bird>", {"<bird>": ONE[None]}),
}


@pytest.mark.parametrize("state, token, expected", FORMS.values(), ids=FORMS)
def test_every_form_is_read(state, token, expected):
    words = read_textual_inversions(state, token=token)
    assert [word.token for word in words] == list(expected)
    for word in words:
        assert torch.equal(word.vectors, expected[word.token]) and not word.vectors.requires_grad


BAD = {
    "empty": ({}, None, "no textual inversion; it holds nothing"),
    "a model": ({"unet.weight": torch.zeros(2, 2, 2)}, None, "no textual inversion; it holds unet.weight"),
    "no name": ({"emb_params": THREE}, None, "does not say the word's name"),
    "one name for two": ({"<a>": ONE, "<b>": ONE}, "<c>", "one name, '<c>', was given for 2 words: <a>, <b>"),
    "not a tensor": ({"emb_params": [1.0]}, "x", "the vectors of 'x' are list"),
    "integers": ({"emb_params": torch.ones(2, 4, dtype=torch.int64)}, "x", r"the vectors of 'x' are \(2, 4\)"),
    "no vectors": ({"emb_params": torch.zeros(0, 4)}, "x", r"are \(0, 4\)"),
    "too deep": ({"emb_params": torch.zeros(1, 1, 4)}, "x", r"are \(1, 1, 4\)"),
    "not finite": ({"<x>": ONE / 0}, None, "'<x>' are not finite"),
    "blank": ({" ": ONE}, None, "must have a name"),
    "two parameters": ({"string_to_param": {"*": ONE, "x": ONE}}, None, "holds 2 words"),
}


@pytest.mark.parametrize("state, token, message", BAD.values(), ids=BAD)
def test_what_is_no_word_is_refused(state, token, message):
    with pytest.raises(InputError, match=message):
        read_textual_inversions(state, token=token)


def test_words_of_sdxl_have_vectors_for_two_text_encoders():
    two = torch.ones(len(THREE), 6)
    (word,) = read_textual_inversions({"clip_l": THREE, "clip_g": two}, token="<x>")
    assert torch.equal(word.vectors, THREE) and torch.equal(word.vectors_2, two)
    with pytest.raises(InputError, match="does not say the word's name"):
        read_textual_inversions({"clip_l": THREE, "clip_g": two})
    with pytest.raises(InputError, match="3 vectors for one text encoder, 1 for the other"):
        read_textual_inversions({"clip_l": THREE, "clip_g": two[:1]}, token="<x>")
    for half in ({"clip_g": two}, {"t5xxl": two, "clip_l": THREE}):
        with pytest.raises(MissingPartError, match="half of them is missing"):
            read_textual_inversions(half, token="<x>")


def test_adding_words_changes_nothing_in_place(encoder):
    before = {name: value.clone() for name, value in encoder.state_dict().items()}
    words = [TextualInversion("<birb>", ONE[None].half()), TextualInversion("<cat>", THREE)]
    tokenizer, richer = add_textual_inversions(CLIP, encoder, words)
    assert len(CLIP) == encoder.config.vocab_size == 49408
    assert len(tokenizer) == richer.config.vocab_size == 49412
    assert all(torch.equal(value, before[name]) for name, value in encoder.state_dict().items())
    assert "<birb>" not in CLIP.pieces(CLIP.encode("<birb>"))
    table = richer.text_model.embeddings.token_embedding.weight
    assert torch.equal(table[49408:], torch.cat([ONE[None], THREE]))
    shared = richer.text_model.encoder.layers[0].mlp.fc1.weight
    assert shared.data_ptr() == encoder.text_model.encoder.layers[0].mlp.fc1.weight.data_ptr()
    assert tokenizer.encode("a <cat> and <birb>") == [320, 49409, 49410, 49411, 537, 49408]
    assert torch.equal(encode_prompt(tokenizer, richer, "a cat"), encode_prompt(CLIP, encoder, "a cat"))
    assert add_textual_inversions(CLIP, encoder, []) == (CLIP, encoder)


def test_a_learned_word_is_encoded_as_transformers_does(encoder, clip_files):
    """The way diffusers loads one: add_tokens, resize_token_embeddings, set the rows, and write out the run."""
    theirs = CLIPTextModel(CLIPTextConfig(**SHAPE, bos_token_id=49406, eos_token_id=49407)).eval()
    own = encoder.state_dict()
    theirs.load_state_dict({name: own[name if name in own else f"text_model.{name}"] for name in theirs.state_dict()})
    words = CLIPTokenizer.from_pretrained(clip_files)
    words.add_tokens(["<cat>", "<cat>_1", "<cat>_2"])
    theirs.resize_token_embeddings(len(words))
    theirs.get_input_embeddings().weight.data[49408:] = THREE
    ids = words("a <cat> <cat>_1 <cat>_2 on a mat", padding="max_length", max_length=77, return_tensors="pt").input_ids
    tokenizer, richer = add_textual_inversions(CLIP, encoder, [TextualInversion("<cat>", THREE)])
    assert torch.equal(prompt_ids(tokenizer, "a <cat> on a mat")[:, 0], ids)
    with torch.no_grad():
        expected = theirs(ids).last_hidden_state
    actual = encode_prompt(tokenizer, richer, "a <cat> on a mat")
    assert (actual - expected).abs().max() <= 1e-5 * expected.abs().max()


def test_what_does_not_fit_is_refused(encoder):
    with pytest.raises(InputError, match="64 wide, but the text encoder 32"):
        add_textual_inversions(CLIP, encoder, [TextualInversion("<x>", torch.zeros(1, 64))])
    with pytest.raises(InputError, match="49409 ids, but the text encoder's token table 49408 rows"):
        add_textual_inversions(CLIP.add_tokens(["<y>"]), encoder, [TextualInversion("<x>", ONE[None])])
    with pytest.raises(InputError, match="'<x>' is in the vocabulary already"):
        add_textual_inversions(CLIP, encoder, [TextualInversion("<x>", ONE[None])] * 2)
