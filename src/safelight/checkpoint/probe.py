"""Does a U-Net predict the noise or v? Its weights do not say; one pass through it nearly always does.

At the last training step the input x = alpha x0 + sigma noise is almost pure noise (alpha = 0.07 for Stable
Diffusion). A net that predicts the noise gives back almost x itself. One that predicts v = alpha noise - sigma x0 gives
about minus a mean picture, which has little to do with x. So the correlation of output and input tells them apart: near
1, or near 0. (AUTOMATIC1111 asks the same question with a constant input, and looks at the mean of the difference.)

Limits: it says something about trained nets only; a net that was trained on a schedule of zero terminal SNR, or for
`sample` prediction, looks like v (the latter is not told apart); and between 0.3 and 0.7 no answer is given.
"""

from typing import Literal

import torch

from safelight.models.unet import UNet

SIDE = 32  # latent pixels: 4096 numbers make the correlation's error about 0.02
LAST_STEP = 999


@torch.no_grad()
def correlation(unet: UNet, context: torch.Tensor | None) -> float:
    """The correlation of output and input, in [-1, 1], on one latent of noise at t = 999.

    `context` is the encoded empty prompt (1, L, D); zeros do where there is no text encoder.
    """
    config, weight = unet.config, unet.conv_in.weight
    noise = torch.randn(1, config.in_channels, SIDE, SIDE, generator=torch.Generator().manual_seed(0))
    if context is None and config.conditional:
        context = torch.zeros(1, 77, config.cross_attention_dim)
    output = unet(
        noise.to(weight),
        torch.tensor([LAST_STEP], device=weight.device),
        None if context is None else context.to(weight),
    )
    pair = torch.stack([noise[:, : config.out_channels].flatten(), output.float().cpu().flatten()])
    return float(torch.corrcoef(pair)[0, 1])


def verdict(correlation: float) -> Literal["epsilon", "v_prediction"] | None:
    """What a correlation means; None where it means nothing (an untrained net)."""
    if correlation > 0.7:
        return "epsilon"
    return "v_prediction" if abs(correlation) < 0.3 else None


def probe(unet: UNet, context: torch.Tensor | None = None) -> Literal["epsilon", "v_prediction"] | None:
    """Run the U-Net once and say what it predicts, or None. See the module for method and limits."""
    return verdict(correlation(unet, context))
