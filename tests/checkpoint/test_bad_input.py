"""Bad models: each a typed error that names file, key and remedy, within a second, with nothing half-loaded."""

import json
import os
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from safelight.checkpoint.errors import (
    CorruptFile,
    KeyMismatch,
    NonFiniteWeights,
    UnknownClass,
    UnsafePickle,
    WrongModel,
    WrongShape,
)
from safelight.checkpoint.load import load_autoencoder, load_parts
from safelight.errors import CheckpointError, InputError, MissingPartError


def edited(sd1: Path, tmp_path: Path, file: str, change) -> Path:
    folder = tmp_path / "bad"
    shutil.copytree(sd1, folder)
    path = folder / file
    if file.endswith(".json"):
        content = json.loads(path.read_text())
        change(content)
        path.write_text(json.dumps(content))
    else:
        tensors = load_file(path)
        change(tensors)
        save_file(tensors, path)
    return folder


UNET, VAE = (f"{part}/diffusion_pytorch_model.safetensors" for part in ("unet", "vae"))
INDEX, CONFIG, SCHEDULER = "model_index.json", "unet/config.json", "scheduler/scheduler_config.json"


def put(**values):
    """A change of a file: these entries are added or replaced; a name's dots are written as double underscores."""
    return lambda content: content.update({key.replace("__", "."): value for key, value in values.items()})


def rename(tensors):
    tensors["conv_inn.bias"] = tensors.pop("conv_in.bias")


# what is wrong: (file, change, error, what the message must name)
BAD = {
    "missing key": (UNET, lambda t: t.pop("conv_in.bias"), KeyMismatch, r"conv_in\.bias"),
    "renamed key": (UNET, rename, KeyMismatch, r"did you mean conv_inn\.bias"),
    "unknown key": (UNET, put(conv_im__weight=torch.ones(1)), KeyMismatch, r"conv_in\.weight"),
    "wrong shape": (UNET, put(conv_in__bias=torch.ones(3)), WrongShape, r"\(3,\), the network needs \(32,\)"),
    "NaN": (UNET, put(conv_in__bias=torch.full((32,), torch.nan)), NonFiniteWeights, r"conv_in\.bias"),
    "infinity": (VAE, put(quant_conv__bias=torch.full((8,), -torch.inf)), NonFiniteWeights, "quant_conv"),
    "unknown pipeline": (INDEX, put(_class_name="StableDiffusionPipelin"), UnknownClass, "did you mean"),
    "SDXL": (INDEX, put(_class_name="StableDiffusionXLControlNetPipeline"), WrongModel, "Stable Diffusion XL"),
    "unknown part class": (INDEX, put(unet=["evil", "System"]), UnknownClass, "System"),
    "part is no pair": (INDEX, put(unet="UNet2DConditionModel"), CorruptFile, "unet"),
    "no unet": (INDEX, put(unet=[None, None]), CheckpointError, "no U-Net"),
    "unknown unet class": (CONFIG, put(_class_name="os.system"), UnknownClass, r"os\.system"),
    "remote code": (CONFIG, put(auto_map={"AutoModel": "evil.py"}), UnknownClass, "auto_map"),
    "unknown block": (CONFIG, put(down_block_types=["Evil"] * 4), CheckpointError, "Evil"),
    "unknown field": (CONFIG, put(evil=1), CheckpointError, "evil"),
    "wrong type": (CONFIG, put(block_out_channels="big"), CheckpointError, "unet/config.json"),
    "absurd size": (CONFIG, put(layers_per_block=10**9), CorruptFile, "layers_per_block"),
    "other config": (CONFIG, put(cross_attention_dim=48), WrongShape, "the network needs"),
    "unknown scheduler": (SCHEDULER, put(_class_name="FlowMatchEuler"), UnknownClass, "FlowMatch"),
    "EDM's scheduler": (SCHEDULER, put(_class_name="EDMEulerScheduler"), UnknownClass, "does not tell the noise"),
    "IPNDM": (INDEX, put(scheduler=["diffusers", "IPNDMScheduler"]), UnknownClass, "IPNDMScheduler, whose"),
    "text model": ("text_encoder/config.json", put(architectures=["T5EncoderModel"]), UnknownClass, "T5"),
}


@pytest.mark.parametrize("kind", BAD)
def test_bad_folders(sd1, tmp_path, kind):
    file, change, error, message = BAD[kind]
    folder = edited(sd1, tmp_path, file, change)
    with pytest.raises(error, match=message) as caught:
        load_parts(folder)
    assert str(folder) in str(caught.value.path)
    assert caught.value.remedy


