"""A tiny first stage and the pictures it is trained on, for tests."""

import torch

from safelight.models.autoencoder import Autoencoder, AutoencoderConfig
from safelight.models.lpips import LPIPS, VGGConfig
from safelight.training.data.batches import Batch
from safelight.training.stages.autoencoder import AutoencoderStage
from safelight.training.stages.autoencoder_config import AutoencoderTraining
from safelight.training.stages.noise import BatchNoise

TINY = AutoencoderConfig(
    down_block_types=("DownEncoderBlock2D",) * 2,
    up_block_types=("UpDecoderBlock2D",) * 2,
    block_out_channels=(8, 16),
    latent_channels=3,
    norm_num_groups=4,
)
TINY_VQ = AutoencoderConfig(
    down_block_types=("DownEncoderBlock2D",) * 2,
    up_block_types=("UpDecoderBlock2D",) * 2,
    block_out_channels=(8, 16),
    latent_channels=3,
    norm_num_groups=4,
    num_vq_embeddings=16,
)
SMALL_DISC = {"disc_channels": 8, "disc_layers": 2}
NO_DISC = {"disc_weight": 0.0}


class Blobs:
    """Smooth random pictures of 16 pixels: sample n of a seed is always the same."""

    def __init__(self, side: int = 16, length: int = 64) -> None:
        self.side, self.length = side, length

    def __len__(self) -> int:
        return self.length

    def batch(self, seed, numbers, device="cpu"):
        pictures = []
        for n in numbers:
            generator = torch.Generator().manual_seed(seed * 1000 + n % self.length)
            coarse = torch.rand(1, 3, 4, 4, generator=generator) * 2 - 1
            pictures.append(torch.nn.functional.interpolate(coarse, size=self.side, mode="bilinear"))
        return Batch(torch.cat(pictures).to(device), [""] * len(pictures))


def perceptual() -> LPIPS:
    torch.manual_seed(5)
    metric = LPIPS(VGGConfig(channels=(4, 8), layers=(1, 1)), name="for tests")
    for head in metric.heads:
        head.uniform_(0, 1)
    return metric


def stage(autoencoder=TINY, *, seed=0, **options) -> AutoencoderStage:
    """A stage on `Blobs`. Its networks are drawn from `seed`."""
    torch.manual_seed(seed)
    config = AutoencoderTraining(**{"learning_rate": 1e-3, **SMALL_DISC, **options})
    return AutoencoderStage(Autoencoder(autoencoder), config, Blobs(), perceptual=perceptual(), seed=seed)


def noise(step: int = 0, count: int = 4, seed: int = 0) -> BatchNoise:
    return BatchNoise(seed, range(step * count, (step + 1) * count), step=step)


def one_step(made: AutoencoderStage, step: int, count: int = 4) -> dict[str, torch.Tensor]:
    """What the loop does in a step, in one pass and with neither clipping nor averages; gives the figures."""
    figures = {}
    for optimizer in made.optimizers.values():
        optimizer.zero_grad()
    for loss in made.losses(made.data.batch(0, range(step * count, (step + 1) * count)), noise(step, count)):
        loss.value.backward()
        figures |= loss.figures
    for optimizer in made.optimizers.values():
        optimizer.step()
    made.updated(step)
    return figures
