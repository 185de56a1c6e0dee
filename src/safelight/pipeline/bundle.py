"""`LatentDiffusion`: the parts of a model, held together. It computes nothing that one of its parts could."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal, Self

import torch
from torch import Tensor

from safelight.checkpoint.parts import Parts
from safelight.diffusion.condition import Condition
from safelight.diffusion.denoiser import Denoiser
from safelight.diffusion.grids import Grid, make_grid
from safelight.diffusion.parameterization import PARAMETERIZATIONS, Parameterization
from safelight.diffusion.schedule import NoiseSchedule
from safelight.errors import InputError, MissingPartError
from safelight.models.autoencoder import Autoencoder
from safelight.models.clip import TextEncoder
from safelight.models.conditioners import ClassEmbedder, Conditioner, LayoutEmbedder, MapEmbedder
from safelight.models.controlnet import ControlNet
from safelight.models.embedding import SIZES, beside_words
from safelight.models.text_pair import TextEncoderPair
from safelight.models.tiny_decoder import TinyDecoder
from safelight.models.unet import UNet
from safelight.text.prompt import prompt_ids, read_ids
from safelight.text.tokenizer import Tokenizer


@dataclass(frozen=True, kw_only=True, repr=False)
class LatentDiffusion:
    """A latent diffusion model: every part can be used alone, and the tasks use them together.

    Attributes:
        unet: predicts what `prediction_type` says, from noisy latents (Rombach et al. 2022, Sec. 3.2).
        autoencoder: carries pictures to latents and back (Sec. 3.1).
        schedule: the noise levels the U-Net was trained on.
        prediction_type: epsilon, v_prediction, sample or edm.
        text_encoder: turns token ids into the context of cross-attention; two in one for Stable Diffusion XL, None for
            models without text.
        tokenizer: turns words into token ids; None for models without text.
        conditioner: tells the U-Net of a class, a layout or a map of classes; None for other models.
        decoder: a tiny one that tasks and previews use in place of the autoencoder's own; None for most models.
        control: a ControlNet, which makes pictures follow another; None for most models.
        classes: the names of the classes, where they are known.
        guidance_scale: what it is best guided by, which tasks take where nothing is asked.
        force_zeros_for_empty_prompt: whether an empty negative prompt is told as zeros, not as the words of none.
        low_res_schedule: the noise that an upscaler was told of on its small pictures; None for other models.
        family: such as "sd1", "sd2-inpaint"; what the weights were recognised as.
        name: where the model was loaded from.
        scheduler_config: the sampler settings that came with the model, as they stand in its file.
        weights: the files it was loaded from: names within the model -> where they lie. Empty for one made in memory.
        loras: those of them that are LoRAs -> by how much each was added.
    """

    unet: UNet
    autoencoder: Autoencoder
    schedule: NoiseSchedule
    prediction_type: str = "epsilon"
    text_encoder: TextEncoder | TextEncoderPair | None = None
    tokenizer: Tokenizer | None = None
    conditioner: Conditioner | None = None
    decoder: TinyDecoder | None = None
    control: ControlNet | None = None
    classes: tuple[str, ...] = ()
    guidance_scale: float = Parts.guidance_scale
    force_zeros_for_empty_prompt: bool = False
    low_res_schedule: NoiseSchedule | None = None
    family: str = "custom"
    name: str = ""
    scheduler_config: Mapping[str, Any] = field(default_factory=dict)
    weights: Mapping[str, Path] = field(default_factory=dict)
    loras: Mapping[str, float] = field(default_factory=dict)

    def __repr__(self) -> str:
        """One line: the networks' own would fill pages of a notebook."""
        what = f"{self.family}, {self.prediction_type}, {self.dtype} on {self.device}"
        return f"<LatentDiffusion {self.name or 'without a name'}: {what}>"

    @property
    def device(self) -> torch.device:
        """Where the parts live."""
        return next(self.unet.parameters()).device

    @property
    def dtype(self) -> torch.dtype:
        """The precision in which the U-Net runs."""
        return next(self.unet.parameters()).dtype

    @property
    def int8(self) -> bool:
        """Whether linear layers of the U-Net have been rounded to 8 bits."""
        return any(p.dtype == torch.int8 for p in self.unet.parameters())

    @property
    def parameterization(self) -> Parameterization:
        """How the U-Net's output is read."""
        return PARAMETERIZATIONS[self.prediction_type]

    @property
    def denoiser(self) -> Denoiser:
        """The U-Net as a function (x, sigma, condition) -> x0."""
        return Denoiser(self.unet, self.schedule, self.parameterization)

    @property
    def steered_by(self) -> Literal["words", "class", "layout", "nothing"]:
        """What the U-Net is asked in. A class is told by a conditioner, or by a table of the U-Net's own."""
        if isinstance(self.conditioner, ClassEmbedder | LayoutEmbedder):
            return "class" if isinstance(self.conditioner, ClassEmbedder) else "layout"
        if self.unet.config.conditional:
            return "words"
        return "nothing" if self.unet.config.num_class_embeds is None else "class"

    @property
    def sees(self) -> Literal["nothing", "mask", "picture", "map", "depth", "original", "embedding", "something"]:
        """What the U-Net takes beside the latent: a mask and a masked picture, a small picture, a map, the original.

        CLIP's embeddings of pictures and whatever else are told apart to be refused by name.
        """
        latent, channels = self.autoencoder.config.embed_dim, self.unet.config.in_channels
        if self.unet.config.class_embed_type is not None:
            return "embedding"
        if channels == latent:
            return "nothing"
        if isinstance(self.conditioner, MapEmbedder):
            return "map"
        if channels in (2 * latent + 1, latent + 3):
            return "mask" if channels == 2 * latent + 1 else "picture"
        if channels == 2 * latent:
            return "original"
        return "depth" if channels == latent + 1 else "something"

    @property
    def paints_masks(self) -> bool:
        """Whether the U-Net takes a mask and a masked picture beside the latent (an inpainting model)."""
        return self.sees == "mask"

    @property
    def null_class(self) -> int | None:
        """The number that stands for no class in particular, for guidance; the last row of a U-Net's own table."""
        if isinstance(self.conditioner, ClassEmbedder):
            return self.conditioner.config.null_class
        rows = self.unet.config.num_class_embeds
        return None if rows is None or rows < 2 else rows - 1

    @property
    def class_count(self) -> int:
        """How many classes can be asked for."""
        own = self.unet.config.num_class_embeds or 0
        if self.conditioner is None or not isinstance(self.conditioner, ClassEmbedder):
            return self.conditioner.config.num_classes if self.conditioner else own - (self.null_class is not None)
        return self.conditioner.config.num_classes - (self.null_class is not None)

    def grid(self, name: str, steps: int, **options: Any) -> Grid:
        """Lay `steps` noise levels from the most noise to none, by the rule called `name`."""
        return make_grid(self.schedule, steps, name, **options)

    def latent_size(self, width: int | None = None, height: int | None = None) -> tuple[int, int]:
        """The latent's (h, w) for a picture of this size in pixels; None means the size the model was trained at."""
        factor, native = self.autoencoder.config.factor, self.unet.config.sample_size
        for name, pixels in (("width", width), ("height", height)):
            if pixels is not None and pixels % factor:
                raise InputError(
                    f"{name}={pixels} is not a multiple of {factor}", remedy=f"use {pixels - pixels % factor}"
                )
        sides = native if isinstance(native, tuple | list) else (native or 64, native or 64)
        return (height // factor if height else sides[0], width // factor if width else sides[1])

    def condition(
        self,
        prompts: Sequence[str],
        *,
        clip_skip: int = 0,
        long_prompts: Literal["chunk", "error", "truncate"] = "chunk",
        size: Sequence[int] | None = None,
    ) -> Condition:
        """Encode prompts into what steers the U-Net; one row a prompt, all of one length.

        `size` is the latent's (h, w), for models that are told of it; by default the one they were trained at.
        """
        if self.steered_by in ("class", "layout") and any(prompts):
            raise wrong_task(self)
        if not self.unet.config.conditional:
            if any(prompts):
                raise InputError("this model was trained without text", remedy="leave the prompt empty")
            return Condition()
        if self.text_encoder is None or self.tokenizer is None:
            raise MissingPartError(
                f"the model {self.name!r} has no text encoder here",
                remedy="load it with its text encoder, or give a Condition in place of the prompt",
            )
        ids = prompt_ids(self.tokenizer, prompts, long_prompts=long_prompts)
        context, pooled = read_ids(self.text_encoder, ids, clip_skip=clip_skip)
        return Condition(context=context, pooled=None if pooled is None else self.told_size(pooled, size))

    def told_size(self, pooled: Tensor, size: Sequence[int] | None = None) -> Tensor:
        """What Stable Diffusion XL's U-Net is told beside the words: what texts say as a whole (B, P), and sizes.

        Of a picture drawn at a latent's (h, w), by default the one it was trained at, that is a photograph of just this
        size, of which nothing was cut away.
        """
        factor, width = self.autoencoder.config.factor, self.unet.config.addition_time_embed_dim
        if width is None:
            what = f"the U-Net of {self.name!r} is not told of sizes, and its text encoder is of a model that is"
            raise InputError(what, remedy="give the text encoder that it was trained with")
        height, width_ = (factor * n for n in (size or self.latent_size()))
        sizes = torch.tensor([[height, width_, 0, 0, height, width_]], device=pooled.device)
        return beside_words(pooled, sizes, width)

    def silence(self, like: Condition) -> Condition:
        """What says nothing, not even that nothing was said: zeros, with the sizes that another condition tells."""
        context, pooled = like.context, like.pooled
        if context is None:
            return like
        if pooled is not None:
            sizes = SIZES * (self.unet.config.addition_time_embed_dim or 0)
            said = pooled.shape[1] - sizes
            pooled = torch.cat([torch.zeros_like(pooled[:1, :said]), pooled[:1, said:]], dim=1)
        return Condition(context=torch.zeros_like(context[:1]), pooled=pooled)

    def without_text_encoder(self) -> Self:
        """The same model without its text encoder, whose memory is free once no one else holds it."""
        return replace(self, text_encoder=None)

    def to(self, device: torch.device | str | None = None, dtype: torch.dtype | None = None) -> Self:
        """Move the parts to a device and precision. The networks move in place (two copies could be too many)."""
        for part in (self.unet, self.autoencoder, self.text_encoder, self.conditioner, self.decoder, self.control):
            if part is not None:
                part.to(device=device, dtype=dtype)
        return self


# What a model was trained for, and the task for it: by what it sees beside the latent, else by what it is steered by
TRAINED_FOR = {
    "mask": ("to inpaint", "inpaint"),
    "picture": ("to enlarge pictures", "upscale"),
    "map": ("to draw maps of classes", "semantic_synthesis"),
    "depth": ("to draw after depth maps", "depth_to_image"),
    "original": ("to edit pictures as it is told", "edit"),
    "embedding": ("to vary pictures by CLIP's embedding of them, which is not made here", "the script it came with"),
    "something": ("to see more than words", "the script it came with"),
    "class": ("to draw classes", "class_to_image"),
    "layout": ("to draw layouts", "layout_to_image"),
    "words": ("to draw from words", "text_to_image"),
    "nothing": ("to draw without being asked", "unconditional"),
}

# What a model that is asked in words can draw; one that paints masks draws all of it as well
IN_WORDS = ("text_to_image", "image_to_image", "inpaint", "outpaint", "variations", "unconditional")


def tasks_of(model: LatentDiffusion) -> tuple[str, ...]:
    """The tasks that a model can be asked for, the one it was trained for first; none where that is none of ours."""
    sees, by = model.sees, model.steered_by
    if by == "words" and sees in ("nothing", "mask"):
        return ("inpaint", *(task for task in IN_WORDS if task != "inpaint")) if sees == "mask" else IN_WORDS
    task = TRAINED_FOR[sees if sees != "nothing" else by][1]
    if " " in task:
        return ()
    return (task, "unconditional") if sees == "nothing" and task != "unconditional" else (task,)


def wrong_task(model: LatentDiffusion) -> InputError:
    """The error of asking a model for what it was not trained for: it names what it can be asked for."""
    what, task = TRAINED_FOR[model.sees if model.sees != "nothing" else model.steered_by]
    return InputError(f"this model was trained {what}", remedy=f"use `{task}`, or load a model for what you want")
