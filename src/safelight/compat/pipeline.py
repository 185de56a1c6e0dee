"""`DiffusionPipeline`: what every pipeline has, whatever it draws. Parts by name, loading, saving, moving, progress."""

import os
from collections.abc import Iterable, Mapping
from dataclasses import replace
from inspect import Parameter, signature
from pathlib import Path
from typing import Any, ClassVar, Self

import torch
from torch import nn
from tqdm.auto import tqdm

from safelight.checkpoint.files import read_json
from safelight.checkpoint.load import load_parts
from safelight.checkpoint.parts import Parts
from safelight.checkpoint.single import OPENCLIP_PAD
from safelight.checkpoint.writing import write_json
from safelight.compat import schedulers
from safelight.compat.images import numpy_to_pil
from safelight.compat.loading import Options
from safelight.compat.networks import AutoencoderKL, UNet2DConditionModel, UNet2DModel, VQModel
from safelight.compat.notes import explain
from safelight.compat.outputs import Config
from safelight.compat.text_encoder import CLIPTextModel, CLIPTextModelWithProjection
from safelight.compat.tokenizer import CLIPTokenizer
from safelight.errors import CheckpointError, InputError, MissingPartError, nearest
from safelight.models.text_pair import TextEncoderPair

# What a model_index.json may name; nothing else is looked up, least of all code.
NETWORKS: dict[str, Any] = {
    "UNet2DConditionModel": UNet2DConditionModel,
    "UNet2DModel": UNet2DModel,
    "AutoencoderKL": AutoencoderKL,
    "VQModel": VQModel,
}
WORDS: dict[str, Any] = {
    "CLIPTextModel": CLIPTextModel,
    "CLIPTextModelWithProjection": CLIPTextModelWithProjection,
    "CLIPTokenizer": CLIPTokenizer,
    "CLIPTokenizerFast": CLIPTokenizer,
}
UNUSED = ("safety_checker", "feature_extractor", "image_encoder")


