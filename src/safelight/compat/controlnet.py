"""ControlNets as diffusers calls them: `ControlNetModel`, and pipelines that draw after a picture of edges or poses."""

import os
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Self

import torch
from torch import Tensor

from safelight.checkpoint.build import Plan
from safelight.checkpoint.folders import plan_controlnet
from safelight.checkpoint.load import load_controlnet
from safelight.compat.denoising import Denoising, State
from safelight.compat.images import VaeImageProcessor
from safelight.compat.loading import Options
from safelight.compat.networks import Diffuser, pooled_of
from safelight.compat.outputs import ControlNetOutput
from safelight.compat.stable_diffusion import StableDiffusionImg2ImgPipeline, StableDiffusionPipeline
from safelight.errors import InputError, MissingPartError
from safelight.models.controlnet import ControlNet, ControlNetConfig


class ControlNetModel(Diffuser):
    """A ControlNet. Keywords of the constructor are the entries of config.json."""

    net: ControlNet

    def __init__(self, **config: Any) -> None:
        native = ControlNetConfig.from_diffusers({**config, "_class_name": type(self).__name__})
        super().__init__(ControlNet(native).eval(), native.to_diffusers() | config)

    @classmethod
    def plan(cls, folder: Path, variant: str | None) -> Plan[ControlNet]:
        """Find the weights in a folder and check them against the network."""
        return plan_controlnet(folder, variant)

    @classmethod
    def from_single_file(cls, pretrained_model_link_or_path: str | os.PathLike[str], **options: Any) -> Self:
        """Load a file of the original's kind, such as control_v11p_sd15_canny.pth."""
        return cls.wrap(load_controlnet(os.fspath(pretrained_model_link_or_path), dtype=Options.read(options).dtype))

    def forward(
        self,
        sample: Tensor,
        timestep: Tensor | float,
        encoder_hidden_states: Tensor,
        controlnet_cond: Tensor,
        conditioning_scale: float = 1.0,
        class_labels: Tensor | None = None,
        added_cond_kwargs: dict[str, Tensor] | None = None,
        guess_mode: bool = False,
        return_dict: bool = True,
        **further: Any,
    ) -> Any:
        """What to add to a U-Net that is given `sample` (B, C, h, w) and context (B, L, D).

        `controlnet_cond` (B, 3, 8·h, 8·w) is in [0, 1]. In `guess_mode` the nearer to the way out, the less is added:
        from a tenth to all of it.
        """
        for name, value in {"class_labels": class_labels, **further}.items():
            if value is not None:
                raise MissingPartError(f"this ControlNet takes no {name} yet", remedy="leave it out")
        pooled = pooled_of(self.net.config.unet, added_cond_kwargs or {})
        added = self.net(sample, timestep, encoder_hidden_states, controlnet_cond, pooled)
        parts, rising = (*added.skips, added.mid), guess_mode and not self.net.config.global_pool_conditions
        shares = torch.logspace(-1 if rising else 0, 0, len(parts)).tolist()
        *skips, mid = (part * (conditioning_scale * share) for part, share in zip(parts, shares, strict=True))
        return ControlNetOutput(tuple(skips), mid) if return_dict else (tuple(skips), mid)


@dataclass
class Following:
    """The picture that a run follows, (n, 3, H, W) in [0, 1]; how closely; and at which of its timesteps, in turn."""

    picture: Tensor
    scale: float
    guess: bool
    start: float
    end: float
    kept: Iterator[bool]


