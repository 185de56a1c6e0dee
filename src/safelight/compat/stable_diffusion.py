"""Stable Diffusion's three pipelines, as diffusers calls them: text to image, image to image, inpainting.

They draw chance in diffusers' order. Text to image: the latents, then what the scheduler asks for. Image to image: a
sample of the posterior, then the noise. Inpainting: a sample of the picture's posterior where it is needed, the noise,
a sample of the masked picture's posterior.
"""

from functools import cached_property
from typing import Any

import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional as F

from safelight.compat.adapters import with_lora_scale
from safelight.compat.denoising import Denoising, Hooks, State
from safelight.compat.images import VaeImageProcessor
from safelight.compat.prompting import check_prompts
from safelight.compat.randomness import Generators, randn_tensor
from safelight.errors import InputError
from safelight.pipeline.surroundings import Box


class StableDiffusionPipeline(Denoising):
    """Text to image (Rombach et al. 2022, arXiv 2112.10752)."""

    @torch.no_grad()
    @with_lora_scale
    def __call__(
        self,
        prompt: str | list[str] | None = None,
        height: int | None = None,
        width: int | None = None,
        num_inference_steps: int = 50,
        timesteps: list[int] | None = None,
        sigmas: list[float] | None = None,
        guidance_scale: float = 7.5,
        negative_prompt: str | list[str] | None = None,
        num_images_per_prompt: int = 1,
        eta: float = 0.0,
        generator: Generators = None,
        latents: Tensor | None = None,
        prompt_embeds: Tensor | None = None,
        negative_prompt_embeds: Tensor | None = None,
        output_type: str = "pil",
        return_dict: bool = True,
        guidance_rescale: float = 0.0,
        clip_skip: int | None = None,
        **further: Any,
    ) -> Any:
        """Draw pictures. Arguments mean what they mean in diffusers; `height` and `width` are multiples of 8.

        `latents` (B, C, h, w) are unit noise; `further` are the callbacks (see `Hooks`).
        """
        height, width = self.size(height, width)
        hooks = Hooks.read(further, self._callback_tensor_inputs)
        check_prompts(prompt, negative_prompt, prompt_embeds, negative_prompt_embeds)
        self._begin(guidance_scale, guidance_rescale, clip_skip)
        state = self._encode(prompt, negative_prompt, prompt_embeds, negative_prompt_embeds, num_images_per_prompt)
        steps = self._set_timesteps(num_inference_steps, timesteps, sigmas)
        channels = self.unet.config.in_channels
        state.latents = self.prepare_latents(
            state.batch, channels, height, width, state.prompt_embeds.dtype, self._execution_device, generator, latents
        )
        extra = self.prepare_extra_step_kwargs(generator, eta)
        self._denoise(state, self.scheduler.timesteps, steps, extra, hooks)
        return self._output(state.latents, output_type, return_dict, generator)

    def prepare_latents(
        self,
        batch_size: int,
        num_channels_latents: int,
        height: int,
        width: int,
        dtype: torch.dtype,
        device: torch.device,
        generator: Generators,
        latents: Tensor | None = None,
    ) -> Tensor:
        """Draw the first latents, or take those given, and scale them to the scheduler's first noise level."""
        self._check_generators(generator, batch_size)
        if latents is None:
            shape = (batch_size, num_channels_latents, height // self.vae_scale_factor, width // self.vae_scale_factor)
            latents = randn_tensor(shape, generator, device, dtype)
        return latents.to(device) * self.scheduler.init_noise_sigma


class StableDiffusionImg2ImgPipeline(Denoising):
    """Image to image: the picture's latent, noised to where the last `strength` of the steps begins (SDEdit)."""

    @torch.no_grad()
    @with_lora_scale
    def __call__(
        self,
        prompt: str | list[str] | None = None,
        image: Any = None,
        strength: float = 0.8,
        num_inference_steps: int = 50,
        timesteps: list[int] | None = None,
        sigmas: list[float] | None = None,
        guidance_scale: float = 7.5,
        negative_prompt: str | list[str] | None = None,
        num_images_per_prompt: int = 1,
        eta: float = 0.0,
        generator: Generators = None,
        prompt_embeds: Tensor | None = None,
        negative_prompt_embeds: Tensor | None = None,
        output_type: str = "pil",
        return_dict: bool = True,
        clip_skip: int | None = None,
        **further: Any,
    ) -> Any:
        """Draw pictures from `image`: one or several PIL images, arrays or tensors, or a tensor of scaled latents."""
        hooks = Hooks.read(further, self._callback_tensor_inputs)
        check_prompts(prompt, negative_prompt, prompt_embeds, negative_prompt_embeds)
        check_strength(strength)
        self._begin(guidance_scale, 0.0, clip_skip)
        state = self._encode(prompt, negative_prompt, prompt_embeds, negative_prompt_embeds, num_images_per_prompt)
        picture = self.image_processor.preprocess(image)
        steps = self._set_timesteps(num_inference_steps, timesteps, sigmas)
        remaining, steps = self.get_timesteps(steps, strength)
        if steps < 1:
            raise InputError(f"strength {strength} leaves no step to take", remedy="raise it, or num_inference_steps")
        state.latents = self.prepare_latents(
            picture,
            remaining[:1].repeat(state.batch),
            state.batch,
            1,
            state.prompt_embeds.dtype,
            self._execution_device,
            generator,
        )
        extra = self.prepare_extra_step_kwargs(generator, eta)
        self._denoise(state, remaining, steps, extra, hooks)
        return self._output(state.latents, output_type, return_dict, generator)

    def prepare_latents(
        self,
        image: Tensor,
        timestep: Tensor,
        batch_size: int,
        num_images_per_prompt: int,
        dtype: torch.dtype,
        device: torch.device,
        generator: Generators = None,
    ) -> Tensor:
        """Encode pictures (B, 3, H, W) in [-1, 1], or take latents, and noise them to `timestep`."""
        batch = batch_size * num_images_per_prompt
        self._check_generators(generator, batch)
        image = image.to(device, dtype)
        if not self._is_latent(image):
            image = repeated(image, batch, "images") if isinstance(generator, list) else image
            image = self._encode_image(image, generator)
        image = repeated(image, batch, "images")
        noise = randn_tensor(image.shape, generator, device, dtype)
        return self.scheduler.add_noise(image, noise, timestep)


class StableDiffusionInpaintPipeline(Denoising):
    """Inpainting: a 9-channel U-Net sees mask and masked picture; with a 4-channel one, each step is blended."""

    _callback_tensor_inputs = (*Denoising._callback_tensor_inputs, "mask", "masked_image_latents")

    @cached_property
    def mask_processor(self) -> VaeImageProcessor:
        """Reads masks: grey, and then 0 or 1."""
        return VaeImageProcessor(
            vae_scale_factor=self.vae_scale_factor, do_normalize=False, do_binarize=True, do_convert_grayscale=True
        )

    @torch.no_grad()
    @with_lora_scale
    def __call__(
        self,
        prompt: str | list[str] | None = None,
        image: Any = None,
        mask_image: Any = None,
        masked_image_latents: Tensor | None = None,
        height: int | None = None,
        width: int | None = None,
        padding_mask_crop: int | None = None,
        strength: float = 1.0,
        num_inference_steps: int = 50,
        timesteps: list[int] | None = None,
        sigmas: list[float] | None = None,
        guidance_scale: float = 7.5,
        negative_prompt: str | list[str] | None = None,
        num_images_per_prompt: int = 1,
        eta: float = 0.0,
        generator: Generators = None,
        latents: Tensor | None = None,
        prompt_embeds: Tensor | None = None,
        negative_prompt_embeds: Tensor | None = None,
        output_type: str = "pil",
        return_dict: bool = True,
        clip_skip: int | None = None,
        **further: Any,
    ) -> Any:
        """Draw `image` anew where `mask_image` is white. Outside, only `padding_mask_crop` keeps the very pixels."""
        height, width = self.size(height, width)
        hooks = Hooks.read(further, self._callback_tensor_inputs)
        check_prompts(prompt, negative_prompt, prompt_embeds, negative_prompt_embeds)
        check_strength(strength)
        self._begin(guidance_scale, 0.0, clip_skip)
        state = self._encode(prompt, negative_prompt, prompt_embeds, negative_prompt_embeds, num_images_per_prompt)
        steps = self._set_timesteps(num_inference_steps, timesteps, sigmas)
        remaining, steps = self.get_timesteps(steps, strength)
        if steps < 1:
            raise InputError(f"strength {strength} leaves no step to take", remedy="raise it, or num_inference_steps")
        crop = self._crop(image, mask_image, padding_mask_crop, output_type, (width, height))
        picture, mask = self._preprocess(image, mask_image, (height, width), crop)
        clean, noise = self._start(state, picture, latents, remaining, strength, generator)
        self._set_mask(state, picture, mask, masked_image_latents, generator)

        def blend(i: int) -> Tensor:
            return self._blended(state, clean, noise, remaining[i + 1 : i + 2])

        extra = self.prepare_extra_step_kwargs(generator, eta)
        self._denoise(state, remaining, steps, extra, hooks, blend if self._blends else None)
        if crop is None:
            return self._output(state.latents, output_type, return_dict, generator)
        drawn = self._output(state.latents, "pil", False, generator)[0]
        whole = [self.image_processor.apply_overlay(mask_image, image, one, crop) for one in drawn]
        return self._wrapped(whole, return_dict)

    @property
    def _blends(self) -> bool:
        seen, latent = self.unet.config.in_channels, self.vae.config.latent_channels
        if seen not in (latent, 2 * latent + 1):
            what = f"a U-Net of {seen} input channels cannot inpaint latents of {latent}"
            raise InputError(what, remedy=f"use one of {latent}, or an inpainting model of {2 * latent + 1}")
        return bool(seen == latent)

    def _crop(self, image: Any, mask: Any, pad: int | None, output_type: str, size: tuple[int, int]) -> Box | None:
        """Find what `padding_mask_crop` leaves of the picture."""
        if pad is None:
            return None
        if not isinstance(image, Image.Image) or not isinstance(mask, Image.Image) or output_type != "pil":
            raise InputError(
                "padding_mask_crop works on PIL images", remedy='give image and mask as such, output_type "pil"'
            )
        return self.mask_processor.get_crop_region(mask, *size, pad=pad)

    def _preprocess(self, image: Any, mask: Any, size: tuple[int, int], crop: Box | None) -> tuple[Tensor, Tensor]:
        """Give the picture (B, 3, H, W) in [-1, 1] and the mask (B, 1, H, W) of zeros and ones."""
        mode = "default" if crop is None else "fill"
        picture = self.image_processor.preprocess(image, *size, resize_mode=mode, crops_coords=crop)
        return picture.float(), self.mask_processor.preprocess(mask, *size, resize_mode=mode, crops_coords=crop)

    def _start(
        self,
        state: State,
        picture: Tensor,
        latents: Tensor | None,
        remaining: Tensor,
        strength: float,
        generator: Generators,
    ) -> tuple[Tensor | None, Tensor]:
        """Set the first latents; give the picture's own latents, where they are needed, and the noise."""
        self._check_generators(generator, state.batch)
        device, dtype = self._execution_device, state.prompt_embeds.dtype
        clean = None
        if self._blends or (latents is None and strength < 1):
            image = picture.to(device, dtype)
            image = image if self._is_latent(image) else self._encode_image(image, generator)
            clean = repeated(image, state.batch, "images")
        if latents is None:
            h, w = picture.shape[-2:]
            if not self._is_latent(picture):
                h, w = h // self.vae_scale_factor, w // self.vae_scale_factor
            noise = randn_tensor((state.batch, self.vae.config.latent_channels, h, w), generator, device, dtype)
        else:
            noise = latents.to(device)
        if latents is None and strength < 1:
            state.latents = self.scheduler.add_noise(clean, noise, remaining[:1].repeat(state.batch))
        else:
            state.latents = noise * self.scheduler.init_noise_sigma
        return clean, noise

    def _set_mask(
        self, state: State, picture: Tensor, mask: Tensor, masked_latents: Tensor | None, generator: Generators
    ) -> None:
        """Set the mask in the latent's size, and the latents of the picture without what is masked."""
        device, dtype = self._execution_device, state.prompt_embeds.dtype
        masked = picture * (mask < 0.5) if masked_latents is None else masked_latents
        masked = masked.to(device, dtype)
        small = F.interpolate(mask, size=state.latents.shape[-2:]).to(device, dtype)
        if not self._is_latent(masked):
            masked = self._encode_image(masked, generator)
        pair = [repeated(x, state.batch, what) for x, what in ((small, "masks"), (masked, "images"))]
        guided = self.do_classifier_free_guidance
        state.mask, state.masked_image_latents = (torch.cat([x] * 2) if guided else x for x in pair)

    def _blended(self, state: State, clean: Any, noise: Tensor, following: Tensor) -> Tensor:
        """Put the picture, noised for the next timestep (the last step: not at all), back outside the mask."""
        assert state.mask is not None
        mask = state.mask.chunk(2)[0] if self.do_classifier_free_guidance else state.mask
        kept = self.scheduler.add_noise(clean, noise, following) if len(following) else clean
        return (1 - mask) * kept + mask * state.latents


def check_strength(strength: float) -> None:
    """Raise InputError unless strength lies in [0, 1]."""
    if not 0 <= strength <= 1:
        raise InputError(
            f"strength {strength}", remedy="give a number from 0 (nothing is drawn) to 1 (all is drawn anew)"
        )


def repeated(x: Tensor, batch: int, what: str) -> Tensor:
    """Repeat x (n, ...) to a batch of which n is a divisor."""
    if batch > len(x) and batch % len(x):
        raise InputError(f"{len(x)} {what} cannot be repeated to {batch} pictures", remedy="give one for each prompt")
    return x.repeat(max(batch // len(x), 1), *[1] * (x.ndim - 1))
