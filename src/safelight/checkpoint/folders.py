"""A diffusers folder -> parts: model_index.json, and one folder for each of unet, vae, text_encoder, tokenizer,
scheduler; for some models also conditioner, which is ours, and low_res_scheduler."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, cast

from safelight.checkpoint import configs, layouts
from safelight.checkpoint.build import Plan, on_meta
from safelight.checkpoint.detect import REFINER, family
from safelight.checkpoint.errors import WrongModel
from safelight.checkpoint.files import Tensors, open_weights
from safelight.checkpoint.keymap import identity
from safelight.checkpoint.parts import Parts
from safelight.errors import CheckpointError
from safelight.models.autoencoder import Autoencoder
from safelight.models.clip import TextEncoder
from safelight.models.conditioners import Conditioner, make_conditioner
from safelight.models.controlnet import ControlNet
from safelight.models.text_pair import TextEncoderPair
from safelight.models.tiny_decoder import TinyDecoder
from safelight.models.unet import UNet
from safelight.text.tokenizer import Tokenizer


def load_folder(path: Path, *, variant: str | None, autoencoder: Autoencoder | None, **options: Any) -> Parts:
    """Load a whole folder. All configs and all headers are read and checked before the first tensor is."""
    index = configs.model_index(path)
    has = {part: bool((index.get(part) or [None, None])[1]) for part in configs.PARTS}
    stage = "vae" if has["vae"] else "vqvae"
    if not has["unet"] or not (has[stage] or autoencoder):
        raise CheckpointError(
            "lists no U-Net, or no autoencoder", path=path / "model_index.json", remedy="download it again"
        )
    scheduler = configs.scheduler(path / "scheduler") if has["scheduler"] else {}
    unet = plan_unet(path / "unet", variant)
    if has["text_encoder_2"] and not has["text_encoder"]:
        remedy = "load the base model: it draws whole pictures"
        raise WrongModel(REFINER, path=path / "model_index.json", key="text_encoder", remedy=remedy)
    read = [part for part in ("text_encoder", "text_encoder_2") if has[part]]
    text_encoders = [plan_text_encoder(path / part, variant) for part in read]
    conditioner = plan_conditioner(path / "conditioner", variant) if has["conditioner"] else None
    first_stage = None if autoencoder else plan_autoencoder(path / stage, variant)
    tokenizer = Tokenizer.load(path / "tokenizer") if has["tokenizer"] else None
    return Parts(
        unet=unet.fill(**options),
        autoencoder=first_stage.fill(**options) if first_stage else cast(Autoencoder, autoencoder),
        text_encoder=one_of([plan.fill(**options) for plan in text_encoders], path),
        tokenizer=tokenizer,
        conditioner=conditioner.fill(**options) if conditioner else None,
        classes=configs.class_names(index, path / "model_index.json"),
        guidance_scale=configs.guidance_scale(index, path / "model_index.json"),
        force_zeros_for_empty_prompt=configs.force_zeros(index, path / "model_index.json"),
        scheduler_config=scheduler,
        low_res_scheduler_config=configs.scheduler(path / "low_res_scheduler") if has["low_res_scheduler"] else {},
        family=configs.family(index, path / "model_index.json")
        or family(unet.network.config.to_diffusers(), has_text=bool(text_encoders)),
        source=str(path),
        weights=weights(path, [plan.file for plan in (unet, first_stage, *text_encoders, conditioner) if plan]),
    )


def weights(path: Path, files: Sequence[Tensors]) -> dict[str, Path]:
    """The files that hold these tensors, by their names within the folder `path`."""
    found = sorted({entry.path for file in files for entry in file.entries.values()})
    return {one.relative_to(path).as_posix(): one for one in found}


def plan_unet(folder: Path, variant: str | None = None) -> Plan[UNet]:
    """Plan the U-Net of a folder that holds its config.json and weights."""
    config = configs.unet(folder)
    with configs.naming(folder / "config.json"):
        network = on_meta(lambda: UNet(config))
    file = open_weights(folder, variant)
    return Plan(network, file, layouts.diffusers_layout(network.state_dict(), file.entries))


def plan_autoencoder(folder: Path, variant: str | None = None) -> Plan[Autoencoder]:
    """Plan the autoencoder of a folder that holds its config.json and weights, in diffusers' names, old or new."""
    config = configs.autoencoder(folder)
    with configs.naming(folder / "config.json"):
        network = on_meta(lambda: Autoencoder(config))
    file = open_weights(folder, variant)
    return Plan(network, file, layouts.diffusers_layout(network.state_dict(), file.entries))


def plan_text_encoder(folder: Path, variant: str | None = None) -> Plan[TextEncoder]:
    """Plan the text encoder of a folder; its names may lack "text_model.", as transformers 5 writes them.

    A folder that holds a whole CLIP, such as openai/clip-vit-large-patch14, gives its text half.
    """
    config = configs.text_encoder(folder)
    with configs.naming(folder / "config.json"):
        network = on_meta(lambda: TextEncoder(config))
    file = open_weights(folder, variant)
    if any(key.startswith("vision_model.") for key in file):
        file = file.renamed({key: key for key in file if key.startswith("text_model.")})
    flat = not any(key.startswith("text_model.") for key in file)
    buffers = [key for key in file if layouts.is_position_ids(key)]
    return Plan(network, file, layouts.clip_layout(network.state_dict(), flat=flat), buffers)


def one_of(networks: Sequence[TextEncoder], path: Path) -> TextEncoder | TextEncoderPair | None:
    """A model's text encoder: none, the only one, or Stable Diffusion XL's two as one."""
    if len(networks) < 2:
        return networks[0] if networks else None
    with configs.naming(path):
        return TextEncoderPair(*networks).eval()


def plan_conditioner(folder: Path, variant: str | None = None) -> Plan[Conditioner]:
    """Plan the conditioner of a folder that holds its config.json and weights."""
    config = configs.conditioner(folder)
    with configs.naming(folder / "config.json"):
        network = on_meta(lambda: make_conditioner(config))
    file = open_weights(folder, variant)
    return Plan(network, file, identity(network.state_dict()))


def plan_decoder(folder: Path, variant: str | None = None) -> Plan[TinyDecoder]:
    """Plan the tiny decoder of a folder, ours or diffusers' AutoencoderTiny, whose encoder stays there."""
    config = configs.decoder(folder)
    with configs.naming(folder / "config.json"):
        network = on_meta(lambda: TinyDecoder(config))
    file = open_weights(folder, variant)
    return Plan(network, file.under("decoder.") if "decoder.layers.0.weight" in file else file,
                identity(network.state_dict()))  # fmt: skip


def plan_controlnet(folder: Path, variant: str | None = None) -> Plan[ControlNet]:
    """Plan the ControlNet of a folder that holds its config.json and weights."""
    config = configs.controlnet(folder)
    with configs.naming(folder / "config.json"):
        network = on_meta(lambda: ControlNet(config))
    return Plan(network, open_weights(folder, variant), identity(network.state_dict()))


def is_model_folder(path: Path) -> bool:
    """Whether a folder holds a diffusers model."""
    return (path / "model_index.json").is_file()
