"""What is this file? Its family and the configs of its networks, read from the names and shapes of its tensors alone.

Nothing here looks at a number inside a tensor. What shapes cannot tell (the number of heads, the prediction type) is
taken from a preset that agrees in everything else, else from the family's rule, and a caller who knows better says so.
"""

from dataclasses import asdict, dataclass
from typing import Any

from safelight.checkpoint import layouts
from safelight.checkpoint.configs import default_scheduler
from safelight.checkpoint.detect_text import HEAD_WIDTH, text_configs, text_dialect
from safelight.checkpoint.errors import WrongModel
from safelight.checkpoint.files import Tensors
from safelight.checkpoint.parts import LDM_INPAINT, Parts
from safelight.checkpoint.shapes import Shapes, shapes_of
from safelight.models import presets
from safelight.models.autoencoder_config import SD_SCALING_FACTOR
from safelight.models.embedding import SIZES
from safelight.models.unet_config import UNetConfig

Config = dict[str, Any]

_DRAWN = "Safelight draws with Stable Diffusion 1, 2 and XL, and with the latent-diffusion family"
_TRAINED_FOR = "load the model that it was trained for; this file only changes or steers one"
_STEERS = "load the model that it was trained for, and give it this file with --control"
# What people hand over instead of a model: pieces of its tensors' names, what it is, what to do.
STRANGERS = (
    (("lora_up.", "lora_down.", "lora_A.", "lora_B.", "lora.up.", "hada_w1_a", "lokr_w1"), "a LoRA", _TRAINED_FOR),
    (("control_model.", "controlnet_cond_embedding.", "input_hint_block."), "a ControlNet", _STEERS),
    (("joint_blocks.",), "Stable Diffusion 3", _DRAWN),
    (("double_blocks.", "single_transformer_blocks."), "Flux, or another transformer of its kind", _DRAWN),
    (("motion_modules.",), "an AnimateDiff motion module", _TRAINED_FOR),
    (("ip_adapter.", "image_proj."), "an IP-Adapter", _TRAINED_FOR),
    (("string_to_param.", "emb_params"), "a textual inversion", "load a model, and give it this file with --embedding"),
    (("vision_model.",), "an image encoder of CLIP, or the safety checker", "name the model itself"),
    (("adaLN_modulation", "scale_shift_table"), "a diffusion transformer", _DRAWN),
)
REFINER = "is Stable Diffusion XL's refiner, which is not drawn with here"
CONCATENATED = {9: "-inpaint", 5: "-depth", 8: "-edit", 7: "-upscale"}  # U-Net input channels beyond the latent's 4
IMAGENET = 1000  # classes
XL_WIDTH, REFINER_WIDTH = 2816, 2560  # of all that Stable Diffusion XL's U-Nets are told beside the words
SIZE_WIDTH = 256  # of each size among it


@dataclass(frozen=True)
class Detected:
    """What a single file holds: its family, and the config of each network in diffusers' words (None: not in it)."""

    family: str
    unet: Config
    autoencoder: Config | None
    text_encoder: Config | None
    text_dialect: str | None  # "clip", "clip_flat", "openclip", "pair"; or None, for none or one not drawn here
    scheduler: Config | None = None  # what the file notes, else what models of its kind were trained with
    conditioner: Config | None = None
    classes: tuple[str, ...] = ()
    guidance_scale: float = Parts.guidance_scale
    text_encoder_2: Config | None = None
    force_zeros_for_empty_prompt: bool = False


def _told_by_shapes(config: UNetConfig) -> Config:
    values = asdict(config)
    return {key: values[key] for key in values.keys() - {"attention_head_dim", "sample_size"}}


