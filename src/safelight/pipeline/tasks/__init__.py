"""What people ask for. A task is an initial x, a place on the grid to start, wrappers on the denoiser, and a decode.

Each task is one function; its keywords become the options of the command line by themselves (see `fields`). These
modules are light: what computes is imported when a task is called.

task       what makes a function a task
in_words   text_to_image, image_to_image, inpaint, outpaint, variations, edit, depth_to_image
otherwise  unconditional, class_to_image, upscale, layout_to_image, semantic_synthesis
"""

from safelight.pipeline.tasks.in_words import (
    depth_to_image,
    edit,
    image_to_image,
    inpaint,
    outpaint,
    text_to_image,
    variations,
)
from safelight.pipeline.tasks.otherwise import (
    class_to_image,
    layout_to_image,
    semantic_synthesis,
    unconditional,
    upscale,
)
from safelight.pipeline.tasks.task import TASKS

__all__ = ["TASKS", "class_to_image", "depth_to_image", "edit", "image_to_image", "inpaint", "layout_to_image",
           "outpaint", "semantic_synthesis", "text_to_image", "unconditional", "upscale", "variations"]  # fmt: skip
