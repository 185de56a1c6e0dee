"""LoRAs: merged as diffusers and PEFT merge them, in each naming; what does not fit says so."""

import json

import pytest
import torch
from diffusers import StableDiffusionPipeline
from diffusers.utils.state_dict_utils import convert_state_dict_to_kohya
from peft import LoraConfig
from peft.utils import get_peft_model_state_dict
from safetensors.torch import load_file, save_file
from small_models import same_weights

from safelight.checkpoint.convert import convert
from safelight.checkpoint.errors import KeyMismatch, NonFiniteWeights, WrongModel, WrongShape
from safelight.checkpoint.load import load_parts
from safelight.checkpoint.lora import FILE, parse
from safelight.errors import CheckpointError, MissingPartError

UNET = [
    "to_q",
    "to_k",
    "to_v",
    "to_out.0",
    "ff.net.0.proj",
    "ff.net.2",
    "proj_in",
    "proj_out",
    "conv1",
    "conv_shortcut",
]
TEXT = ["q_proj", "out_proj", "fc1"]
RANK, ALPHA = 4, 6


@pytest.fixture(scope="module")
def trained(sd1, tmp_path_factory):
    """The folder that diffusers writes of a LoRA for both networks, whose matrices are noise."""
    pipe = StableDiffusionPipeline.from_pretrained(sd1)
    torch.manual_seed(0)
    states = []
    for network, layers in ((pipe.unet, UNET), (pipe.text_encoder, TEXT)):
        network.add_adapter(LoraConfig(r=RANK, lora_alpha=ALPHA, target_modules=layers, init_lora_weights="gaussian"))
        for name, tensor in network.named_parameters():
            if "lora_B" in name:
                tensor.data.normal_(std=0.1)
        states.append(get_peft_model_state_dict(network))
    folder = tmp_path_factory.mktemp("lora")
    StableDiffusionPipeline.save_lora_weights(folder, unet_lora_layers=states[0], text_encoder_lora_layers=states[1])
    return folder