class DiffusionPipeline:
    """Parts held by name, and `from_pretrained`, which takes the pipeline that model_index.json names.

    A pipeline of one's own calls `register_modules(unet=unet, scheduler=scheduler)` in its constructor.
    """

    pipelines: ClassVar[dict[str, type["DiffusionPipeline"]]] = {}
    _names: tuple[str, ...] = ()
    _settings: Mapping[str, Any] = {}
    _bar: Mapping[str, Any] = {}
    name_or_path: str = ""

    def __init_subclass__(cls) -> None:
        if cls.__module__.startswith("safelight."):  # a model's file shall not name a script's class
            DiffusionPipeline.pipelines[cls.__name__] = cls

    def register_modules(self, **parts: Any) -> None:
        """Hold parts under their names; they are then in `components`, and are moved, saved and loaded."""
        self._names = (*self._names, *(name for name in parts if name not in self._names))
        for name, part in parts.items():
            setattr(self, name, part)

    def register_to_config(self, **settings: Any) -> None:
        """Note settings that are no parts; they stand in `config`."""
        self._settings = {**self._settings, **settings}

    @property
    def components(self) -> dict[str, Any]:
        """The parts by name: `OtherPipeline(**pipe.components)` shares them."""
        return {name: getattr(self, name) for name in self._names}

    @property
    def config(self) -> Config:
        """What model_index.json says: library and class of each part, and settings."""
        return Config({**self._index(), **self._settings, "_name_or_path": self.name_or_path})

    def _index(self) -> dict[str, Any]:
        index: dict[str, Any] = {"_class_name": type(self).__name__, "_diffusers_version": schedulers.DIFFUSERS_VERSION}
        for name, part in self.components.items():
            kind = type(getattr(part, "_orig_mod", part)).__name__  # behind torch.compile
            library = None if part is None else "transformers" if kind in WORDS else "diffusers"
            index[name] = [library, None if part is None else kind]
        return index

    # Loading and saving

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path: str | os.PathLike[str], **options: Any) -> Self:
        """Load a folder or a hub id; `DiffusionPipeline` takes the pipeline that its model_index.json names.

        Options: `torch_dtype` (or `dtype`; float32 by default), `variant`, `revision`, `local_files_only`; any part by
        name (`scheduler=`, `vae=`, ...) in place of the folder's; `safety_checker=None` is heard, as there is none.
        """
        chosen = Options.read(options, also=dict.fromkeys((*NAMES, "custom_pipeline")))
        if options.get("custom_pipeline") is not None:
            raise MissingPartError("custom pipelines are not loaded", remedy="import the pipeline's class and call it")
        folder = chosen.locate(os.fspath(pretrained_model_name_or_path))
        index = read_index(folder)
        kind = cls if cls is not DiffusionPipeline else find_pipeline(index.get("_class_name"), folder)
        wanted = _keywords(kind)
        given = {name: part for name, part in options.items() if name in wanted and name not in UNUSED}
        if chosen.variant is not None and not any(folder.glob(f"*/*.{chosen.variant}*")):
            what = f"no part has weights of variant {chosen.variant!r}"
            raise CheckpointError(what, path=folder, remedy="leave variant= out, or name one that is there")
        parts = {
            name: _load_part(folder, name, entry, chosen)
            for name, entry in index.items()
            if name in wanted and name not in given and isinstance(entry, list)
        }
        settings = {name: index[name] for name in SETTINGS if name in index and name in wanted}
        return kind._assembled({**parts, **settings, **given}, pretrained_model_name_or_path)  # type: ignore[return-value]

    @classmethod
    def from_single_file(cls, pretrained_model_link_or_path: str | os.PathLike[str], **options: Any) -> Self:
        """Load a .safetensors or .ckpt file in the CompVis layout. Options as in `from_pretrained`."""
        chosen, name = Options.read(options, also=dict.fromkeys(NAMES)), os.fspath(pretrained_model_link_or_path)
        revision = None if Path(name).exists() else chosen.revision  # which diffusers passes over for a file, as here
        parts = load_parts(name, dtype=chosen.dtype, variant=chosen.variant, revision=revision,
                           local_files_only=chosen.local_files_only)  # fmt: skip
        stage: Any = AutoencoderKL if parts.autoencoder.config.kind == "AutoencoderKL" else VQModel
        unet: Any = UNet2DConditionModel if parts.unet.config.conditional else UNet2DModel
        found = {
            "vae": stage.wrap(parts.autoencoder),
            **_words_of(parts),
            "unet": unet.wrap(parts.unet),
            "scheduler": schedulers.from_any(parts.scheduler_config),
        }
        usual = "StableDiffusionXLPipeline" if "text_encoder_2" in found else "StableDiffusionPipeline"
        kind: Any = cls if cls is not DiffusionPipeline else find_pipeline(usual, Path(name))
        given = {name: part for name, part in options.items() if name in _keywords(kind) and name not in UNUSED}
        return kind._assembled({**found, **given}, pretrained_model_link_or_path)

    @classmethod
    def _assembled(cls, parts: Mapping[str, Any], source: Any) -> "DiffusionPipeline":
        optional = {name: None for name in UNUSED if name in _keywords(cls)}
        parameters = signature(cls).parameters.values()
        needed = {p.name for p in parameters if p.default is Parameter.empty and p.kind is p.POSITIONAL_OR_KEYWORD}
        missing = sorted(needed - parts.keys() - optional.keys())
        if missing:
            what = f"{cls.__name__} needs {', '.join(missing)}, which the model does not have"
            raise MissingPartError(what, remedy=f"give {missing[0]}=, or load it as another pipeline")
        pipe = cls(**{**optional, **parts})
        pipe.name_or_path = str(source)
        return pipe

    @classmethod
    def from_pipe(cls, pipeline: "DiffusionPipeline", **changes: Any) -> Self:
        """Make this pipeline of another one's parts, shared, with `changes` in their place."""
        wanted = _keywords(cls)
        parts = {name: part for name, part in {**pipeline.components, **changes}.items() if name in wanted}
        return cls._assembled(parts, pipeline.name_or_path)  # type: ignore[return-value]

    def save_pretrained(self, save_directory: str | os.PathLike[str], **options: Any) -> None:
        """Write a folder that diffusers reads too; `variant=` and `max_shard_size=` as in diffusers."""
        folder = Path(save_directory)
        folder.mkdir(parents=True, exist_ok=True)
        for name, part in self.components.items():
            part = getattr(part, "_orig_mod", part)
            if isinstance(part, nn.Module | CLIPTokenizer):
                part.save_pretrained(folder / name, **options)  # type: ignore[operator]
            elif part is not None and name not in UNUSED:
                part.save_pretrained(folder / name)
        write_json(folder / "model_index.json", {**self._index(), **self._settings})

    # Where it runs

    @property
    def _modules(self) -> list[nn.Module]:
        return [part for part in self.components.values() if isinstance(part, nn.Module)]

    @property
    def device(self) -> torch.device:
        """Where the parts live; an accelerator, if any of them is on one."""
        places = [next(module.parameters()).device for module in self._modules]
        away = [place for place in places if place.type not in ("cpu", "meta")]
        return (away or places or [torch.device("cpu")])[0]

    @property
    def _execution_device(self) -> torch.device:
        return self.device

    @property
    def dtype(self) -> torch.dtype:
        """The precision of the first part."""
        return next((next(module.parameters()).dtype for module in self._modules), torch.float32)

    def to(self, *args: Any, **kwargs: Any) -> Self:
        """Move the parts to a device, a precision, or both, as `nn.Module.to`."""
        kwargs.pop("silence_dtype_warnings", None)
        for module in self._modules:
            module.to(*args, **kwargs)
        return self

    # Progress

    def progress_bar(self, iterable: Iterable[Any] | None = None, total: int | None = None) -> Any:
        """Give a tqdm bar over an iterable, or over `total` steps."""
        if iterable is None and total is None:
            raise InputError("a progress bar needs an iterable or total=", remedy="give one of the two")
        return tqdm(iterable, **self._bar) if iterable is not None else tqdm(total=total, **self._bar)

    def set_progress_bar_config(self, **options: Any) -> None:
        """Set tqdm's options, such as `disable=True`."""
        self._bar = options

    @staticmethod
    def numpy_to_pil(images: Any) -> Any:
        """(B, H, W, C) in [0, 1] -> PIL images."""
        return numpy_to_pil(images)

    # Memory switches: attention here is memory-efficient as it is

    def enable_attention_slicing(self, slice_size: Any = "auto") -> None:
        """Do nothing: attention is memory-efficient as it is."""

    def disable_attention_slicing(self) -> None:
        """Do nothing."""

    def enable_xformers_memory_efficient_attention(self, attention_op: Any = None) -> None:
        """Do nothing: attention is memory-efficient as it is."""

    def disable_xformers_memory_efficient_attention(self) -> None:
        """Do nothing."""

    def enable_model_cpu_offload(self, gpu_id: int | None = None, device: Any = None) -> None:
        """Move everything to the accelerator, if there is one: parts do not take turns there yet."""
        target = device if device is not None else "cuda" if torch.cuda.is_available() else None
        if target is None:
            return explain("enable_model_cpu_offload: there is no accelerator; the model stays where it is.")
        name = torch.device(target)
        self.to(torch.device(name.type, gpu_id) if gpu_id is not None else name)
        return explain(f"enable_model_cpu_offload: parts do not take turns yet; the whole model was moved to {target}.")

    def enable_sequential_cpu_offload(self, gpu_id: int | None = None, device: Any = None) -> None:
        """As `enable_model_cpu_offload`."""
        self.enable_model_cpu_offload(gpu_id, device)

    def maybe_free_model_hooks(self) -> None:
        """Do nothing: there are no hooks."""

    def remove_all_hooks(self) -> None:
        """Do nothing: there are no hooks."""

    def _missing(self, what: str) -> MissingPartError:
        return MissingPartError(f"{what} is not here yet", remedy="leave it out")

    def load_ip_adapter(self, *_: Any, **__: Any) -> None:
        """Raise MissingPartError."""
        raise self._missing("IP-Adapter")