def detect(file: Tensors) -> Detected:
    """Recognise a single-file model. Raises WrongModel saying what the file is, if it is something else."""
    shapes = shapes_of(file)
    refuse_strangers(shapes, file.path)
    if f"{layouts.UNET}input_blocks.0.0.weight" not in shapes:
        raise _no_model(shapes, file.path)
    dialect = text_dialect(shapes)
    text_encoder, text_encoder_2 = text_configs(shapes, dialect)
    unet = unet_config(shapes.under(layouts.UNET), text_encoder_2["projection_dim"] if text_encoder_2 else None)
    stage = shapes.under(layouts.FIRST_STAGE)
    preset = published(unet)
    unet, autoencoder = like_a_preset(preset, unet, autoencoder_config(stage) if stage else None)
    kind = family(unet, has_text=dialect is not None)
    if unet["_class_name"] == "UNet2DModel" and unet["in_channels"] == 2 * unet["out_channels"] + 1:
        kind = LDM_INPAINT  # of models that were trained here, the files note another family
    if kind.startswith("sdxl") and preset is None:  # of another depth, or seeing more
        unet["sample_size"] = presets.SDXL.sample_size
        if autoencoder is not None and autoencoder["scaling_factor"] == SD_SCALING_FACTOR:
            autoencoder |= {"scaling_factor": presets.SDXL_AUTOENCODER.scaling_factor, "sample_size": 1024}
    return Detected(
        family=kind,
        unet=unet,
        autoencoder=autoencoder,
        scheduler=default_scheduler(kind, presets.BETAS[preset] if preset else None),
        text_encoder=text_encoder,
        text_encoder_2=text_encoder_2,
        text_dialect=dialect,
        conditioner=conditioner_config(shapes.under(layouts.COND_STAGE)),
        force_zeros_for_empty_prompt=kind.startswith("sdxl"),
    )


def published(unet: Config) -> str | None:
    """The name of the first published model whose U-Net has these shapes."""
    told = _told_by_shapes(UNetConfig.from_diffusers(unet))
    return next((name for name, preset in presets.UNETS.items() if _told_by_shapes(preset) == told), None)


def like_a_preset(name: str | None, unet: Config, autoencoder: Config | None) -> tuple[Config, Config | None]:
    """Take what shapes cannot tell (heads, native size, scaling) from the published model of this name, if any."""
    if name is None:
        return unet, autoencoder
    stage = presets.AUTOENCODERS[name]
    if autoencoder is not None and autoencoder["_class_name"] == stage.kind:
        autoencoder |= {"scaling_factor": stage.scaling_factor, "sample_size": stage.sample_size}
    return presets.UNETS[name].to_diffusers(), autoencoder


def refuse_strangers(shapes: Shapes, path: object) -> None:
    """Raise WrongModel where a tensor's name tells that this is no latent diffusion model."""
    for marks, kind, remedy in STRANGERS:
        for key in shapes:
            if any(mark in key for mark in marks):
                raise WrongModel(f"is {kind}, which cannot be loaded as a model", path=path, key=key, remedy=remedy)
    labels = shapes.get(f"{layouts.UNET}label_emb.0.0.weight", (0, 0))
    if labels[-1] == REFINER_WIDTH:
        raise WrongModel(REFINER, path=path, remedy="load the base model: it draws whole pictures")


def _no_model(shapes: Shapes, path: object) -> WrongModel:
    if any(is_autoencoder(shapes.under(prefix)) for prefix in layouts.FIRST_STAGES):
        what = "holds an autoencoder alone"
        return WrongModel(what, path=path, remedy="load a model, and give this file as its vae=")
    if shapes.any("down_blocks.") or shapes.any("text_model."):
        what = "holds one network of a diffusers folder"
        return WrongModel(what, path=path, remedy="name the folder that holds model_index.json, two levels up")
    if 0 < len(shapes) <= 2:
        return WrongModel("holds so few tensors that it may be a textual inversion", path=path,
                          remedy="load a model, and give it this file with --embedding")  # fmt: skip
    what = f"holds no U-Net in the CompVis layout; its {len(shapes)} tensors are named like {next(iter(shapes), '-')!r}"
    return WrongModel(what, path=path, remedy="name a Stable Diffusion checkpoint, or a latent-diffusion one")


