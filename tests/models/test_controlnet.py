"""ControlNets beside diffusers' ControlNetModel, on seeded random weights of small nets and the shapes of real ones.

In float32 both compute the same sums in other orders: 1e-4 of the largest number bounds that with room.
"""

from dataclasses import replace

import diffusers
import pytest
import torch

from safelight.checkpoint.build import on_meta
from safelight.errors import InputError
from safelight.models.controlnet import Control, ControlNet, ControlNetConfig
from safelight.models.once import Once
from safelight.models.presets import SD2_BASE, SD15
from safelight.models.run import Run
from safelight.models.unet import UNet, plus
from safelight.models.unet_config import UNetConfig

SMALL = {
    "block_out_channels": (32, 64), "layers_per_block": 1, "down_block_types": ("CrossAttnDownBlock2D", "DownBlock2D"),
    "cross_attention_dim": 16, "attention_head_dim": 4, "norm_num_groups": 8,
    "conditioning_embedding_out_channels": (8, 8, 16, 16),
}  # fmt: skip
TOLERANCE = 1e-4


def filled(network, seed=0):
    generator = torch.Generator().manual_seed(seed)
    for parameter in network.parameters():
        parameter.data.normal_(0, parameter[0].numel() ** -0.5 if parameter.dim() > 1 else 0.1, generator=generator)
    return network.eval().requires_grad_(False)


def pair(**more):
    """The same ControlNet, theirs and ours."""
    theirs = filled(diffusers.ControlNetModel(**SMALL | more))
    ours = ControlNet(ControlNetConfig.from_diffusers(dict(theirs.config)))
    ours.load_state_dict(theirs.state_dict(), strict=True)
    return theirs, ours.eval().requires_grad_(False)


def given(batch=2, side=16):
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(batch, 4, side, side, generator=generator)
    context = torch.randn(batch, 7, 16, generator=generator)
    return x, context, torch.rand(1, 3, 8 * side, 8 * side, generator=generator)


def alike(a, b):
    assert a.shape == b.shape
    assert (a - b).abs().max() <= TOLERANCE * b.abs().max()


@pytest.mark.parametrize("more", [
    {}, {"controlnet_conditioning_channel_order": "bgr"}, {"global_pool_conditions": True},
    {"use_linear_projection": True, "attention_head_dim": (4, 8)},
])  # fmt: skip
def test_it_adds_what_diffusers_adds(more):
    theirs, ours = pair(**more)
    x, context, picture = given()
    scale = 0.7
    down, mid = theirs(x, 500, context, picture.expand(2, -1, -1, -1), scale, return_dict=False)
    # diffusers pools outside of the network what `global_pool_conditions` asks for
    if more.get("global_pool_conditions"):
        down, mid = [one.mean((2, 3), keepdim=True) for one in down], mid.mean((2, 3), keepdim=True)
    added = ours(x, 500, context, picture).scaled(scale)
    assert len(added.skips) == len(down)
    for a, b in zip(added.skips, down, strict=True):
        alike(a, b)
    alike(added.mid, mid)


def test_a_unet_that_is_steered_answers_as_diffusers_does():
    theirs, ours = pair()
    shape = {name: SMALL[name] for name in SMALL if name != "conditioning_embedding_out_channels"}
    ups = ("UpBlock2D", "CrossAttnUpBlock2D")
    their_unet = filled(diffusers.UNet2DConditionModel(**shape, up_block_types=ups, sample_size=16), 2)
    unet = UNet(UNetConfig.from_diffusers(dict(their_unet.config)))
    unet.load_state_dict(their_unet.state_dict())
    unet.eval().requires_grad_(False)
    x, context, picture = given()
    down, mid = theirs(x, 500, context, picture.expand(2, -1, -1, -1), return_dict=False)
    expected = their_unet(
        x, 500, context, down_block_additional_residuals=down, mid_block_additional_residual=mid
    ).sample
    added = ours(x, 500, context, picture)
    alike(unet.forward_embedded(x, unet.embed_time(500), context, added), expected)
    run = Run(unet, [500.0], control=Control(ours, picture, [500.0]))
    alike(run(x, 500.0, context=context), expected)
    assert (run(x, 500.0, context=context) - Run(unet, [500.0])(x, 500.0, context=context)).abs().max() > 0.01


