"""From a recipe to what `train` takes: the data set, the networks, the stage."""

import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from math import gcd
from pathlib import Path
from typing import Any

import torch
from torch import nn

from safelight import kernels
from safelight.checkpoint.detect import family
from safelight.checkpoint.load import load_autoencoder
from safelight.diffusion.schedule import noise_schedule
from safelight.errors import InputError, nearest
from safelight.models.autoencoder import Autoencoder, AutoencoderConfig
from safelight.models.conditioners import Conditioner, LayoutEmbedder
from safelight.models.presets import AUTOENCODERS, UNETS, levels
from safelight.models.unet import UNet, UNetConfig
from safelight.pipeline.bundle import LatentDiffusion
from safelight.pipeline.loading import load
from safelight.training.data.batches import Buckets, Data, PictureData
from safelight.training.data.captions import WORDINGS
from safelight.training.data.collections import Captions, open_collection
from safelight.training.data.encoding import INDEX, precompute
from safelight.training.data.latents import LatentData
from safelight.training.data.planning import MIXES
from safelight.training.data.scenes import SceneData
from safelight.training.loop.conditioners import class_names, examples, needs_scenes, new_conditioner
from safelight.training.loop.recipes import (
    FEATURES,
    AutoencoderRecipe,
    DataConfig,
    DiffusionRecipe,
    LoopConfig,
)
from safelight.training.loop.words import frozen_text, new_text_encoder, text_parts
from safelight.training.stages.autoencoder import AutoencoderStage
from safelight.training.stages.beginning import begin_linear
from safelight.training.stages.conditioning import channels_beside, token_ids
from safelight.training.stages.diffusion import DiffusionStage
from safelight.training.stages.features_net import Watch, stand_in
from safelight.training.stages.norms import check_autoencoder_norms, check_unet_norms
from safelight.training.stages.perceptual import load_perceptual
from safelight.training.stages.stage import Stage

SHEET_PROMPTS = 8
GROUPS = 32  # of group norms, where the channels allow it

# Stable Diffusion's schedule (Rombach et al. 2022 used the wider 0.0015 to 0.0195 for smaller latents).
SCHEDULER: dict[str, Any] = {
    "_class_name": "DDIMScheduler",
    "beta_schedule": "scaled_linear",
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "num_train_timesteps": 1000,
    "clip_sample": False,
    "set_alpha_to_one": False,
    "steps_offset": 1,
    "timestep_spacing": "leading",
}


@dataclass(frozen=True, eq=False)
class Assembled:
    """What a run trains and on what; `about` are facts for the model card."""

    stage: Stage
    data: Data[Any]
    about: dict[str, Any]


def assemble_diffusion(recipe: DiffusionRecipe, run: Path, device: torch.device) -> Assembled:
    """Make the second stage of a recipe. Files that must outlive the run, such as a new vocabulary, go into `run`."""
    captions: Captions = "required" if recipe.conditioning == "text" else "optional"
    data = data_set(recipe, recipe, captions=captions, layout=needs_scenes(recipe))
    classes = class_names(recipe, data)
    with seeded(recipe.seed):
        model = diffusion_model(recipe, data, classes, run).to(device, torch.float32)
    if isinstance(data, LatentData):
        data.check(model.autoencoder)
    side = latent_side(recipe, data, model.autoencoder.config)
    check_unet_norms(model.unet.config, (side, side))
    update: dict[str, Any] = {"train_text_encoder": recipe.train_text_encoder or new_text_encoder(recipe)}
    if not recipe.sheet_prompts:
        update["sheet_prompts"] = sheet_prompts(recipe, data, classes)
    shown = examples(recipe, data, device) if recipe.sheet_every else None
    with seeded(recipe.seed):  # a LoRA begins at random
        stage = DiffusionStage(model, recipe.model_copy(update=update), classes=classes, examples=shown)
    networks: dict[str, nn.Module | None] = {"U-Net": model.unet, "text encoder": model.text_encoder}
    networks["conditioner"] = model.conditioner
    return Assembled(stage, data, about(recipe, data, networks))


