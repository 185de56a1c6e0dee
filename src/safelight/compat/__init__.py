"""diffusers' and transformers' names: change a script's imports to `safelight.compat`, and it runs and draws the same.

    from safelight.compat import CLIPTextModel, CLIPTokenizer, StableDiffusionPipeline

Nothing is computed here that another room could: compat holds names, call shapes, and diffusers' way of drawing chance.

    stable_diffusion   the three Stable Diffusion pipelines; denoising, prompting: what they share
    stable_diffusion_xl  the three of Stable Diffusion XL
    controlnet         ControlNets, and text to image and image to image with one
    instruct_pix2pix   a picture changed as the words say
    unconditional      DDPM, DDIM, LDM
    adapters           LoRAs and learned words in pipelines
    pipeline           DiffusionPipeline: loading, saving, parts; auto: a pipeline for a task
    networks           U-Nets and autoencoders; text_encoder, tokenizer: transformers' CLIP
    schedulers         every scheduler of safelight.diffusion
    images             VaeImageProcessor, load_image, make_image_grid
    randomness         randn_tensor, posteriors; outputs: what calls return
    faces              how a network gets another call shape; loading: from_pretrained's options

What is not here (safety checker, IP-Adapter, ...) says so by a MissingPartError.
"""

from importlib import import_module
from typing import Any

from safelight.errors import MissingPartError, nearest

_EXPORTS: dict[str, str] = {
    name: f"safelight.compat.{module}"
    for module, names in {
        "stable_diffusion": "StableDiffusionPipeline StableDiffusionImg2ImgPipeline StableDiffusionInpaintPipeline",
        "stable_diffusion_xl": "StableDiffusionXLPipeline StableDiffusionXLImg2ImgPipeline "
        "StableDiffusionXLInpaintPipeline",
        "controlnet": "ControlNetModel StableDiffusionControlNetImg2ImgPipeline StableDiffusionControlNetPipeline",
        "instruct_pix2pix": "StableDiffusionInstructPix2PixPipeline",
        "unconditional": "DDIMPipeline DDPMPipeline LDMPipeline",
        "pipeline": "DiffusionPipeline",
        "auto": "AutoPipelineForText2Image AutoPipelineForImage2Image AutoPipelineForInpainting",
        "denoising": "rescale_noise_cfg",
        "networks": "AutoencoderKL UNet2DConditionModel UNet2DModel VQModel",
        "text_encoder": "CLIPTextConfig CLIPTextModel CLIPTextModelWithProjection",
        "tokenizer": "BatchEncoding CLIPTokenizer CLIPTokenizerFast",
        "schedulers": "DDIMScheduler DDPMScheduler DEISMultistepScheduler DPMSolverMultistepScheduler "
        "DPMSolverSinglestepScheduler EulerAncestralDiscreteScheduler EulerDiscreteScheduler HeunDiscreteScheduler "
        "KDPM2AncestralDiscreteScheduler KDPM2DiscreteScheduler LCMScheduler LMSDiscreteScheduler PNDMScheduler "
        "TCDScheduler UniPCMultistepScheduler",
        "images": "VaeImageProcessor load_image make_image_grid numpy_to_pil",
        "randomness": "DiagonalGaussianDistribution randn_tensor retrieve_latents",
        "outputs": "AutoencoderKLOutput ControlNetOutput DecoderOutput ImagePipelineOutput "
        "StableDiffusionPipelineOutput UNet2DConditionOutput UNet2DOutput VQEncoderOutput",
    }.items()
    for name in names.split()
}
# Names that scripts import and that name what is not here yet
_MISSING = ("Adapter", "ControlNet", "Depth2Img", "Flux", "Lora", "Motion", "SafetyChecker", "StableDiffusion3",
            "StableDiffusionXL", "Transformer2D", "Upscale", "Video", "CLIPFeatureExtractor", "CLIPImageProcessor",
            "CLIPVision")  # fmt: skip

__all__ = [*_EXPORTS, "logging"]


def __getattr__(name: str) -> Any:
    if name in _EXPORTS:
        return getattr(import_module(_EXPORTS[name]), name)
    if name == "logging":
        return import_module("safelight.compat.logging")
    if not name.startswith("_") and any(part in name for part in _MISSING):
        raise MissingPartError(f"{name} is not here yet", remedy=f"the nearest: {nearest(name, _EXPORTS)}")
    raise AttributeError(f"safelight.compat has no {name!r}; {nearest(name, _EXPORTS)}")


def __dir__() -> list[str]:
    return sorted(__all__)
