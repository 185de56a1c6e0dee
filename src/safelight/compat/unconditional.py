"""Pipelines that draw without words: DDPM and DDIM on pixels, LDM on latents."""

from inspect import signature
from typing import Any

import torch
from torch import Tensor

from safelight.compat import schedulers
from safelight.compat.images import VaeImageProcessor, numpy_to_pil
from safelight.compat.outputs import ImagePipelineOutput
from safelight.compat.pipeline import DiffusionPipeline
from safelight.compat.randomness import Generators, randn_tensor


class Unconditional(DiffusionPipeline):
    """The loop that the three share."""

    unet: Any
    scheduler: Any

    def _first(self, batch: int, generator: Generators) -> Tensor:
        """Draw unit noise of the U-Net's own size."""
        config = self.unet.config
        side = config.sample_size
        sides = (side, side) if isinstance(side, int) else tuple(side)
        return randn_tensor((batch, config.in_channels, *sides), generator, self.device, self.unet.dtype)

    def _denoised(self, x: Tensor, steps: int, **options: Any) -> Tensor:
        """Take noise through `steps` steps; `options` go to the scheduler's `step`, as far as it takes them."""
        self.scheduler.set_timesteps(steps)
        taken = signature(self.scheduler.step).parameters
        extra = {name: value for name, value in options.items() if name in taken and value is not None}
        for t in self.progress_bar(self.scheduler.timesteps):
            output = self.unet(self.scheduler.scale_model_input(x, t), t).sample
            x = self.scheduler.step(output, t, x, **extra).prev_sample
        return x

    def _wrapped(self, picture: Tensor, output_type: str, return_dict: bool) -> Any:
        picture = VaeImageProcessor.denormalize(picture)
        images: Any = picture if output_type == "pt" else VaeImageProcessor.pt_to_numpy(picture)
        images = numpy_to_pil(images) if output_type == "pil" else images
        return ImagePipelineOutput(images) if return_dict else (images,)


class DDPMPipeline(Unconditional):
    """Pixels by ancestral sampling (Ho et al. 2020, arXiv 2006.11239, algorithm 2)."""

    def __init__(self, unet: Any, scheduler: Any) -> None:
        self.register_modules(unet=unet, scheduler=scheduler)

    @torch.no_grad()
    def __call__(
        self,
        batch_size: int = 1,
        generator: Generators = None,
        num_inference_steps: int = 1000,
        output_type: str = "pil",
        return_dict: bool = True,
    ) -> Any:
        """Draw `batch_size` pictures of the U-Net's own size."""
        x = self._denoised(self._first(batch_size, generator), num_inference_steps, generator=generator)
        return self._wrapped(x, output_type, return_dict)


class DDIMPipeline(Unconditional):
    """Pixels by DDIM (Song et al. 2021, arXiv 2010.02502), whatever scheduler the model came with."""

    def __init__(self, unet: Any, scheduler: Any) -> None:
        ddim = schedulers.SCHEDULERS["DDIMScheduler"].from_config(scheduler.config)
        self.register_modules(unet=unet, scheduler=ddim)

    @torch.no_grad()
    def __call__(
        self,
        batch_size: int = 1,
        generator: Generators = None,
        eta: float = 0.0,
        num_inference_steps: int = 50,
        use_clipped_model_output: bool | None = None,
        output_type: str = "pil",
        return_dict: bool = True,
    ) -> Any:
        """Draw `batch_size` pictures of the U-Net's own size; `eta` 0 adds no noise on the way, 1 as much as DDPM."""
        x = self._denoised(
            self._first(batch_size, generator), num_inference_steps,
            eta=eta, use_clipped_model_output=use_clipped_model_output, generator=generator,
        )  # fmt: skip
        return self._wrapped(x, output_type, return_dict)


class LDMPipeline(Unconditional):
    """Latents by DDIM, decoded by a VQ or KL autoencoder (Rombach et al. 2022, arXiv 2112.10752, section 4.1)."""

    vqvae: Any

    def __init__(self, vqvae: Any, unet: Any, scheduler: Any) -> None:
        self.register_modules(vqvae=vqvae, unet=unet, scheduler=scheduler)

    @torch.no_grad()
    def __call__(
        self,
        batch_size: int = 1,
        generator: Generators = None,
        eta: float = 0.0,
        num_inference_steps: int = 50,
        output_type: str = "pil",
        return_dict: bool = True,
    ) -> Any:
        """Draw `batch_size` pictures. diffusers draws the first noise alone from `generator`; so does this."""
        x = self._first(batch_size, generator) * self.scheduler.init_noise_sigma
        latents = self._denoised(x, num_inference_steps, eta=eta)
        picture = self.vqvae.decode(latents / self.vqvae.config.scaling_factor).sample
        return self._wrapped(picture, output_type, return_dict)
