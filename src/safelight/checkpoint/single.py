"""A single file in the CompVis layout -> parts: SD 1, SD 2, their inpainting and depth models, and the LDM family."""

import json
from dataclasses import fields
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, cast

import torch

from safelight.checkpoint import configs, layouts
from safelight.checkpoint.build import Plan, on_meta
from safelight.checkpoint.configs import LOW_RES_SCHEDULER, default_scheduler, naming
from safelight.checkpoint.detect import (
    Detected,
    autoencoder_config,
    controlnet_config,
    detect,
    is_autoencoder,
    tiny_decoder_config,
)
from safelight.checkpoint.errors import CorruptFile, KeyMismatch, WrongModel
from safelight.checkpoint.files import Tensors, open_file
from safelight.checkpoint.folders import one_of
from safelight.checkpoint.keymap import KeyMap
from safelight.checkpoint.parts import Parts
from safelight.checkpoint.shapes import shapes_of
from safelight.errors import CheckpointError, MissingPartError, SafelightError
from safelight.models.autoencoder import Autoencoder
from safelight.models.autoencoder_config import AutoencoderConfig
from safelight.models.clip import TextConfig, TextEncoder
from safelight.models.conditioners import Conditioner, MapEmbedder, make_conditioner
from safelight.models.config import frozen
from safelight.models.controlnet import ControlNet, ControlNetConfig
from safelight.models.tiny_decoder import TinyDecoder, TinyDecoderConfig
from safelight.models.unet import UNet
from safelight.models.unet_config import UNetConfig
from safelight.text.folder import WHOLE
from safelight.text.tokenizer import Tokenizer

METADATA = "safelight"  # the entry of a safetensors file's metadata in which `save` keeps the configs
TOKENIZER = f"{METADATA}.tokenizer"  # and that for a tokenizer which is not CLIP's: the files of its folder
# ModelSpec's words, and those that files have
MODELSPEC = {"v": "v_prediction", "v_prediction": "v_prediction", "epsilon": "epsilon", "sample": "sample"}
OPENCLIP_PAD = "!"  # token 0: open_clip fills up with zeros


def load_single(path: Path, *, ema: bool | None, autoencoder: Autoencoder | None, **options: Any) -> Parts:
    """Load a single-file model. All names and shapes are checked before the first tensor is read."""
    file = open_file(path)
    whole = file.renamed(layouts.compvis_names(file))
    with naming(path):
        found = remembered(whole) or detect(whole)
    file = averaged(whole) if wants_average(whole, found.family, ema) else whole
    unet = plan_unet(file, found)
    stage = None if autoencoder else plan_first_stage(file, found)
    text_encoders = plan_text_encoders(file, found)
    conditioner = plan_conditioner(file, found)
    extra = leftovers(file, [plan for plan in (unet, stage, *text_encoders, conditioner) if plan])
    return Parts(
        unet=unet.fill(**options),
        autoencoder=stage.fill(**options) if stage else cast(Autoencoder, autoencoder),
        text_encoder=one_of([plan.fill(**options) for plan in text_encoders], path),
        tokenizer=noted_tokenizer(whole) or tokenizer(found.text_dialect),
        conditioner=conditioner.fill(**options) if conditioner else None,
        classes=found.classes,
        guidance_scale=found.guidance_scale,
        force_zeros_for_empty_prompt=found.force_zeros_for_empty_prompt,
        scheduler_config=scheduler_config(whole, found),
        low_res_scheduler_config=LOW_RES_SCHEDULER if found.family == "sd2-upscale" else {},
        family=found.family,
        source=str(path),
        global_step=int(step) if (step := whole.metadata.get("global_step", "")).isdecimal() else None,
        extra=extra,
        weights={path.name: path},
    )


