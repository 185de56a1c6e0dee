"""What a run of training can be told, each thing named, bounded and explained once.

A recipe is the options of `safelight train …`, what the loop and the stage read, and the run's config.json, all in one
pydantic model. This module is light: the command line imports it.
"""

import json
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from safelight.errors import InputError, nearest
from safelight.training.stages.autoencoder_config import (
    AutoencoderTraining,
    Beta,
    Count,
    LearningRate,
    Positive,
    Share,
    WeightDecay,
)

CONFIG, TOKENIZER, FEATURES = "config.json", "tokenizer", "features.safetensors"  # what a run is begun with


class _Options(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class LoopConfig(_Options):
    """How long and how fast to train, and what to keep of it; the same for both stages."""

    steps: Positive = Field(100_000, description="optimizer steps in all")
    batch_size: Positive = Field(32, description="samples of one step, over all passes and processes")
    accumulate: Positive = Field(1, description="passes that make one step; more of them need less memory")
    seed: Count = Field(0, description="of the data's order, of noise and of new weights")
    warmup: Count = Field(1000, description="steps over which the learning rate rises")
    course: Literal["constant", "cosine", "linear"] = Field("constant", description="of the learning rate after that")
    clip: float = Field(1.0, ge=0, description="largest norm of the gradients; 0 clips nothing")
    precision: Literal["float32", "bfloat16"] = Field(
        "float32", description="of the passes (autocast); weights and moments are float32 always"
    )
    ema_decay: Share = Field(0.9999, description="of the moving average that is drawn with and saved; 0 keeps none")
    ema_lengths: tuple[float, ...] = Field((), description="sigma_rel of power-function averages, such as 0.05 0.1")
    ema_snapshot_every: Count = Field(0, description="steps between stored snapshots of those; 0 stores none")
    parallel: Literal["ddp", "fsdp"] = Field("ddp", description="whole copies, or shards, where torchrun runs several")
    compile: bool = Field(False, description="compile the networks: minutes at the start, faster steps on a GPU")
    channels_last: bool = Field(False, description="keep convolutions' memory in NHWC order, faster on a GPU")
    gradient_checkpointing: bool = Field(False, description="compute activations twice rather than keep them")
    workers: Count = Field(0, description="processes that prepare data; 0 prepares it between the steps")
    log_every: Positive = Field(50, description="steps between lines of the log")
    checkpoint_every: Positive = Field(1000, description="steps between checkpoints")
    keep: Annotated[int, Field(ge=1)] = Field(2, description="checkpoints to keep")
    sheet_every: Count = Field(1000, description="steps between sheets of pictures; 0 draws none")
    skipped_in_a_row: Positive = Field(20, description="steps with a loss that is not finite, after which to stop")


class DiffusionConfig(_Options):
    """The second stage: the loss, what steers the network, and the optimizer."""

    learning_rate: LearningRate = 1e-4
    weight_decay: WeightDecay = 0.01
    beta1: Beta = 0.9
    beta2: Beta = 0.999
    conditioning: Literal["text", "class", "layout", "none"] = Field(
        "text", description="what steers the network; layouts are boxes of objects, which only scenes have"
    )
    train_text_encoder: bool = Field(
        False, description="train the text encoder along, as the first LDMs did; a new one always is"
    )
    lora_rank: int = Field(0, ge=0, le=1024, description="of a LoRA to train in place of the model; 0 trains the model")
    lora_alpha: float | None = Field(None, gt=0, description="the LoRA is added by alpha/rank; by default by 1")
    lora_layers: Literal["attention", "linear"] = Field("attention", description="which layers a LoRA adds to")
    concat: Literal["none", "low_resolution", "mask", "class_map"] = Field(
        "none", description="what the network sees beside the noisy latent; only scenes have maps of classes"
    )
    condition_dropout: Share = Field(0.1, description="share of samples that train the null condition, for guidance")
    weighting: Literal["uniform", "min_snr"] = Field("uniform", description="of the loss over noise levels")
    snr_gamma: float = Field(5.0, gt=0, description="of min_snr (Hang et al. 2023)")
    distance: Literal["l2", "l1"] = Field("l2", description="between the network's answer and the target")
    timesteps: Literal["uniform", "logit_normal"] = Field("uniform", description="distribution of training timesteps")
    logit_mean: float = Field(0.0, description="of logit_normal (Esser et al. 2024)")
    logit_std: float = Field(1.0, gt=0, description="of logit_normal")
    stratified: bool = Field(False, description="spread the timesteps evenly over each batch")
    offset_noise: float = Field(
        0.0, ge=0, description="noise common to a channel's pixels, for dark and bright pictures"
    )
    sheet_prompts: tuple[str, ...] = Field((), description="to draw on every sheet; by default captions of the data")
    sheet_steps: Positive = Field(30, description="sampling steps of a sheet")
    sheet_guidance: float = Field(5.0, ge=0, le=100, description="guidance of sheets; the model names it as its own")


class DataConfig(_Options):
    """Which pictures, and what is done to them."""

    data: str = Field(description="folder, zip, tar shards or precomputed latents of captioned pictures")
    size: Positive = Field(256, description="side of the training pictures in pixels")
    crop: Literal["center", "random"] = Field("center", description="which part of a picture that is not square")
    flip: Share = Field(0.0, description="share of pictures to mirror")
    keyword_substitution: Share = Field(0.0, description="share of captions whose name is replaced by a keyword")
    buckets: bool = Field(False, description="keep aspect ratios: batches of several shapes")
    scenes: bool = Field(False, description="compose scenes of a collection of sprites")
    mix: Literal["varied", "simple", "placed"] = Field(
        "varied",
        description="what scenes show; simple: mostly one large thing on a plain ground, sooner learned; placed: half "
        "of those things smaller and aside",
    )
    objects: tuple[Share, ...] = Field((), description="weights of scenes of 1, 2, 3, 4 objects; by default the mix's")
    cache: str | None = Field(None, description="folder to keep sprites in that were made ready, for the next time")
    classes: str = Field("group", description="column of a sprite table that names the class of a scene's object")
    max_broken: Share = Field(0.01, description="share of pictures that may be broken and are skipped")


class DiffusionModelConfig(_Options):
    """The networks of the second stage, where they are not `init`'s."""

    init: str | None = Field(None, description="a model to go on from: all its weights are tuned, or a LoRA for it")
    autoencoder: str | None = Field(None, description="the first stage: a folder or file, from `train autoencoder` say")
    prediction_type: Literal["epsilon", "v_prediction", "sample"] | None = Field(
        None, description="what the U-Net predicts; by default init's, or epsilon"
    )
    zero_terminal_snr: bool = Field(False, description="let the last timestep be pure noise (Lin et al. 2023)")
    unet: str | None = Field(None, description="a preset such as sd15, or a config.json; by default drawn as below")
    channels: Positive = Field(128, description="of the U-Net's first level; every level's is a multiple of it")
    multipliers: tuple[int, ...] = Field((1, 2, 4), description="of `channels`, one for each level")
    attention: tuple[int, ...] = Field((2, 4), description="down-sampling factors of the levels that have attention")
    layers: Positive = Field(2, description="residual blocks of a level")
    head_channels: Positive = Field(32, description="width of an attention head")
    text_encoder: str | None = Field(
        None, description="a model whose text encoder and tokenizer to take; else a new one"
    )
    text_width: Positive = Field(256, description="of a new text encoder")
    text_layers: Positive = Field(4, description="of a new text encoder")
    text_length: int = Field(77, ge=8, description="tokens that a new text encoder reads; the longer, the slower")
    layout_width: Positive = Field(256, description="of a new embedder of layouts, a multiple of 64")
    layout_layers: Positive = Field(2, description="of a new embedder of layouts")
    vocabulary_size: Positive = Field(4096, description="of a new text encoder's vocabulary, trained on the captions")


class PerceptualConfig(_Options):
    """Where the perceptual loss has its network from."""

    lpips_vgg: str | None = Field(None, description="torchvision's VGG16 weights, for LPIPS")
    lpips_heads: str | None = Field(None, description="the lpips package's linear heads, vgg.pth")
    features: str | None = Field(None, description="stand-in features trained here, where LPIPS' files are not at hand")


class AutoencoderModelConfig(PerceptualConfig):
    """The networks of the first stage."""

    init: str | None = Field(None, description="an autoencoder, or a model with one, to go on from")
    preset: str | None = Field(
        None,
        description="one of the paper's, such as kl_f8, its losses, batches and rates as well; else as below",
    )
    kind: Literal["kl", "vq"] = Field("kl", description="of the bottleneck: a Gaussian or a codebook")
    channels: Positive = Field(64, description="of the first level; every level's is a multiple of it")
    multipliers: tuple[int, ...] = Field((1, 2, 4), description="of `channels`; n levels make f = 2^(n-1)")
    layers: Positive = Field(2, description="residual blocks of a level")
    latent_channels: Positive = Field(4, description="of the latent")
    codes: Positive = Field(8192, description="in the codebook of a vq autoencoder")


class DecoderModelConfig(PerceptualConfig):
    """The network of a tiny decoder, and whose work it is to do."""

    autoencoder: str = Field(description="the first stage whose decoder it learns from: a folder, a file or a model")
    init: str | None = Field(None, description="a tiny decoder to go on from")
    channels: Positive = Field(32, description="of the last level, the picture's; every level's is a multiple of it")
    multipliers: tuple[int, ...] = Field(
        (), description="of `channels`, for each level from the picture's to the latent's; by default 1,2,2,…"
    )
    layers: Positive = Field(3, description="blocks of a level; the picture's own has one")


class DecoderConfig(_Options):
    """How a tiny decoder learns."""

    learning_rate: LearningRate = 1e-3
    weight_decay: WeightDecay = 0.0
    beta1: Beta = 0.9
    beta2: Beta = 0.99
    target: Literal["decoded", "picture"] = Field(
        "decoded", description="what to give: what the autoencoder decodes, or the picture that it encoded"
    )
    pixel_loss: Literal["l1", "l2"] = Field("l1", description="between that and what is given")
    perceptual_weight: float = Field(
        0.0, ge=0, description="of LPIPS, or of stand-in features, beside the pixels; needs their files"
    )
    sheet_pictures: Positive = Field(8, description="pictures that a sheet shows")


class AutoencoderRecipe(DataConfig, AutoencoderModelConfig, AutoencoderTraining, LoopConfig):
    """All of `safelight train autoencoder`."""


class DecoderRecipe(DataConfig, DecoderModelConfig, DecoderConfig, LoopConfig):
    """All of `safelight train decoder`."""


class DiffusionRecipe(DataConfig, DiffusionModelConfig, DiffusionConfig, LoopConfig):
    """All of `safelight train diffusion`."""


# How it is computed, for a run that turned out to need more memory than there is
COMPUTED = {"accumulate", "compile", "precision", "channels_last", "gradient_checkpointing", "parallel", "workers"}
# The mix of scenes is among them, so that a training can go from simple ones to varied ones.
MAY_CHANGE = {"steps", "mix", "log_every", "checkpoint_every", "keep", "sheet_every", "skipped_in_a_row",
              "sheet_prompts", "sheet_steps", "sheet_guidance", "sheet_pictures", "sheet_difference",
              "max_broken", "cache", *COMPUTED}  # fmt: skip


def recipe_of(kind: type[BaseModel], values: Mapping[str, Any]) -> Any:
    """Make a recipe of plain values. Raises InputError naming the field, its limit and the value."""
    for name in values:
        if name not in kind.model_fields:
            raise InputError(f"unknown option {name!r}", remedy=nearest(name, kind.model_fields))
    try:
        return kind(**values)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        name = str(first["loc"][0])
        what = f"{name}={first['input']!r}: {first['msg'].lower()}" if name in values else f"{name} is missing"
        raise InputError(what, remedy=f"{name}: {kind.model_fields[name].description}") from None


def recipe_for(run: Path, stage: str, kind: type[BaseModel], given: Mapping[str, Any]) -> Any:
    """The recipe of the run in folder `run`: what its config.json says, if there is one, and what is `given`.

    Raises InputError where `given` changes what a run cannot change any more (all but `MAY_CHANGE`), where `run` holds
    another stage or other things, and as `recipe_of` does. Writes nothing.
    """
    old: dict[str, Any] = {}
    if (run / CONFIG).exists():
        content = read_run(run)
        old = content["recipe"]
        if content["stage"] != stage:
            raise InputError(f"{run} is a run of the stage {content['stage']}", remedy="name another folder with --run")
    elif run.is_dir() and any(not file.name.startswith(".") for file in run.iterdir()):
        raise InputError(f"{run} holds other things than a run", remedy="name a new or an empty folder with --run")
    recipe = recipe_of(kind, {**old, **given})
    new = json.loads(recipe.model_dump_json())
    fixed = new.keys() - MAY_CHANGE | ({"accumulate"} if new.get("buckets") else set())  # batches of one shape a pass
    changed = [name for name in new if old and new[name] != old.get(name, new[name]) and name in fixed]
    if changed:
        what = ", ".join(f"{name}={old[name]!r}, not {new[name]!r}" for name in changed)
        raise InputError(f"{run} was begun with {what}", remedy="leave these as they were, or name another run")
    return recipe


@contextmanager
def written_run(run: Path, stage: str, recipe: BaseModel, *, first: bool = True) -> Iterator[None]:
    """Write the run's config.json. If the block fails before it trains, the run is left as it was, or is not there.

    first: whether this is the process that writes.
    """
    from safelight.checkpoint.writing import write_json

    config = run / CONFIG
    old, before = config.read_bytes() if config.exists() else None, _training(run)
    try:
        if first:
            run.mkdir(parents=True, exist_ok=True)
            write_json(config, {"stage": stage, "recipe": json.loads(recipe.model_dump_json())})
        yield
    except BaseException:
        if first and _training(run) == before:
            _withdraw(run, old)
        raise


def _training(run: Path) -> tuple[int, int] | None:
    """What changes whenever a training begins or goes on: it writes its log anew."""
    from safelight.training.loop.log import LOG

    return ((run / LOG).stat().st_ino, (run / LOG).stat().st_mtime_ns) if (run / LOG).exists() else None


def _withdraw(run: Path, config: bytes | None) -> None:
    """Give a run the config.json that it had; without one, take away what it was begun with."""
    from safelight.writing import replacing

    if config is not None:
        with replacing(run / CONFIG) as file:
            file.write(config)
        return
    shutil.rmtree(run / TOKENIZER, ignore_errors=True)
    for name in (FEATURES, CONFIG):
        (run / name).unlink(missing_ok=True)
    for folder in (run / "checkpoints", run):
        with suppress(OSError):  # it is not there, or holds other things
            folder.rmdir()


def read_run(run: Path) -> dict[str, Any]:
    """Read a run's config.json: {"stage": …, "recipe": {…}}. Raises InputError where there is none."""
    try:
        content = json.loads((run / CONFIG).read_bytes())
        return {"stage": str(content["stage"]), "recipe": dict(content["recipe"])}
    except (OSError, ValueError, KeyError, TypeError) as error:
        what = f"{run} holds no readable {CONFIG} ({error})"
        raise InputError(what, remedy="name the --run folder of a training") from error