def family(unet: Config, *, has_text: bool) -> str:
    """Name the family of a U-Net: sd1, sd2, sdxl (each with -inpaint, -depth, -edit, -upscale, -unclip), or ldm.

    SD XL is told of sizes. SD 2 has linear projections around its transformers. SD 1 has none, and CLIP beside it, or
    CLIP's width of context. The upscaler is told how much noise its small picture has, by a table; others that see one
    are not.
    """
    if "cross_attention_dim" not in unet or unet.get("_class_name") == "UNet2DModel":
        return "ldm"
    plain = unet["in_channels"] == unet.get("out_channels")  # a latent of 8 channels has no picture beside it
    extra = "" if plain else CONCATENATED.get(unet["in_channels"], "")
    if extra == "-upscale" and unet.get("num_class_embeds") is None:
        extra = ""
    if unet.get("class_embed_type") == "projection":  # of an image's embedding by CLIP, with its noise level
        extra = "-unclip"
    if unet.get("addition_embed_type"):
        return "sdxl" + extra
    if unet.get("use_linear_projection"):
        return "sd2" + extra
    is_sd1 = has_text or (unet["cross_attention_dim"], unet["block_out_channels"][0]) == (768, 320)
    return "sd1" + extra if is_sd1 else "ldm"


def unet_config(shapes: Shapes, pooled: int | None = None) -> Config:
    """The diffusers config of a CompVis U-Net, names without "model.diffusion_model.".

    `pooled` is how wide Stable Diffusion XL's second text encoder says a whole text, which such a U-Net is told with
    sizes in place of labels.
    """
    blocks = shapes.count("output_blocks.")
    ups = [n for n in range(blocks) if _upsamples(shapes, n)]
    per_level = ups[0] + 1 if ups else blocks  # residual blocks of a level on its way up: one more than down
    levels = blocks // max(per_level, 1)
    first = [1 + i * per_level for i in range(levels)]  # the first input block of each level
    channels = [shapes[f"input_blocks.{n}.0.out_layers.3.weight"][0] for n in first]
    places = [f"input_blocks.{n}.1." for n in first]
    kinds = [_attention(shapes, place) for place in places]
    by_resnet = levels > 1 and not any(".0.op." in key for key in shapes)
    resnet = [by_resnet] * levels
    config: Config = {
        "in_channels": shapes["input_blocks.0.0.weight"][1],
        "out_channels": shapes["out.2.weight"][0],
        "block_out_channels": channels,
        "layers_per_block": per_level - 1,
        # the last level does not halve, the first does not double
        "down_block_types": list(map(_block_type, kinds, ["Down"] * levels, [*resnet[1:], False])),
        "up_block_types": list(map(_block_type, kinds, ["Up"] * levels, [False, *resnet[1:]]))[::-1],
        **_class_config(shapes, pooled),
    }
    if shapes["input_blocks.1.0.emb_layers.1.weight"][0] == 2 * channels[0]:
        config["resnet_time_scale_shift"] = "scale_shift"
    if "cross" in [*kinds, _attention(shapes, "middle_block.1.")]:
        return config | _transformer_config(shapes, [*places, "middle_block.1."], channels)
    return config | _plain_config(config, by_resnet)


