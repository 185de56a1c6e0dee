"""Which words each place of a picture looked at: the weights of cross-attention, kept while a picture is looked over.

Tang et al. 2022, "What the DAAM" (arXiv 2210.04885): the weights of all layers, heads and steps, brought to the size of
the latent and averaged. The U-Net knows nothing of it: its `Attention` modules are put under observation for a few
passes, and left as they were.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from math import ceil
from typing import Any, Unpack

import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from safelight.diffusion.composition import rows_of
from safelight.errors import InputError
from safelight.models.attention import Attention, TransformerBlock
from safelight.models.unet import UNet
from safelight.pipeline.bundle import LatentDiffusion
from safelight.pipeline.fields import Settings, for_model, validate
from safelight.pipeline.seeing.watching import Record, together
from safelight.pipeline.steering import steer
from safelight.pipeline.tasks import text_to_image
from safelight.text.encoding import frame_passage
from safelight.text.schedule import plan_prompt
from safelight.text.tokenizer import Tokenizer

Weights = Tensor  # (B, heads, L, M): how much each of L places looks at each of M tokens; sums to 1 over M


@dataclass(frozen=True, eq=False)
class AttentionMaps:
    """A picture, the words of its prompt in order, and where it looked at each.

    maps: (words, h, w), float32, the size of the latent: the mean share of attention in [0, 1]. What is missing to 1 in
    the sum over words went to the begin and the end of text, and to what fills the context.
    """

    picture: Image.Image
    words: tuple[str, ...]
    maps: Tensor


def attention_maps(
    model: LatentDiffusion,
    prompt: str,
    *,
    width: int | None = None,
    height: int | None = None,
    **settings: Unpack[Settings],
) -> AttentionMaps:
    """Draw one picture, and see which words its places looked at.

    Each step is looked over in a pass of its own, under the prompt alone: the run itself is as ever. Of a prompt that
    changes on the way it is what it says at first; of prompts joined by AND the first.
    Raises InputError for a model without text, a prompt without words, and a `count` other than 1.
    """
    if settings.get("count", 1) != 1:
        raise InputError(f"count={settings['count']}: maps are of one picture", remedy="leave count out")
    if model.tokenizer is None or model.text_encoder is None or not model.unet.config.conditional:
        raise InputError("this model was trained without text", remedy="it has no attention to words")
    record = Record()
    settings["watch"] = together(record, settings.get("watch"))
    drawn = text_to_image(model, prompt, width=width, height=height, **settings)
    asked: Any = for_model(validate(text_to_image, {"prompt": prompt, **settings}), model)
    text = drawn.prompts[0] if drawn.prompts and drawn.prompts[0] is not None else prompt
    words = prompt_words(model.tokenizer, text, asked)
    if not words:
        raise InputError("the prompt has no words", remedy="name what the picture shows")
    positive, _ = steer(model, text, "", asked, drawn.latents.shape[-2:])
    condition = rows_of(positive.condition, positive.rows(1)[:1])
    heat = Heat([places for _, places in words], drawn.latents.shape[-2:])
    with torch.no_grad(), observed(model.unet, heat.add):
        for step in record.steps:
            model.denoiser(step.x.to(model.device), step.sigma, condition)
    return AttentionMaps(drawn[0], tuple(word for word, _ in words), heat.mean())


def prompt_words(tokenizer: Tokenizer, text: str, settings: Settings) -> list[tuple[str, list[int]]]:
    """The words of a prompt at its first step, in order, and the places of their tokens in the context."""
    plan = plan_prompt(text, settings["steps"], syntax=settings["prompt_syntax"], extra_networks="ignore")
    _, passage = plan.at(1)[0]
    chunks = frame_passage(tokenizer, passage, long_prompts=settings["long_prompts"])
    tokens = [token for chunk in chunks for token in chunk]
    words: list[tuple[str, list[int]]] = []
    begun = False
    for place, token in enumerate(tokens):
        if token.span < 0:
            continue
        piece = tokenizer.pieces([token.id])[0]
        if not begun:
            words.append(("", []))
        word, places = words[-1]
        words[-1] = (word + piece.removesuffix("</w>"), [*places, place])
        begun = not piece.endswith("</w>")
    return words


@contextmanager
def observed(unet: UNet, see: Callable[[Weights], None]) -> Iterator[None]:
    """Within the block, `see` is given the weights of every look at the context; the results stay what they are.

    Each layer computes its weights once more for it, which fast attention never has in one piece.
    """
    layers = [module.attn2 for module in unet.modules() if isinstance(module, TransformerBlock)]
    try:
        for layer in layers:
            layer.attend = partial(_seen, layer, see)  # type: ignore[method-assign]
        yield
    finally:
        for layer in layers:
            layer.__dict__.pop("attend", None)


def _seen(
    layer: Attention, see: Callable[[Weights], None], x: Tensor, keys: Tensor, values: Tensor, **around: Tensor | None
) -> Tensor:
    q = layer.split(layer.to_q(x))
    see((q.float() @ keys.float().transpose(-1, -2) * q.shape[-1] ** -0.5).softmax(-1))
    return Attention.attend(layer, x, keys, values, **around)


class Heat:
    """The mean of the weights that some groups of tokens get, brought to one size (h, w)."""

    def __init__(self, groups: Sequence[Sequence[int]], size: Sequence[int]) -> None:
        self.groups, self.size = groups, (size[0], size[1])
        self.total, self.count = torch.zeros(len(groups), *self.size), 0

    def add(self, weights: Weights) -> None:
        """Take the weights of one layer for one picture, (1, heads, L, M)."""
        mean = weights[0].mean(0)  # (L, M)
        shares = torch.stack([mean[:, list(group)].sum(1) for group in self.groups])
        image = shares.unflatten(1, level_size(mean.shape[0], self.size))[None]
        self.total += F.interpolate(image, self.size, mode="bicubic")[0].clamp(min=0).cpu()
        self.count += 1

    def mean(self) -> Tensor:
        """(groups, h, w)."""
        return self.total / max(self.count, 1)


def level_size(places: int, size: tuple[int, int]) -> tuple[int, int]:
    """The height and width of that level of a U-Net which has so many places; each level rounds half up."""
    h, w = size
    while h * w > places:
        h, w = ceil(h / 2), ceil(w / 2)
    if h * w != places:
        raise InputError(f"no level of a {size[0]}x{size[1]} latent has {places} places")
    return h, w
