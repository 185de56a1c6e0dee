"""The U-Net equals diffusers' two classes, variant by variant, and its config translates both ways."""

import json
from dataclasses import replace

import pytest
import torch
from diffusers import UNet2DConditionModel, UNet2DModel

from safelight.errors import InputError
from safelight.models.embedding import sinusoid
from safelight.models.unet import UNet, UNetConfig

torch.set_num_threads(1)

TOLERANCE = 3e-6  # relative, of the whole tensor; nets with a context come out equal to the bit at present

CROSS = {
    "block_out_channels": (32, 64),
    "down_block_types": ("CrossAttnDownBlock2D", "DownBlock2D"),
    "up_block_types": ("UpBlock2D", "CrossAttnUpBlock2D"),
    "layers_per_block": 1,
    "norm_num_groups": 8,
    "attention_head_dim": 4,
    "cross_attention_dim": 24,
}
PLAIN = {
    "block_out_channels": (32, 64),
    "down_block_types": ("DownBlock2D", "AttnDownBlock2D"),
    "up_block_types": ("AttnUpBlock2D", "UpBlock2D"),
    "layers_per_block": 1,
    "norm_num_groups": 8,
    "attention_head_dim": 16,
}
THREE = {
    "block_out_channels": (16, 32, 64),
    "down_block_types": ("CrossAttnDownBlock2D", "CrossAttnDownBlock2D", "DownBlock2D"),
    "up_block_types": ("UpBlock2D", "CrossAttnUpBlock2D", "CrossAttnUpBlock2D"),
    "attention_head_dim": (2, 4, 8),
}
UPDOWN = {
    "down_block_types": ("ResnetDownsampleBlock2D", "AttnDownBlock2D", "DownBlock2D"),
    "up_block_types": ("UpBlock2D", "AttnUpBlock2D", "ResnetUpsampleBlock2D"),
    "block_out_channels": (16, 32, 64),
    "downsample_type": "resnet",
    "upsample_type": "resnet",
    "resnet_time_scale_shift": "scale_shift",
}
MIXED = {
    "down_block_types": ("CrossAttnDownBlock2D", "AttnDownBlock2D"),
    "up_block_types": ("AttnUpBlock2D", "CrossAttnUpBlock2D"),
}
# name -> what is changed in CROSS
CONDITIONAL = {
    "sd1": {},
    "sd2": THREE | {"use_linear_projection": True, "layers_per_block": 2},
    "inpainting": {"in_channels": 9},
    "depth": {"in_channels": 5, "use_linear_projection": True},
    "upscaler": THREE | {"in_channels": 7, "num_class_embeds": 10, "only_cross_attention": (True, False, True),
                         "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
                         "up_block_types": ("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D")},
    "unclip": {"class_embed_type": "projection", "projection_class_embeddings_input_dim": 20},
    "simple projection": {"class_embed_type": "simple_projection", "projection_class_embeddings_input_dim": 20},
    "class timestep": {"class_embed_type": "timestep"},
    "class identity": {"class_embed_type": "identity"},
    "vq latents, deep transformers": {"in_channels": 3, "out_channels": 3, "transformer_layers_per_block": (1, 3)},
    "layers per level": THREE | {"layers_per_block": (1, 2, 3), "transformer_layers_per_block": (2, 1, 1)},
    "scale_shift": {"resnet_time_scale_shift": "scale_shift"},
    "gelu": {"act_fn": "gelu"},
    "no middle": {"mid_block_type": None},
    "lone middle": {"mid_block_type": "UNetMidBlock2D"},
    "time embedding": {"flip_sin_to_cos": False, "freq_shift": 1, "time_embedding_dim": 40, "norm_eps": 1e-3},
    "centred": {"center_input_sample": True},
    "asymmetric": {"downsample_padding": 0},
    "both attentions": MIXED,
    "resnet resampling": {"down_block_types": ("ResnetDownsampleBlock2D", "CrossAttnDownBlock2D"),
                          "up_block_types": ("CrossAttnUpBlock2D", "ResnetUpsampleBlock2D")},
}  # fmt: skip
# name -> what is changed in PLAIN
UNCONDITIONAL = {
    "celebahq": {"in_channels": 3, "out_channels": 3},
    "kl-f16": {"in_channels": 16, "out_channels": 16, "layers_per_block": 2},
    "attention everywhere": {"down_block_types": ("AttnDownBlock2D",) * 2, "up_block_types": ("AttnUpBlock2D",) * 2},
    "attention in the middle only": {"down_block_types": ("DownBlock2D",) * 2, "up_block_types": ("UpBlock2D",) * 2},
    "resblock_updown": UPDOWN | {"attn_norm_num_groups": 8},
    "no norm in the middle": UPDOWN,
    "no attention in the middle": {"add_attention": False},
    "one head": {"attention_head_dim": None},
    "gelu": {"act_fn": "gelu"},
    "asymmetric": {"downsample_padding": 0},
    "class table": {"num_class_embeds": 10},
    "class timestep": {"class_embed_type": "timestep"},
    "class identity": {"class_embed_type": "identity"},
    "no middle": {"mid_block_type": None},
}
VARIANTS = [("cond", name) for name in CONDITIONAL] + [("plain", name) for name in UNCONDITIONAL]


