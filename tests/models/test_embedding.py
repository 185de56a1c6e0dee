"""What a U-Net is told beside the words: Stable Diffusion XL's sizes and text, as diffusers tells them."""

from dataclasses import replace

import pytest
import torch
from diffusers import UNet2DConditionModel
from test_unet import CROSS, THREE

from safelight.errors import InputError
from safelight.models.embedding import beside_words
from safelight.models.run import Run
from safelight.models.unet import UNet, UNetConfig

XL = CROSS | THREE | {
    "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
    "up_block_types": ("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
    "transformer_layers_per_block": [1, 2, 3], "use_linear_projection": True, "addition_embed_type": "text_time",
    "addition_time_embed_dim": 8, "projection_class_embeddings_input_dim": 20 + 6 * 8,
}  # fmt: skip
SIZES = torch.tensor([[768.0, 512, 0, 128, 1024, 640], [333, 444, 55, 0, 512, 512]])


@pytest.fixture(scope="module")
def both():
    torch.manual_seed(0)
    peer = UNet2DConditionModel(**XL).eval()
    with torch.no_grad():
        for parameter in peer.parameters():
            parameter += 0.05 * torch.randn_like(parameter)
    ours = UNet(UNetConfig.from_diffusers(peer.config)).eval()
    ours.load_state_dict(peer.state_dict(), strict=True)
    return peer, ours


@pytest.fixture(scope="module")
def inputs():
    generator = torch.Generator().manual_seed(1)
    shapes = ((2, 4, 9, 12), (2, 7, 24), (2, 20))
    return [torch.randn(shape, generator=generator) for shape in shapes]


@torch.no_grad()
def test_equals_diffusers(both, inputs):
    """To 3e-6 of the norm: the same operations in float32; at present the same to the bit."""
    peer, ours = both
    x, context, pooled = inputs
    for t in (981.0, 3.5):
        told = {"text_embeds": pooled, "time_ids": SIZES}
        expected = peer(x, t, encoder_hidden_states=context, added_cond_kwargs=told).sample
        found = ours(x, t, context, pooled=beside_words(pooled, SIZES, 8))
        assert float((found - expected).norm() / expected.norm()) < 3e-6


@torch.no_grad()
def test_a_run_gives_what_the_net_gives(both, inputs):
    _, ours = both
    x, context, pooled = inputs
    told = beside_words(pooled, SIZES, 8)
    run = Run(ours, (981.0, 500.0))
    for t in (981.0, 77.0, 500.0):
        found, expected = run(x, t, context=context, pooled=told), ours(x, t, context, pooled=told)
        assert float((found - expected).norm() / expected.norm()) < 3e-6


def test_sizes_of_one_stand_for_all(inputs):
    one = beside_words(inputs[2], SIZES[:1], 8)
    assert torch.equal(one, beside_words(inputs[2], SIZES[:1].expand(2, -1), 8)) and one.shape == (2, 68)


@torch.no_grad()
def test_what_is_missing_or_too_much_is_told(both, inputs):
    _, ours = both
    x, context, pooled = inputs
    with pytest.raises(InputError, match="takes a pooled vector; got none"):
        ours(x, 1.0, context)
    with pytest.raises(InputError, match="takes a pooled vector; got \\(2, 20\\)"):
        ours(x, 1.0, context, pooled=pooled)
    plain = UNet(UNetConfig(**CROSS))
    with pytest.raises(InputError, match="takes no pooled vector"):
        plain(x, 1.0, context, pooled=pooled)


def test_configs(both):
    config = both[1].config
    assert UNetConfig.from_diffusers(config.to_diffusers()) == config and config.pooled_width == 68
    with pytest.raises(InputError, match="needs projection_class_embeddings_input_dim and addition_time_embed_dim"):
        replace(config, addition_time_embed_dim=None)
    with pytest.raises(InputError, match="addition_embed_type"):
        replace(config, addition_embed_type="image")
