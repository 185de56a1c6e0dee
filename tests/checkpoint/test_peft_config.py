"""Folders that PEFT writes are merged as PEFT merges them, whatever their config says of the scale."""

import json
import shutil

import pytest
import torch
from diffusers import StableDiffusionPipeline, UNet2DConditionModel
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file
from transformers import CLIPTextModel

from safelight.checkpoint.errors import WrongModel
from safelight.checkpoint.load import load_parts
from safelight.errors import CheckpointError

CONFIGS = {
    "alpha": {"lora_alpha": 12},
    "patterns": {
        "lora_alpha": 3,
        "rank_pattern": {"^mid_block.attentions.0.transformer_blocks.0.attn1.to_q": 8, "attn2.to_q": 6},
        "alpha_pattern": {"attn2.to_v": 10, "mid_block.attentions.0.transformer_blocks.0.attn1.to_q": 5},
    },
    "rank-stabilised": {"lora_alpha": 6, "use_rslora": True, "rank_pattern": {"to_k": 9}},
}
UNET = ["to_q", "to_k", "to_v", "conv1"]


def shaken(model):
    """The same, whose second matrices are noise."""
    for name, tensor in model.named_parameters():
        if any(part in name for part in ("lora_B", "w2_b", "lokr_w1.", "lora_magnitude")):
            tensor.data.add_(torch.randn_like(tensor), alpha=0.1)
    return model


def written(network, config, folder):
    """The folder that PEFT writes of such an adapter for a network."""
    torch.manual_seed(0)
    shaken(get_peft_model(network, config)).save_pretrained(folder)
    return folder


def same(ours, merged):
    """Whether all parameters are equal but for the rounding of sums: 1e-6."""
    theirs = merged.state_dict()
    for key, tensor in ours.state_dict().items():
        other = theirs[key if key in theirs else key.removeprefix("text_model.")]
        torch.testing.assert_close(tensor, other, rtol=1e-6, atol=1e-6)


def unet_of(sd1):
    return UNet2DConditionModel.from_pretrained(sd1, subfolder="unet")


@pytest.mark.parametrize("what", CONFIGS)
def test_it_is_merged_as_peft_merges_it(sd1, tmp_path, what):
    folder = written(unet_of(sd1), LoraConfig(r=4, target_modules=UNET, **CONFIGS[what]), tmp_path / "lora")
    theirs = PeftModel.from_pretrained(unet_of(sd1), folder).merge_and_unload()
    same(load_parts(sd1, loras=[folder]).unet, theirs)
    same(load_parts(sd1, loras=[folder / "adapter_model.safetensors"]).unet, theirs)


def test_a_text_encoders_folder_too(sd1, tmp_path):
    encoder = CLIPTextModel.from_pretrained(sd1 / "text_encoder")
    config = LoraConfig(r=2, lora_alpha=8, target_modules=["q_proj", "fc1"], alpha_pattern={"fc1": 1})
    folder = written(encoder, config, tmp_path / "lora")
    plain = CLIPTextModel.from_pretrained(sd1 / "text_encoder")
    same(load_parts(sd1, loras=[folder]).text_encoder, PeftModel.from_pretrained(plain, folder).merge_and_unload())


def test_patterns_in_a_header_of_diffusers_count(sd1, tmp_path):
    pipe = StableDiffusionPipeline.from_pretrained(sd1)
    pipe.unet.add_adapter(LoraConfig(r=4, target_modules=UNET, **CONFIGS["patterns"]))
    shaken(pipe.unet)
    pipe.unet.save_lora_adapter(tmp_path)
    state = {f"unet.{key}": tensor for key, tensor in load_file(tmp_path / "pytorch_lora_weights.safetensors").items()}
    config = pipe.unet.peft_config["default"].to_dict() | {"target_modules": UNET}
    pipe.save_lora_weights(tmp_path, unet_lora_layers={k.removeprefix("unet."): t for k, t in state.items()},
                           unet_lora_adapter_metadata=config)  # fmt: skip
    pipe.fuse_lora()
    pipe.unload_lora_weights()
    same(load_parts(sd1, loras=[tmp_path]).unet, pipe.unet)


@pytest.mark.parametrize(
    ("said", "error", "words"),
    [
        ({"init_lora_weights": "pissa"}, WrongModel, "init_lora_weights='pissa'"),
        ({"use_qalora": True}, WrongModel, "use_qalora"),
        ({"lora_alpha": "much"}, WrongModel, "'much'"),
        ({"lora_alpha": float("nan")}, WrongModel, "nan"),
        ({"alpha_pattern": {"(.*to_q": 3}}, WrongModel, "only names are read"),
        ([], CheckpointError, "not an object"),
    ],
)
def test_what_is_not_read_says_so(sd1, tmp_path, saved, said, error, words):
    shutil.copytree(saved, tmp_path / "lora")
    config = tmp_path / "lora" / "adapter_config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | said if said else said))
    with pytest.raises(error, match=words):
        load_parts(sd1, loras=[tmp_path / "lora"])


@pytest.fixture(scope="module")
def saved(sd1, tmp_path_factory):
    return written(unet_of(sd1), LoraConfig(r=4, target_modules=["to_q"]), tmp_path_factory.mktemp("lora"))
