"""Stable Diffusion XL's pipelines, as diffusers calls them (Podell et al. 2023, arXiv 2307.01952).

They are Stable Diffusion's, but that two text encoders read the prompt, and that the U-Net is told of the whole text
and of sizes. Refining (`denoising_end`, `denoising_start`, an aesthetic score) is not here.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, fields
from typing import Any

import torch
from torch import Tensor

from safelight.compat.denoising import Denoising, State
from safelight.compat.prompting import negatives_of
from safelight.compat.randomness import Generators
from safelight.compat.stable_diffusion import (
    StableDiffusionImg2ImgPipeline,
    StableDiffusionInpaintPipeline,
    StableDiffusionPipeline,
)
from safelight.errors import InputError

Size = tuple[int, int]


@dataclass
class XLState(State):
    """The loop's tensors: beside Stable Diffusion's the texts as a whole, and the sizes, negative ones first."""

    add_text_embeds: Tensor | None = None
    add_time_ids: Tensor | None = None


@dataclass(frozen=True)
class Told:
    """What a call may say beside what Stable Diffusion's calls say. Sizes are (height, width) in pixels."""

    prompt_2: str | list[str] | None = None
    negative_prompt_2: str | list[str] | None = None
    pooled_prompt_embeds: Tensor | None = None
    negative_pooled_prompt_embeds: Tensor | None = None
    original_size: Size | None = None
    crops_coords_top_left: Size = (0, 0)
    target_size: Size | None = None
    negative_original_size: Size | None = None
    negative_crops_coords_top_left: Size = (0, 0)
    negative_target_size: Size | None = None


