"""`Parts` -> a diffusers folder, or a single file in the CompVis layout. Whole or not at all; bit for bit."""

import json
from collections.abc import Mapping
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import nn

from safelight.checkpoint import layouts
from safelight.checkpoint.configs import LOW_RES_SCHEDULER, PARTS, default_scheduler
from safelight.checkpoint.detect import Detected
from safelight.checkpoint.folders import is_model_folder
from safelight.checkpoint.keymap import KeyMap
from safelight.checkpoint.parts import LDM_INPAINT, Parts
from safelight.checkpoint.single import (
    METADATA,
    OPENCLIP_PAD,
    TOKENIZER,
    conditioner_keymap,
    dialects,
    text_keymap,
    tokenizer,
    unet_keymap,
)
from safelight.checkpoint.writing import (
    Outgoing,
    outgoing,
    replacing_folder,
    write_json,
    write_safetensors,
    write_weights,
)
from safelight.errors import CheckpointError, InputError
from safelight.models.autoencoder import Autoencoder
from safelight.models.clip import TextEncoder
from safelight.models.conditioners import config_of
from safelight.models.text_pair import TextEncoderPair
from safelight.models.tiny_decoder import TinyDecoder
from safelight.text.folder import WHOLE, contents

PIPELINES = {
    "-inpaint": "StableDiffusionInpaintPipeline",
    "-depth": "StableDiffusionDepth2ImgPipeline",
    "-edit": "StableDiffusionInstructPix2PixPipeline",
    "-upscale": "StableDiffusionUpscalePipeline",
}


def save_folder(
    parts: Parts, path: str | Path, *, variant: str | None = None, max_shard_size: int | None = None
) -> None:
    """Write a model as the folder that diffusers reads and writes.

    `variant` goes into the file names ("fp16"); weights beyond `max_shard_size` bytes are cut into shards. The dtype of
    each network is kept. `parts.extra` has no place in a folder and is left out. Raises CheckpointError where `path`
    holds anything but a model and its card, or the disk refuses; then nothing has changed.
    """
    with replacing_folder(Path(path), is_ours=_is_model_alone) as folder:
        write = partial(_write_network, variant=variant, max_shard_size=max_shard_size)
        write(folder / "unet", parts.unet, parts.unet.config.to_diffusers(), "diffusion_pytorch_model")
        kind = parts.autoencoder.config.to_diffusers()
        write(folder / _stage(parts), parts.autoencoder, kind, "diffusion_pytorch_model")
        for name, network in text_encoders(parts).items():
            write(folder / name, network, network.config.to_transformers(), "model")
        if parts.conditioner is not None:
            write(folder / "conditioner", parts.conditioner, config_of(parts.conditioner), "diffusion_pytorch_model")
        if parts.tokenizer is not None:
            parts.tokenizer.save(folder / "tokenizer")
            if isinstance(parts.text_encoder, TextEncoderPair):
                replace(parts.tokenizer, pad_token=OPENCLIP_PAD).save(folder / "tokenizer_2")
        for name, config in schedulers(parts).items():
            (folder / name).mkdir()
            write_json(folder / name / "scheduler_config.json", config)
        write_json(folder / "model_index.json", model_index(parts))


def save_autoencoder(autoencoder: Autoencoder, path: str | Path, **options: Any) -> None:
    """Write an autoencoder alone as the folder of one network: its config.json and weights; `options` as above.

    diffusers loads it as the class that the config names, `load_autoencoder` here. Raises CheckpointError where `path`
    holds anything but such a folder and its card.
    """
    _save_network(autoencoder, autoencoder.config.to_diffusers(), Path(path), **options)


def save_decoder(decoder: TinyDecoder, path: str | Path, **options: Any) -> None:
    """Write a tiny decoder as the folder of one network, as `save_autoencoder` does."""
    _save_network(decoder, decoder.config.to_json(), Path(path), **options)


def _save_network(network: nn.Module, config: Mapping[str, Any], path: Path, **options: Any) -> None:
    with replacing_folder(path, is_ours=_is_network_folder) as folder:
        write_json(folder / "config.json", config)
        write_weights(folder, "diffusion_pytorch_model", outgoing(network.state_dict()), **options)


def _is_model_alone(path: Path) -> bool:
    """Whether a folder holds a model, perhaps with its card, and nothing that writing it again would not replace."""
    return is_model_folder(path) and {file.name for file in path.iterdir()} <= {"model_index.json", "README.md", *PARTS}