def assemble_autoencoder(
    recipe: AutoencoderRecipe, run: Path, device: torch.device, *, watch: Watch = lambda step, loss, found: None
) -> Assembled:
    """Make the first stage of a recipe. `watch` is told of stand-in features' training, if there must be any first."""
    data = data_set(recipe, recipe, captions="optional")
    if isinstance(data, LatentData):
        raise InputError("an autoencoder is trained on pictures, not on latents", remedy="name the pictures' folder")
    if recipe.compile and recipe.r1_gamma:
        what = "r1_gamma takes the gradient of a gradient, which torch.compile does not"
        raise InputError(what, remedy="train without --compile, or without --r1-gamma")
    if recipe.decoder_only and recipe.init is None:
        raise InputError("decoder_only needs an autoencoder to go on from", remedy="name it with --init")
    given = None if recipe.init is None else load_autoencoder(recipe.init, dtype=torch.float32)
    config = given.config if given is not None else autoencoder_config(recipe)
    latent_side(recipe, data, config)
    check_autoencoder_norms(config, (recipe.size, recipe.size))
    perceptual = load_perceptual(recipe.lpips_vgg, recipe.lpips_heads, recipe.features)
    if perceptual is None and recipe.perceptual_weight and recipe.features_steps:
        path, steps = run / FEATURES, recipe.features_steps
        perceptual = stand_in(path, data, steps=steps, seed=recipe.seed, device=device, watch=watch)
    with seeded(recipe.seed):
        autoencoder = given if given is not None else begin_linear(Autoencoder(config))
        autoencoder.requires_grad_(True).to(device)
        stage = AutoencoderStage(autoencoder, recipe, data, perceptual=perceptual, seed=recipe.seed)
    return Assembled(stage, data, about(recipe, data, {"autoencoder": autoencoder}))


class seeded:  # noqa: N801  (a context manager)
    """Within the block torch's global generator is seeded; after it, it goes on where it was."""

    def __init__(self, seed: int) -> None:
        self.seed = seed

    def __enter__(self) -> None:
        self.before = torch.get_rng_state()
        torch.manual_seed(self.seed)

    def __exit__(self, *_: object) -> None:
        torch.set_rng_state(self.before)


def data_set(
    recipe: DataConfig, loop: LoopConfig | None = None, *, captions: Captions = "optional", layout: bool = False
) -> Data[Any]:
    """The data set of a recipe: pictures, scenes composed of them (with their `layout`), or precomputed latents."""
    if (Path(recipe.data) / INDEX).is_file():
        return LatentData(recipe.data)
    collection = open_collection(
        recipe.data, captions="optional" if recipe.scenes else captions, max_broken=recipe.max_broken
    )
    if recipe.scenes:
        mix = MIXES[recipe.mix]
        mix = replace(mix, counts=recipe.objects) if recipe.objects else mix
        cache = Path(recipe.cache) if recipe.cache else None
        return SceneData(
            collection,
            size=recipe.size,
            mix=mix,
            wording=WORDINGS.get(recipe.mix),
            classes=recipe.classes,
            layout=layout,
            cache=cache,
        )
    return PictureData(
        collection.labelled(),
        size=recipe.size,
        crop=recipe.crop,
        flip=recipe.flip,
        flip_words="swap",
        keyword_substitution=recipe.keyword_substitution,
        buckets=Buckets(recipe.size) if recipe.buckets else None,
        batch_size=loop.batch_size // loop.accumulate if loop else 1,
    )


def sheet_prompts(recipe: DiffusionRecipe, data: Data[Any], classes: Sequence[str]) -> tuple[str, ...]:
    """What to draw on sheets if nobody says: some classes, or the captions of some samples."""
    if recipe.conditioning == "class":
        return tuple(classes[:SHEET_PROMPTS])
    return tuple(data.captions(recipe.seed, SHEET_PROMPTS)) if recipe.conditioning == "text" else ()


def about(recipe: DataConfig, data: Data[Any], networks: dict[str, nn.Module | None]) -> dict[str, Any]:
    """Facts for the model card."""
    kind = "latents" if isinstance(data, LatentData) else "sprites, composed to scenes" if recipe.scenes else "pictures"
    parameters = {
        f"parameters of the {name}": f"{sum(p.numel() for p in network.parameters()):,}"
        for name, network in networks.items()
        if network is not None
    }
    return {"data": f"{Path(recipe.data).name}: {len(data):,} {kind}", "size": recipe.size, **parameters}