def peer_and_ours(kind: str, name: str):
    """diffusers' net with seeded weights, no two of them equal and no bias zero; and ours, with the same weights."""
    torch.manual_seed(0)
    if kind == "cond":
        peer = UNet2DConditionModel(**(CROSS | CONDITIONAL[name]))
    else:
        peer = UNet2DModel(**(PLAIN | {"in_channels": 4, "out_channels": 4} | UNCONDITIONAL[name]))
    with torch.no_grad():
        for parameter in peer.parameters():
            parameter += 0.05 * torch.randn_like(parameter)
    ours = UNet(UNetConfig.from_diffusers(peer.config))
    ours.load_state_dict(peer.state_dict(), strict=True)
    return peer.eval(), ours.eval()


def inputs(net: UNet, batch=2, size=(8, 12), seed=1):
    """Latents, fractional timesteps, a context and class labels such as the net wants."""
    c, rng = net.config, torch.Generator().manual_seed(seed)
    x = torch.randn(batch, c.in_channels, *size, generator=rng)
    context = torch.randn(batch, 7, c.cross_attention_dim, generator=rng) if c.conditional else None
    labels = {
        None: torch.tensor([3, 9])[:batch] if c.num_class_embeds else None,
        "timestep": torch.tensor([20.0, 350.0])[:batch],
        "identity": torch.randn(batch, c.emb_channels, generator=rng),
    }.get(c.class_embed_type, torch.randn(batch, 20, generator=rng))
    return x, torch.tensor([981.25, 3.5])[:batch], context, labels


def run(net: UNet, x, t, context, labels):
    return net(x, t, context, class_labels=labels)


def run_peer(peer, x, t, context, labels):
    conditional = isinstance(peer, UNet2DConditionModel)
    return (peer(x, t, context, class_labels=labels) if conditional else peer(x, t, class_labels=labels)).sample


def relative_error(y, expected) -> float:
    assert y.shape == expected.shape
    return ((y - expected).norm() / expected.norm()).item()


@pytest.fixture
def sd1():
    return peer_and_ours("cond", "sd1")


@pytest.mark.parametrize(("kind", "name"), VARIANTS)
@torch.no_grad()
def test_equals_diffusers(kind, name):
    peer, ours = peer_and_ours(kind, name)
    for size in [(8, 12), (24, 40)]:
        these = inputs(ours, size=size)
        assert relative_error(run(ours, *these), run_peer(peer, *these)) < TOLERANCE


@pytest.mark.parametrize(("name", "size"), [("sd2", (7, 9)), ("sd2", (1, 2)), ("upscaler", (13, 6)), ("sd1", (5, 8))])
@torch.no_grad()
def test_equals_diffusers_at_sizes_that_do_not_halve(name, size):
    peer, ours = peer_and_ours("cond", name)
    these = inputs(ours, size=size)
    assert relative_error(run(ours, *these), run_peer(peer, *these)) < TOLERANCE


@pytest.mark.parametrize(("kind", "name"), VARIANTS)
@torch.no_grad()
def test_any_size_from_the_smallest_on(kind, name):
    _, ours = peer_and_ours(kind, name)
    for size in [(ours.min_size, ours.min_size), (ours.min_size + 6, ours.min_size + 3)]:
        x, *rest = inputs(ours, size=size)
        assert run(ours, x, *rest).shape == (2, ours.config.out_channels, *size)
    if ours.min_size > 1:
        with pytest.raises(InputError, match=f"at least {ours.min_size}"):
            run(ours, x[..., : ours.min_size - 1], *rest)


