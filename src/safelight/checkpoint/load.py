"""`load_parts(name)`: a folder, a single file or a hub id becomes `Parts`."""

import re
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch

from safelight.checkpoint.files import SUFFIXES, open_weights
from safelight.checkpoint.folders import (
    is_model_folder,
    load_folder,
    plan_autoencoder,
    plan_controlnet,
    plan_decoder,
    plan_text_encoder,
    plan_unet,
    weights,
)
from safelight.checkpoint.learned_words import named, with_words
from safelight.checkpoint.lora import parse, with_loras
from safelight.checkpoint.parts import Parts
from safelight.checkpoint.single import load_autoencoder_file, load_single, plan_controlnet_file, plan_decoder_file
from safelight.errors import CheckpointError, InputError, nearest
from safelight.models.autoencoder import Autoencoder
from safelight.models.autoencoder_config import SD_SCALING_FACTOR
from safelight.models.clip import TextEncoder
from safelight.models.controlnet import ControlNet
from safelight.models.presets import SD2_BASE, SD2_V, SDXL_AUTOENCODER
from safelight.models.tiny_decoder import TinyDecoder
from safelight.models.unet import UNet

__all__ = ["Parts", "load_autoencoder", "load_decoder", "load_parts", "load_text_encoder", "load_unet"]

PREDICTION_TYPES = ("epsilon", "v_prediction", "sample")
DEFAULT = "default"  # the name of the model that ships with the package
SHIPPED = Path(__file__).parents[1] / DEFAULT
HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")
HUB_FILE = re.compile(rf"{HUB_ID.pattern}/[\w./-]+")
LoraName = str | Path | tuple[str | Path, float]
WordName = str | Path | tuple[str | Path, str | None]
PREDICT_V = ("sd2-upscale", "sd2-unclip")  # x4-upscaling.yaml, v2-1-stable-unclip-h-inference.yaml
SD2_BASE_STEP = 875000  # where the training of 512-base-ema.ckpt stopped; diffusers goes by it too


def load_parts(
    name: str | Path,
    *,
    device: torch.device | str = "cpu",
    dtype: torch.dtype | None = None,
    variant: str | None = None,
    revision: str | None = None,
    ema: bool | None = None,
    prediction_type: str | None = None,
    vae: str | Path | None = None,
    loras: Sequence[LoraName] = (),
    embeddings: Sequence[WordName] = (),
    local_files_only: bool = False,
    check_finite: bool = True,
) -> Parts:
    """Load the parts of a model.

    Args:
        name: a diffusers folder, a single file (.safetensors, .ckpt, ...), a hub id "owner/model", or "default", the
            model that ships with the package.
        device: where the networks go.
        dtype: their precision; None keeps each file's own.
        variant: the tag in a folder's file names, such as "fp16".
        revision: of a hub id: a branch, tag or commit. It is resolved once, so that one snapshot is read.
        ema: of a single file that holds both: the moving average (True) or the weights themselves (False). None does
            what the model's original scripts do: the average for the LDM family, the weights for Stable Diffusion.
        prediction_type: "epsilon", "v_prediction" or "sample", for a model that does not say; it overrules one that
            does.
        vae: a folder or file to take the autoencoder from instead.
        loras: files, folders or hub ids of LoRAs to add, by a weight of their own: "FILE:0.8", or (FILE, 0.8); by
            default 1.
        embeddings: files, folders or hub ids of textual inversions, whose words the model is to know: FILE,
            "word=FILE" or (FILE, "word").
        local_files_only: look a hub id up in the cache alone (as HF_HUB_OFFLINE=1 does).
        check_finite: refuse weights with NaN or infinity; one pass over all of them.

    Raises:
        CheckpointError: in its kinds (`checkpoint.errors`), naming file, tensor and remedy. Nothing is half-loaded.
        InputError: an unknown prediction_type, or ema= for a folder.
    """
    if prediction_type is not None and prediction_type not in PREDICTION_TYPES:
        raise InputError(f"prediction_type={prediction_type!r}", remedy=nearest(prediction_type, PREDICTION_TYPES))
    options: dict[str, Any] = {"device": device, "dtype": dtype, "check_finite": check_finite}
    path = locate(name, variant=variant, revision=revision, local_files_only=local_files_only)
    if revision is not None and (name == DEFAULT or Path(name).expanduser().exists()):
        raise InputError(f"revision={revision!r} is of a hub id, and {name} is here", remedy="leave it out")
    autoencoder, others = None, {}
    if vae is not None:
        own = variant_of(vae, variant, local_files_only=local_files_only)
        autoencoder = load_autoencoder(vae, variant=own, local_files_only=local_files_only, **options)
        others = autoencoder_weights(vae, variant=own)
    if path.is_dir():
        if ema is not None:
            raise InputError("ema= chooses within a single file; a folder holds one set of weights",
                             remedy='leave it out; some folders have variant="non_ema"')  # fmt: skip
        parts = load_folder(path, variant=variant, autoencoder=autoencoder, **options)
    else:
        parts = load_single(path, ema=ema, autoencoder=autoencoder, **options)
    if vae is not None:
        scale_for(parts.autoencoder, parts.family)
    source = DEFAULT if path == SHIPPED else parts.source  # whose folder differs from machine to machine
    parts = replace(parts, weights={**parts.weights, **others}, source=source)
    find = partial(locate, local_files_only=local_files_only, addition=True)
    parts = with_loras(parts, [parse(name) for name in loras], find)
    parts = with_words(parts, [named(name) for name in embeddings], find)
    return with_prediction(parts, prediction_type, path)