def precomputed(
    recipe: DataConfig,
    folder: Path,
    *,
    autoencoder: str,
    text_encoder: str | None,
    device: torch.device,
    **options: Any,
) -> None:
    """Write a data set as latents to `folder`, with what a frozen text encoder says; `options` as in `precompute`."""
    data, first = data_set(recipe), load_autoencoder(autoencoder, device=device, dtype=torch.float32)
    text = None
    if text_encoder is not None:
        tokenizer, network = frozen_text(text_encoder, device)

        def text(captions: list[str]) -> torch.Tensor:
            return network(token_ids(tokenizer, captions).to(device)).last_hidden_state

    kernels.prepare(first)
    with torch.no_grad():
        precompute(data, first, folder, text=text, device=device, about=str(text_encoder), **options)


def diffusion_model(recipe: DiffusionRecipe, data: Data[Any], classes: Sequence[str], run: Path) -> LatentDiffusion:
    """The model to train: `init`'s, or a new one around the given first stage."""
    if recipe.lora_rank and (recipe.init is None or recipe.parallel == "fsdp"):
        if recipe.init is None:
            raise InputError("a LoRA needs a model that it is for", remedy="name it with --init")
        raise InputError("a LoRA is too small to be sharded", remedy="use --parallel ddp")
    if recipe.init is not None:
        model = load(recipe.init, device="cpu", dtype=torch.float32, vae=recipe.autoencoder)
        if recipe.concat == "class_map" and model.conditioner is None:
            model = replace(model, conditioner=new_conditioner(recipe, data))
        return tuned(model, recipe)
    if recipe.autoencoder is None:
        remedy = "name it with --autoencoder (`safelight train autoencoder` makes one), or use --init"
        raise InputError("training the second stage needs a first one", remedy=remedy)
    autoencoder = load_autoencoder(recipe.autoencoder, dtype=torch.float32)
    tokenizer, text_encoder = text_parts(recipe, data, run) if recipe.conditioning == "text" else (None, None)
    side = latent_side(recipe, data, autoencoder.config)
    conditioner = new_conditioner(recipe, data)
    told = text_encoder.config.hidden_size if text_encoder is not None else context_width(conditioner)
    unet = UNet(unet_config(recipe, autoencoder.config, told, len(classes), side))
    return tuned(
        LatentDiffusion(
            unet=unet,
            autoencoder=autoencoder,
            schedule=noise_schedule(),
            text_encoder=text_encoder,
            tokenizer=tokenizer,
            conditioner=conditioner,
            family=family(unet.config.to_diffusers(), has_text=text_encoder is not None),
            name="new",
            scheduler_config=SCHEDULER,
        ),
        recipe,
    )


def latent_side(recipe: DataConfig, data: Data[Any], first: AutoencoderConfig) -> int:
    """The side of the latents that the data gives. Raises InputError for pictures that the first stage cannot halve."""
    if isinstance(data, LatentData):
        return data.shards[0].shape("moments")[-1]
    side, rest = divmod(recipe.size, first.factor)
    if rest:
        what = f"pictures of {recipe.size} pixels do not fit a first stage that shrinks them {first.factor} times"
        raise InputError(what, remedy=f"train at {max(side, 1) * first.factor}, or another multiple of {first.factor}")
    return side


def tuned(model: LatentDiffusion, recipe: DiffusionRecipe) -> LatentDiffusion:
    """The model with the recipe's prediction type and schedule, and with input channels for what it is to see."""
    config = {**SCHEDULER, **model.scheduler_config}
    config["prediction_type"] = recipe.prediction_type or model.prediction_type
    schedule = model.schedule
    if recipe.zero_terminal_snr:
        config |= {"_class_name": "DDIMScheduler", "rescale_betas_zero_snr": True, "timestep_spacing": "trailing"}
        shape = {key: config[key] for key in ("beta_schedule", "beta_start", "beta_end", "num_train_timesteps")}
        schedule = noise_schedule(**shape, rescale_betas_zero_snr=True)
    latent = model.autoencoder.config.embed_dim
    beside = channels_beside(recipe.concat, latent)
    unet = widened(model.unet, latent + beside) if beside and model.unet.config.in_channels == latent else model.unet
    return replace(
        model,
        unet=unet,
        schedule=schedule,
        scheduler_config=config,
        prediction_type=config["prediction_type"],
        family=family(unet.config.to_diffusers(), has_text=model.text_encoder is not None),
    )


