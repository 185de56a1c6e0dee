"""The smallest model that has every part, and a data set of numbers: what the tests of training train."""

from dataclasses import dataclass, replace

import torch

from safelight.diffusion.schedule import noise_schedule
from safelight.models.autoencoder import Autoencoder, AutoencoderConfig
from safelight.models.clip import TextConfig, TextEncoder
from safelight.models.presets import levels
from safelight.models.unet import UNet, UNetConfig
from safelight.pipeline.bundle import LatentDiffusion
from safelight.text.tokenizer import Tokenizer

SCHEDULER = {
    "_class_name": "DDIMScheduler",
    "beta_schedule": "scaled_linear",
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "num_train_timesteps": 1000,
    "clip_sample": False,
    "set_alpha_to_one": False,
    "steps_offset": 1,
    "timestep_spacing": "leading",
    "prediction_type": "epsilon",
}
UNET = UNetConfig(
    sample_size=8,
    **levels("CrossAttn", ""),
    block_out_channels=(8, 16),
    layers_per_block=1,
    norm_num_groups=4,
    attention_head_dim=2,
    cross_attention_dim=16,
)
FIRST_STAGE = AutoencoderConfig(
    block_out_channels=(8, 8),
    down_block_types=("DownEncoderBlock2D",) * 2,
    up_block_types=("UpDecoderBlock2D",) * 2,
    layers_per_block=1,
    norm_num_groups=4,
    latent_channels=4,
    scaling_factor=0.5,
    sample_size=16,
)
TEXT = TextConfig(
    hidden_size=16, intermediate_size=32, num_hidden_layers=1, num_attention_heads=2, projection_dim=16,
    pad_token_id=49407,
)  # fmt: skip


def perturbed(network, seed):
    """Every parameter off its start, so that no gradient is zero because of a layer that begins at zero."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for p in network.parameters():
            p += 0.05 * torch.randn(p.shape, generator=generator)
    return network


def tiny_model(*, text=True, prediction_type="epsilon", seed=0, zero_snr=False, **unet):
    torch.manual_seed(seed)
    base = UNET if text else replace(UNET, **levels("", ""), mid_block_type="UNetMidBlock2D", attention_head_dim=8)
    return LatentDiffusion(
        unet=perturbed(UNet(replace(base, **unet)), seed),
        autoencoder=Autoencoder(FIRST_STAGE),
        text_encoder=TextEncoder(TEXT) if text else None,
        tokenizer=Tokenizer.clip() if text else None,
        schedule=noise_schedule(rescale_betas_zero_snr=zero_snr),
        prediction_type=prediction_type,
        scheduler_config={**SCHEDULER, "prediction_type": prediction_type},
        family="sd1",
        name="tiny",
    )


@dataclass(frozen=True, eq=False)
class Moments:
    """A batch of precomputed latents: the face of `LatentBatch`."""

    moments: torch.Tensor
    context: torch.Tensor | None = None
    ids: torch.Tensor | None = None
    labels: torch.Tensor | None = None


class MomentData:
    """Endless precomputed samples, each a function of (seed, number). `bad`: sample numbers whose latent is NaN."""

    def __init__(self, *, text="context", bad=(), classes=3):
        self.text, self.bad, self.classes = text, set(bad), classes

    def __len__(self):
        return 16

    def batch(self, seed, numbers, device="cpu"):
        moments, contexts, ids = [], [], []
        for n in numbers:
            g = torch.Generator().manual_seed(1_000_003 * seed + n)
            moments.append(torch.randn(8, 8, 8, generator=g) * (float("nan") if n in self.bad else 1))
            contexts.append(torch.randn(77, 16, generator=g))
            ids.append(torch.randint(0, 49408, (77,), generator=g))
        return Moments(
            torch.stack(moments).to(device),
            torch.stack(contexts).to(device) if self.text == "context" else None,
            torch.stack(ids).to(device) if self.text == "ids" else None,
            torch.tensor([n % self.classes for n in numbers], device=device),
        )

    def gather(self, seed, numbers):
        raise NotImplementedError("these tests prepare data in the process")
