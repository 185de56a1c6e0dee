"""The small JSON files around the weights. They are data: a closed registry of class names, and no code from them.

`model_index.json` names the class of each part of a folder; each part's config.json goes to the config class of that
network; `scheduler_config.json` stays a dictionary.
"""

from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

from safelight.checkpoint.errors import CorruptFile, UnknownClass, WrongModel
from safelight.checkpoint.files import read_json
from safelight.checkpoint.parts import LDM_INPAINT, Parts
from safelight.errors import CheckpointError, SafelightError, nearest
from safelight.models.autoencoder_config import AutoencoderConfig
from safelight.models.clip import TextConfig
from safelight.models.controlnet import ControlNetConfig
from safelight.models.presets import BETAS, LDM_BETAS, SD_BETAS
from safelight.models.tiny_decoder import TinyDecoderConfig
from safelight.models.unet_config import UNetConfig

Config = dict[str, Any]
Read = TypeVar("Read")

# Pipelines whose parts are drawn here.
PIPELINES = {
    "StableDiffusionPipeline", "StableDiffusionImg2ImgPipeline", "StableDiffusionInpaintPipeline",
    "StableDiffusionInpaintPipelineLegacy", "StableDiffusionDepth2ImgPipeline", "StableDiffusionPipelineSafe",
    "StableDiffusionInstructPix2PixPipeline", "StableDiffusionUpscalePipeline", "LDMPipeline", "LDMTextToImagePipeline",
    "LDMSuperResolutionPipeline", "LatentDiffusion", "StableDiffusionXLPipeline", "StableDiffusionXLImg2ImgPipeline",
    "StableDiffusionXLInpaintPipeline", "StableDiffusionXLInstructPix2PixPipeline",
}  # fmt: skip
UNETS = {"UNet2DConditionModel", "UNet2DModel"}
AUTOENCODERS = {"AutoencoderKL", "VQModel"}
TEXT_ENCODERS = {"CLIPTextModel", "CLIPTextModelWithProjection"}
DECODERS = {"TinyDecoder", "AutoencoderTiny"}
CONTROLNETS = {"ControlNetModel"}
CONDITIONERS = {"ClassEmbedder", "LayoutEmbedder", "MapEmbedder"}
TOKENIZERS = {"CLIPTokenizer", "CLIPTokenizerFast"}
# A scheduler's config tells the noise that a model was trained on, and no more: tasks take their sampler by its name.
# (`compat` draws with the class itself, and refuses those that it has not.)
SCHEDULERS = {f"{name}Scheduler" for name in (
    "DDIM", "DDIMInverse", "DDPM", "PNDM", "LMSDiscrete", "EulerDiscrete", "EulerAncestralDiscrete", "HeunDiscrete",
    "KDPM2Discrete", "KDPM2AncestralDiscrete", "DPMSolverMultistep", "DPMSolverSinglestep", "DPMSolverSDE",
    "UniPCMultistep", "DEISMultistep", "LCM", "TCD", "SASolver",
)}  # fmt: skip
# Their configs tell of no betas: of EDM's own preconditioning, or of IPNDM's own levels.
WITHOUT_BETAS = {"EDMEulerScheduler", "EDMDPMSolverMultistepScheduler", "IPNDMScheduler"}
PARTS = {"unet": UNETS, "vae": AUTOENCODERS, "vqvae": AUTOENCODERS, "text_encoder": TEXT_ENCODERS,
         "text_encoder_2": TEXT_ENCODERS, "conditioner": CONDITIONERS, "tokenizer": TOKENIZERS,
         "tokenizer_2": TOKENIZERS, "scheduler": SCHEDULERS,
         "low_res_scheduler": SCHEDULERS}  # fmt: skip
STRANGERS = {"StableDiffusionXL": "Stable Diffusion XL with parts of its own",
             "StableDiffusion3": "Stable Diffusion 3", "Flux": "Flux",
             "ControlNet": "a ControlNet pipeline", "Kandinsky": "Kandinsky", "PixArt": "PixArt"}  # fmt: skip
LAYERS = {"layers_per_block", "transformer_layers_per_block", "num_hidden_layers", "num_layers", "num_blocks",
          "num_decoder_blocks"}  # fmt: skip


def model_index(folder: Path) -> Config:
    """Read and check model_index.json. Raises UnknownClass, WrongModel, or CheckpointError where there is none."""
    path = folder / "model_index.json"
    if not path.exists():
        raise _no_index(folder)
    index = read_json(path)
    name = index.get("_class_name")
    for start, kind in STRANGERS.items():
        if isinstance(name, str) and name.startswith(start) and name not in PIPELINES:
            remedy = "Safelight draws with Stable Diffusion 1, 2 and XL, and with the latent-diffusion family"
            raise WrongModel(f"is {kind} ({name})", path=path, key="_class_name", remedy=remedy)
    check_class(name, PIPELINES, path, "_class_name")
    for part, known in PARTS.items():
        entry = index.get(part, [None, None])
        if not isinstance(entry, list) or len(entry) != 2:
            raise CorruptFile(f"{part} must be [library, class]", path=path, key=part, remedy="download it again")
        if entry[1] is not None:
            check_class(entry[1], known, path, part)
    return index