def remembered(file: Tensors) -> Detected | None:
    """What Safelight noted in the file's metadata when it wrote it: configs that shapes cannot tell, such as heads.

    It is vetted as a folder's configs are. Raises CorruptFile, UnknownClass.
    """
    text = file.metadata.get(METADATA)
    if text is None:
        return None
    try:
        note = json.loads(text)
        # What notes did not know at first
        later: dict[str, Any] = {
            "conditioner": None, "classes": [], "guidance_scale": Parts.guidance_scale, "text_encoder_2": None,
            "force_zeros_for_empty_prompt": False,
        }  # fmt: skip
        found = Detected(**{field.name: frozen({**later, **note}[field.name]) for field in fields(Detected)})
        if not isinstance(found.family, str) or found.text_dialect not in (None, "clip", "openclip", "pair"):
            raise ValueError(f"family {found.family!r}, text_dialect {found.text_dialect!r}")
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        what = f"its metadata entry {METADATA!r} is malformed ({type(error).__name__}: {error})"
        raise CorruptFile(
            what, path=file.path, key=METADATA, remedy="remove that entry, or use another copy"
        ) from error
    texts = configs.TEXT_ENCODERS
    known = (configs.UNETS, configs.AUTOENCODERS, texts, texts, configs.SCHEDULERS, configs.CONDITIONERS)
    noted = (found.unet, found.autoencoder, found.text_encoder, found.text_encoder_2, found.scheduler,
             found.conditioner)  # fmt: skip
    configs.guidance_scale({"_guidance_scale": found.guidance_scale}, file.path)
    for config, classes in zip(noted, known, strict=True):
        if config is not None:
            configs.vet(config, classes, file.path)
    return found


def wants_average(file: Tensors, family: str, ema: bool | None) -> bool:
    """Whether to take the moving average of the U-Net's weights.

    Left open, the originals decide: CompVis' latent-diffusion scripts draw with the average, the scripts of Stable
    Diffusion (`use_ema: False`), diffusers and AUTOMATIC1111 with the weights themselves.
    """
    if ema is None:
        return family.startswith("ldm") and any(key.startswith(layouts.EMA + "diffusion_model") for key in file)
    return ema


def averaged(file: Tensors) -> Tensors:
    """The file with the U-Net's weights replaced by their moving averages. Raises CheckpointError where some are
    missing."""
    pairs = dict(layouts.ema_names(file.entries))
    lacking = [key for key in file if key.startswith(layouts.UNET) and key not in pairs]
    if lacking:
        what = f"holds no moving average of {len(lacking)} weights, such as {lacking[0]!r}"
        raise CheckpointError(what, path=file.path, key=lacking[0], remedy="load it with ema=False")
    entries = {key: file.entries[pairs.get(key, key)] for key in file}
    return Tensors(file.path, entries, file.metadata)


def plan_unet(file: Tensors, found: Detected) -> Plan[UNet]:
    """Plan the U-Net."""
    with naming(file.path):
        config = UNetConfig.from_diffusers(found.unet)
        network = on_meta(lambda: UNet(config))
        keymap = unet_keymap(network)
    return _plan(network, file, keymap, layouts.UNET)


def unet_keymap(network: UNet) -> KeyMap:
    """The CompVis names of a U-Net's parameters, with the prefix of a single file."""
    config = network.config
    return layouts.unet_layout(
        network.state_dict(),
        down_heads=[level.heads for level in config.down],
        mid_heads=config.mid.heads if config.mid else 1,
        up_heads=[level.heads for level in config.up],
    ).under(layouts.UNET)


def plan_first_stage(file: Tensors, found: Detected) -> Plan[Autoencoder]:
    """Plan the autoencoder. Raises MissingPartError where the file has none."""
    if found.autoencoder is None:
        raise MissingPartError(f"{file.path} holds no autoencoder", remedy="give one with vae=, a file or a folder")
    config = dict(found.autoencoder)
    if "scale_factor" in file:  # scale_by_std: the one over the standard deviation that training began with
        config["scaling_factor"] = float(file["scale_factor"].reshape(()))
    with naming(file.path):
        network = on_meta(lambda: Autoencoder(AutoencoderConfig.from_diffusers(config)))
        keymap = layouts.first_stage_layout(network.state_dict()).under(layouts.FIRST_STAGE)
    return _plan(network, file, keymap, layouts.FIRST_STAGE)


def plan_text_encoders(file: Tensors, found: Detected) -> list[Plan[TextEncoder]]:
    """Plan the text encoder, if the file has one that is drawn here, or both of Stable Diffusion XL's."""
    plans = []
    for dialect, config in zip(dialects(found.text_dialect), (found.text_encoder, found.text_encoder_2), strict=False):
        with naming(file.path):
            network = on_meta(partial(TextEncoder, TextConfig.from_transformers(config or {})))
            keymap = text_keymap(network, dialect)
        own = {"clip": layouts.CLIP, "clip_1": layouts.CLIP_1}.get(dialect)  # beside it, other tensors are `extra`
        plans.append(_plan(network, file, keymap, f"{own}text_model." if own else ""))
    return plans


def dialects(dialect: str | None) -> list[str]:
    """The names of each text encoder, in order."""
    return [] if dialect is None else ["clip_1", "openclip_2"] if dialect == "pair" else [dialect]


