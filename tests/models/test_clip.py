"""The text encoder against transformers' CLIPTextModel, and what it says of bad input."""

import json
from dataclasses import replace

import pytest
import torch
from safetensors.torch import save_file

from safelight.errors import InputError
from safelight.models.clip import TextConfig, TextEncoder

transformers = pytest.importorskip("transformers")

SMALL = TextConfig(
    vocab_size=99, hidden_size=32, intermediate_size=64, num_hidden_layers=3, num_attention_heads=4,
    max_position_embeddings=16, projection_dim=24, bos_token_id=97, eos_token_id=98,
)  # fmt: skip
VARIANTS = {
    "quick_gelu": SMALL,
    "gelu": replace(SMALL, hidden_act="gelu", num_attention_heads=2),
    "legacy eos": replace(SMALL, eos_token_id=2),
    "projection": replace(SMALL, projection=True),
}


def peer_and_ours(config, folder):
    """Ours with random weights, and the transformers model that reads the folder these weights are written to.

    The folder's tensors have our parameter names, which thereby are shown to be those of real checkpoints (the peer's
    own state_dict dropped the prefix `text_model.` in version 5).
    """
    torch.manual_seed(0)
    ours = TextEncoder(config).eval()
    with torch.no_grad():
        for parameter in ours.parameters():
            parameter.copy_(torch.randn_like(parameter) * 0.3)
    save_file(ours.state_dict(), folder / "model.safetensors", {"format": "pt"})
    (folder / "config.json").write_text(json.dumps(config.to_transformers()))
    kind = transformers.CLIPTextModelWithProjection if config.projection else transformers.CLIPTextModel
    peer, report = kind.from_pretrained(folder, output_loading_info=True)
    assert not any(report.values()), report
    return peer.eval(), ours