def _no_index(folder: Path) -> CheckpointError:
    names = sorted(file.name for file in folder.iterdir()) if folder.is_dir() else []
    single = [
        name for name in names if name.endswith((".safetensors", ".ckpt")) and not name.startswith("diffusion_pytorch")
    ]
    if not names:
        return CheckpointError("is an empty folder", path=folder, remedy="download the model into it, or name another")
    if _is_run(folder):
        what, remedy = "is a training's run, not a model", f"name what it has made: {folder / 'model'}"
    elif "config.json" in names:
        what, remedy = "holds one network, not a whole model", "name the folder above it, which holds model_index.json"
    elif single:
        what, remedy = "holds no model_index.json", f"name the file itself: {folder / single[0]}"
    else:
        what, remedy = (
            "holds no model_index.json",
            f"name a model's folder or file; this one holds {', '.join(names[:5])}",
        )
    return CheckpointError(what, path=folder, remedy=remedy)


def _is_run(folder: Path) -> bool:
    """Whether a folder is that of a training, whose config.json tells the stage."""
    path = folder / "config.json"
    return path.is_file() and "stage" in read_json(path)


def check_class(name: object, known: Collection[str], path: Path, key: str) -> None:
    """Raise UnknownClass where a config names a class that is not in the registry."""
    if isinstance(name, str) and name in WITHOUT_BETAS:
        what = f"{key} names {name}, whose config does not tell the noise that the model was trained on"
        remedy = "put the model's first scheduler there, such as DDIMScheduler with its betas"
        raise UnknownClass(what, path=path, key=key, remedy=remedy)
    if not isinstance(name, str) or name not in known:
        what = f"{key} names the class {name!r}, which Safelight does not have"
        raise UnknownClass(what, path=path, key=key, remedy=nearest(str(name), sorted(known)))


def read_config(folder: Path, known: Collection[str], name: str = "config.json") -> tuple[Path, Config]:
    """Read a part's config.json and vet it."""
    path = folder / name
    if _is_run(folder):
        raise WrongModel("is of a training's run, not of a model", path=path, remedy=f"name {folder / 'model'}")
    return path, vet(read_json(path), known, path)


def vet(config: object, known: Collection[str], path: Path) -> Config:
    """See that a config is of a known class, of sane sizes, and asks for no code. Raises UnknownClass, CorruptFile."""
    if not isinstance(config, dict):
        raise CorruptFile(
            f"a config is a {type(config).__name__}, not an object", path=path, remedy="download it again"
        )
    for key in ("auto_map", "trust_remote_code"):
        if config.get(key):
            raise UnknownClass(f"{key} asks for code to be run", path=path, key=key, remedy="remove that key")
    architectures = config.get("architectures")
    if "_class_name" in config:
        check_class(config["_class_name"], known, path, "_class_name")
    elif architectures:
        first = architectures[0] if isinstance(architectures, list) else architectures
        check_class(first, known, path, "architectures")
    for key in SIZES & config.keys():
        largest = 64 if key in LAYERS else 1 << 20
        for number in config[key] if isinstance(config[key], list) else [config[key]]:
            if type(number) is int and not 0 <= number <= largest:
                raise CorruptFile(
                    f"{key} = {number} is no size of a network", path=path, key=key, remedy="download it again"
                )
    return config


SIZES = LAYERS | {
    "in_channels", "out_channels", "block_out_channels", "cross_attention_dim", "attention_head_dim", "latent_channels",
    "norm_num_groups", "num_class_embeds", "projection_class_embeddings_input_dim", "time_embedding_dim", "vocab_size",
    "num_vq_embeddings", "vq_embed_dim", "hidden_size", "intermediate_size", "num_attention_heads", "projection_dim",
    "addition_time_embed_dim", "max_position_embeddings", "num_classes", "embed_dim", "max_objects", "frequencies",
    "decoder_block_out_channels", "conditioning_channels", "conditioning_embedding_out_channels",
}  # fmt: skip


@contextmanager
def naming(path: object) -> Iterator[None]:
    """Turn what a config class objects to into a CheckpointError that names the file."""
    try:
        yield
    except CheckpointError:
        raise
    except SafelightError as error:
        raise CheckpointError(error.what, path=path, remedy=error.remedy) from error
    except (TypeError, ValueError, AttributeError, IndexError, ZeroDivisionError, KeyError, RuntimeError) as error:
        what = f"describes no network ({type(error).__name__}: {error})"
        raise CorruptFile(what, path=path, remedy="download it again") from error


def _read(folder: Path, known: Collection[str], parse: Callable[[Mapping[str, Any]], Read]) -> Read:
    path, config = read_config(folder, known)
    with naming(path):
        return parse(config)


def unet(folder: Path) -> UNetConfig:
    """Read the config of a folder's U-Net."""
    return _read(folder, UNETS, UNetConfig.from_diffusers)


def autoencoder(folder: Path) -> AutoencoderConfig:
    """Read the config of a folder's autoencoder."""
    return _read(folder, AUTOENCODERS, AutoencoderConfig.from_diffusers)