def _is_network_folder(path: Path) -> bool:
    names = {file.name for file in path.iterdir()} - {"README.md"}
    return "config.json" in names and all(n == "config.json" or n.startswith("diffusion_pytorch_model") for n in names)


def _stage(parts: Parts) -> str:
    """diffusers' LDMPipeline calls its first stage vqvae, whatever it is."""
    return "vqvae" if _pipeline(parts) == "LDMPipeline" else "vae"


def text_encoders(parts: Parts) -> dict[str, TextEncoder]:
    """The text encoders by the names of their folders: none, one, or two."""
    if isinstance(parts.text_encoder, TextEncoderPair):
        return {"text_encoder": parts.text_encoder.text_encoder, "text_encoder_2": parts.text_encoder.text_encoder_2}
    return {} if parts.text_encoder is None else {"text_encoder": parts.text_encoder}


def _pipeline(parts: Parts) -> str:
    if parts.conditioner is not None:  # diffusers has no pipeline for these
        return "LatentDiffusion"
    if parts.family.startswith("ldm") and parts.text_encoder is None:
        return "LDMPipeline"
    ends = (name for end, name in PIPELINES.items() if parts.family.endswith(end))
    name = next(ends, "StableDiffusionPipeline")
    return name.replace("StableDiffusion", "StableDiffusionXL") if parts.family.startswith("sdxl") else name


def scheduler_config(parts: Parts) -> dict[str, Any]:
    """The scheduler's config; where the model came without one, that of its family."""
    said = dict(parts.scheduler_config)
    return said if "_class_name" in said else {**default_scheduler(parts.family), **said}


def schedulers(parts: Parts) -> dict[str, dict[str, Any]]:
    """The schedulers' configs by the names of their folders; an upscaler has a second one, for pictures."""
    found = {"scheduler": scheduler_config(parts)}
    if _pipeline(parts) == "StableDiffusionUpscalePipeline":
        found["low_res_scheduler"] = dict(parts.low_res_scheduler_config or LOW_RES_SCHEDULER)
    return found


def _write_network(folder: Path, network: nn.Module, config: Mapping[str, Any], stem: str, **options: Any) -> None:
    folder.mkdir()
    write_json(folder / "config.json", config)
    write_weights(folder, stem, outgoing(network.state_dict()), **options)


def model_index(parts: Parts) -> dict[str, Any]:
    """diffusers' model_index.json: which class loads each part."""
    index: dict[str, Any] = {
        "_class_name": _pipeline(parts),
        "_diffusers_version": "0.40.0",  # a version that knows every field written here
        "unet": ["diffusers", parts.unet.config.to_diffusers()["_class_name"]],
        _stage(parts): ["diffusers", parts.autoencoder.config.kind],
        **{name: ["diffusers", config["_class_name"]] for name, config in schedulers(parts).items()},
    }
    if parts.conditioner is not None:
        index["conditioner"] = ["safelight", type(parts.conditioner).__name__]
    if parts.classes:
        index["id2label"] = {str(number): name for number, name in enumerate(parts.classes)}
    if parts.family == LDM_INPAINT:
        index["_family"] = parts.family
    if parts.guidance_scale != Parts.guidance_scale:
        index["_guidance_scale"] = parts.guidance_scale
    if parts.tokenizer is not None:
        index["tokenizer"] = ["transformers", "CLIPTokenizer"]
    for name, network in text_encoders(parts).items():
        index[name] = ["transformers", network.config.to_transformers()["architectures"][0]]
    if parts.family.startswith("sdxl"):
        index |= {"tokenizer_2": index["tokenizer"]} if "tokenizer" in index else {}
        index |= {"force_zeros_for_empty_prompt": parts.force_zeros_for_empty_prompt}
    elif index["_class_name"].startswith("StableDiffusion"):
        index |= {"safety_checker": [None, None], "feature_extractor": [None, None], "requires_safety_checker": False}
    return index