@pytest.mark.parametrize("t", [500, 500.0, torch.tensor(500), torch.tensor([500]), torch.tensor(500.0).double()])
@torch.no_grad()
def test_one_timestep_for_all(sd1, t):
    peer, ours = sd1
    x, _, context, _ = inputs(ours)
    assert relative_error(ours(x, t, context), peer(x, t, context).sample) < TOLERANCE


@torch.no_grad()
def test_integer_and_fractional_timesteps_differ_as_they_should(sd1):
    _, ours = sd1
    x, _, context, _ = inputs(ours)
    at = {t: ours(x, t, context) for t in (500, 500.0, 500.5)}
    assert torch.equal(at[500], at[500.0])
    assert not torch.allclose(at[500], at[500.5])


@pytest.mark.parametrize("flip", [True, False])
@pytest.mark.parametrize("channels", [32, 33])
def test_sinusoid_equals_diffusers_to_the_bit(channels, flip):
    from diffusers.models.embeddings import get_timestep_embedding

    t = torch.linspace(0, 999, 77)
    for shift in (0, 1):
        peers = get_timestep_embedding(t, channels, flip_sin_to_cos=flip, downscale_freq_shift=shift)
        assert torch.equal(sinusoid(t, channels, flip_sin_to_cos=flip, freq_shift=shift), peers)


@torch.no_grad()
def test_picture_of_a_batch_is_the_picture_alone(sd1):
    _, ours = sd1
    x, t, context, _ = inputs(ours)
    both = ours(x, t, context)
    for i in range(2):
        torch.testing.assert_close(ours(x[i : i + 1], t[i], context[i : i + 1]), both[i : i + 1], rtol=0, atol=1e-5)


@torch.no_grad()
def test_time_may_be_embedded_ahead(sd1):
    _, ours = sd1
    x, t, context, _ = inputs(ours)
    assert torch.equal(ours.forward_embedded(x, ours.embed_time(t), context), ours(x, t, context))


@torch.no_grad()
def test_channels_last_memory_changes_nothing(sd1):
    _, ours = sd1
    x, t, context, _ = inputs(ours, size=(9, 12))
    expected = ours(x, t, context)
    ours.to(memory_format=torch.channels_last)
    y = ours(x.contiguous(memory_format=torch.channels_last), t, context)
    assert relative_error(y, expected) < TOLERANCE


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize(("kind", "name"), [("cond", "upscaler"), ("cond", "unclip"), ("plain", "resblock_updown")])
@torch.no_grad()
def test_half_precision(kind, name, dtype):
    peer, ours = peer_and_ours(kind, name)
    x, t, context, labels = inputs(ours)
    exact = run(ours, x, t, context, labels)
    labels = labels.to(dtype) if labels is not None and labels.is_floating_point() else labels
    these = (x.to(dtype), t, None if context is None else context.to(dtype), labels)
    y = run(ours.to(dtype), *these)
    assert y.dtype == dtype
    assert relative_error(y.float(), exact) < 0.05
    # Each rounds every sum to 8 or 11 bits, and which sums are rounded depends on the CPU. On most: 0; on one without
    # AVX-512, for `resblock_updown`: 9e-3 and 1.4e-3, which is less than what parts both from float32.
    bound = 0.015 if dtype == torch.bfloat16 else 3e-3
    assert relative_error(y.float(), run_peer(peer.to(dtype), *these).float()) < bound


# Sizes

SD1 = UNetConfig(cross_attention_dim=768)
SD2 = replace(SD1, cross_attention_dim=1024, attention_head_dim=(5, 10, 20, 20), use_linear_projection=True)
UPSCALER = UNetConfig(
    in_channels=7,
    block_out_channels=(256, 512, 512, 1024),
    down_block_types=("DownBlock2D",) + ("CrossAttnDownBlock2D",) * 3,
    up_block_types=("CrossAttnUpBlock2D",) * 3 + ("UpBlock2D",),
    only_cross_attention=(True, True, True, False),
    cross_attention_dim=1024,
    use_linear_projection=True,
    num_class_embeds=1000,
)
CELEBAHQ = UNetConfig.from_diffusers({"_class_name": "UNet2DModel", "attention_head_dim": 32})


