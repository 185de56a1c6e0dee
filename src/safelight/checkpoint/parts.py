"""`Parts`: what a model's files hold, loaded. The pipeline makes a `LatentDiffusion` of it; `save` writes it back."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from torch import Tensor

from safelight.models.autoencoder import Autoencoder
from safelight.models.clip import TextEncoder
from safelight.models.conditioners import Conditioner
from safelight.models.text_pair import TextEncoderPair
from safelight.models.unet import UNet
from safelight.text.tokenizer import Tokenizer

# Latent diffusion's own inpainting (inpainting_big), whose U-Net sees the masked picture before the mask. Nothing but
# the family tells it from one that was trained here, which sees them in Stable Diffusion's order.
LDM_INPAINT = "ldm-inpaint"


@dataclass(frozen=True, kw_only=True, repr=False)
class Parts:
    """The parts of a model.

    `scheduler_config` is the content of diffusers' scheduler_config.json, plain data. `prediction_type` is "epsilon",
    "v_prediction" or "sample"; `prediction_from` says who said so: "user", "config", "family", "global_step", "probe".
    `global_step` is where training stood, if the file says so.
    `extra` holds a single file's tensors that no network here has (OpenCLIP's last block, LDM's BERT), under their
    names in the file, so that they can be written again; they stay in the file until then.
    `conditioner` is what tells the U-Net of a class, a layout or a map, and `classes` are the names of its classes, or
    of those of the U-Net's own table. `guidance_scale` is what it is best guided by, as far as the files say.
    `force_zeros_for_empty_prompt` says that an empty negative prompt is told as zeros.
    `low_res_scheduler_config` describes the noise an upscaler lays on pictures.
    `weights` are the files whose tensors were taken: names within the model -> where they lie. `loras` says by how much
    those among them were added that are LoRAs.
    """

    unet: UNet
    autoencoder: Autoencoder
    text_encoder: TextEncoder | TextEncoderPair | None = None
    tokenizer: Tokenizer | None = None
    conditioner: Conditioner | None = None
    classes: tuple[str, ...] = ()
    guidance_scale: float = 7.5
    force_zeros_for_empty_prompt: bool = False
    scheduler_config: Mapping[str, Any] = field(default_factory=dict)
    low_res_scheduler_config: Mapping[str, Any] = field(default_factory=dict)
    prediction_type: str = "epsilon"
    prediction_from: str = "family"
    family: str = "custom"
    source: str = ""
    global_step: int | None = None
    extra: Mapping[str, Tensor] = field(default_factory=dict)
    weights: Mapping[str, Path] = field(default_factory=dict)
    loras: Mapping[str, float] = field(default_factory=dict)

    def __repr__(self) -> str:
        """One line: the networks' own would fill pages of a notebook."""
        return f"<Parts of {self.source or 'a model in memory'}: {self.family}, {self.prediction_type}>"