def plan_conditioner(file: Tensors, found: Detected) -> Plan[Conditioner] | None:
    """Plan what tells the U-Net of a class or of a map, if the file has it."""
    if found.conditioner is None:
        return None
    with naming(file.path):
        network = on_meta(lambda: make_conditioner(found.conditioner or {}))
    return _plan(network, file, conditioner_keymap(network), layouts.COND_STAGE)


def conditioner_keymap(network: Conditioner) -> KeyMap:
    """The names of a conditioner's parameters in a single file."""
    of_maps = isinstance(network, MapEmbedder)
    return layouts.conditioner_layout(network.state_dict(), of_maps=of_maps).under(layouts.COND_STAGE)


def text_keymap(network: TextEncoder, dialect: str) -> KeyMap:
    """The names of a text encoder's parameters in a single file."""
    ours = network.state_dict()
    if dialect.startswith("openclip"):
        return layouts.openclip_layout(ours).under(layouts.OPENCLIP if dialect == "openclip" else layouts.OPENCLIP_2)
    prefix = layouts.CLIP_1 if dialect == "clip_1" else layouts.CLIP
    return layouts.clip_layout(ours, flat=dialect == "clip_flat").under(prefix)


def _plan(network: Any, file: Tensors, keymap: KeyMap, prefix: str) -> Plan[Any]:
    """Plan a network that owns all names that start with `prefix`, but for training's leavings; "" owns its own
    alone."""
    owned = {
        key: entry
        for key, entry in file.entries.items()
        if key in keymap.by_theirs or (prefix and key.startswith(prefix) and not _is_leaving(key))
    }
    return Plan(network, Tensors(file.path, owned, file.metadata), keymap)


def _is_leaving(key: str) -> bool:
    return layouts.is_bookkeeping(key) or layouts.is_position_ids(key)


def leftovers(file: Tensors, plans: list[Plan[Any]]) -> Tensors:
    """The tensors of networks that are known but not drawn here. Any other tensor without a home is a KeyMismatch."""
    homes = set().union(*(plan.keymap.by_theirs for plan in plans))
    rest = [key for key in file if key not in homes and not _is_leaving(key)]
    strange = [key for key in rest if not key.startswith((*layouts.NOT_DRAWN, layouts.FIRST_STAGE))]
    if strange:
        what = f"holds {len(strange)} tensors that belong to no network, such as {strange[0]!r}"
        remedy = "another model may have been merged into it; use the model's original file"
        raise KeyMismatch(what, path=file.path, key=strange[0], remedy=remedy)
    return file.renamed({key: key for key in rest if key.startswith(layouts.NOT_DRAWN)})


def noted_tokenizer(file: Tensors) -> Tokenizer | None:
    """The tokenizer that Safelight noted in the file's metadata, where it is not CLIP's. Raises CorruptFile."""
    text = file.metadata.get(TOKENIZER)
    if text is None:
        return None
    try:
        files = json.loads(text)
        with TemporaryDirectory() as folder:
            for name in WHOLE:
                (Path(folder) / name).write_text(files[name], encoding="utf-8")
            return Tokenizer.load(folder)
    except (SafelightError, ValueError, KeyError, TypeError, RecursionError) as error:
        what = f"its metadata entry {TOKENIZER!r} is no tokenizer ({type(error).__name__}: {error})"
        raise CorruptFile(
            what, path=file.path, key=TOKENIZER, remedy="remove that entry, or use another copy"
        ) from error


def tokenizer(dialect: str | None) -> Tokenizer | None:
    """CLIP's tokenizer, from the package: others' single files carry none."""
    if dialect is None:
        return None
    return Tokenizer.clip(pad_token=OPENCLIP_PAD) if dialect == "openclip" else Tokenizer.clip()


def scheduler_config(file: Tensors, found: Detected) -> dict[str, Any]:
    """diffusers' scheduler config for a single file: noted, or of its kind, with the file's own betas where it has
    them."""
    config = dict(found.scheduler or default_scheduler(found.family))
    if (said := file.metadata.get("modelspec.prediction_type")) in MODELSPEC:  # words of others say nothing
        config["prediction_type"] = MODELSPEC[said]
    if layouts.V_PREDICTION in file:
        config["prediction_type"] = "v_prediction"
    if layouts.ZERO_TERMINAL_SNR in file:
        config["rescale_betas_zero_snr"] = True
    if "betas" in file:
        betas = file["betas"].double()
        start, end = round(float(betas[0]), 8), round(float(betas[-1]), 8)
        config |= {"num_train_timesteps": len(betas), "beta_start": start, "beta_end": end}
        line = torch.linspace(start**0.5, end**0.5, len(betas), dtype=torch.float64) ** 2
        if not torch.allclose(betas, line, rtol=1e-5, atol=0):
            config["trained_betas"] = betas.tolist()
    return config