SETTINGS = ("requires_safety_checker", "force_zeros_for_empty_prompt")
NAMES = (
    "vae",
    "vqvae",
    "text_encoder",
    "text_encoder_2",
    "tokenizer",
    "tokenizer_2",
    "unet",
    "controlnet",
    "scheduler",
    *UNUSED,
    *SETTINGS,
    "add_watermarker",
)


def _words_of(parts: Parts) -> dict[str, Any]:
    """What a single file reads with: a tokenizer and a text encoder, or two of each."""
    tokenizer = parts.tokenizer and CLIPTokenizer(tokenizer=parts.tokenizer)
    if not isinstance(parts.text_encoder, TextEncoderPair):
        return {"text_encoder": parts.text_encoder and CLIPTextModel.wrap(parts.text_encoder), "tokenizer": tokenizer}
    second = parts.tokenizer and CLIPTokenizer(tokenizer=replace(parts.tokenizer, pad_token=OPENCLIP_PAD))
    return {
        "text_encoder": CLIPTextModel.wrap(parts.text_encoder.text_encoder),
        "text_encoder_2": CLIPTextModelWithProjection.wrap(parts.text_encoder.text_encoder_2),
        "tokenizer": tokenizer,
        "tokenizer_2": second,
    }


def read_index(folder: Path) -> dict[str, Any]:
    """Read a model's model_index.json. Raises CheckpointError where there is none."""
    path = folder / "model_index.json"
    if not path.is_file():
        remedy = "load a single file with from_single_file, one network with its class's from_pretrained"
        raise CheckpointError("holds no model_index.json", path=folder, remedy=remedy)
    return read_json(path)


