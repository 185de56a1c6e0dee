"""`Prompted`: prompts to the embeddings that steer a U-Net, as diffusers' pipelines make them."""

from typing import Any

import torch
from torch import Tensor

from safelight.compat.adapters import Adapted
from safelight.compat.notes import logger
from safelight.errors import InputError


class Prompted(Adapted):
    """A pipeline with a tokenizer and a text encoder."""

    def encode_prompt(
        self,
        prompt: str | list[str] | None,
        device: torch.device | str | None,
        num_images_per_prompt: int = 1,
        do_classifier_free_guidance: bool = True,
        negative_prompt: str | list[str] | None = None,
        prompt_embeds: Tensor | None = None,
        negative_prompt_embeds: Tensor | None = None,
        lora_scale: float | None = None,
        clip_skip: int | None = None,
    ) -> tuple[Tensor, Tensor | None]:
        """Give the embeddings (B·n, L, D) of prompts and, with guidance, of negative prompts.

        As in diffusers a prompt is cut at `model_max_length` tokens (what is lost is logged), and `clip_skip` counts
        for prompts alone, and `lora_scale` weighs the active LoRAs. `safelight.text_to_image` cuts nothing.
        """
        device = self._execution_device if device is None else torch.device(device)
        if prompt_embeds is None:
            prompts = [prompt] if isinstance(prompt, str) else prompt
            with self.lora_scaled(lora_scale):
                prompt_embeds = self._embed(prompts, self.tokenizer.model_max_length, device, clip_skip)
        dtype = self.unet.dtype if self.text_encoder is None else self.text_encoder.dtype
        batch, length = prompt_embeds.shape[:2]
        if do_classifier_free_guidance and negative_prompt_embeds is None:
            negatives = negatives_of(prompt, negative_prompt, batch)
            with self.lora_scaled(lora_scale):
                negative_prompt_embeds = self._embed(negatives, length, device, None)
        if not do_classifier_free_guidance or negative_prompt_embeds is None:
            negative = None
        else:
            negative = negative_prompt_embeds.to(device, dtype).repeat_interleave(num_images_per_prompt, 0)
        return prompt_embeds.to(device, dtype).repeat_interleave(num_images_per_prompt, 0), negative

    def _encode_prompt(self, *args: Any, **kwargs: Any) -> Tensor:
        """As `encode_prompt`; with guidance, negative prompts and prompts come in one tensor (2·B·n, L, D)."""
        positive, negative = self.encode_prompt(*args, **kwargs)
        return positive if negative is None else torch.cat([negative, positive])

    def _embed(self, texts: Any, length: int, device: torch.device, clip_skip: int | None) -> Tensor:
        encoding = self.tokenizer(texts, padding="max_length", max_length=length, truncation=True, return_tensors="pt")
        self._report_cuts(texts, length)
        if clip_skip is None:
            return self.text_encoder(encoding.input_ids.to(device))[0]
        states = self.text_encoder(encoding.input_ids.to(device), output_hidden_states=True).hidden_states
        return self.text_encoder.text_model.final_layer_norm(states[-(clip_skip + 1)])

    def _report_cuts(self, texts: list[str], length: int) -> None:
        for text in texts:
            lost = self.tokenizer.encode(text, add_special_tokens=False)[length - 2 :]
            if lost:
                what = self.tokenizer.decode(lost)
                logger.warning("A prompt was cut after %d tokens, as in diffusers. Lost was: %s", length, what)


def check_prompts(prompt: Any, negative: Any, embeds: Tensor | None, negative_embeds: Tensor | None) -> None:
    """Raise InputError unless there is either a prompt or its embeddings, and the like of the negative ones."""
    if (prompt is None) == (embeds is None):
        raise InputError("a run needs a prompt or its embeddings", remedy="give one of prompt= and prompt_embeds=")
    if prompt is not None and not isinstance(prompt, str | list):
        raise InputError(f"a prompt cannot be a {type(prompt).__name__}", remedy="give a string or a list of strings")
    if negative is not None and negative_embeds is not None:
        raise InputError("negative_prompt and negative_prompt_embeds were both given", remedy="give one of them")
    if embeds is not None and negative_embeds is not None and embeds.shape != negative_embeds.shape:
        shapes = f"{tuple(embeds.shape)} and {tuple(negative_embeds.shape)}"
        raise InputError(f"prompt_embeds and negative_prompt_embeds have shapes {shapes}", remedy="give equal shapes")


def negatives_of(prompt: Any, negative: Any, batch: int) -> list[str]:
    """Give the negative prompt of each of `batch` prompts."""
    if negative is None:
        return [""] * batch
    if prompt is not None and type(prompt) is not type(negative):
        kinds = f"{type(prompt).__name__} and {type(negative).__name__}"
        raise InputError(f"prompt and negative_prompt are {kinds}", remedy="give two strings or two lists")
    if isinstance(negative, str):
        return [negative] * batch
    if len(negative) != batch:
        raise InputError(f"{len(negative)} negative prompts for {batch} prompts", remedy="give one for each")
    return list(negative)
