"""LoRA's kin: merged as PEFT merges them, and, where PEFT has no such kind, as their equations say."""

import pytest
import torch
from peft import LoHaConfig, LoKrConfig, LoraConfig, get_peft_model
from safetensors.torch import load_file, save_file
from torch import nn

from safelight.checkpoint.errors import CheckpointError, KeyMismatch, WrongModel, WrongShape
from safelight.checkpoint.files import open_file
from safelight.checkpoint.lora import read_lora

BOTH = ["plain", "wide"]
CONFIGS = {
    "LoHa": LoHaConfig(r=3, alpha=5, target_modules=BOTH),
    "LoHa by cores": LoHaConfig(r=3, alpha=5, target_modules=BOTH, use_effective_conv2d=True),
    "LoKr": LoKrConfig(r=2, alpha=5, target_modules=BOTH),
    "LoKr by cores": LoKrConfig(r=2, alpha=5, target_modules=BOTH, use_effective_conv2d=True),
    "LoKr of products": LoKrConfig(r=1, alpha=5, target_modules=BOTH, decompose_both=True, decompose_factor=4),
    "LoKr of whole matrices": LoKrConfig(r=32, alpha=5, target_modules=BOTH),
    "DoRA": LoraConfig(r=4, lora_alpha=6, target_modules=BOTH, use_dora=True),
    "DoRA, rank-stabilised": LoraConfig(r=4, lora_alpha=6, target_modules=BOTH, use_dora=True, use_rslora=True),
}


class Net(nn.Module):
    """A linear layer, a convolution and a normalisation."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.plain, self.wide, self.norm = nn.Linear(16, 24), nn.Conv2d(16, 24, 3), nn.GroupNorm(2, 24)


def merged(net, path, share=1.0):
    """All parameters, with those that a file changes."""
    own = {name: parameter.detach() for name, parameter in net.named_parameters()}
    return own | {
        one.parameter: one.total(own[one.parameter], share) for one in read_lora(open_file(path), {"unet": net})
    }


def same(ours, theirs):
    for name, tensor in ours.items():
        torch.testing.assert_close(tensor, theirs[name], rtol=1e-5, atol=1e-6)


def saved(net, state, folder):
    """A file of these tensors, in kohya's naming."""
    torch.manual_seed(1)
    state = {f"lora_unet_{name}": tensor.contiguous() for name, tensor in state.items()}
    save_file(state, folder / "x.safetensors")
    return folder / "x.safetensors"


@pytest.mark.parametrize("kind", CONFIGS)
def test_it_is_merged_as_peft_merges_it(tmp_path, kind):
    model = get_peft_model(Net(), CONFIGS[kind])
    for tensor in model.parameters():
        if tensor.requires_grad:
            tensor.data.add_(torch.randn_like(tensor), alpha=0.3)
    model.save_pretrained(tmp_path)
    state = load_file(tmp_path / "adapter_model.safetensors")
    theirs = dict(model.merge_and_unload().named_parameters())
    assert not torch.allclose(theirs["wide.weight"], Net().wide.weight, atol=0.1)
    same(merged(Net(), tmp_path / "adapter_model.safetensors"), theirs)

    if "whole" in kind or "stabilised" in kind:
        return
    alpha = torch.tensor(6.0 if kind == "DoRA" else 5.0)  # the same as LyCORIS writes it
    names = {"lora_A": "lora_down", "lora_B": "lora_up", "lora_magnitude_vector": "dora_scale"}
    state = {key.removeprefix("base_model.model."): tensor for key, tensor in state.items()}
    if kind == "DoRA":
        state = {key: t.reshape(24, *[1] * (t.ndim - 1)) if "magnitude" in key else t for key, t in state.items()}
    for old, new in names.items():
        state = {key.replace(old, new): tensor for key, tensor in state.items()}
    state |= {"plain.alpha": alpha, "wide.alpha": alpha.clone()}
    same(merged(Net(), saved(Net(), state, tmp_path)), theirs)


def test_a_lokr_of_whole_matrices_has_no_rank_by_which_alpha_counts(tmp_path):
    w1, w2 = torch.randn(4, 4), torch.randn(6, 4, 3, 3)
    path = saved(Net(), {"wide.lokr_w1": w1, "wide.lokr_w2": w2, "wide.alpha": torch.tensor(99.0)}, tmp_path)
    change = torch.einsum("ab,cdkl->acbdkl", w1, w2).reshape(24, 16, 3, 3)
    same(merged(Net(), path, 0.5), dict(Net().named_parameters()) | {"wide.weight": Net().wide.weight + change / 2})


