"""LoRAs and learned words in pipelines do what they do in diffusers with PEFT, call by call."""

import diffusers
import pytest
import torch
from both import compare
from peft import LoraConfig
from peft.utils import get_peft_model_state_dict
from safetensors.torch import load_file, save_file

from safelight.checkpoint.errors import KeyMismatch
from safelight.compat import DDPMPipeline, StableDiffusionImg2ImgPipeline, StableDiffusionPipeline
from safelight.errors import CheckpointError, InputError, MissingPartError

FILE = "pytorch_lora_weights.safetensors"
BEGIN = """
import sys

import torch
from diffusers import StableDiffusionPipeline

model, ink, clay, word = sys.argv[1:]
pipe = StableDiffusionPipeline.from_pretrained(model, safety_checker=None)
pipe.set_progress_bar_config(disable=True)


def draw(name, prompt="an otter in a hat", **options):
    generator = torch.Generator().manual_seed(7)
    out = pipe(prompt, num_inference_steps=2, generator=generator, output_type="np", **options)
    results[name] = out.images


draw("plain")
"""
SCRIPTS = {
    "one": """
pipe.load_lora_weights(ink)
results["names"] = pipe.get_list_adapters()
draw("ink")
draw("less", cross_attention_kwargs={"scale": 0.3})
results["context"] = pipe.encode_prompt("an otter", "cpu", 1, False, lora_scale=0.5)[0]
draw("as before")
pipe.disable_lora()
draw("without")
pipe.enable_lora()
draw("with")
pipe.unload_lora_weights()
results["none"] = pipe.get_list_adapters()
draw("plain again")
""",
    "two": """
pipe.load_lora_weights(ink, adapter_name="ink")
pipe.load_lora_weights(clay, weight_name="pytorch_lora_weights.safetensors", adapter_name="clay")
results["active"] = pipe.get_active_adapters()
draw("clay")
pipe.set_adapters(["ink", "clay"], adapter_weights=[0.7, -0.4])
draw("both")
draw("both, less", cross_attention_kwargs={"scale": 0.5})
pipe.set_adapters("ink")
draw("ink")
pipe.delete_adapters("ink")
results["left"] = [pipe.get_list_adapters(), pipe.get_active_adapters()]
draw("clay left")
""",
    "fused": """
pipe.load_lora_weights(ink, adapter_name="ink")
pipe.load_lora_weights(clay, adapter_name="clay")
pipe.set_adapters(["ink", "clay"], [0.8, 0.5])
pipe.fuse_lora(adapter_names=["ink", "clay"], lora_scale=0.7)
results["names"] = [pipe.num_fused_loras, sorted(pipe.fused_loras)]
draw("fused")
pipe.unload_lora_weights()
draw("fused for good")
""",
    "unfused": """
pipe.load_lora_weights(ink)
pipe.fuse_lora()
draw("fused")
pipe.unfuse_lora()
results["none"] = pipe.num_fused_loras
pipe.unload_lora_weights()
draw("plain again")
""",
    "words": """
pipe.load_textual_inversion(word, token="<fox>")
draw("fox", "an otter and a <fox>, <fox>", negative_prompt="<fox>")
results["rows"] = pipe.text_encoder.get_input_embeddings().weight[-2:]
results["ids"] = [pipe.tokenizer.convert_tokens_to_ids("<fox>"), len(pipe.tokenizer)]
""",
}


def train(model, folder, seed):
    """Write a LoRA of noise for both networks as diffusers does."""
    pipe = diffusers.StableDiffusionPipeline.from_pretrained(model, safety_checker=None)
    torch.manual_seed(seed)
    states = []
    for network, layers in ((pipe.unet, ["to_q", "to_v", "to_out.0", "conv1"]), (pipe.text_encoder, ["v_proj", "fc1"])):
        network.add_adapter(LoraConfig(r=4, lora_alpha=4, target_modules=layers, init_lora_weights="gaussian"))
        for name, tensor in network.named_parameters():
            if "lora_B" in name:
                tensor.data.normal_(std=0.2)
        states.append(get_peft_model_state_dict(network))
    diffusers.StableDiffusionPipeline.save_lora_weights(folder, states[0], states[1])
    return str(folder)


@pytest.fixture(scope="module")
def files(model, tmp_path_factory):
    """A model, two LoRAs for it, and a learned word of two vectors."""
    home = tmp_path_factory.mktemp("adapters")
    save_file(
        {"<other>": torch.randn(2, 32, generator=torch.Generator().manual_seed(3)) * 30}, home / "word.safetensors"
    )
    return [model, train(model, home / "ink", 1), train(model, home / "clay", 2), str(home / "word.safetensors")]


@pytest.fixture
def pipe(files):
    return StableDiffusionPipeline.from_pretrained(files[0])


@pytest.mark.parametrize("name", SCRIPTS)
def test_as_diffusers_does(name, files, record_property):
    record_property("psnr", compare(BEGIN + SCRIPTS[name], *files, name=name))


