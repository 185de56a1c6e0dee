"""How a classifier is trained. Light: the command line imports it."""

from typing import Literal

from pydantic import Field

from safelight.training.loop.recipes import LoopConfig
from safelight.training.stages.autoencoder_config import LearningRate, Positive, WeightDecay

__all__ = ["ClassifierRecipe"]


class ClassifierRecipe(LoopConfig):
    """All of `safelight train classifier`. The defaults take half an hour to an hour on two free cores."""

    data: str = Field(description="a collection of sprites whose table names concepts and styles")
    cache: str | None = Field(None, description="folder to keep sprites in that were made ready, for the next time")
    size: Positive = Field(64, description="side of the pictures it looks at, in pixels")
    concept: str = Field("hex", description="the table's column that says what a picture shows, in whatever style")
    channels: tuple[int, ...] = Field((32, 64, 128, 256), description="of the network's levels, from size/2 on")
    features: Positive = Field(256, description="numbers that concept and style are read from")
    learning_rate: LearningRate = 2e-3
    weight_decay: WeightDecay = 0.05
    smoothing: float = Field(0.1, ge=0, lt=1, description="of the labels (Szegedy et al. 2016)")
    blur: float = Field(0.5, ge=0, le=1, description="share of pictures shown blurred, as a model may draw them")
    steps: Positive = Field(4000, description="optimizer steps in all")
    batch_size: Positive = Field(64, description="samples of one step, over all passes and processes")
    warmup: int = Field(200, ge=0, description="steps over which the learning rate rises")
    course: Literal["constant", "cosine", "linear"] = Field("cosine", description="of the learning rate after that")
    ema_decay: float = Field(0.995, ge=0, le=1, description="of the moving average that is saved; 0 keeps none")