def locate(
    name: str | Path, *, variant: str | None = None, revision: str | None = None, local_files_only: bool = False,
    addition: bool = False,
) -> Path:  # fmt: skip
    """Find a model: the default one, an existing path, or a hub id, which is downloaded or found in the cache.

    So for an `addition`, a LoRA or a learned word.
    """
    if name == DEFAULT and not addition:
        return SHIPPED
    path = Path(name).expanduser()
    if path.exists():
        return path
    text = str(name)
    is_path = isinstance(name, Path) or text.startswith((".", "~", "/")) or "\\" in text
    if not is_path and ((HUB_ID.fullmatch(text) and path.suffix not in SUFFIXES) or HUB_FILE.fullmatch(text)):
        from safelight.checkpoint.hub import fetch

        return fetch(text, variant=variant, revision=revision, local_files_only=local_files_only, addition=addition)
    siblings = [file.name for file in path.parent.iterdir()] if path.parent.is_dir() else []
    remedy = nearest(path.name, siblings) if siblings else "give a folder, a file, or a hub id such as owner/model"
    raise CheckpointError("no such file or folder", path=path, remedy=remedy)


def variant_of(name: str | Path, variant: str | None, **options: Any) -> str | None:
    """The variant, where an autoencoder that is given beside a model has such weights; else None, its only ones."""
    if variant is None:
        return None
    try:
        path = locate(name, variant=variant, **options)
        if path.is_dir():
            open_weights(_inner(path, "vae" if (path / "vae").is_dir() else "vqvae"), variant)
    except CheckpointError:
        return None
    return variant


def scale_for(autoencoder: Autoencoder, family: str) -> None:
    """Give an autoencoder the scale of the model it is for: a file alone does not tell Stable Diffusion XL's from
    Stable Diffusion's, which has the same shapes."""
    config = autoencoder.config
    if family.startswith("sdxl") and config.scaling_factor == SD_SCALING_FACTOR:
        autoencoder.rescale(SDXL_AUTOENCODER.scaling_factor)


def with_prediction(parts: Parts, asked: str | None, path: Path) -> Parts:
    """Settle what the U-Net predicts: the user, the config, the family, the training step, a probe, in this order."""
    said = parts.scheduler_config.get("prediction_type")
    if asked is None and said is not None and said not in PREDICTION_TYPES:
        file = path / "scheduler" / "scheduler_config.json" if path.is_dir() else path
        remedy = f"correct it, or give prediction_type=; {nearest(str(said), PREDICTION_TYPES)}"
        raise CheckpointError(f"prediction_type is {said!r}", path=file, key="prediction_type", remedy=remedy)
    decided, source = (asked, "user") if asked else (said, "config") if said else _guess(parts, path)
    scheduler = {**parts.scheduler_config, "prediction_type": decided}
    config = parts.unet.config
    if path.is_file() and parts.family == "sd2" and decided == "v_prediction" and config == SD2_BASE:
        parts.unet.config = SD2_V  # the same network, trained at 768 pixels
    return replace(parts, prediction_type=decided, prediction_from=source, scheduler_config=scheduler)


def _guess(parts: Parts, path: Path) -> tuple[str, str]:
    """Only plain SD 2 comes in both kinds without saying which. Raises CheckpointError where a probe gives no
    answer."""
    if path.is_dir() or parts.family != "sd2":
        return "v_prediction" if path.is_file() and parts.family in PREDICT_V else "epsilon", "family"
    if parts.global_step == SD2_BASE_STEP:
        return "epsilon", "global_step"
    from safelight.checkpoint.probe import probe

    if (answer := probe(parts.unet, _empty_prompt(parts))) is not None:
        return answer, "probe"
    remedy = 'give prediction_type="epsilon" (the 512-pixel models) or "v_prediction" (the 768-pixel ones)'
    raise CheckpointError(
        "does not say what its U-Net predicts, and trying it gave no answer", path=path, remedy=remedy
    )