def save_single_file(parts: Parts, path: str | Path) -> None:
    """Write a model as one .safetensors file in the CompVis layout (for SD 1 the 1,131 tensors of the original).

    Configs go into the file's metadata, so that what shapes cannot tell is read back. A text encoder with GELU (SD 2)
    is written in OpenCLIP's names; its last block, its projection and its logit_scale are written where `parts.extra`
    still has them from the file they came from, and cannot be made up where it has not. Pickles are not written:
    InputError.
    """
    path = Path(path)
    if path.suffix != ".safetensors":
        what = f"{path.name}: single files are written as .safetensors"
        raise InputError(what, remedy="a pickle can run code when it is opened; name the file .safetensors")
    if path.is_dir():
        raise CheckpointError("is a folder", path=path, remedy="name a file in it")
    if not path.parent.is_dir():
        raise CheckpointError("its folder does not exist", path=path, remedy=f"make {path.parent} first")
    write_safetensors(path, single_file_tensors(parts), {"format": "pt", **metadata(parts)})


def single_file_tensors(parts: Parts) -> dict[str, Outgoing]:
    """The tensors of the single file, each made when its turn comes."""
    stage = layouts.first_stage_layout(parts.autoencoder.state_dict()).under(layouts.FIRST_STAGE)
    tensors = _renamed(parts.unet, unet_keymap(parts.unet)) | _renamed(parts.autoencoder, stage)
    if parts.conditioner is not None:
        tensors |= _renamed(parts.conditioner, conditioner_keymap(parts.conditioner))
    for dialect, network in zip(dialects(text_dialect(parts)), text_encoders(parts).values(), strict=True):
        tensors |= _renamed(network, text_keymap(network, dialect))
        if dialect.startswith("clip"):
            prefix = layouts.CLIP if dialect == "clip" else layouts.CLIP_1
            positions = torch.arange(network.config.max_position_embeddings)[None]
            tensors |= outgoing({f"{prefix}text_model.embeddings.position_ids": positions})
    if parts.family.startswith("sdxl"):  # which other programs take to predict noise unless it is marked
        tensors |= outgoing({key: torch.empty(0) for key in marks(parts)})
    return tensors | outgoing({key: tensor for key, tensor in parts.extra.items() if key not in tensors})


def marks(parts: Parts) -> list[str]:
    """The empty tensors by which files say what they predict, and that their last step is pure noise."""
    predicts_v = [layouts.V_PREDICTION] if parts.prediction_type == "v_prediction" else []
    return predicts_v + ([layouts.ZERO_TERMINAL_SNR] if parts.scheduler_config.get("rescale_betas_zero_snr") else [])


def text_dialect(parts: Parts) -> str | None:
    """Which names the text encoder has in a single file: OpenCLIP's where its activation is OpenCLIP's."""
    if parts.text_encoder is None or isinstance(parts.text_encoder, TextEncoderPair):
        return None if parts.text_encoder is None else "pair"
    return "openclip" if parts.text_encoder.config.hidden_act == "gelu" else "clip"


def _renamed(network: nn.Module, keymap: KeyMap) -> dict[str, Outgoing]:
    state = network.state_dict()
    tensors = {}
    for link in keymap.links:
        ours = [state[name] for name in link.ours]
        shape = tuple(link.transform.merge([tensor.to("meta") for tensor in ours]).shape)
        tensors[link.theirs] = Outgoing(ours[0].dtype, shape, partial(link.transform.merge, ours))
    return tensors


def metadata(parts: Parts) -> dict[str, str]:
    """The metadata of a single file: the configs for Safelight, and ModelSpec's words for everyone else."""
    configs = [network.config.to_transformers() for network in text_encoders(parts).values()]
    found = Detected(
        family=parts.family,
        unet=parts.unet.config.to_diffusers(),
        autoencoder=parts.autoencoder.config.to_diffusers(),
        text_encoder=configs[0] if configs else None,
        text_encoder_2=configs[1] if len(configs) > 1 else None,
        text_dialect=text_dialect(parts),
        scheduler=scheduler_config(parts),
        conditioner=None if parts.conditioner is None else config_of(parts.conditioner),
        classes=parts.classes,
        guidance_scale=parts.guidance_scale,
        force_zeros_for_empty_prompt=parts.force_zeros_for_empty_prompt,
    )
    kind = {"epsilon": "epsilon", "v_prediction": "v"}.get(parts.prediction_type, parts.prediction_type)
    notes = {METADATA: json.dumps(asdict(found), sort_keys=True), "modelspec.prediction_type": kind}
    own, usual = parts.tokenizer, tokenizer(found.text_dialect)
    if own is not None and usual is not None and not own.same_ids(usual):
        files = contents(own)
        notes[TOKENIZER] = json.dumps({name: files[name] for name in WHOLE}, ensure_ascii=False)
    return notes