def plan_decoder_file(path: Path) -> Plan[TinyDecoder]:
    """Plan a tiny decoder in a file of its own: the original's (taesd_decoder.pth), or diffusers' AutoencoderTiny.

    Raises WrongModel.
    """
    file = open_file(path)
    if "decoder.layers.0.weight" in file:  # counted from 1 in the original, see `layouts.taesd_layout`
        inner = file.under("decoder.layers.")
        with naming(path):
            numbered = {key: key.split(".", 1) for key in inner}
            file = inner.renamed({f"{int(number) + 1}.{rest}": key for key, (number, rest) in numbered.items()})
    if "1.weight" not in file or not all(key.split(".")[0].isdecimal() for key in file):
        remedy = "name taesd_decoder.safetensors or its like, or the folder that `safelight train decoder` wrote"
        raise WrongModel("holds no tiny decoder", path=path, remedy=remedy)
    with naming(path):
        config = TinyDecoderConfig.from_json(tiny_decoder_config(shapes_of(file)))
        network = on_meta(lambda: TinyDecoder(config))
        keymap = layouts.taesd_layout(network.state_dict())
    return Plan(network, file, keymap)


def plan_controlnet_file(path: Path) -> Plan[ControlNet]:
    """Plan a ControlNet in the original's names: in a file of its own, or with the whole model beside it.

    Raises WrongModel.
    """
    file = open_file(path)
    if "controlnet_cond_embedding.conv_in.weight" in file:
        remedy = "name its folder, whose config.json tells its shape; or the original's file"
        raise WrongModel("holds a ControlNet in diffusers' names, without its config", path=path, remedy=remedy)
    inner = next((one for one in (file.under(layouts.CONTROLNET), file) if "input_hint_block.0.weight" in one), None)
    if inner is None:
        remedy = "name control_v11p_sd15_canny.pth or its like, or a folder of diffusers' ControlNetModel"
        raise WrongModel("holds no ControlNet", path=path, remedy=remedy)
    with naming(path):
        config = ControlNetConfig.from_diffusers(controlnet_config(shapes_of(inner)))
        network = on_meta(lambda: ControlNet(config))
        down = [level.heads for level in config.unet.down]
        mid = config.unet.mid.heads if config.unet.mid else 1
        keymap = layouts.controlnet_layout(network.state_dict(), down_heads=down, mid_heads=mid)
    return Plan(network, inner, keymap)


def _first_stage(file: Tensors) -> Tensors:
    """The tensors of a file's autoencoder, without a prefix. Raises WrongModel where it has none, or half of one."""
    stages = [file.under(prefix) for prefix in layouts.FIRST_STAGES]
    found = next((stage for stage in stages if is_autoencoder(shapes_of(stage))), None)
    if found is not None:
        return found
    halves = [half for half in ("encoder", "decoder") if any(f"{half}.conv_in.weight" in stage for stage in stages)]
    if halves:
        what = f"holds the {halves[0]} of an autoencoder alone"
        raise WrongModel(
            what, path=file.path, remedy="use the file of the whole VAE: pictures go in and come out by it"
        )
    raise WrongModel(
        "holds no autoencoder", path=file.path, remedy="a VAE file holds encoder.conv_in.weight and its like"
    )


def load_autoencoder_file(path: Path, **options: Any) -> Autoencoder:
    """Load an autoencoder from a file of its own, or out of a whole model; CompVis' names or diffusers'."""
    file = open_file(path)
    inner, note = _first_stage(file), remembered(file)
    with naming(path):
        config = (note and note.autoencoder) or autoencoder_config(shapes_of(inner))
        network = on_meta(lambda: Autoencoder(AutoencoderConfig.from_diffusers(config)))
    ours = network.state_dict()
    compvis = "encoder.mid.block_1.norm1.weight" in inner
    keymap = layouts.first_stage_layout(ours) if compvis else layouts.diffusers_layout(ours, inner.entries)
    known = [key for key in inner if layouts.is_bookkeeping(key)]
    return Plan(network, inner, keymap, known).fill(**options)
