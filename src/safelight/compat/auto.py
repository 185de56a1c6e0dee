"""`AutoPipelineForText2Image`, `...Image2Image`, `...Inpainting`: a task's pipeline, from a model or a pipeline."""

import os
from typing import Any, ClassVar

from safelight.compat.loading import Options
from safelight.compat.pipeline import NAMES, DiffusionPipeline, read_index
from safelight.compat.stable_diffusion import (
    StableDiffusionImg2ImgPipeline,
    StableDiffusionInpaintPipeline,
    StableDiffusionPipeline,
)
from safelight.compat.stable_diffusion_xl import (
    XL,
    StableDiffusionXLImg2ImgPipeline,
    StableDiffusionXLInpaintPipeline,
    StableDiffusionXLPipeline,
)


class AutoPipeline:
    """The pipeline of one task: that of Stable Diffusion's models, or that of Stable Diffusion XL's."""

    pipeline: ClassVar[type[DiffusionPipeline]]
    xl: ClassVar[type[DiffusionPipeline]]

    @classmethod
    def from_pretrained(cls, pretrained_model_or_path: str | os.PathLike[str], **options: Any) -> DiffusionPipeline:
        """Load a model for this task, whichever of the tasks its folder names. See `DiffusionPipeline`."""
        folder = Options.read(options, also=dict.fromkeys(NAMES)).locate(os.fspath(pretrained_model_or_path))
        is_xl = str(read_index(folder).get("_class_name")).startswith("StableDiffusionXL")
        return (cls.xl if is_xl else cls.pipeline).from_pretrained(pretrained_model_or_path, **options)

    @classmethod
    def from_pipe(cls, pipeline: DiffusionPipeline, **changes: Any) -> DiffusionPipeline:
        """Use another pipeline's parts, shared, for this task."""
        return (cls.xl if isinstance(pipeline, XL) else cls.pipeline).from_pipe(pipeline, **changes)


class AutoPipelineForText2Image(AutoPipeline):
    """Text to image."""

    pipeline, xl = StableDiffusionPipeline, StableDiffusionXLPipeline


class AutoPipelineForImage2Image(AutoPipeline):
    """Image to image."""

    pipeline, xl = StableDiffusionImg2ImgPipeline, StableDiffusionXLImg2ImgPipeline


class AutoPipelineForInpainting(AutoPipeline):
    """Inpainting."""

    pipeline, xl = StableDiffusionInpaintPipeline, StableDiffusionXLInpaintPipeline