def widened(unet: UNet, in_channels: int) -> UNet:
    """The U-Net with further input channels, whose weights begin at zero, as in Stable Diffusion's inpainting model."""
    wider = UNet(replace(unet.config, in_channels=in_channels))
    state = dict(unet.state_dict())
    kernel = torch.zeros_like(wider.conv_in.weight)
    kernel[:, : unet.config.in_channels] = state["conv_in.weight"]
    wider.load_state_dict({**state, "conv_in.weight": kernel})
    return wider


def unet_config(
    recipe: DiffusionRecipe, first: AutoencoderConfig, told: int | None, classes: int, side: int
) -> UNetConfig:
    """The U-Net's shape: a preset's or a file's, or drawn by the recipe, for this first stage and context.

    told: the width of the context, None without one. classes: how many a new table is for.
    """
    own: dict[str, Any] = {"in_channels": first.embed_dim, "out_channels": first.embed_dim, "sample_size": side}
    if recipe.conditioning == "class":
        own["num_class_embeds"] = classes + 1
    if told is not None:
        own["cross_attention_dim"] = told
    if recipe.unet is None:
        return UNetConfig(**drawn_levels(recipe, told is not None), **own)
    if recipe.unet in UNETS:
        return replace(UNETS[recipe.unet], **own)
    path = Path(recipe.unet)
    if not path.is_file():
        raise InputError(f"unet={recipe.unet!r} is neither a preset nor a file", remedy=nearest(recipe.unet, UNETS))
    return replace(UNetConfig.from_diffusers(json.loads(path.read_text(encoding="utf-8"))), **own)


def context_width(conditioner: Conditioner | None) -> int | None:
    """The width of the context that a conditioner gives, if it gives one."""
    return conditioner.config.embed_dim if isinstance(conditioner, LayoutEmbedder) else None


def drawn_levels(recipe: DiffusionRecipe, context: bool) -> dict[str, Any]:
    """The levels that `channels`, `multipliers`, `attention`, `layers` and `head_channels` describe."""
    widths = tuple(recipe.channels * m for m in recipe.multipliers)
    factors = [2**i for i in range(len(widths))]
    usual = type(recipe).model_fields["attention"].default  # however few levels there are
    if recipe.attention != usual and (strange := set(recipe.attention) - set(factors)):
        what = f"attention={','.join(map(str, sorted(strange)))}: no level of the U-Net shrinks latents so far"
        raise InputError(what, remedy=f"its {len(widths)} levels have the factors {', '.join(map(str, factors))}")
    attention = "CrossAttn" if context else "Attn"
    kinds = [attention if 2**i in recipe.attention else "" for i in range(len(widths))]
    # In UNetConfig, as in diffusers, this word means the number of heads beside a context, and a head's width without.
    heads = tuple(max(width // recipe.head_channels, 1) for width in widths) if context else recipe.head_channels
    return {
        **levels(*kinds),
        "mid_block_type": "UNetMidBlock2DCrossAttn" if context else "UNetMidBlock2D",
        "block_out_channels": widths,
        "layers_per_block": recipe.layers,
        "attention_head_dim": heads,
        "norm_num_groups": groups(widths),
    }


def groups(widths: Sequence[int]) -> int:
    """Into how many groups norms split these widths: 32, or as many as leave two channels in each.

    A norm of one channel takes its mean and strength away: nothing would be left of a plain picture's colour.
    """
    return gcd(GROUPS, *widths, max(min(widths) // 2, 1))


def autoencoder_config(recipe: AutoencoderRecipe) -> AutoencoderConfig:
    """The first stage's shape: a preset's, or drawn by the recipe."""
    if recipe.preset is not None:
        if recipe.preset not in AUTOENCODERS:
            raise InputError(f"preset={recipe.preset!r} is unknown", remedy=nearest(recipe.preset, AUTOENCODERS))
        return replace(AUTOENCODERS[recipe.preset], sample_size=recipe.size)
    widths = tuple(recipe.channels * m for m in recipe.multipliers)
    return AutoencoderConfig(
        block_out_channels=widths,
        down_block_types=("DownEncoderBlock2D",) * len(widths),
        up_block_types=("UpDecoderBlock2D",) * len(widths),
        layers_per_block=recipe.layers,
        latent_channels=recipe.latent_channels,
        num_vq_embeddings=recipe.codes if recipe.kind == "vq" else None,
        norm_num_groups=groups(widths),
        sample_size=recipe.size,
        scaling_factor=1.0,
    )