def test_a_locon_of_three_parts_is_three_convolutions(tmp_path):
    torch.manual_seed(2)
    down, mid, up = torch.randn(2, 16, 1, 1), torch.randn(2, 2, 3, 3), torch.randn(24, 2, 1, 1)
    path = saved(Net(), {"wide.lora_down.weight": down, "wide.lora_mid.weight": mid, "wide.lora_up.weight": up,
                         "wide.alpha": torch.tensor(1.0)}, tmp_path)  # fmt: skip
    net, x, conv = Net(), torch.randn(1, 16, 5, 5), nn.functional.conv2d
    expected = net.wide(x) + conv(conv(conv(x, down), mid), up) / 2
    torch.testing.assert_close(conv(x, merged(net, path)["wide.weight"], net.wide.bias), expected, rtol=1e-4, atol=1e-4)


def test_whole_differences_are_added_to_weights_biases_and_norms(tmp_path):
    torch.manual_seed(3)
    parts = {"plain.diff": ("plain.weight", (24, 16)), "wide.diff_b": ("wide.bias", (24,)),
             "norm.w_norm": ("norm.weight", (24,)), "norm.b_norm": ("norm.bias", (24,))}  # fmt: skip
    state = {name: torch.randn(shape) for name, (_, shape) in parts.items()}
    expected = {name: tensor.clone() for name, tensor in Net().named_parameters()}
    for name, (parameter, _) in parts.items():
        expected[parameter] = expected[parameter] + 0.7 * state[name]
    same(merged(Net(), saved(Net(), state, tmp_path), 0.7), expected)


@pytest.mark.parametrize("axis", [0, 1])
def test_a_dora_has_its_lengths_along_outputs_or_inputs_and_counts_by_its_share(tmp_path, axis):
    torch.manual_seed(4)
    length = (24, 16)[axis]
    m = (torch.rand(length) + 0.5).reshape([length if one == axis else 1 for one in range(4)])
    state = {"wide.lora_down.weight": torch.randn(2, 16, 3, 3), "wide.lora_up.weight": torch.randn(24, 2, 1, 1)}
    path = saved(Net(), state | {"wide.dora_scale": m}, tmp_path)
    whole, half = (merged(Net(), path, share)["wide.weight"] for share in (1.0, 0.5))
    others = [one for one in range(4) if one != axis]
    torch.testing.assert_close(whole.square().sum(others).sqrt(), m.flatten(), rtol=1e-5, atol=1e-6)
    product = torch.einsum("or,rikl->oikl", state["wide.lora_up.weight"][..., 0, 0], state["wide.lora_down.weight"])
    ratio = whole / (Net().wide.weight + product)  # the same along each row
    torch.testing.assert_close(ratio, ratio.mean(others, keepdim=True).expand_as(ratio), rtol=1e-3, atol=1e-3)
    torch.testing.assert_close(half, (whole + Net().wide.weight) / 2, rtol=1e-5, atol=1e-6)


LOHA = {
    f"plain.hada_w{n}_{side}": torch.ones(shape) for n in (1, 2) for side, shape in (("a", (24, 2)), ("b", (2, 16)))
}


@pytest.mark.parametrize(
    ("state", "error", "words"),
    [
        ({key: t for key, t in LOHA.items() if "w2_b" not in key}, KeyMismatch, "lacks the hada_w2_b matrix"),
        (LOHA | {"plain.hada_w1_a": torch.ones(23, 2)}, WrongShape, "would add"),
        (LOHA | {"plain.lokr_w1": torch.ones(2, 2)}, WrongModel, "mixes LoHa and LoKr"),
        (LOHA | {"plain.dora_scale": torch.ones(7)}, WrongShape, "magnitude"),
        ({"plain.lokr_w1": torch.ones(2, 2)}, KeyMismatch, "lacks the lokr_w2_a and lokr_w2_b"),
        ({"plain.lokr_w1": torch.ones(2, 2), "plain.lokr_w2": torch.ones(12, 7)}, WrongShape, "would add"),
        ({"plain.diff": torch.ones(24, 17)}, WrongShape, "would add"),
        ({"norm.diff_b": torch.ones(23)}, WrongShape, "would add"),
        ({"norm.alpha": torch.ones(1)}, KeyMismatch, "lacks the down and up"),
        ({"bare.diff_b": torch.ones(24)}, KeyMismatch, "bias of 'bare'"),
        ({"plain.oft_blocks": torch.ones(1)}, WrongModel, "OFT"),
        ({"plain.on_input": torch.ones(1)}, WrongModel, "IA3"),
        ({"plain.a1.weight": torch.ones(1)}, WrongModel, "GLoRA"),
    ],
)
def test_what_does_not_fit_says_so(tmp_path, state, error, words):
    net = Net()
    net.bare = nn.Linear(16, 24, bias=False)
    with pytest.raises(error, match=words) as raised:
        merged(net, saved(net, state, tmp_path))
    assert isinstance(raised.value, CheckpointError) and "x.safetensors" in str(raised.value)