@pytest.mark.parametrize(
    ("config", "count"),
    [
        (SD1, 859_520_964),
        (replace(SD1, in_channels=9), 859_535_364),
        (SD2, 865_910_724),
        (replace(SD2, in_channels=9), 865_925_124),
        (replace(SD2, in_channels=5), 865_913_604),
        (UPSCALER, None),
        (CELEBAHQ, None),
    ],
    ids=["sd1", "sd1 inpainting", "sd2", "sd2 inpainting", "sd2 depth", "x4 upscaler", "celebahq"],
)
def test_full_size_has_the_published_parameters(config, count):
    with torch.device("meta"):
        ours = UNet(config)
        peer = (UNet2DConditionModel if config.conditional else UNet2DModel).from_config(config.to_diffusers())
    shapes = {key: value.shape for key, value in ours.state_dict().items()}
    assert shapes == {key: value.shape for key, value in peer.state_dict().items()}
    parameters = sum(parameter.numel() for parameter in ours.parameters())
    assert parameters == sum(parameter.numel() for parameter in peer.parameters())
    assert count is None or parameters == count


def test_forward_needs_no_values():
    """On the meta device there are none to look at: no branch and no host sync depends on the data."""
    with torch.device("meta"):
        net = UNet(SD2)
        y = net(torch.empty(2, 4, 50, 72), torch.empty(2), torch.empty(2, 77, 1024))
    assert y.shape == (2, 4, 50, 72)


def test_compiles_into_one_graph(sd1):
    _, ours = sd1
    x, t, context, _ = inputs(ours)
    with torch.no_grad():
        compiled = torch.compile(ours, backend="eager", fullgraph=True)
        assert torch.equal(compiled(x, t, context), ours(x, t, context))


# Training


@pytest.mark.parametrize(("kind", "name"), [("cond", "upscaler"), ("plain", "resblock_updown")])
def test_begins_by_predicting_zero_and_adding_nothing(kind, name):
    _, trained = peer_and_ours(kind, name)
    ours = UNet(trained.config)
    x, t, context, labels = inputs(ours)
    assert not run(ours, x, t, context, labels).any()
    emb = ours.embed_time(t, labels)
    for block in (*ours.down_blocks, ours.mid_block):
        res, attention = next(iter(block.layers()))
        h = torch.randn(2, res.norm1.num_channels, 4, 4)
        assert torch.equal(res(h, emb), res.conv_shortcut(h))
        if attention is not None:
            h = res(h, emb)
            assert torch.equal(attention(h, context), h)


@pytest.mark.parametrize(("kind", "name"), [("cond", "upscaler"), ("plain", "resblock_updown")])
@pytest.mark.parametrize("training", [True, False])
def test_gradient_checkpointing_gives_the_same_gradients(kind, name, training):
    _, ours = peer_and_ours(kind, name)
    ours = UNet(replace(ours.config, dropout=0.3)).train(training)
    ours.load_state_dict(peer_and_ours(kind, name)[1].state_dict())
    these = inputs(ours)
    found = []
    for ours.gradient_checkpointing in (False, True):
        ours.zero_grad()
        torch.manual_seed(7)  # the same dropout
        saved = 0

        def keep(tensor):
            nonlocal saved
            saved += tensor.numel()
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
            loss = run(ours, *these).square().mean()
        loss.backward()
        found.append((loss.item(), saved, [parameter.grad for parameter in ours.parameters()]))
    (loss, kept, gradients), (loss_again, kept_again, gradients_again) = found
    assert loss == loss_again
    assert all(torch.equal(a, b) for a, b in zip(gradients, gradients_again, strict=True))
    assert kept_again < kept / 2


@torch.no_grad()
def test_gradient_checkpointing_without_gradients(sd1):
    _, ours = sd1
    these = inputs(ours)
    expected = run(ours, *these)
    ours.gradient_checkpointing = True
    assert torch.equal(run(ours, *these), expected)


