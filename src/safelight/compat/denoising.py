"""`Denoising`: what Stable Diffusion's pipelines share. The loop over timesteps, its callbacks, the decoding.

The loop is diffusers', written with the scheduler's face, so that callbacks see what they see there, and may change it.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from inspect import signature
from typing import Any, ClassVar, Self

import torch
from torch import Tensor

from safelight.compat.images import VaeImageProcessor
from safelight.compat.notes import explain
from safelight.compat.outputs import StableDiffusionPipelineOutput
from safelight.compat.prompting import Prompted
from safelight.compat.randomness import Generators, retrieve_latents
from safelight.errors import InputError, MissingPartError, NonFiniteError, nearest


@dataclass
class State:
    """The loop's tensors, under the names by which callbacks ask for them.

    With guidance, `prompt_embeds` (2B, L, D) holds the negative prompts, then the prompts; masks are doubled alike.
    """

    prompt_embeds: Tensor
    negative_prompt_embeds: Tensor | None
    batch: int
    latents: Any = None
    mask: Tensor | None = None
    masked_image_latents: Tensor | None = None


@dataclass(frozen=True)
class Hooks:
    """A script's callbacks.

    `callback_on_step_end(pipe, i, t, tensors)` gets the tensors it asked for by name, and may return changed ones.
    `callback(i, t, latents)` is called every `callback_steps` steps, and only looks.
    """

    callback: Callable[[int, Any, Tensor], Any] | None = None
    callback_steps: int = 1
    callback_on_step_end: Callable[..., Mapping[str, Any] | None] | None = None
    callback_on_step_end_tensor_inputs: tuple[str, ...] = ("latents",)

    @classmethod
    def read(cls, given: Mapping[str, Any], tensors: tuple[str, ...]) -> Self:
        """Sort a call's further keywords. Raises InputError for unknown ones, MissingPartError for absent parts."""
        known = {*cls.__dataclass_fields__, "ip_adapter_image", "ip_adapter_image_embeds"}
        for word, value in given.items():
            if word not in known:
                raise InputError(f"the pipeline has no argument {word!r}", remedy=nearest(word, sorted(known)))
            if word not in cls.__dataclass_fields__ and value is not None:
                raise MissingPartError(f"{word}= is not here yet", remedy="leave it out")
        said = {word: v for word, v in given.items() if word in cls.__dataclass_fields__ and v is not None}
        hooks = cls(**said)
        hooks._check(tensors)
        return hooks

    def _check(self, tensors: tuple[str, ...]) -> None:
        if not isinstance(self.callback_steps, int) or self.callback_steps < 1:
            raise InputError(f"callback_steps={self.callback_steps!r}", remedy="give a positive whole number")
        for name in self.callback_on_step_end_tensor_inputs:
            if name not in tensors:
                raise InputError(f"no callback can be given {name!r}", remedy=nearest(name, tensors))

    def step_end(self, pipe: "Denoising", i: int, t: Any, state: State) -> None:
        """Show a step's tensors to `callback_on_step_end`, and take what it returns."""
        if self.callback_on_step_end is None:
            return
        shown = {name: getattr(state, name) for name in self.callback_on_step_end_tensor_inputs}
        for name, tensor in (self.callback_on_step_end(pipe, i, t, shown) or {}).items():
            if name in pipe._callback_tensor_inputs:
                setattr(state, name, tensor)