def texts(config, length):
    """Two texts of different lengths, each padded with its end-of-text token, the highest id."""
    end = config.vocab_size - 1
    ids = torch.randint(3, end - 1, (2, length), generator=torch.Generator().manual_seed(length))
    ids[0, length // 2 :] = end
    ids[1, -1] = end
    return ids


def relative_error(ours, peers):
    assert ours.shape == peers.shape
    return float((ours - peers).norm() / peers.norm())


@pytest.mark.parametrize("length", [2, 7, 16])
@pytest.mark.parametrize("config", VARIANTS.values(), ids=VARIANTS)
@torch.no_grad()
def test_every_output_is_transformers(config, length, tmp_path):
    peer, ours = peer_and_ours(config, tmp_path)
    ids = texts(config, length)
    expected, features = peer(ids, output_hidden_states=True), ours(ids)
    assert relative_error(features.last_hidden_state, expected.last_hidden_state) < 1e-6
    assert len(features.hidden_states) == len(expected.hidden_states) == config.num_hidden_layers + 1
    for mine, theirs in zip(features.hidden_states, expected.hidden_states, strict=True):
        assert relative_error(mine, theirs) < 1e-6
    if config.projection:
        assert relative_error(features.projected, expected.text_embeds) < 1e-6
    else:
        assert relative_error(features.pooled, expected.pooler_output) < 1e-6
        assert features.projected is None


@pytest.mark.parametrize("config", VARIANTS.values(), ids=VARIANTS)
def test_config_survives_transformers_own_config_class(config, tmp_path):
    transformers.CLIPTextConfig(**config.to_transformers()).save_pretrained(tmp_path)
    again = transformers.CLIPTextConfig.from_pretrained(tmp_path)
    assert TextConfig.from_transformers(again.to_dict()) == config


def test_a_config_file_of_stable_diffusion_1_is_read_with_transformers_defaults():
    data = {
        "architectures": ["CLIPTextModel"], "attention_dropout": 0.0, "bos_token_id": 0, "dropout": 0.0,
        "eos_token_id": 2, "hidden_act": "quick_gelu", "hidden_size": 768, "initializer_factor": 1.0,
        "intermediate_size": 3072, "layer_norm_eps": 1e-05, "num_attention_heads": 12, "num_hidden_layers": 12,
        "pad_token_id": 1, "projection_dim": 768, "torch_dtype": "float32", "transformers_version": "4.22.0.dev0",
    }  # fmt: skip
    config = TextConfig.from_transformers(data)
    assert (config.vocab_size, config.max_position_embeddings, config.eos_token_id) == (49408, 77, 2)
    assert not config.projection


@torch.no_grad()
def test_embeddings_can_enter_in_place_of_ids():
    model = TextEncoder(SMALL).eval()
    ids = texts(SMALL, 9)
    embeddings = model.embed(ids)
    assert torch.equal(embeddings, model.text_model.embeddings.token_embedding.weight[ids])
    features, expected = model.forward_embeddings(embeddings, ids), model(ids)
    assert torch.equal(features.last_hidden_state, expected.last_hidden_state)
    assert torch.equal(features.pooled, expected.pooled)
    assert model.forward_embeddings(embeddings).pooled is None


@torch.no_grad()
def test_a_token_sees_itself_and_earlier_tokens_only():
    model = TextEncoder(SMALL).eval()
    ids = texts(SMALL, 12)
    changed = ids.clone()
    changed[:, 8:] = 5
    before, after = model(ids).last_hidden_state, model(changed).last_hidden_state
    torch.testing.assert_close(before[:, :8], after[:, :8])
    assert not torch.allclose(before[:, 8:], after[:, 8:])


@torch.no_grad()
def test_skipping_layers_is_the_shallower_encoder():
    deep = TextEncoder(SMALL).eval()
    shallow = TextEncoder(replace(SMALL, num_hidden_layers=2)).eval()
    shallow.load_state_dict({key: value for key, value in deep.state_dict().items() if ".layers.2." not in key})
    ids = texts(SMALL, 10)
    features = deep(ids)
    assert torch.equal(deep.skip_layers(features, 0), features.last_hidden_state)
    torch.testing.assert_close(deep.skip_layers(features, 1), shallow(ids).last_hidden_state)
    for layers in (-1, 3):
        with pytest.raises(InputError, match="cannot be skipped"):
            deep.skip_layers(features, layers)


@pytest.mark.parametrize("eos", [2, 98])
@torch.no_grad()
def test_appended_tokens_have_their_vectors_and_change_nothing_else(eos):
    model = TextEncoder(replace(SMALL, eos_token_id=eos)).eval()
    vectors = torch.randn(2, 32)
    longer = model.extended(vectors)
    assert torch.equal(longer.embed(torch.tensor([[99, 100]])), vectors[None])
    assert longer.config.vocab_size == 101
    assert model.config.vocab_size == 99 and len(model.text_model.embeddings.token_embedding.weight) == 99
    assert longer.final_layer_norm.weight is model.final_layer_norm.weight
    ids = texts(SMALL, 8)
    assert torch.equal(longer(ids).last_hidden_state, model(ids).last_hidden_state)
    # An appended id is higher than the end of text and must not be taken for it.
    features = longer(torch.tensor([[97, 5, 100, 98, 98]]))
    assert torch.equal(features.pooled[0], features.last_hidden_state[0, 3])


def test_an_appended_token_can_be_learned():
    longer = TextEncoder(SMALL).extended(torch.zeros(1, 32))
    longer(torch.tensor([[97, 99, 98]])).last_hidden_state[0, -1, 0].backward()
    gradient = longer.text_model.embeddings.token_embedding.weight.grad
    assert gradient[99].abs().sum() > 0
    assert gradient[5].abs().sum() == 0


@pytest.mark.parametrize(
    ("attempt", "message"),
    [
        (lambda model: model(torch.zeros(1, 17, dtype=torch.long)), "17 tokens is longer .* 16 positions"),
        (lambda model: model(torch.tensor([[1, 99]])), "ids from 1 to 99 .* rows 0 to 98"),
        (lambda model: model(torch.tensor([[-1, 3]])), "ids from -1 to 3"),
        (lambda model: model(torch.tensor([1, 2])), r"shape \(2,\)"),
        (lambda model: model(torch.zeros(1, 0, dtype=torch.long)), r"shape \(1, 0\)"),
        (lambda model: model.forward_embeddings(torch.zeros(1, 4, 31)), r"\(1, 4, 31\) do not fit"),
        (lambda model: model.extended(torch.zeros(31)), "do not fit a table 32 wide"),
    ],
)
def test_bad_input_is_named(attempt, message):
    with pytest.raises(InputError, match=message):
        attempt(TextEncoder(SMALL))


@pytest.mark.parametrize(
    "wrong",
    [{"hidden_act": "quick_gulu"}, {"num_attention_heads": 5}, {"hidden_size": "768"}, {"num_hidden_layers": 0}],
)
def test_bad_config_is_named(wrong):
    with pytest.raises(InputError, match=str(next(iter(wrong)))):
        replace(SMALL, **wrong)


def test_a_mask_takes_the_place_of_causality():
    net, ids = TextEncoder(SMALL).eval(), texts(SMALL, 7)
    x = net.text_model.embeddings(net.embed(ids))
    causal = torch.ones(7, 7, dtype=torch.bool).tril()
    usual = net.text_model.encoder(x)[-1]
    torch.testing.assert_close(net.text_model.encoder(x, causal)[-1], usual)
    torch.testing.assert_close(net.text_model.encoder(x, torch.zeros(7, 7).masked_fill(~causal, -torch.inf))[-1], usual)
    assert not torch.allclose(net.text_model.encoder(x, torch.ones_like(causal))[-1], usual)
