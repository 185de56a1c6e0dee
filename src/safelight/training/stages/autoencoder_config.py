"""How a first stage is trained, and how the paper's were. Light: the command line imports it."""

from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

__all__ = ["AUTOENCODER_BATCHES", "AUTOENCODER_TRAININGS", "AutoencoderTraining"]

Positive = Annotated[int, Field(ge=1)]
Count = Annotated[int, Field(ge=0)]
Weight = Annotated[float, Field(ge=0)]
Share = Annotated[float, Field(ge=0, le=1)]
LearningRate = Annotated[float, Field(gt=0, description="of AdamW, as it is: not scaled by the batch")]
WeightDecay = Annotated[float, Field(ge=0, description="of AdamW")]
Beta = Annotated[float, Field(ge=0, le=1, description="of AdamW")]


class AutoencoderTraining(BaseModel):
    """The losses of a first stage; the defaults are those of the paper's KL models at 256 pixels.

    The autoencoder pays nll + kl_weight·KL (or codebook_weight·codebook loss) and, from step `disc_start` on, counted
    from 0, disc_factor·disc_weight·`adaptive_weight`·adversarial loss.

    Four things that the original code did by mistake are done as they were meant, unless `original` is set: the
    likelihood's logvar is trained (there it was left out of the optimizer); beta weighs the commitment loss (there the
    codebook loss); the discriminator has learned for `disc_warmup` steps when its judgement begins to count (there it
    was untrained); LPIPS has no dropout (there its heads' dropout was active). `original` also revives no codes.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    learning_rate: LearningRate = 5.4e-5
    disc_learning_rate: float | None = Field(None, gt=0, description="of the discriminator; by default the same")
    beta1: Beta = 0.5
    beta2: Beta = 0.9
    clip: Weight = Field(0.0, description="largest norm of a network's gradients; 0 clips nothing, as in the paper")
    pixel_loss: Literal["l1", "l2"] = Field("l1", description="between a picture and its reconstruction")
    perceptual_weight: Weight = Field(1.0, description="of LPIPS, or of what stands in for it, beside the pixels")
    features_steps: Count = Field(
        600, description="to train stand-in features in, if neither LPIPS' files nor features are named; 0: do not"
    )
    reduction: Literal["sum", "mean", "log"] | None = Field(
        None,
        description="of both over a picture's pixels; by default the paper's: sum for KL models, mean for VQ; "
        "log: the logarithm of each picture's mean, with l2 its PSNR",
    )
    kl_weight: Weight = Field(1e-6, description="of the divergence of a KL model's whole latent")
    codebook_weight: Weight = Field(1.0, description="of a VQ model's codebook and commitment losses")
    commitment_beta: Weight = Field(0.25, description="of the commitment loss beside the codebook's")
    disc_start: Count = Field(50_001, description="step from which the adversarial loss counts")
    disc_warmup: Count = Field(1000, description="steps before that in which the discriminator learns already")
    disc_weight: Weight = Field(0.5, description="of the adversarial loss, beside its adaptive weight; 0: no adversary")
    disc_factor: Weight = Field(1.0, description="of the adversarial loss and of the discriminator's own")
    disc_loss: Literal["hinge", "vanilla"] = Field("hinge", description="of the discriminator")
    disc_channels: Positive = Field(64, description="of the discriminator's first layer")
    disc_layers: Positive = Field(3, description="of the discriminator that halve the resolution")
    disc_norm: Literal["batch", "act", "group", "none"] = Field("batch", description="of the discriminator's layers")
    r1_gamma: Weight = Field(0.0, description="of the discriminator's gradient penalty (R1); 0 is none")
    revive_every: Count = Field(200, description="steps after which unused codes get a new place; 0 is never")
    scale_samples: Count = Field(1024, description="pictures to measure the latents' scale on; 0 leaves the scale")
    measure_shift: bool = Field(False, description="measure the latents' mean too, and store it as shift_factor (KL)")
    sheet_pictures: Positive = Field(8, description="pictures whose reconstructions a sheet shows")
    sheet_difference: bool = Field(False, description="show on sheets what differs, four times as strong")
    decoder_only: bool = Field(False, description="train the decoder of `init` alone, so that its latents stay valid")
    latent_noise: Weight = Field(
        0.0, description="largest deviation of noise on the scaled latents that `decoder_only` learns to undo; 0: none"
    )
    original: bool = Field(False, description="repeat the original code's mistakes, to reproduce its trainings")

    @model_validator(mode="after")
    def _noise_is_for_decoders(self) -> "AutoencoderTraining":
        if self.latent_noise and not self.decoder_only:
            raise ValueError("latent_noise is for decoder_only: latents that still change have no scale yet")
        return self

    @property
    def adversarial(self) -> bool:
        """Whether there is a discriminator at all."""
        return self.disc_weight > 0 and self.disc_factor > 0

    def judged(self, step: int) -> bool:
        """Whether the autoencoder pays the adversarial loss at this step."""
        return self.adversarial and step >= self.disc_start

    def judging(self, step: int) -> bool:
        """Whether the discriminator learns at this step."""
        return self.adversarial and step >= self.disc_start - (0 if self.original else self.disc_warmup)

    def reviving(self, step: int) -> bool:
        """Whether unused codes are moved after this step."""
        moving = self.revive_every > 0 and not (self.original or self.decoder_only)
        return moving and (step + 1) % self.revive_every == 0


# Pictures in a batch of one device, by the names of `models.presets.AUTOENCODERS`, in the original's configs. It
# multiplies its base learning rate with them, and has no warm-up.
AUTOENCODER_BATCHES = {
    "kl_f4": 10, "kl_f8": 4, "kl_f16": 6, "kl_f32": 6,
    "vq_f4": 8, "vq_f4_noattn": 8, "vq_f8": 10, "vq_f8_n256": 10, "vq_f16": 14,
}  # fmt: skip
BASE = 4.5e-6

# Some of the original's disc_start were 0, 1 or 11 because those runs went on from a checkpoint; they stand here as
# they stand there. From nothing, let the autoencoder learn first.
VQ: dict[str, Any] = {"disc_start": 250_001, "disc_weight": 0.75}
LOSSES: dict[str, dict[str, Any]] = {
    "vq_f4": VQ | {"disc_start": 0},
    "vq_f4_noattn": VQ | {"disc_start": 11},
    "vq_f8": VQ | {"disc_start": 1, "disc_weight": 0.6, "disc_layers": 2},
    "vq_f8_n256": VQ,
    "vq_f16": VQ | {"disc_layers": 2},
}

# What is not the default, by the same names.
AUTOENCODER_TRAININGS: dict[str, Mapping[str, Any]] = {
    name: {"learning_rate": batch * BASE, **LOSSES.get(name, {})} for name, batch in AUTOENCODER_BATCHES.items()
}