def controlnet_config(shapes: Shapes) -> Config:
    """The config of a ControlNet in the original's names, without "control_model."."""
    halvings = sum(f"input_blocks.{n}.0.op.weight" in shapes for n in range(shapes.count("input_blocks.")))
    first = range(1, shapes.count("input_blocks."), shapes.count("input_blocks.") // (halvings + 1))
    channels = [shapes[f"input_blocks.{n}.0.out_layers.3.weight"][0] for n in first]
    places = [f"input_blocks.{n}.1." for n in first]
    return {
        "in_channels": shapes["input_blocks.0.0.weight"][1],
        "block_out_channels": channels,
        "layers_per_block": first.step - 1,
        "down_block_types": [_block_type(_attention(shapes, place), "Down", False) for place in places],
        "conditioning_channels": shapes["input_hint_block.0.weight"][1],
        **_class_config(shapes, None),
        "conditioning_embedding_out_channels": [shapes[f"input_hint_block.{n}.weight"][0] for n in (0, 4, 8, 12)],
        **_transformer_config(shapes, [*places, "middle_block.1."], channels),
    }


def _upsamples(shapes: Shapes, n: int) -> bool:
    return any(f"output_blocks.{n}.{a}.{part}.weight" in shapes for a in (1, 2) for part in ("conv", "in_layers.0"))


def _attention(shapes: Shapes, place: str) -> str | None:
    if f"{place}qkv.weight" in shapes:
        return "self"
    return "cross" if f"{place}proj_in.weight" in shapes else None


def _block_type(kind: str | None, way: str, by_resnet: bool) -> str:
    if kind is None:
        return f"Resnet{way}sampleBlock2D" if by_resnet else f"{way}Block2D"
    return f"{'CrossAttn' if kind == 'cross' else 'Attn'}{way}Block2D"


def _class_config(shapes: Shapes, pooled: int | None) -> Config:
    if "label_emb.weight" in shapes:
        return {"num_class_embeds": shapes["label_emb.weight"][0]}
    if "label_emb.0.0.weight" in shapes:
        width = shapes["label_emb.0.0.weight"][1]
        if pooled is not None or width == XL_WIDTH:
            each = SIZE_WIDTH if pooled is None else (width - pooled) // SIZES
            told = {"addition_embed_type": "text_time", "addition_time_embed_dim": each}
            return {**told, "projection_class_embeddings_input_dim": width}
        return {"class_embed_type": "projection", "projection_class_embeddings_input_dim": width}
    return {}


def _transformer_config(shapes: Shapes, places: list[str], channels: list[int]) -> Config:
    """What SpatialTransformers add. SD 2 (linear projections) has heads 64 wide; SD 1 has 8 of them."""
    place = next(p for p in places if f"{p}proj_in.weight" in shapes)
    linear = len(shapes[f"{place}proj_in.weight"]) == 2
    context = shapes[f"{place}transformer_blocks.0.attn2.to_k.weight"][1]
    depths = [sum(f"{p}transformer_blocks.{d}.norm1.weight" in shapes for d in range(100)) for p in places]
    *levels, middle = depths
    alike = len({depth for depth in depths if depth}) == 1
    depth = max(depths) if alike else [*(one or 1 for one in levels[:-1]), levels[-1] or middle]
    self_widths = [shapes.get(f"{p}transformer_blocks.0.attn1.to_k.weight", (0, 0))[1] for p in places]
    # Where a level has no attention (width 0) the flag means nothing; the published config says True there.
    looks_out = [width != c for width, c in zip(self_widths, channels, strict=False)]
    only_cross = any(out and width for out, width in zip(looks_out, self_widths, strict=False))
    return {
        "_class_name": "UNet2DConditionModel",
        "mid_block_type": "UNetMidBlock2DCrossAttn",
        "cross_attention_dim": context,
        "use_linear_projection": linear,
        "transformer_layers_per_block": depth,
        "attention_head_dim": [max(c // HEAD_WIDTH, 1) for c in channels] if linear else 8,
        **({"only_cross_attention": looks_out} if only_cross else {}),
    }


def _plain_config(config: Config, by_resnet: bool) -> Config:
    """What a U-Net without context needs beside: diffusers' UNet2DModel, with LDM's heads of 32 channels."""
    scale_shift = "resnet_time_scale_shift" in config
    return {
        "_class_name": "UNet2DModel",
        "mid_block_type": "UNetMidBlock2D",
        "attention_head_dim": 32,
        **({"downsample_type": "resnet", "upsample_type": "resnet"} if by_resnet else {}),
        **({"attn_norm_num_groups": 32} if scale_shift else {}),
    }


def is_autoencoder(shapes: Shapes) -> bool:
    """Whether these are the tensors of an autoencoder, in CompVis' names or in diffusers'."""
    return "encoder.conv_in.weight" in shapes and "decoder.conv_out.weight" in shapes


# How the first stage's places are called: CompVis, diffusers (new and old).
STAGE_WORDS = (
    ("down", "block", "attn", "mid.attn_1"),
    ("down_blocks", "resnets", "attentions", "mid_block.attentions.0"),
)


def autoencoder_config(shapes: Shapes) -> Config:
    """The diffusers config of a first stage, KL or VQ, in CompVis' names (without "first_stage_model.") or
    diffusers'."""
    down, block, attn, middle = STAGE_WORDS[shapes.any("encoder.down_blocks.")]
    levels = shapes.count(f"encoder.{down}.")
    attends = [shapes.any(f"encoder.{down}.{i}.{attn}.0.") for i in range(levels)]
    latent = shapes["decoder.conv_in.weight"][1]
    config: Config = {
        "in_channels": shapes["encoder.conv_in.weight"][1],
        "out_channels": shapes["decoder.conv_out.weight"][0],
        "block_out_channels": [shapes[f"encoder.{down}.{i}.{block}.0.conv1.weight"][0] for i in range(levels)],
        "down_block_types": ["AttnDownEncoderBlock2D" if a else "DownEncoderBlock2D" for a in attends],
        "up_block_types": ["AttnUpDecoderBlock2D" if a else "UpDecoderBlock2D" for a in reversed(attends)],
        "layers_per_block": sum(f"encoder.{down}.0.{block}.{j}.norm1.weight" in shapes for j in range(100)),
        "latent_channels": latent,
        "mid_block_add_attention": shapes.any(f"encoder.{middle}."),
    }
    if codebook := shapes.get("quantize.embedding.weight"):
        width = codebook[1] if codebook[1] != latent else None
        vq = {"num_vq_embeddings": codebook[0], "vq_embed_dim": width, "scaling_factor": 1.0}
        return {"_class_name": "VQModel", **config, **vq}
    quant = {"use_quant_conv": "quant_conv.weight" in shapes, "use_post_quant_conv": "post_quant_conv.weight" in shapes}
    scale = SD_SCALING_FACTOR if latent == 4 else 1.0
    return {"_class_name": "AutoencoderKL", **config, **quant, "scaling_factor": scale}


def tiny_decoder_config(shapes: Shapes) -> Config:
    """The config of TAESD's decoder, whose tensors are named by numbers: a block has three convolutions, a level ends
    with one that has no bias. Raises KeyMismatch.
    """
    widths, blocks = [shapes["1.weight"][0]], [0]
    for n in range(2, shapes.count("")):
        if f"{n}.conv.0.weight" in shapes:
            blocks[-1] += 1
        elif f"{n}.weight" in shapes and f"{n}.bias" not in shapes:
            widths, blocks = [*widths, shapes[f"{n}.weight"][0]], [*blocks, 0]
    return {
        "latent_channels": shapes["1.weight"][1],
        "out_channels": shapes[f"{shapes.count('') - 1}.weight"][0],
        "block_out_channels": widths,
        "num_blocks": blocks,
        "act_fn": "relu",
    }


def conditioner_config(shapes: Shapes) -> Config | None:
    """The config of what tells the U-Net of a class (LDM's `ClassEmbedder`) or of a map of them (`SpatialRescaler`).

    Of ImageNet's 1000 classes all are things; where there are 1001, as in cin256-v2, the last stands for none.
    """
    if "embedding.weight" in shapes:
        rows, width = shapes["embedding.weight"]
        null = None if rows == IMAGENET else rows - 1
        return {"_class_name": "ClassEmbedder", "num_classes": rows, "embed_dim": width, "null_class": null}
    if "channel_mapper.weight" in shapes:
        channels, rows = shapes["channel_mapper.weight"][:2]
        return {"_class_name": "MapEmbedder", "num_classes": rows, "out_channels": channels}
    return None