@pytest.mark.parametrize("content", ["", "nope", "[]", "[" * 100_000, '{"_class_name": 3}'])
@pytest.mark.parametrize("file", ["model_index.json", "unet/config.json", "scheduler/scheduler_config.json"])
def test_configs_that_are_no_configs(sd1, tmp_path, file, content):
    folder = tmp_path / "bad"
    shutil.copytree(sd1, folder)
    (folder / file).write_text(content)
    with pytest.raises(CheckpointError) as caught:
        load_parts(folder)
    assert str(folder) in str(caught.value.path)


def test_folders_that_are_no_models(sd1, sd1_file, tmp_path):
    with pytest.raises(CheckpointError, match="empty folder"):
        load_parts(tmp_path)
    with pytest.raises(CheckpointError, match="one network"):
        load_parts(sd1 / "unet")
    (tmp_path / "run" / "model").mkdir(parents=True)
    (tmp_path / "run" / "config.json").write_text('{"stage": "diffusion", "recipe": {}}')
    for load in (load_parts, load_autoencoder):
        with pytest.raises(CheckpointError, match=r"a training's run, not") as caught:
            load(tmp_path / "run")
        assert str(tmp_path / "run" / "model") in caught.value.remedy
    with pytest.raises(CheckpointError, match=r"sd1\.safetensors"):
        load_parts(sd1_file.parent)
    with pytest.raises(CheckpointError, match="no such file"):
        load_parts(tmp_path / "nothing.safetensors")
    shutil.copytree(sd1, tmp_path / "m", ignore=shutil.ignore_patterns("*.safetensors"))
    with pytest.raises(CheckpointError, match="holds no weights"):
        load_parts(tmp_path / "m")
    with pytest.raises(InputError, match="ema="):
        load_parts(sd1, ema=True)


def without(tensors, prefix):
    return {key: tensor for key, tensor in tensors.items() if not key.startswith(prefix)}


def test_bad_single_files(sd1_tensors, tmp_path):
    path = tmp_path / "m.safetensors"
    bad_bias = {"model.diffusion_model.out.2.bias": torch.full((4,), torch.nan)}
    lora = {f"lora_unet_mid.lora_{way}.weight": torch.ones(2, 2) for way in ("up", "down")}
    cases = [
        (without(sd1_tensors, "model.diffusion_model.out.2.bias"), KeyMismatch, r"out\.2\.bias"),
        (without(sd1_tensors, "first_stage_model.decoder.conv_in.bias"), KeyMismatch, r"decoder\.conv_in\.bias"),
        (sd1_tensors | {"model.diffusion_model.extra.weight": torch.ones(1)}, KeyMismatch, "extra"),
        (sd1_tensors | {"somebody.elses": torch.ones(1)}, KeyMismatch, "somebody"),
        (sd1_tensors | {"first_stage_model.quant_conv.bias": torch.ones(7)}, WrongShape, r"quant_conv\.bias"),
        (sd1_tensors | bad_bias, NonFiniteWeights, r"out\.2\.bias"),
        (without(sd1_tensors, "first_stage_model"), MissingPartError, "vae="),
        (lora, WrongModel, "LoRA"),
    ]
    for tensors, error, message in cases:
        save_file(tensors, path)
        with pytest.raises(error, match=message) as caught:
            load_parts(path)
        assert caught.value.remedy
    save_file(cases[5][0], path)
    assert load_parts(path, check_finite=False).unet.conv_out.bias.isnan().all()


def test_a_hostile_checkpoint_in_a_folder(sd1, tmp_path):
    class Evil:
        def __reduce__(self):
            return os.system, (f"touch {tmp_path / 'marker'}",)

    folder = tmp_path / "m"
    shutil.copytree(sd1, folder)
    (folder / UNET).unlink()
    torch.save({"conv_in.weight": torch.ones(1), "x": Evil()}, folder / "unet" / "diffusion_pytorch_model.bin")
    with pytest.raises(UnsafePickle, match="system"):
        load_parts(folder)
    assert not (tmp_path / "marker").exists()


def test_an_unknown_prediction_type_names_the_scheduler_config(sd1, tmp_path):
    file = "scheduler/scheduler_config.json"
    folder = edited(sd1, tmp_path, file, lambda config: config.update(prediction_type="epsylon"))
    with pytest.raises(CheckpointError) as caught:
        load_parts(folder)
    assert caught.value.path == folder / file and "did you mean epsilon" in caught.value.remedy
    assert load_parts(folder, prediction_type="epsilon").prediction_type == "epsilon"