def test_dropout_is_where_diffusers_has_it():
    peer = UNet2DConditionModel(**CROSS, dropout=0.5).train()
    ours = UNet(UNetConfig.from_diffusers(peer.config)).train()
    ours.load_state_dict(peer.state_dict())
    these = inputs(ours)
    torch.manual_seed(0)
    y = run(ours, *these)
    torch.manual_seed(0)
    assert relative_error(y, run_peer(peer, *these)) < TOLERANCE
    assert not torch.allclose(y, run(ours.eval(), *these))


# What does not fit


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"x": torch.zeros(2, 9, 8, 12)}, r"\(B, 4, H, W\).*\(2, 9, 8, 12\)"),
        ({"x": torch.zeros(4, 8, 12)}, r"\(4, 8, 12\)"),
        ({"context": None}, "no context"),
        ({"context": torch.zeros(2, 7, 25)}, r"\(2, L, 24\).*\(2, 7, 25\)"),
        ({"context": torch.zeros(1, 7, 24)}, r"\(1, 7, 24\)"),
        ({"context": torch.zeros(7, 24)}, r"\(7, 24\)"),
        ({"timesteps": torch.zeros(3)}, "3 timesteps.* batch of 2"),
        ({"class_labels": torch.zeros(2, dtype=torch.long)}, "knows no class labels"),
    ],
)
def test_wrong_inputs_are_named(sd1, change, words):
    _, ours = sd1
    x, t, context, _ = inputs(ours)
    with pytest.raises(InputError, match=words) as error:
        ours(**({"x": x, "timesteps": t, "context": context} | change))
    assert error.value.remedy


def test_missing_class_labels_and_superfluous_context_are_named():
    _, ours = peer_and_ours("plain", "class table")
    x, t, _, labels = inputs(ours)
    with pytest.raises(InputError, match="needs class labels"):
        ours(x, t)
    with pytest.raises(InputError, match="no cross-attention"):
        ours(x, t, torch.zeros(2, 7, 24), class_labels=labels)


# The config


@pytest.mark.parametrize(("kind", "name"), VARIANTS)
def test_config_goes_to_diffusers_and_back(kind, name):
    peer, ours = peer_and_ours(kind, name)
    written = json.loads(json.dumps(ours.config.to_diffusers()))
    assert UNetConfig.from_diffusers(written) == ours.config
    assert written["_class_name"] == type(peer).__name__
    assert plain_config(type(peer).from_config(written)) == plain_config(peer)


def plain_config(peer):
    """A peer's config as JSON would have it, without the peer's own notes."""
    return json.loads(json.dumps({key: value for key, value in peer.config.items() if not key.startswith("_")}))


def test_heads_of_one_number_and_widths_that_differ():
    """Latent diffusion's LSUN churches: eight heads at every level, hence another width at each."""
    widths = {"down_block_types": ("AttnDownBlock2D",) * 2, "up_block_types": ("AttnUpBlock2D",) * 2}
    config = UNetConfig.from_diffusers(PLAIN | widths | {"attention_head_dim": [4, 8]})
    assert [level.heads for level in (*config.down, config.mid, *config.up)] == [8] * 5
    assert UNetConfig.from_diffusers(config.to_diffusers()) == config
    x, t, *_ = inputs(UNet(config))
    assert UNet(config)(x, t).shape == x.shape


def test_the_same_word_is_a_number_of_heads_or_a_width():
    assert [level.heads for level in SD1.down[:3]] == [8, 8, 8]
    assert [level.heads for level in CELEBAHQ.down] == [1, 14, 21, 28]
    assert SD2.mid is not None and SD2.mid.heads == 20


def test_class_is_read_off_the_blocks_where_the_file_is_silent():
    assert UNetConfig.from_diffusers(PLAIN) == UNetConfig.from_diffusers(PLAIN | {"_class_name": "UNet2DModel"})
    assert UNetConfig.from_diffusers({}) == UNetConfig()
    old = PLAIN | {"down_block_types": ["UNetResDownBlock2D", "UNetResAttnDownBlock2D"]}
    assert UNetConfig.from_diffusers(old) == UNetConfig.from_diffusers(PLAIN)
    assert UNetConfig.from_diffusers({"_diffusers_version": "0.2.2", "_name_or_path": "x"}) == UNetConfig()