def find_pipeline(name: Any, folder: Path) -> type[DiffusionPipeline]:
    """Find the pipeline that a model_index.json names. Raises MissingPartError."""
    from safelight.compat import (  # noqa: F401  (they register themselves)
        controlnet,
        instruct_pix2pix,
        stable_diffusion,
        stable_diffusion_xl,
        unconditional,
    )

    if name not in DiffusionPipeline.pipelines:
        remedy = nearest(str(name), DiffusionPipeline.pipelines)
        raise MissingPartError(f"{folder}: the pipeline {name!r} is not here", remedy=remedy)
    return DiffusionPipeline.pipelines[name]


def _keywords(kind: type) -> set[str]:
    return set(signature(kind).parameters)


def _load_part(folder: Path, name: str, entry: list[Any], chosen: Options) -> Any:
    """Load one part of a folder, by the class that model_index.json names."""
    kind = entry[1] if len(entry) == 2 else None
    if name in UNUSED or kind is None:
        if kind is not None and name == "safety_checker":
            explain("The model comes with a safety checker; Safelight does not run it, and marks or hides no picture.")
        return None
    if kind in schedulers.SCHEDULERS:
        return schedulers.SCHEDULERS[kind].from_pretrained(folder / name)
    known = NETWORKS | WORDS
    if kind == "ControlNetModel":  # which knows pipelines, and so is not known here
        from safelight.compat.controlnet import ControlNetModel

        known[kind] = ControlNetModel
    if kind not in known:
        remedy = nearest(str(kind), [*known, *schedulers.SCHEDULERS])
        raise MissingPartError(f"{folder / name}: the class {kind!r} is not here", remedy=remedy)
    if known[kind] is CLIPTokenizer:
        return CLIPTokenizer.from_pretrained(folder / name)
    return known[kind].from_pretrained(
        folder / name, variant=_variant(folder / name, chosen.variant), dtype=chosen.dtype or "auto"
    )


def _variant(folder: Path, variant: str | None) -> str | None:
    """A variant may be there for some parts only."""
    return variant if variant is not None and any(folder.glob(f"*.{variant}*")) else None