class Controlled(Denoising):
    """A pipeline with a ControlNet. One at a time: a list of them is not here yet."""

    controlnet: Any
    _following: Following | None = None

    def __init__(self, vae: Any, text_encoder: Any, tokenizer: Any, unet: Any, controlnet: Any, scheduler: Any,
                 safety_checker: Any = None, feature_extractor: Any = None, image_encoder: Any = None,
                 requires_safety_checker: bool = True) -> None:  # fmt: skip
        if isinstance(controlnet, list | tuple):
            raise MissingPartError("several ControlNets at once are not here yet", remedy="give one")
        super().__init__(vae, text_encoder, tokenizer, unet, scheduler, safety_checker, feature_extractor,
                         image_encoder, requires_safety_checker)  # fmt: skip
        self.register_modules(controlnet=controlnet)

    @cached_property
    def control_image_processor(self) -> VaeImageProcessor:
        """Reads the picture to follow: RGB in [0, 1]."""
        return VaeImageProcessor(vae_scale_factor=self.vae_scale_factor, do_convert_rgb=True, do_normalize=False)

    def _follow(self, picture: Any, height: int | None, width: int | None, scale: float, guess: bool, start: float,
                end: float) -> tuple[int, int]:  # fmt: skip
        """Prepare what a run follows; the height and width that its pictures get."""
        if any(isinstance(one, list) for one in (scale, start, end)):
            raise InputError("there is one ControlNet, and a list of settings", remedy="give one number of each")
        if picture is None:
            raise InputError("there is no picture to follow", remedy="give one")
        if start >= end:
            what = f"control_guidance_start={start} does not lie before control_guidance_end={end}"
            raise InputError(what, remedy="give shares of the run, such as 0 and 1")
        prepared = self.control_image_processor.preprocess(picture, height=height, width=width).float()
        self._following = Following(prepared, scale, guess, start, end, iter(()))
        return prepared.shape[-2], prepared.shape[-1]

    def _denoise(self, state: State, timesteps: Tensor, *given: Any) -> None:
        """Take the latents through the timesteps, and follow the picture at those that lie wholly between its ends."""
        following, n = self._following, len(timesteps)
        assert following is not None
        if len(following.picture) not in (1, state.batch) and state.batch % len(following.picture):
            what = f"{len(following.picture)} pictures to follow for {state.batch} to draw"
            raise InputError(what, remedy="give one for all, or one for each prompt")
        following.kept = iter([i / n >= following.start and (i + 1) / n <= following.end for i in range(n)])
        guess = following.guess or self.controlnet.config.global_pool_conditions
        picture = following.picture.repeat_interleave(state.batch // len(following.picture), dim=0)
        doubled = self.do_classifier_free_guidance and not guess
        following.picture = (torch.cat([picture] * 2) if doubled else picture).to(
            self._execution_device, self.controlnet.dtype
        )
        following.guess = guess
        super()._denoise(state, timesteps, *given)

    def _asked(self, state: State, x: Tensor, t: Any) -> Tensor:
        """The U-Net's answer, with what the ControlNet adds."""
        following = self._following
        assert following is not None
        scale = following.scale if next(following.kept) else 0.0
        half = following.guess and self.do_classifier_free_guidance
        seen = self.scheduler.scale_model_input(state.latents, t) if half else x
        words = state.prompt_embeds.chunk(2)[1] if half else state.prompt_embeds
        down, mid = self.controlnet(
            seen,
            t,
            encoder_hidden_states=words,
            controlnet_cond=following.picture,
            conditioning_scale=scale,
            guess_mode=following.guess,
            return_dict=False,
        )
        if half:  # the words alone are helped
            down, mid = [torch.cat([0 * one, one]) for one in down], torch.cat([0 * mid, mid])
        return self.unet(x, t, encoder_hidden_states=state.prompt_embeds, down_block_additional_residuals=tuple(down),
                         mid_block_additional_residual=mid, return_dict=False)[0]  # fmt: skip


class StableDiffusionControlNetPipeline(Controlled, StableDiffusionPipeline):
    """Text to image after a picture (Zhang et al. 2023, arXiv 2302.05543)."""

    def __call__(
        self,
        prompt: str | list[str] | None = None,
        image: Any = None,
        height: int | None = None,
        width: int | None = None,
        num_inference_steps: int = 50,
        *,
        controlnet_conditioning_scale: float = 1.0,
        guess_mode: bool = False,
        control_guidance_start: float = 0.0,
        control_guidance_end: float = 1.0,
        **further: Any,
    ) -> Any:
        """Draw pictures after `image`, by default of its size; `further` as `StableDiffusionPipeline` has them."""
        height, width = self._follow(image, height, width, controlnet_conditioning_scale, guess_mode,
                                     control_guidance_start, control_guidance_end)  # fmt: skip
        return StableDiffusionPipeline.__call__(self, prompt, height, width, num_inference_steps, **further)


class StableDiffusionControlNetImg2ImgPipeline(Controlled, StableDiffusionImg2ImgPipeline):
    """Image to image after another picture."""

    def __call__(
        self,
        prompt: str | list[str] | None = None,
        image: Any = None,
        control_image: Any = None,
        height: int | None = None,
        width: int | None = None,
        strength: float = 0.8,
        *,
        controlnet_conditioning_scale: float = 0.8,
        guess_mode: bool = False,
        control_guidance_start: float = 0.0,
        control_guidance_end: float = 1.0,
        **further: Any,
    ) -> Any:
        """Redraw `image` after `control_image`; `further` as `StableDiffusionImg2ImgPipeline` has them."""
        self._follow(control_image, height, width, controlnet_conditioning_scale, guess_mode, control_guidance_start,
                     control_guidance_end)  # fmt: skip
        return StableDiffusionImg2ImgPipeline.__call__(self, prompt, image, strength, **further)