class Denoising(Prompted):
    """A text-conditional pipeline. The constructor takes the parts, `safety_checker` and the like only by name."""

    vae: Any
    scheduler: Any
    _callback_tensor_inputs: ClassVar[tuple[str, ...]] = ("latents", "prompt_embeds", "negative_prompt_embeds")
    _guidance_scale = 7.5
    _guidance_rescale = 0.0
    _clip_skip: int | None = None
    _interrupt = False
    _num_timesteps = 0

    def __init__(
        self,
        vae: Any,
        text_encoder: Any,
        tokenizer: Any,
        unet: Any,
        scheduler: Any,
        safety_checker: Any = None,
        feature_extractor: Any = None,
        image_encoder: Any = None,
        requires_safety_checker: bool = True,
    ) -> None:
        if safety_checker is not None:
            explain("Safelight runs no safety checker: it marks or hides no picture.")
        self._hold(
            vae=vae, text_encoder=text_encoder, tokenizer=tokenizer, unet=unet, scheduler=scheduler,
            safety_checker=safety_checker, feature_extractor=feature_extractor, image_encoder=image_encoder,
        )  # fmt: skip
        self.register_to_config(requires_safety_checker=requires_safety_checker)

    def _hold(self, **parts: Any) -> None:
        """Hold the parts, in the order that diffusers' pipeline of this kind names them."""
        _bring_up_to_date(parts["scheduler"])
        self.register_modules(**parts)
        self.vae_scale_factor = 2 ** (len(parts["vae"].config.block_out_channels) - 1)
        self.image_processor = VaeImageProcessor(vae_scale_factor=self.vae_scale_factor, do_convert_rgb=True)

    # What callbacks read and set

    @property
    def guidance_scale(self) -> float:
        """The weight w of the text (Ho and Salimans 2022): negative + w·(positive - negative)."""
        return self._guidance_scale

    @property
    def guidance_rescale(self) -> float:
        """How far the guided output's deviation is taken back to the text's (Lin et al. 2023)."""
        return self._guidance_rescale

    @property
    def clip_skip(self) -> int | None:
        """How many of the text encoder's last layers are left out."""
        return self._clip_skip

    @property
    def do_classifier_free_guidance(self) -> bool:
        """Whether the network also sees the negative prompts."""
        return self._guidance_scale > 1

    @property
    def num_timesteps(self) -> int:
        """How often the network is asked in this run."""
        return self._num_timesteps

    @property
    def interrupt(self) -> bool:
        """Whether a callback set `_interrupt`: the remaining steps are passed over."""
        return self._interrupt

    def _begin(self, guidance_scale: float, guidance_rescale: float, clip_skip: int | None) -> None:
        self._guidance_scale, self._guidance_rescale = guidance_scale, guidance_rescale
        self._clip_skip, self._interrupt = clip_skip, False

    # Steps

    def _encode(
        self, prompt: Any, negative: Any, embeds: Tensor | None, negative_embeds: Tensor | None, count: int
    ) -> State:
        """Begin a run's state with the embeddings, joined where there is guidance."""
        positive, other = self.encode_prompt(
            prompt, self._execution_device, count, self.do_classifier_free_guidance, negative, embeds, negative_embeds,
            clip_skip=self.clip_skip,
        )  # fmt: skip
        joined = positive if other is None else torch.cat([other, positive])
        return State(joined, other, len(positive))

    def size(self, height: int | None, width: int | None) -> tuple[int, int]:
        """Give the picture's (height, width) in pixels, by default that of the U-Net's training. Raises InputError."""
        if not height or not width:
            side = self._native_side()
            sides = (side, side) if isinstance(side, int) else side
            height, width = (s * self.vae_scale_factor for s in sides)
        if height % 8 or width % 8 or height % self.vae_scale_factor or width % self.vae_scale_factor:
            raise InputError(f"{width}x{height} pixels", remedy="give a height and a width divisible by 8")
        return height, width

    def _native_side(self) -> Any:
        """The latent's side. Configs older than diffusers 0.9 say 32 where they mean 64."""
        config = self.unet.config
        version = tuple(int(n) for n in str(config.get("_diffusers_version", "1.0")).split(".")[:2] if n.isdigit())
        small = isinstance(config.sample_size, int) and config.sample_size < 64
        return 64 if version < (0, 9) and small else config.sample_size

    def _set_timesteps(self, steps: int, timesteps: Any, sigmas: Any) -> int:
        """Lay out the run, and say how many steps it has."""
        if timesteps is None and sigmas is None:
            self.scheduler.set_timesteps(steps, device=self._execution_device)
            return steps
        if timesteps is not None and sigmas is not None:
            raise InputError("timesteps and sigmas were both given", remedy="give one of them")
        own = {"timesteps": timesteps} if timesteps is not None else {"sigmas": sigmas}
        self.scheduler.set_timesteps(**own, device=self._execution_device)
        return len(self.scheduler.timesteps)

    def get_timesteps(self, num_inference_steps: int, strength: float, device: Any = None) -> tuple[Tensor, int]:
        """Give the timesteps of the last `strength` of the steps, and their number."""
        taken = min(int(num_inference_steps * strength), num_inference_steps)
        first = (num_inference_steps - taken) * self.scheduler.order
        self.scheduler.set_begin_index(first)
        return self.scheduler.timesteps[first:], taken

    def prepare_extra_step_kwargs(self, generator: Generators, eta: float) -> dict[str, Any]:
        """Give those of `eta` and `generator` that the scheduler's `step` takes."""
        taken = signature(self.scheduler.step).parameters
        return {name: v for name, v in (("eta", eta), ("generator", generator)) if name in taken}

    def _denoise(
        self,
        state: State,
        timesteps: Tensor,
        steps: int,
        extra: Mapping[str, Any],
        hooks: Hooks,
        blend: Callable[[int], Tensor] | None = None,
    ) -> None:
        """Take `state.latents` through `timesteps`. `blend(i)` gives the latents to go on with after step i."""
        self._num_timesteps = len(timesteps)
        order = self.scheduler.order
        warmup = len(timesteps) - steps * order
        with self.progress_bar(total=steps) as bar:
            for i, t in enumerate(timesteps):
                if self.interrupt:
                    continue
                output = self._predict(state, t)
                state.latents = self.scheduler.step(output, t, state.latents, **extra, return_dict=False)[0]
                if blend is not None:
                    state.latents = blend(i)
                hooks.step_end(self, i, t, state)
                if i == len(timesteps) - 1 or (i + 1 > warmup and (i + 1) % order == 0):
                    bar.update()
                    if hooks.callback is not None and i % hooks.callback_steps == 0:
                        hooks.callback(i // order, t, state.latents)

    def _predict(self, state: State, t: Any) -> Tensor:
        """Ask the network, with guidance where it is on."""
        guided = self.do_classifier_free_guidance
        x = torch.cat([state.latents] * 2) if guided else state.latents
        x = self.scheduler.scale_model_input(x, t)
        if state.masked_image_latents is not None and state.mask is not None and not self._blends:
            x = torch.cat([x, state.mask, state.masked_image_latents], dim=1)
        output = self._asked(state, x, t)
        if not guided:
            return output
        negative, positive = output.chunk(2)
        output = negative + self.guidance_scale * (positive - negative)
        return rescale_noise_cfg(output, positive, self.guidance_rescale) if self.guidance_rescale > 0 else output

    def _asked(self, state: State, x: Tensor, t: Any) -> Tensor:
        """The U-Net's answer."""
        return self.unet(x, t, encoder_hidden_states=state.prompt_embeds, return_dict=False)[0]

    # Latents and pictures

    @property
    def _blends(self) -> bool:
        """Whether the U-Net sees latents alone: inpainting then keeps the rest by blending."""
        return self.unet.config.in_channels == self.vae.config.latent_channels

    def _is_latent(self, image: Tensor) -> bool:
        return image.shape[1] == self.vae.config.latent_channels != self.vae.config.in_channels

    def _encode_image(self, image: Tensor, generator: Generators) -> Tensor:
        """Sample scaled latents of pictures (B, 3, H, W): one draw for all, or one for each of a list of generators."""
        seen = image.to(self.vae.dtype)
        if isinstance(generator, list):
            pairs = zip(seen.split(1), generator, strict=False)
            latents = torch.cat([retrieve_latents(self.vae.encode(one), g) for one, g in pairs])
        else:
            latents = retrieve_latents(self.vae.encode(seen), generator)
        return self.vae.config.scaling_factor * latents.to(image.dtype)

    def decode_latents(self, latents: Tensor) -> Any:
        """Decode scaled latents to arrays (B, H, W, 3) in [0, 1]."""
        picture = self.vae.decode(latents / self.vae.config.scaling_factor, return_dict=False)[0]
        return VaeImageProcessor.pt_to_numpy(VaeImageProcessor.denormalize(picture))

    def _output(self, latents: Tensor, output_type: str, return_dict: bool, generator: Generators) -> Any:
        if output_type == "latent":
            return self._wrapped(latents, return_dict)
        raw = latents.to(self.vae.dtype) / self.vae.config.scaling_factor
        picture = self.vae.decode(raw, return_dict=False, generator=generator)[0]
        if not picture.isfinite().all():
            remedy = "decode in float32: pipe.vae.to(torch.float32), or load without torch_dtype"
            raise NonFiniteError("the decoded picture is not finite", remedy=remedy)
        return self._wrapped(self.image_processor.postprocess(picture, output_type), return_dict)

    def _wrapped(self, images: Any, return_dict: bool) -> Any:
        return StableDiffusionPipelineOutput(images) if return_dict else (images, None)

    def _check_generators(self, generator: Generators, batch: int) -> None:
        if isinstance(generator, list) and len(generator) != batch:
            what = f"{len(generator)} generators were given for {batch} pictures"
            raise InputError(what, remedy="give one generator for each picture")

    # Memory switches of the autoencoder, and what is not here

    def enable_vae_slicing(self) -> None:
        """Do nothing. See `enable_vae_tiling`."""

    def disable_vae_slicing(self) -> None:
        """Do nothing."""

    def enable_vae_tiling(self) -> None:
        """Decode large pictures in tiles."""
        self.vae.enable_tiling()

    def disable_vae_tiling(self) -> None:
        """Decode pictures whole."""
        self.vae.disable_tiling()

    def enable_freeu(self, *_: Any, **__: Any) -> None:
        """Raise MissingPartError."""
        raise self._missing("FreeU")


def rescale_noise_cfg(noise_cfg: Tensor, noise_pred_text: Tensor, guidance_rescale: float = 0.0) -> Tensor:
    """Take the guided output's deviation back to the text's, by `guidance_rescale` (Lin et al. 2023, eq. 15-16)."""
    axes = tuple(range(1, noise_cfg.ndim))
    rescaled = noise_cfg * (noise_pred_text.std(axes, keepdim=True) / noise_cfg.std(axes, keepdim=True))
    return guidance_rescale * rescaled + (1 - guidance_rescale) * noise_cfg


def _bring_up_to_date(scheduler: Any) -> None:
    """Correct, in place, two settings that old configs have and no Stable Diffusion was made for, as diffusers does."""
    config = scheduler.config
    changes: dict[str, Any] = {}
    if config.get("steps_offset", 1) != 1:
        changes["steps_offset"] = 1
    if config.get("clip_sample", False) is True:
        changes["clip_sample"] = False
    if changes:
        scheduler.config = type(config)({**config, **changes})
