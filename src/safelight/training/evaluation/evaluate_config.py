"""What an evaluation can be told. Light: the command line imports it."""

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field

__all__ = ["EvaluateOptions"]

Count = Annotated[int, Field(ge=0)]
Positive = Annotated[int, Field(ge=1)]


class EvaluateOptions(BaseModel):
    """What to measure, on what, with what."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    data: str | None = Field(None, description="real pictures to compare with: a folder, zip or tar shards")
    scenes: bool | None = Field(None, description="compose scenes of its sprites; by default if there are some")
    cache: str | None = Field(None, description="folder to keep sprites in that were made ready, for the next time")
    what: Literal["reconstruction", "samples", "prompts", "all"] = Field("all", description="what to measure")
    count: Positive = Field(512, description="pictures to measure on; distances need hundreds, better thousands")
    size: int | None = Field(None, ge=1, description="side of the pictures; by default the model's own")
    dtype: Literal["float32", "float16", "bfloat16"] | None = Field(
        None, description="precision of the model; by default what it draws in elsewhere"
    )
    seed: Count = Field(0, description="of the pictures to compare with, of noise and of subsets")
    steps: Positive = Field(30, description="sampling steps")
    guidance_scale: float | None = Field(None, ge=0, description="guidance; by default the model's own")
    sampler: str = Field("dpmpp_2m", description="see `safelight samplers`")
    grid: str = Field("karras", description="see `safelight samplers`")
    batch_size: Positive = Field(16, description="pictures at a time; changes memory and time, no figure")
    variety: Count = Field(4, description="pictures a prompt for the diversity across seeds; 0 leaves it out")
    varied_prompts: Positive = Field(16, description="prompts for that")
    neighbours: Count = Field(2048, description="training pictures to look for copies among; 0 leaves it out")
    train_seed: Count = Field(0, description="of the training whose pictures these are")
    classifier: str | None = Field(None, description="folder of a classifier from `safelight train classifier`")
    inception: str | None = Field(None, description="pt_inception-2015-12-05-6726825d.pth, for FID and KID")
    clip: str | None = Field(None, description="weights of a CLIP model, for distances in its image features")
    lpips_vgg: str | None = Field(None, description="torchvision's VGG16, for LPIPS")
    lpips_heads: str | None = Field(None, description="LPIPS' linear heads, vgg.pth")
    features: str | None = Field(None, description="stand-in features of the training, where LPIPS' files are not")