def close(ours, theirs):
    """Whether all parameters are equal but for the rounding of sums: 1e-6."""
    ours, theirs = ours.state_dict(), theirs.state_dict()
    aliases = {key.replace("text_model.", ""): key for key in theirs}
    for key, tensor in ours.items():
        other = theirs.get(key, theirs.get(aliases.get(key.replace("text_model.", ""), "")))
        torch.testing.assert_close(tensor, other, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("weight", [1.0, 0.7, -0.5])
def test_it_is_merged_as_diffusers_merges_it(sd1, trained, weight):
    pipe = StableDiffusionPipeline.from_pretrained(sd1)
    pipe.load_lora_weights(trained)
    pipe.fuse_lora(lora_scale=weight)
    pipe.unload_lora_weights()
    ours, plain = load_parts(sd1, loras=[(trained, weight)]), load_parts(sd1)
    close(ours.unet, pipe.unet)
    close(ours.text_encoder, pipe.text_encoder)
    assert not same_weights(ours.unet, plain.unet) and not same_weights(ours.text_encoder, plain.text_encoder)
    assert ours.loras == {f"lora: {trained.name}": weight}


def kohya(trained, alpha=None):
    """The same in kohya's naming, the text encoder being called as trainers of Stable Diffusion 1 call it."""
    state = convert_state_dict_to_kohya(load_file(trained / FILE))
    state = {key.replace("lora_te1_", "lora_te_"): tensor for key, tensor in state.items()}
    return state if alpha is None else state | {key: torch.tensor(alpha) for key in state if key.endswith(".alpha")}


def test_kohyas_naming_means_the_same_and_has_an_alpha_for_each_layer(sd1, trained, tmp_path):
    state = kohya(trained)
    assert "lora_unet_mid_block_attentions_0_transformer_blocks_0_ff_net_0_proj.lora_down.weight" in state
    assert any(key.startswith("lora_te_") for key in state)
    save_file(state, tmp_path / "one.safetensors")
    whole = load_parts(sd1, loras=[trained])
    same = load_parts(sd1, loras=[tmp_path / "one.safetensors"])
    assert same_weights(whole.unet, same.unet) and same_weights(whole.text_encoder, same.text_encoder)
    save_file(kohya(trained, alpha=RANK / 2), tmp_path / "half.safetensors")
    close(load_parts(sd1, loras=[tmp_path / "half.safetensors"]).unet, load_parts(sd1, loras=[f"{trained}:0.5"]).unet)


def test_diffusers_former_naming_and_a_pickle_mean_the_same(sd1, trained, tmp_path):
    own = load_file(trained / FILE)
    former = {}
    for key, tensor in own.items():
        layer, part, _ = key.rsplit(".", 2)
        way = {"lora_A": "down", "lora_B": "up"}[part]
        place, name = layer.removesuffix(".0").rsplit(".", 1)
        if ".attn" in layer:
            layer = f"{place}.processor.{name}_lora"
        elif ".self_attn" in layer:
            layer = f"{place}.to_{name.removesuffix('_proj')}_lora"
        else:
            layer += ".lora" if key.startswith("unet.") else ".lora_linear_layer"
        former[f"{layer}.{way}.weight"] = tensor
    torch.save(former, tmp_path / "former.bin")
    whole, same = load_parts(sd1, loras=[trained]), load_parts(sd1, loras=[tmp_path / "former.bin"])
    assert same_weights(whole.unet, same.unet) and same_weights(whole.text_encoder, same.text_encoder)


NAMES = {
    "kohya's": ("lora_unet_{}", "lora_te_{}", ("lora_down", "lora_up")),
    "LyCORIS' own": ("lycoris_{}", "lycoris_{}", ("lora_down", "lora_up")),
    "ComfyUI's": ("diffusion_model.{}", "text_encoders.clip_l.transformer.{}", ("lora_down", "lora_up")),
    "PEFT's": ("base_model.model.{}", "base_model.model.{}", ("lora_A", "lora_B")),
}


@pytest.mark.parametrize("whose", NAMES)
def test_each_naming_over_compvis_names_changes_the_tensor_that_it_names(sd1_file, sd1_tensors, tmp_path, whose):
    """What is added to a tensor of CompVis' file is what a LoRA's file says under that name."""
    torch.manual_seed(1)
    merged, lora = dict(sd1_tensors), {}
    for key, weight in sd1_tensors.items():
        of_unet = key.startswith("model.diffusion_model.")
        layer = key.removesuffix(".weight").removeprefix("model.diffusion_model.")
        layer = layer.removeprefix("cond_stage_model.transformer.")
        if weight.ndim < 2 or "embedding" in layer or layer.startswith("first_stage_model."):
            continue
        name = NAMES[whose][0 if of_unet else 1].format(layer)
        name = name.replace(".", "_") if "_{}" in NAMES[whose][0] else name
        up, down = torch.randn(len(weight), 2), torch.randn(2, weight[0].numel())
        merged[key] = weight + (up @ down).reshape(weight.shape)
        lora[f"{name}.{NAMES[whose][2][0]}.weight"] = down.reshape(2, *weight.shape[1:])
        lora[f"{name}.{NAMES[whose][2][1]}.weight"] = up.reshape(len(weight), 2, *[1] * (weight.ndim - 2))
    assert any("output_blocks" in key and "skip_connection" in key for key in lora)
    save_file(lora, tmp_path / "lora.safetensors")
    save_file(merged, tmp_path / "merged.safetensors")
    ours = load_parts(sd1_file, loras=[tmp_path / "lora.safetensors"])
    expected = load_parts(tmp_path / "merged.safetensors")
    close(ours.unet, expected.unet)
    close(ours.text_encoder, expected.text_encoder)
    assert not same_weights(expected.text_encoder, load_parts(sd1_file).text_encoder)


def test_words_that_a_lora_brings_along_are_known(sd1, trained, tmp_path):
    vectors = torch.randn(2, 64)
    save_file(kohya(trained) | {"bundle_emb.<fox>.string_to_param.*": vectors}, tmp_path / "x.safetensors")
    parts, plain = load_parts(sd1, loras=[tmp_path / "x.safetensors"]), load_parts(sd1, loras=[trained])
    rows = parts.text_encoder.text_model.embeddings.token_embedding.weight
    assert torch.equal(rows[-2:], vectors) and parts.tokenizer.ids("<fox>") != plain.tokenizer.ids("<fox>")
    assert same_weights(parts.unet, plain.unet) and not any("embedding" in name for name in parts.weights)
    save_file(kohya(trained) | {"bundle_emb.<fox>.clip_g": vectors}, tmp_path / "xl.safetensors")
    with pytest.raises(MissingPartError, match="SDXL"):
        load_parts(sd1, loras=[tmp_path / "xl.safetensors"])


def test_alpha_in_the_header_counts(sd1, trained, tmp_path):
    told = {"lora_adapter_metadata": json.dumps({"unet.lora_alpha": 2 * RANK, "text_encoder.lora_alpha": 2 * RANK})}
    save_file(load_file(trained / FILE), tmp_path / "told.safetensors", told)
    close(load_parts(sd1, loras=[tmp_path / "told.safetensors"]).unet, load_parts(sd1, loras=[(trained, 2.0)]).unet)


@pytest.mark.parametrize("told", ["[]", "{", '{"unet.lora_alpha": "much"}', "[" * 100_000])
def test_a_header_of_nonsense_tells_nothing(sd1, trained, tmp_path, told):
    save_file(load_file(trained / FILE), tmp_path / "odd.safetensors", {"lora_adapter_metadata": told})
    assert same_weights(
        load_parts(sd1, loras=[tmp_path / "odd.safetensors"]).unet, load_parts(sd1, loras=[trained]).unet
    )


def test_several_are_added_and_what_is_not_changed_is_shared(sd1, trained):
    twice = load_parts(sd1, loras=[f"{trained}:0.25", (trained, 0.5)])
    close(twice.unet, load_parts(sd1, loras=[(trained, 0.75)]).unet)
    assert list(twice.loras.values()) == [0.25, 0.5] and len(set(twice.loras)) == 2
    assert all(twice.weights[name].name == FILE for name in twice.loras)
    plain = load_parts(sd1)
    assert same_weights(twice.autoencoder, plain.autoencoder)
    assert torch.equal(twice.unet.conv_in.weight, plain.unet.conv_in.weight)


def test_a_model_is_converted_with_it(sd1, trained, tmp_path):
    convert(sd1, tmp_path / "baked.safetensors", loras=[trained])
    assert same_weights(load_parts(tmp_path / "baked.safetensors").unet, load_parts(sd1, loras=[trained]).unet)


def test_a_weight_may_stand_behind_the_file():
    assert parse("a/fox.safetensors:0.8") == ("a/fox.safetensors", 0.8) and parse("a:-1") == ("a", -1.0)
    assert parse("C:/fox.safetensors") == ("C:/fox.safetensors", 1.0) and parse(("x", 2.0)) == ("x", 2.0)


def changed(state, what):
    name = "unet.mid_block.attentions.0.proj_in.lora_{}.weight".format
    down = state[name("A")]
    match what:
        case "of a layer that is not there":
            return {key.replace("mid_block.attentions.0.", "mid_block.attentions.7."): t for key, t in state.items()}
        case "for a wider model":
            return state | {name("A"): torch.cat([down, down], 1)}
        case "called by two names":
            return state | {"base_model.model.mid_block.attentions.0.proj_in.lora_A.weight": down.clone()}
        case "without its half":
            return {key: tensor for key, tensor in state.items() if key != name("B")}
        case "with NaN":
            return state | {name("A"): down * torch.nan}
        case "of another kind":
            return {key.replace("lora_A.weight", "oft_blocks"): tensor for key, tensor in state.items()}
        case "for SDXL":
            return {"lora_te2_text_model_encoder_layers_0_self_attn_q_proj.lora_down.weight": down}
        case "of no rank":
            return state | {name("A"): down[:0], name("B"): state[name("B")][:, :0].contiguous()}
        case "with many alphas":
            return state | {"unet.mid_block.attentions.0.proj_in.alpha": torch.ones(3)}
        case "of nothing":
            return {}
        case "with something else":
            return state | {"unet.mid_block.attentions.0.proj_in.bias_delta": down.clone()}


@pytest.mark.parametrize(
    ("what", "error", "words"),
    [
        ("of a layer that is not there", KeyMismatch, "attentions.7"),
        ("called by two names", KeyMismatch, "twice"),
        ("for a wider model", WrongShape, "proj_in"),
        ("without its half", KeyMismatch, "lacks the up matrix"),
        ("with NaN", NonFiniteWeights, "NaN"),
        ("of another kind", WrongModel, "OFT"),
        ("for SDXL", WrongModel, "Stable Diffusion XL"),
        ("of no rank", WrongShape, "proj_in"),
        ("with many alphas", WrongShape, "3 numbers as the alpha"),
        ("of nothing", WrongModel, "no tensors"),
        ("with something else", WrongModel, "bias_delta"),
    ],
)
def test_what_does_not_apply_says_so(sd1, trained, tmp_path, what, error, words):
    save_file(changed(load_file(trained / FILE), what), tmp_path / "x.safetensors")
    with pytest.raises(error, match=words) as raised:
        load_parts(sd1, loras=[tmp_path / "x.safetensors"])
    assert "x.safetensors" in str(raised.value)


def test_a_model_handed_over_as_a_lora_is_named(sd1, sd1_file):
    with pytest.raises(CheckpointError, match="no part of a LoRA"):
        load_parts(sd1, loras=[sd1_file])
    with pytest.raises(CheckpointError, match="no such file"):
        load_parts(sd1, loras=["nowhere.safetensors"])