def text_encoder(folder: Path) -> TextConfig:
    """Read the config of a folder's text encoder; that of a whole CLIP keeps it under "text_config"."""
    return _read(
        folder, {*TEXT_ENCODERS, "CLIPModel"}, lambda c: TextConfig.from_transformers(c.get("text_config") or c)
    )


def conditioner(folder: Path) -> Config:
    """Read the config of a folder's conditioner: what tells its U-Net of a class, a layout or a map."""
    return read_config(folder, CONDITIONERS)[1]


def controlnet(folder: Path) -> ControlNetConfig:
    """Read the config of a folder's ControlNet."""
    return _read(folder, CONTROLNETS, ControlNetConfig.from_diffusers)


def decoder(folder: Path) -> TinyDecoderConfig:
    """Read the config of a tiny decoder, ours or diffusers' AutoencoderTiny."""
    return _read(folder, DECODERS, TinyDecoderConfig.from_json)


def class_names(index: Config, path: Path) -> tuple[str, ...]:
    """The names of a model's classes: "id2label" of its model_index.json, as in diffusers. Raises CorruptFile."""
    names = index.get("id2label") or {}
    numbered = [names.get(str(number)) for number in range(len(names))] if isinstance(names, dict) else [None]
    if not all(isinstance(name, str) for name in numbered):
        what = "id2label is not an object of names for the numbers from 0 on"
        raise CorruptFile(what, path=path, key="id2label", remedy='such as {"0": "apple", "1": "pear"}')
    return tuple(name for name in numbered if isinstance(name, str))


def guidance_scale(index: Config, path: Path) -> float:
    """What a model is best guided by: "_guidance_scale" of its model_index.json, which diffusers passes over.

    Raises CorruptFile.
    """
    scale = index.get("_guidance_scale", Parts.guidance_scale)
    if isinstance(scale, bool) or not isinstance(scale, int | float) or not 0 <= scale <= 100:
        what = f"_guidance_scale is {scale!r}, which no picture can be guided by"
        raise CorruptFile(what, path=path, key="_guidance_scale", remedy="give a number from 0 to 100, or leave it out")
    return float(scale)


def force_zeros(index: Config, path: Path) -> bool:
    """Whether an empty negative prompt is told as zeros: diffusers says so for Stable Diffusion XL unless told no.

    Raises CorruptFile.
    """
    said = index.get("force_zeros_for_empty_prompt", str(index.get("_class_name")).startswith("StableDiffusionXL"))
    if not isinstance(said, bool):
        what = f"force_zeros_for_empty_prompt is {said!r}"
        raise CorruptFile(what, path=path, key="force_zeros_for_empty_prompt", remedy="give true or false")
    return said


def family(index: Config, path: Path) -> str | None:
    """The family, where a U-Net's shape does not tell it: "_family" of its model_index.json. Raises CorruptFile."""
    named = index.get("_family")
    if named not in (None, LDM_INPAINT):
        what = f"_family is {named!r}, which is none that is noted"
        raise CorruptFile(what, path=path, key="_family", remedy=f"give {LDM_INPAINT!r}, or leave it out")
    return named


def scheduler(folder: Path) -> Config:
    """Read a scheduler_config.json (older folders: config.json)."""
    names = [name for name in ("scheduler_config.json", "config.json") if (folder / name).exists()]
    path, config = read_config(folder, SCHEDULERS, (names or ["scheduler_config.json"])[0])
    check_class(config.get("_class_name"), SCHEDULERS, path, "_class_name")
    return config


UPSCALER_BETAS = BETAS["sd2_upscaler"]  # for its latents, and for the noise on its small pictures
# The noise that Stable Diffusion's x4 upscaler wants on pictures, in files that do not say it.
LOW_RES_SCHEDULER: Config = {
    "_class_name": "DDPMScheduler",
    "num_train_timesteps": 1000,
    "beta_schedule": "scaled_linear",
    "beta_start": UPSCALER_BETAS[0],
    "beta_end": UPSCALER_BETAS[1],
}


def default_scheduler(family: str, betas: tuple[float, float] | None = None) -> Config:
    """The scheduler config of a family's published models: their usual sampler, and the betas they were trained with.

    `betas` are the first and the last, where more than the family is known.
    """
    usual = UPSCALER_BETAS if family == "sd2-upscale" else LDM_BETAS if family.startswith("ldm") else SD_BETAS
    start, end = betas or usual
    sd1 = family.startswith("sd1")
    common = {
        "num_train_timesteps": 1000,
        "beta_schedule": "scaled_linear",
        "beta_start": start,
        "beta_end": end,
        "steps_offset": 1,
    }
    if family.startswith("sdxl"):
        return {"_class_name": "EulerDiscreteScheduler", **common, "timestep_spacing": "leading"}
    last = {"skip_prk_steps": True} if sd1 else {"clip_sample": False}
    return {"_class_name": "PNDMScheduler" if sd1 else "DDIMScheduler", **common, "set_alpha_to_one": False, **last}