class XL(Denoising):
    """What the three pipelines share. The constructor takes the parts by diffusers' names."""

    text_encoder_2: Any
    tokenizer_2: Any
    _callback_tensor_inputs = (*Denoising._callback_tensor_inputs, "add_text_embeds", "add_time_ids")
    _told = Told()
    _negative_sizes_together = True  # negative sizes count where both are given

    def __init__(
        self,
        vae: Any,
        text_encoder: Any,
        text_encoder_2: Any,
        tokenizer: Any,
        tokenizer_2: Any,
        unet: Any,
        scheduler: Any,
        image_encoder: Any = None,
        feature_extractor: Any = None,
        force_zeros_for_empty_prompt: bool = True,
        add_watermarker: bool | None = None,
    ) -> None:
        self._hold(
            vae=vae, text_encoder=text_encoder, text_encoder_2=text_encoder_2, tokenizer=tokenizer,
            tokenizer_2=tokenizer_2, unet=unet, scheduler=scheduler, image_encoder=image_encoder,
            feature_extractor=feature_extractor,
        )  # fmt: skip
        self.register_to_config(force_zeros_for_empty_prompt=force_zeros_for_empty_prompt)

    def __call__(self, prompt: Any = None, prompt_2: Any = None, *, guidance_scale: float = 5.0, **options: Any) -> Any:
        """Draw pictures: as Stable Diffusion's pipeline of this task, and with the keywords of `Told`."""
        own = {field.name: options.pop(field.name) for field in fields(Told) if field.name in options}
        self._told = Told(prompt_2=prompt_2, **own)
        return super().__call__(prompt=prompt, guidance_scale=guidance_scale, **options)  # type: ignore[misc]

    def encode_prompt(  # type: ignore[override]
        self,
        prompt: str | list[str] | None,
        prompt_2: str | list[str] | None = None,
        device: torch.device | str | None = None,
        num_images_per_prompt: int = 1,
        do_classifier_free_guidance: bool = True,
        negative_prompt: str | list[str] | None = None,
        negative_prompt_2: str | list[str] | None = None,
        prompt_embeds: Tensor | None = None,
        negative_prompt_embeds: Tensor | None = None,
        pooled_prompt_embeds: Tensor | None = None,
        negative_pooled_prompt_embeds: Tensor | None = None,
        lora_scale: float | None = None,
        clip_skip: int | None = None,
    ) -> tuple[Tensor, Tensor | None, Tensor, Tensor | None]:
        """Give, of prompts and of negative prompts, the embeddings (B·n, L, D), and then the pooled ones (B·n, P).

        As in diffusers a prompt is cut at 77 tokens, `clip_skip` counts for prompts alone, and where no negative
        prompt is given it is zeros, if the model was trained so.
        """
        device = self._execution_device if device is None else torch.device(device)
        if prompt_embeds is not None and pooled_prompt_embeds is None:
            what = "prompt_embeds are here, and pooled_prompt_embeds are not"
            raise InputError(what, remedy="give both, as `encode_prompt` does")
        with self.lora_scaled(lora_scale):
            if prompt_embeds is None or pooled_prompt_embeds is None:
                prompt_embeds, pooled_prompt_embeds = self._read(prompt, prompt_2, device, clip_skip)
            if do_classifier_free_guidance and negative_prompt_embeds is None:
                if negative_prompt is None and self.config.force_zeros_for_empty_prompt:
                    negative_prompt_embeds = torch.zeros_like(prompt_embeds)
                    negative_pooled_prompt_embeds = torch.zeros_like(pooled_prompt_embeds)
                else:
                    first = negatives_of(prompt, negative_prompt, len(prompt_embeds))
                    second = None if negative_prompt_2 is None else negatives_of(prompt, negative_prompt_2, len(first))
                    negative_prompt_embeds, negative_pooled_prompt_embeds = self._read(first, second, device, None)
        found = (prompt_embeds, negative_prompt_embeds, pooled_prompt_embeds, negative_pooled_prompt_embeds)
        if not do_classifier_free_guidance:
            found = (prompt_embeds, None, pooled_prompt_embeds, None)
        dtype = self.text_encoder_2.dtype if self.text_encoder_2 is not None else self.unet.dtype
        every = (None if x is None else x.to(device, dtype).repeat_interleave(num_images_per_prompt, 0) for x in found)
        return tuple(every)  # type: ignore[return-value]

    def _read(self, prompt: Any, prompt_2: Any, device: torch.device, clip_skip: int | None) -> tuple[Tensor, Tensor]:
        """What both text encoders say: their penultimate layers side by side, and the second one's projection."""
        skipped, contexts, pooled = 2 if clip_skip is None else clip_skip + 2, [], None
        pairs = ((prompt, self.tokenizer, self.text_encoder),
                 (prompt_2 or prompt, self.tokenizer_2, self.text_encoder_2))  # fmt: skip
        for texts, tokenizer, text_encoder in pairs:
            texts = [texts] if isinstance(texts, str) else texts
            length = tokenizer.model_max_length
            ids = tokenizer(texts, padding="max_length", max_length=length, truncation=True, return_tensors="pt")
            self._report_cuts(texts, length)
            output = text_encoder(ids.input_ids.to(device), output_hidden_states=True)
            contexts.append(output.hidden_states[-skipped])
            pooled = output[0]
        assert pooled is not None
        return torch.cat(contexts, dim=-1), pooled

    def _encode(
        self, prompt: Any, negative: Any, embeds: Tensor | None, negative_embeds: Tensor | None, count: int
    ) -> State:
        told = self._told
        positive, other, pooled, other_pooled = self.encode_prompt(
            prompt, told.prompt_2, self._execution_device, count, self.do_classifier_free_guidance, negative,
            told.negative_prompt_2, embeds, negative_embeds, told.pooled_prompt_embeds,
            told.negative_pooled_prompt_embeds, clip_skip=self.clip_skip,
        )  # fmt: skip
        if other is None:
            return XLState(positive, None, len(positive), add_text_embeds=pooled)
        if other_pooled is None:
            what = "negative_prompt_embeds are here, and negative_pooled_prompt_embeds are not"
            raise InputError(what, remedy="give both, as `encode_prompt` does")
        both = torch.cat([other_pooled, pooled])
        return XLState(torch.cat([other, positive]), other, len(positive), add_text_embeds=both)

    def _asked(self, state: State, x: Tensor, t: Any) -> Tensor:
        assert isinstance(state, XLState)
        if state.add_time_ids is None:
            state.add_time_ids = self._sizes(state, [self.vae_scale_factor * n for n in x.shape[-2:]])
        told = {"text_embeds": state.add_text_embeds, "time_ids": state.add_time_ids}
        words = state.prompt_embeds
        return self.unet(x, t, encoder_hidden_states=words, added_cond_kwargs=told, return_dict=False)[0]

    def _sizes(self, state: State, drawn: list[int]) -> Tensor:
        """What is told of sizes, a row for each of the prompts' embeddings."""
        told = self._told
        positive = (*(told.original_size or drawn), *told.crops_coords_top_left, *(told.target_size or drawn))
        rows = [positive] * state.batch
        if self.do_classifier_free_guidance:
            negative, both = positive, (told.negative_original_size, told.negative_target_size)
            if all(both) or not self._negative_sizes_together:
                original, target = both[0] or told.original_size or drawn, both[1] or told.target_size or drawn
                together = self._negative_sizes_together  # else diffusers tells the positive one's crop
                crop = told.negative_crops_coords_top_left if together else told.crops_coords_top_left
                negative = (*original, *crop, *target)
            rows = [negative] * state.batch + rows
        return torch.tensor(rows, dtype=state.prompt_embeds.dtype, device=state.prompt_embeds.device)

    # The autoencoder that was published overflows in float16, and says so: `force_upcast`

    def upcast_vae(self) -> None:
        """Let the autoencoder run in float32 from now on."""
        self.vae.to(torch.float32)

    @contextmanager
    def _upcast(self) -> Iterator[None]:
        if self.vae.dtype != torch.float16 or not self.vae.config.force_upcast:
            yield
            return
        self.vae.to(torch.float32)
        try:
            yield
        finally:
            self.vae.to(torch.float16)

    def _encode_image(self, image: Tensor, generator: Generators) -> Tensor:
        with self._upcast():
            return super()._encode_image(image, generator)

    def _output(self, latents: Tensor, output_type: str, return_dict: bool, generator: Generators) -> Any:
        with self._upcast():
            return super()._output(latents, output_type, return_dict, generator)


class StableDiffusionXLPipeline(XL, StableDiffusionPipeline):
    """Text to image."""


class StableDiffusionXLImg2ImgPipeline(XL, StableDiffusionImg2ImgPipeline):
    """Image to image; `strength` is 0.3 where none is said."""

    _negative_sizes_together = False

    def __call__(self, *args: Any, strength: float = 0.3, **options: Any) -> Any:
        """As `StableDiffusionXLPipeline`, from `image`."""
        return super().__call__(*args, strength=strength, **options)


class StableDiffusionXLInpaintPipeline(XL, StableDiffusionInpaintPipeline):
    """Inpainting; where none is said, `strength` is 0.9999 and `guidance_scale` 7.5."""

    _callback_tensor_inputs = (*XL._callback_tensor_inputs, "mask", "masked_image_latents")
    _negative_sizes_together = False

    def __call__(self, *args: Any, strength: float = 0.9999, guidance_scale: float = 7.5, **options: Any) -> Any:
        """As `StableDiffusionXLPipeline`, of `image` where `mask_image` is white."""
        return super().__call__(*args, strength=strength, guidance_scale=guidance_scale, **options)