def test_in_a_run_one_latent_is_steered_in_two_contexts_and_only_where_it_acts():
    _, ours = pair()
    unet = filled(UNet(ours.config.unet), 2)
    x, context, picture = given(batch=1)
    both = torch.cat([context, context.flip(1)])
    control = Control(ours, picture, [900.0, 100.0], scale=0.5, acts=lambda t: t > 500)
    run = Run(unet, [900.0, 100.0], control=control)
    for timestep in (900.0, 100.0):
        for row in range(2):
            added = ours(x, timestep, both[row : row + 1], picture).scaled(0.5) if timestep > 500 else None
            alone = unet.forward_embedded(x, unet.embed_time(timestep), both[row : row + 1], added)
            alike(run(x, timestep, context=both)[row : row + 1], alone)


@torch.no_grad()
def test_with_features_kept_the_first_addition_is_made_anew():
    _, ours = pair()
    unet = filled(UNet(ours.config.unet), 2)
    x, context, picture = given(batch=1)
    times = [900.0, 800.0]
    kept = Run(unet, times, every=2, control=Control(ours, picture, times))
    full = Run(unet, times, control=Control(ours, picture, times))
    told = Once(context)
    alike(kept(x, 900.0, context=context), full(x, 900.0, context=context))
    other = x + 0.1
    seen = kept(other, 800.0, context=context)
    added = ours(x, 900.0, context, picture)
    deep = unet.deep(unet.enter(x), unet.embed_time(900.0), told, added)
    first = plus(unet.enter(other), ours.first(other, ours.look(picture, x.shape[-2:])))
    alike(seen, unet.leave(deep, first, unet.embed_time(800.0), told))


@pytest.mark.parametrize("preset", [SD15, SD2_BASE], ids=["sd15", "sd2"])
def test_the_real_ones_have_diffusers_names_and_shapes(preset):
    config = preset.to_diffusers()
    wanted = {name: config[name] for name in ("block_out_channels", "cross_attention_dim", "attention_head_dim",
                                              "use_linear_projection", "down_block_types")}  # fmt: skip
    with torch.device("meta"):
        theirs = diffusers.ControlNetModel(**wanted).state_dict()
    ours = on_meta(lambda: ControlNet(ControlNetConfig(unet=preset))).state_dict()
    assert {name: tensor.shape for name, tensor in ours.items()} == {name: t.shape for name, t in theirs.items()}


def test_a_new_one_adds_nothing():
    torch.manual_seed(0)
    ours = ControlNet(ControlNetConfig.from_diffusers(SMALL)).eval()
    x, context, picture = given()
    with torch.no_grad():
        added = ours(x, 500, context, picture)
    assert not any(one.any() for one in (*added.skips, added.mid))


def test_what_does_not_fit_is_refused():
    _, ours = pair()
    x, context, picture = given()
    with pytest.raises(InputError, match=r"picture is \(1, 3, 64, 64\)"):
        ours(x, 500, context, picture[..., :64, :64])
    with pytest.raises(InputError, match="cross_attention_dim is 16, the U-Net's 768"):
        ours.config.check_fits(replace(ours.config.unet, cross_attention_dim=768))
    with pytest.raises(InputError, match="conditioning_embedding_out_channels"):
        ControlNetConfig.from_diffusers(SMALL | {"conditioning_embedding_out_channels": (8, 8)})
    with pytest.raises(InputError, match="unknown key 'colour'"):
        ControlNetConfig.from_diffusers(SMALL | {"colour": 1})
