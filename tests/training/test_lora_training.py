"""LoRAs as PEFT trains them: the same gradients, and files that diffusers and we read as what was trained."""

import diffusers
import pytest
import torch
from peft import LoraConfig, inject_adapter_in_model
from safetensors.torch import load_file

from safelight.checkpoint.files import open_file
from safelight.checkpoint.lora import read_lora
from safelight.errors import InputError
from safelight.models.clip import TextEncoder
from safelight.models.presets import TEXT_ENCODERS
from safelight.models.unet import UNet
from safelight.models.unet_config import UNetConfig
from safelight.training.stages.lora import LAYERS, Adapted, write_lora

SMALL = {
    "block_out_channels": (32, 64), "layers_per_block": 1, "cross_attention_dim": 16, "attention_head_dim": 4,
    "norm_num_groups": 8, "sample_size": 8, "down_block_types": ("CrossAttnDownBlock2D", "DownBlock2D"),
    "up_block_types": ("UpBlock2D", "CrossAttnUpBlock2D"),
}  # fmt: skip
RANK, ALPHA = 3, 6.0


def pair():
    """The same U-Net, theirs and ours, with weights that answer something."""
    torch.manual_seed(0)
    theirs = diffusers.UNet2DConditionModel(**SMALL)
    for parameter in theirs.parameters():
        parameter.data += 0.1 * torch.randn_like(parameter)
    ours = UNet(UNetConfig.from_diffusers(dict(theirs.config)))
    ours.load_state_dict(theirs.state_dict())
    return theirs.eval(), ours.eval()


def asked():
    g = torch.Generator().manual_seed(1)
    x, context = torch.randn(2, 4, 8, 8, generator=g), torch.randn(2, 5, 16, generator=g)
    return x, torch.tensor([10, 700]), context


def learned(adapted, seed=2):
    """Additions that are no longer nothing."""
    g = torch.Generator().manual_seed(seed)
    for addition in adapted.additions:
        addition.up.data.normal_(std=0.2, generator=g)
        addition.down.data.normal_(std=0.2, generator=g)
    return adapted


def relative(a, b):
    return float((a - b).detach().norm() / b.detach().norm())


def test_gradients_are_those_of_peft():
    theirs, ours = pair()
    adapted = learned(Adapted(ours, rank=RANK, alpha=ALPHA))
    inject_adapter_in_model(
        LoraConfig(r=RANK, lora_alpha=ALPHA, target_modules=["to_q", "to_k", "to_v", "to_out.0"]), theirs
    )
    found = {name: theirs.get_submodule(name) for name in adapted.names}
    assert len(found) == sum(1 for name, part in theirs.named_modules() if hasattr(part, "lora_A") and name)
    for name, addition in zip(adapted.names, adapted.additions, strict=True):
        found[name].lora_A["default"].weight.data.copy_(addition.down)
        found[name].lora_B["default"].weight.data.copy_(addition.up)
    x, t, context = asked()
    expected, answer = theirs(x, t, context).sample, adapted(x, t, context)
    assert relative(answer, expected) < 1e-5
    expected.square().mean().backward()
    answer.square().mean().backward()
    for name, addition in zip(adapted.names, adapted.additions, strict=True):
        assert relative(addition.down.grad, found[name].lora_A["default"].weight.grad) < 1e-4, name
        assert relative(addition.up.grad, found[name].lora_B["default"].weight.grad) < 1e-4, name


def test_at_first_nothing_changes_and_the_additions_alone_are_trained():
    _, ours = pair()
    x, t, context = asked()
    with torch.no_grad():
        before = ours(x, t, context)
    adapted = Adapted(ours, rank=RANK)
    with torch.no_grad():
        assert torch.equal(adapted(x, t, context), before)
    wanted = [name for name, parameter in ours.named_parameters() if parameter.requires_grad]
    assert len(wanted) == len(list(adapted.parameters())) == 2 * len(adapted.names)
    assert sum(p.numel() for p in adapted.parameters()) < 0.05 * sum(p.numel() for p in ours.parameters())


@pytest.mark.parametrize("layers", LAYERS)
def test_the_file_is_read_as_what_was_trained(layers, tmp_path):
    theirs, ours = pair()
    adapted = learned(Adapted(ours, rank=RANK, alpha=ALPHA, layers=layers))
    file = write_lora(tmp_path, {"unet": (adapted, adapted.state_dict())})
    x, t, context = asked()
    with torch.no_grad():
        trained = adapted(x, t, context)
        _, fresh = pair()
        for addition in read_lora(open_file(file), {"unet": fresh, "text_encoder": None}):
            parameter = fresh.get_parameter(addition.parameter)
            parameter.copy_(addition.total(parameter, 1.0))
        assert relative(fresh(x, t, context), trained) < 1e-5
        state, alphas = diffusers.StableDiffusionPipeline.lora_state_dict(str(file))
        theirs.load_lora_adapter(state, network_alphas=alphas, prefix="unet")
        assert relative(theirs(x, t, context).sample, trained) < 1e-5
    keys = load_file(file).keys()
    assert "lora_unet_down_blocks_0_attentions_0_transformer_blocks_0_attn2_to_out_0.alpha" in keys
    assert any("_ff_net_" in key for key in keys) == (layers == "linear")


def test_a_text_encoder_as_well(tmp_path):
    from dataclasses import replace

    torch.manual_seed(0)
    shape = replace(
        TEXT_ENCODERS["sd15"], hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4
    )
    text = TextEncoder(shape).eval()
    adapted = learned(Adapted(text, rank=2))
    assert len(adapted.names) == 8 and all("self_attn" in name for name in adapted.names)
    file = write_lora(tmp_path, {"text_encoder": (adapted, adapted.state_dict())})
    assert "lora_te_text_model_encoder_layers_1_self_attn_q_proj.lora_up.weight" in load_file(file)
    torch.manual_seed(0)
    fresh = TextEncoder(shape).eval()
    ids = torch.randint(0, 49000, (1, 77))
    with torch.no_grad():
        for addition in read_lora(open_file(file), {"unet": None, "text_encoder": fresh}):
            parameter = fresh.get_parameter(addition.parameter)
            parameter.copy_(addition.total(parameter, 1.0))
        assert relative(fresh(ids).last_hidden_state, adapted(ids).last_hidden_state) < 1e-5


def test_a_network_without_such_layers_is_refused():
    with pytest.raises(InputError, match="no layers 'attention'"):
        Adapted(torch.nn.Sequential(torch.nn.Conv2d(3, 3, 1)), rank=2)