@torch.no_grad()
def _empty_prompt(parts: Parts) -> torch.Tensor | None:
    if parts.text_encoder is None or parts.tokenizer is None:
        return None
    ids = torch.tensor([parts.tokenizer.ids("")], device=parts.unet.conv_in.weight.device)
    return parts.text_encoder(ids).last_hidden_state


def load_unet(name: str | Path, *, variant: str | None = None, **options: Any) -> UNet:
    """Load the U-Net of a model's folder, or of the folder `unet` itself. `options`: device, dtype, check_finite."""
    return plan_unet(_inner(locate(name), "unet"), variant).fill(**options)


def load_text_encoder(name: str | Path, *, variant: str | None = None, **options: Any) -> TextEncoder:
    """Load the text encoder of a model's folder, or of the folder `text_encoder` itself."""
    return plan_text_encoder(_inner(locate(name), "text_encoder"), variant).fill(**options)


def load_autoencoder(
    name: str | Path,
    *,
    variant: str | None = None,
    revision: str | None = None,
    local_files_only: bool = False,
    **options: Any,
) -> Autoencoder:
    """Load an autoencoder: from its own folder or file, a model's folder or file, or a hub id."""
    path = locate(name, variant=variant, revision=revision, local_files_only=local_files_only)
    if path.is_file():
        return load_autoencoder_file(path, **options)
    return plan_autoencoder(_inner(path, "vae" if (path / "vae").is_dir() else "vqvae"), variant).fill(**options)


def load_decoder(name: str | Path, *, local_files_only: bool = False, **options: Any) -> TinyDecoder:
    """Load a tiny decoder: the folder that `safelight train decoder` wrote, or diffusers' AutoencoderTiny, here or on
    the hub, or TAESD's original file (taesd_decoder.pth). `options`: device, dtype, check_finite.
    """
    path = _decoder_path(name, local_files_only)
    return (plan_decoder_file(path) if path.is_file() else plan_decoder(path)).fill(**options)


def decoder_weights(name: str | Path) -> dict[str, Path]:
    """The files of a tiny decoder that `load_decoder` has found before, by their names."""
    return _named_weights("decoder", _decoder_path(name, True))


def load_controlnet(name: str | Path, *, local_files_only: bool = False, **options: Any) -> ControlNet:
    """Load a ControlNet: a folder of diffusers' ControlNetModel, here or on the hub, or a file of the original's kind
    (control_v11p_sd15_canny.pth). `options`: device, dtype, check_finite.
    """
    path = _alone(name, local_files_only, "a ControlNet", "name its own folder, file or hub id")
    return (plan_controlnet_file(path) if path.is_file() else plan_controlnet(path)).fill(**options)


def controlnet_weights(name: str | Path) -> dict[str, Path]:
    """The files of a ControlNet that `load_controlnet` has found before, by their names."""
    return _named_weights("control", locate(name, local_files_only=True))


def _named_weights(part: str, place: Path) -> dict[str, Path]:
    """A part's file, or the files of its folder, by names that tell what they are of."""
    if place.is_file():
        return {f"{part}: {place.name}": place}
    return {f"{part}: {inner}": file for inner, file in weights(place, [open_weights(place)]).items()}


def _alone(name: str | Path, local_files_only: bool, kind: str, remedy: str) -> Path:
    """Where a part lies that is given beside a model. Raises CheckpointError for the folder of a whole model."""
    path = locate(name, local_files_only=local_files_only)
    if is_model_folder(path):
        raise CheckpointError(f"is no folder of {kind}", path=path, remedy=remedy)
    return path


def _decoder_path(name: str | Path, local_files_only: bool) -> Path:
    remedy = "name the folder that `safelight train decoder` wrote, RUN/model"
    return _alone(name, local_files_only, "a tiny decoder", remedy)


def autoencoder_weights(name: str | Path, *, variant: str | None = None) -> dict[str, Path]:
    """The files of an autoencoder that `load_autoencoder` has found before, by their names."""
    path = locate(name, variant=variant, local_files_only=True)
    if path.is_file():
        return {f"vae: {path.name}": path}
    folder = _inner(path, "vae" if (path / "vae").is_dir() else "vqvae")
    return {f"vae: {name}": file for name, file in weights(folder, [open_weights(folder, variant)]).items()}


def _inner(path: Path, part: str) -> Path:
    return path / part if is_model_folder(path) else path