def test_reads_what_stable_diffusion_2_1_says():
    """The published config.json, `null`s and all."""
    published = """{
      "_class_name": "UNet2DConditionModel", "_diffusers_version": "0.10.0.dev0", "act_fn": "silu",
      "attention_head_dim": [5, 10, 20, 20], "block_out_channels": [320, 640, 1280, 1280],
      "center_input_sample": false, "cross_attention_dim": 1024,
      "down_block_types":
        ["CrossAttnDownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D", "DownBlock2D"],
      "downsample_padding": 1, "dual_cross_attention": false, "flip_sin_to_cos": true, "freq_shift": 0,
      "in_channels": 4, "layers_per_block": 2, "mid_block_scale_factor": 1, "norm_eps": 1e-05, "norm_num_groups": 32,
      "num_class_embeds": null, "only_cross_attention": false, "out_channels": 4, "sample_size": 96,
      "up_block_types": ["UpBlock2D", "CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "CrossAttnUpBlock2D"],
      "use_linear_projection": true, "upcast_attention": true }"""
    assert UNetConfig.from_diffusers(json.loads(published)) == replace(SD2, sample_size=96, upcast_attention=True)


def test_defaults_are_diffusers():
    for peer in (UNet2DConditionModel, UNet2DModel):
        with torch.device("meta"):
            full = dict(peer().config)
        config = UNetConfig.from_diffusers({"_class_name": peer.__name__})
        assert config == UNetConfig.from_diffusers(full | {"_class_name": peer.__name__})


@pytest.mark.parametrize(
    ("config", "words"),
    [
        (CROSS | {"cros_attention_dim": 768}, "cros_attention_dim.*\n.*cross_attention_dim"),
        (CROSS | {"addition_embed_type": "text_image"}, "addition_embed_type"),
        (CROSS | {"num_attention_heads": 8}, "num_attention_heads"),
        (CROSS | {"down_block_types": ["CrossAttnDownBlock", "DownBlock2D"]}, "\n.*CrossAttnDownBlock2D"),
        (CROSS | {"up_block_types": ["UpBlock2D", "KUpBlock2D"]}, "KUpBlock2D"),
        (CROSS | {"mid_block_type": "UNetMidBlock2DSimpleCrossAttn"}, "mid_block_type"),
        (CROSS | {"act_fn": "sillu"}, "sillu.*\n.*silu"),
        (CROSS | {"block_out_channels": [32, 64, 128]}, "2 entries for the 3 levels"),
        (CROSS | {"attention_head_dim": 5}, "5 does not divide 32"),
        (CROSS | {"cross_attention_dim": [24, 48]}, "cross_attention_dim"),
        (CROSS | {"class_embed_type": "projection"}, "projection_class_embeddings_input_dim"),
        (CROSS | {"_class_name": "UNet2DModel"}, "cross-attention blocks in a UNet2DModel"),
        (CROSS | {"_class_name": "UNet3DConditionModel"}, "UNet3DConditionModel"),
        (PLAIN | {"_class_name": "UNet2DConditionModel", "mid_block_type": "UNetMidBlock2D"}, "no cross-attention"),
        (PLAIN | {"attention_head_dim": 5}, "5 does not divide 64"),
        (CROSS | MIXED | {"attention_head_dim": [4, 8]}, "two orders"),
        (CROSS | {"block_out_channels": "wide"}, "block_out_channels cannot be 'wide'"),
        (CROSS | {"block_out_channels": [32, 64.5]}, "block_out_channels cannot be"),
        (CROSS | {"block_out_channels": []}, "block_out_channels cannot be"),
        (CROSS | {"down_block_types": None}, "down_block_types cannot be None"),
        (CROSS | {"layers_per_block": 0}, "layers_per_block cannot be 0"),
        (CROSS | {"norm_num_groups": None}, "norm_num_groups cannot be None"),
    ],
)  # fmt: skip
def test_configs_that_make_no_net_are_named(config, words):
    with pytest.raises(InputError, match=words) as error:
        UNetConfig.from_diffusers(config)
    assert error.value.remedy


def test_normalisation_groups_must_divide():
    with pytest.raises(InputError, match=r"32 channels .* 12 normalisation groups"):
        UNet(UNetConfig.from_diffusers(CROSS | {"norm_num_groups": 12}))