def test_each_weight_shows(files):
    """What the comparison above compares differs: otherwise it could not fail."""
    from both import run

    drawn = run(BEGIN + SCRIPTS["two"], *files, ours=True)
    pictures = [drawn[name] for name in ("plain", "clay", "both", "both, less", "ink")]
    assert all(abs(a - b).max() > 0.01 for i, a in enumerate(pictures) for b in pictures[:i])


def test_taking_out_gives_every_bit_back(pipe, files):
    before = {key: tensor.clone() for key, tensor in pipe.unet.state_dict().items()}
    pipe.load_lora_weights(files[1])
    assert not all(torch.equal(before[key], tensor) for key, tensor in pipe.unet.state_dict().items())
    pipe.unload_lora_weights()
    assert all(torch.equal(before[key], tensor) for key, tensor in pipe.unet.state_dict().items())


def test_pipelines_of_the_same_parts_share_loras(pipe, files):
    pipe.load_lora_weights(files[1], adapter_name="ink")
    other = StableDiffusionImg2ImgPipeline.from_pipe(pipe)
    assert other.get_active_adapters() == ["ink"]
    other.unload_lora_weights()
    assert pipe.get_active_adapters() == []


def test_tensors_in_memory_and_another_precision(pipe, files):
    pipe.load_lora_weights(load_file(f"{files[1]}/{FILE}"))
    with_lora = pipe.unet.state_dict()
    pipe.to(torch.bfloat16)
    pipe.set_adapters("default_0", 0.0)
    pipe.set_adapters("default_0", 1.0)
    for key, tensor in pipe.unet.state_dict().items():
        assert tensor.dtype == torch.bfloat16
        torch.testing.assert_close(tensor.float(), with_lora[key], rtol=1e-2, atol=1e-2)  # 8 bits of mantissa


def test_what_is_saved_is_what_is_drawn(pipe, files, tmp_path):
    pipe.load_lora_weights(files[1])
    pipe.save_pretrained(tmp_path / "merged")
    again = diffusers.StableDiffusionPipeline.from_pretrained(tmp_path / "merged", safety_checker=None)
    assert all(torch.equal(tensor, again.unet.state_dict()[key]) for key, tensor in pipe.unet.state_dict().items())


def test_words_that_a_lora_brings_along_are_learned(pipe, files, tmp_path):
    words = {"bundle_emb.<owl>.string_to_param.*": torch.ones(2, 32)}
    save_file(load_file(f"{files[1]}/{FILE}") | words, tmp_path / "owl.safetensors")
    pipe.load_lora_weights(tmp_path)
    assert pipe.tokenizer.convert_tokens_to_ids("<owl>") == len(pipe.tokenizer) - 2
    assert torch.equal(pipe.text_encoder.get_input_embeddings().weight[-2:], torch.ones(2, 32))


def test_a_folder_s_only_file_is_taken(pipe, files, tmp_path):
    save_file(load_file(f"{files[1]}/{FILE}"), tmp_path / "my-ink.safetensors")
    pipe.load_lora_weights(tmp_path)
    assert pipe.get_active_adapters() == ["default_0"]
    with pytest.raises(CheckpointError, match="other"):
        pipe.load_lora_weights(tmp_path, weight_name="other.safetensors")


def test_a_stranger_s_lora_changes_nothing(pipe):
    state = {"unet.down_blocks.9.attn.to_q.lora_A.weight": torch.ones(1, 4)}
    with pytest.raises(KeyMismatch, match="has not"):
        pipe.load_lora_weights(state)
    assert pipe.get_list_adapters() == {}


@pytest.mark.parametrize(
    ("call", "error"),
    [
        (lambda pipe, ink: pipe.load_lora_weights(ink, adapter_name="ink"), InputError),
        (lambda pipe, ink: pipe.load_lora_weights(ink, weight_nam="x"), InputError),
        (lambda pipe, ink: pipe.load_lora_weights("./nowhere.safetensors"), CheckpointError),
        (lambda pipe, ink: pipe.set_adapters("inc"), InputError),
        (lambda pipe, ink: pipe.set_adapters(["ink"], [1.0, 2.0]), InputError),
        (lambda pipe, ink: pipe.set_adapters("ink", {"unet": {"down": 1}}), MissingPartError),
        (lambda pipe, ink: pipe.delete_adapters("x"), InputError),
        (lambda pipe, ink: pipe.fuse_lora(adapter_names=["x"]), InputError),
        (lambda pipe, ink: pipe.load_textual_inversion({"<a>": torch.ones(7)}), InputError),
        (lambda pipe, ink: pipe.load_textual_inversion([{"<a>": torch.ones(32)}], token=["<a>", "<b>"]), InputError),
    ],
)
def test_errors_leave_what_was_active(pipe, files, call, error):
    pipe.load_lora_weights(files[1], adapter_name="ink")
    with pytest.raises(error):
        call(pipe, files[1])
    assert pipe.get_active_adapters() == ["ink"] and len(pipe.tokenizer) == pipe.text_encoder.config.vocab_size


def test_pipelines_without_words_take_none():
    assert not hasattr(DDPMPipeline, "load_lora_weights")
