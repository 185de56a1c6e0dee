"""`load`: from a name to a `LatentDiffusion`, on the right device and in the right precision."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from safelight import kernels
from safelight.checkpoint.load import (
    DEFAULT,
    LoraName,
    WordName,
    controlnet_weights,
    decoder_weights,
    load_controlnet,
    load_decoder,
    load_parts,
)
from safelight.checkpoint.parts import Parts
from safelight.diffusion.schedule import NoiseSchedule, noise_schedule
from safelight.errors import CheckpointError, InputError
from safelight.pipeline.bundle import LatentDiffusion

SCHEDULE_KEYS = ("beta_schedule", "beta_start", "beta_end", "num_train_timesteps", "trained_betas",
                 "rescale_betas_zero_snr")  # fmt: skip


def load(
    name: str | Path = DEFAULT,
    *,
    device: str | torch.device | None = None,
    dtype: torch.dtype | str | None = None,
    variant: str | None = None,
    revision: str | None = None,
    vae: str | Path | None = None,
    decoder: str | Path | None = None,
    control: str | Path | None = None,
    loras: Sequence[LoraName] = (),
    embeddings: Sequence[WordName] = (),
    ema: bool | None = None,
    prediction_type: str | None = None,
    int8: bool = False,
    local_files_only: bool = False,
) -> LatentDiffusion:
    """Load a model: a diffusers folder, a single `.safetensors` or `.ckpt` file, or a hub id such as "owner/model".

    Args:
        name: the folder, file or hub id. "default", the small model that ships with the package, needs no network;
            "random" is an untrained stand-in (see `standin`).
        device: "cpu", "cuda", "mps", …; by default the best one there is.
        dtype: torch.float32, torch.float16 or torch.bfloat16, or its name; by default float32 on the CPU and float16
            elsewhere.
        variant: such as "fp16", for folders that hold several.
        revision: a branch, tag or commit of a hub id.
        vae: a file or folder whose autoencoder takes the place of the model's own.
        decoder: the folder of a tiny decoder (`safelight train decoder`), TAESD's original file, or a hub id of
            diffusers' AutoencoderTiny, to draw with in place of the autoencoder's own, in a fraction of the time.
        control: a ControlNet for models of this kind, to draw after other pictures (`control_image`): a folder or hub
            id of diffusers' ControlNetModel, or a file such as control_v11p_sd15_canny.pth.
        loras: files, folders or hub ids of LoRAs to add: "fox.safetensors:0.8" is by 0.8 (`checkpoint.lora`).
        embeddings: files, folders or hub ids of textual inversions, whose words prompts may then use: the file's name
            in AUTOMATIC1111's files, what the file says in diffusers'.
        ema: for single files that hold both, whether to take the averaged weights.
        prediction_type: "epsilon", "v_prediction" or "sample", where the file does not say.
        int8: round the linear layers of the U-Net to 8 bits: nearly the same picture, faster on CPUs with C kernels, in
            less memory (docs/speed.md). Such a model is for drawing alone.
        local_files_only: never ask the hub.

    Raises:
        CheckpointError: naming file, key and remedy; nothing is half loaded.
        InputError: for an unknown device or dtype.
    """
    device = _device(device)
    dtype = _dtype(dtype, device)
    if str(name) == "random":
        if loras or embeddings or vae is not None or control is not None:
            raise InputError("the untrained stand-in takes no other weights", remedy="name a model to add them to")
        from safelight.pipeline.standin import random_model

        model = prepared(random_model().to(device, dtype), int8=int8)
        return with_decoder(model, decoder, local_files_only=local_files_only)
    parts = load_parts(
        name,
        device=device,
        dtype=dtype,
        variant=variant,
        revision=revision,
        vae=vae,
        loras=loras,
        embeddings=embeddings,
        ema=ema,
        prediction_type=prediction_type,
        local_files_only=local_files_only,
    )
    model = with_decoder(prepared(bundle(parts), int8=int8), decoder, local_files_only=local_files_only)
    return with_control(model, control, local_files_only=local_files_only)


def with_control(model: LatentDiffusion, name: str | Path | None, *, local_files_only: bool = False) -> LatentDiffusion:
    """The same model with a ControlNet, if one is named. Raises InputError where it is one for other U-Nets."""
    if name is None:
        return model
    control = load_controlnet(name, device=model.device, dtype=model.dtype, local_files_only=local_files_only)
    control.config.check_fits(model.unet.config)
    kernels.prepare(control.requires_grad_(False))
    if model.device.type == "cuda":
        control.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    return replace(model, control=control, weights={**model.weights, **controlnet_weights(name)})


def with_decoder(model: LatentDiffusion, name: str | Path | None, *, local_files_only: bool = False) -> LatentDiffusion:
    """The same model with a tiny decoder, if one is named. Raises InputError where it is one for other latents."""
    if name is None:
        return model
    decoder = load_decoder(name, device=model.device, dtype=model.dtype, local_files_only=local_files_only)
    decoder.config.check_fits(model.autoencoder.config)
    kernels.prepare(decoder)
    return replace(model, decoder=decoder, weights={**model.weights, **decoder_weights(name)})


def prepared(model: LatentDiffusion, *, int8: bool = False) -> LatentDiffusion:
    """The same model, whose networks now ask for the kernels of this machine's CPU, if it has any (`kernels.prepare`).

    What it draws differs from what it drew before by rounding alone: 1e-5 of the norm in float32. With `int8` the U-Net
    is rounded to 8 bits, for good. Its weights ask for no gradients: a part used by itself keeps nothing for them, and
    whoever trains it says so (`requires_grad_`).
    """
    for network in (model.unet, model.autoencoder, model.text_encoder, model.conditioner):
        if network is not None:
            network.requires_grad_(False)
    kernels.prepare(model.unet, int8=int8)
    kernels.prepare(model.autoencoder)
    if model.text_encoder is not None:
        kernels.prepare(model.text_encoder)
    if model.device.type == "cuda":  # whose matrix units read pictures channels-last
        for network in (model.unet, model.autoencoder):
            network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    return model


def bundle(parts: Parts) -> LatentDiffusion:
    """Hold loaded parts together, with the noise schedule that their scheduler config describes.

    Raises CheckpointError where that describes none.
    """
    config = parts.scheduler_config
    try:
        schedule = _schedule(config)
    except InputError as error:
        what = f"its scheduler config cannot be used: {error.what}"
        raise CheckpointError(what, path=parts.source, remedy=error.remedy) from error
    return LatentDiffusion(
        unet=parts.unet,
        autoencoder=parts.autoencoder,
        text_encoder=parts.text_encoder,
        tokenizer=parts.tokenizer,
        conditioner=parts.conditioner,
        classes=parts.classes,
        guidance_scale=parts.guidance_scale,
        force_zeros_for_empty_prompt=parts.force_zeros_for_empty_prompt,
        low_res_schedule=_schedule(parts.low_res_scheduler_config) if parts.low_res_scheduler_config else None,
        schedule=schedule,
        prediction_type=parts.prediction_type,
        family=parts.family,
        name=parts.source,
        scheduler_config=config,
        weights=parts.weights,
        loras=parts.loras,
    )


def _schedule(config: Mapping[str, Any]) -> NoiseSchedule:
    return noise_schedule(**{key: config[key] for key in SCHEDULE_KEYS if config.get(key) is not None})


def _device(device: str | torch.device | None) -> torch.device:
    if device is None:
        best = "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"
        return torch.device(best)
    try:
        chosen = torch.device(device)
        torch.zeros(1, device=chosen).item()  # torch.device("meta") has no numbers
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        reason = str(error).splitlines()[0]
        reason = "torch has none here" if "INTERNAL ASSERT" in reason else reason
        raise InputError(f"device {device!r} cannot be used: {reason}", remedy="see `safelight doctor`") from None
    return chosen


def _dtype(dtype: torch.dtype | str | None, device: torch.device) -> torch.dtype:
    if dtype is None:
        return torch.float32 if device.type == "cpu" else torch.float16
    known = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}
    known |= {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}
    chosen = known.get(dtype) if isinstance(dtype, str) else dtype
    if chosen not in known.values():
        raise InputError(f"dtype {dtype!r} is not supported", remedy="use float32, float16 or bfloat16")
    return chosen  # type: ignore[return-value]
