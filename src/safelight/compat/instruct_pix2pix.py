"""InstructPix2Pix as diffusers calls it: a picture changed as the words say."""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from safelight.compat.adapters import with_lora_scale
from safelight.compat.denoising import Hooks, State
from safelight.compat.prompting import check_prompts
from safelight.compat.randomness import Generators, retrieve_latents
from safelight.compat.stable_diffusion import StableDiffusionPipeline, repeated
from safelight.errors import InputError


@dataclass
class Edited(State):
    """With guidance `prompt_embeds` (3B, L, D) holds the prompts, then the negative prompts twice.

    `image_latents`, unscaled, are beside them: the pictures, the pictures again, and zeros.
    """

    image_latents: Tensor | None = None


class StableDiffusionInstructPix2PixPipeline(StableDiffusionPipeline):
    """The words and the picture have a guidance each (Brooks et al. 2023, arXiv 2211.09800, eq. 3)."""

    _callback_tensor_inputs = ("latents", "prompt_embeds", "image_latents")
    _image_guidance_scale = 1.5

    @property
    def image_guidance_scale(self) -> float:
        """The weight of the picture: nothing + w·(picture - nothing)."""
        return self._image_guidance_scale

    @property
    def do_classifier_free_guidance(self) -> bool:
        """Whether there is guidance at all: below these bounds the network is asked once, with words and picture."""
        return self._guidance_scale > 1 and self._image_guidance_scale >= 1

    @torch.no_grad()
    @with_lora_scale
    def __call__(
        self,
        prompt: str | list[str] | None = None,
        image: Any = None,
        num_inference_steps: int = 100,
        guidance_scale: float = 7.5,
        image_guidance_scale: float = 1.5,
        negative_prompt: str | list[str] | None = None,
        num_images_per_prompt: int = 1,
        eta: float = 0.0,
        generator: Generators = None,
        latents: Tensor | None = None,
        prompt_embeds: Tensor | None = None,
        negative_prompt_embeds: Tensor | None = None,
        output_type: str = "pil",
        return_dict: bool = True,
        **further: Any,
    ) -> Any:
        """Change `image`, one or several PIL images, arrays or tensors, as `prompt` says."""
        hooks = Hooks.read(further, self._callback_tensor_inputs)
        check_prompts(prompt, negative_prompt, prompt_embeds, negative_prompt_embeds)
        if image is None:
            raise InputError("there is no image to change", remedy="give image=")
        self._image_guidance_scale = image_guidance_scale
        self._begin(guidance_scale, 0.0, None)
        state = self._edited(prompt, negative_prompt, prompt_embeds, negative_prompt_embeds, num_images_per_prompt)
        steps = self._set_timesteps(num_inference_steps, None, None)
        dtype, device = state.prompt_embeds.dtype, self._execution_device
        seen = self._seen(self.image_processor.preprocess(image).to(device, dtype), state.batch)
        height, width = (self.vae_scale_factor * n for n in seen.shape[-2:])
        channels = self.vae.config.latent_channels
        if self.unet.config.in_channels != 2 * channels:
            what = f"a U-Net of {self.unet.config.in_channels} input channels sees no picture beside latents"
            raise InputError(what, remedy=f"use an InstructPix2Pix model, of {2 * channels}")
        state.image_latents = seen
        state.latents = self.prepare_latents(state.batch, channels, height, width, dtype, device, generator, latents)
        extra = self.prepare_extra_step_kwargs(generator, eta)
        self._denoise(state, self.scheduler.timesteps, steps, extra, hooks)
        return self._output(state.latents, output_type, return_dict, generator)

    def _edited(self, prompt: Any, negative: Any, embeds: Any, negative_embeds: Any, count: int) -> Edited:
        """Begin a run's state: the prompts, and with guidance the negative ones for both other passes."""
        state = self._encode(prompt, negative, embeds, negative_embeds, count)
        other = state.negative_prompt_embeds
        told = state.prompt_embeds if other is None else torch.cat([state.prompt_embeds[state.batch :], other, other])
        return Edited(told, other, state.batch)

    def _seen(self, picture: Tensor, batch: int) -> Tensor:
        """What stands beside the latents: the picture's own, unscaled, and zeros for the pass without it."""
        latents = picture
        if not self._is_latent(picture):
            encoded = self.vae.encode(picture.to(self.vae.dtype))
            latents = retrieve_latents(encoded, sample_mode="argmax").to(picture.dtype)
        latents = repeated(latents, batch, "images")
        return torch.cat([latents, latents, torch.zeros_like(latents)]) if self.do_classifier_free_guidance else latents

    def _predict(self, state: State, t: Any) -> Tensor:
        """Ask the network about words and picture, the picture alone, and neither."""
        assert isinstance(state, Edited) and state.image_latents is not None
        guided = self.do_classifier_free_guidance
        x = self.scheduler.scale_model_input(torch.cat([state.latents] * 3) if guided else state.latents, t)
        output = self._asked(state, torch.cat([x, state.image_latents], dim=1), t)
        if not guided:
            return output
        both, picture, nothing = output.chunk(3)
        return nothing + self.guidance_scale * (both - picture) + self.image_guidance_scale * (picture - nothing)
