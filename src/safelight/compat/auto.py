"""`AutoPipelineForText2Image`, `...Image2Image`, `...Inpainting`: a task's pipeline, from a model or a pipeline."""

import os
from typing import Any, ClassVar

from safelight.compat.pipeline import DiffusionPipeline
from safelight.compat.stable_diffusion import (
    StableDiffusionImg2ImgPipeline,
    StableDiffusionInpaintPipeline,
    StableDiffusionPipeline,
)


class AutoPipeline:
    """The pipeline of one task. The models that are here all have the same three."""

    pipeline: ClassVar[type[DiffusionPipeline]]

    @classmethod
    def from_pretrained(cls, pretrained_model_or_path: str | os.PathLike[str], **options: Any) -> DiffusionPipeline:
        """Load a model for this task, whichever of the tasks its folder names. See `DiffusionPipeline`."""
        return cls.pipeline.from_pretrained(pretrained_model_or_path, **options)

    @classmethod
    def from_pipe(cls, pipeline: DiffusionPipeline, **changes: Any) -> DiffusionPipeline:
        """Use another pipeline's parts, shared, for this task."""
        return cls.pipeline.from_pipe(pipeline, **changes)


class AutoPipelineForText2Image(AutoPipeline):
    """Text to image."""

    pipeline = StableDiffusionPipeline


class AutoPipelineForImage2Image(AutoPipeline):
    """Image to image."""

    pipeline = StableDiffusionImg2ImgPipeline


class AutoPipelineForInpainting(AutoPipeline):
    """Inpainting."""

    pipeline = StableDiffusionInpaintPipeline
