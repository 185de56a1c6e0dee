"""More to say of each place: latent channels beside those that are there, so that what draws these can stay.

    python recipes/grow_latents.py MODEL PICTURES --run RUN --mixes varied placed

MODEL is a model, PICTURES a collection of sprites as `safelight.training.data.sprites` has them. The first channels go
on saying what they said; the new ones learn what was missing, which is edges and small things. RUN/model is the new
autoencoder, of averaged weights, and RUN/grown the model around it: its U-Net reads and writes the new channels with
weights of zero, so that it draws what it drew until `safelight train diffusion --init RUN/grown` has taught it them.
The same command goes on wherever it was stopped.
"""

import math
import sys
from dataclasses import replace

import torch
from growing import Growing, arguments, grow
from torch import Tensor, nn

from safelight import kernels
from safelight.checkpoint.load import load_autoencoder, load_parts
from safelight.checkpoint.save import save_folder
from safelight.errors import InputError
from safelight.models.autoencoder import Autoencoder
from safelight.models.unet import UNet

SPREAD = 0.6  # deviation of the new scaled latents, where the old ones' is 1: noise hides details before shapes
CERTAIN = -6.0  # log-variance that new channels begin with
DISTURBED = 0.1  # at most, of scaled latents: so that what is learnt can bear a denoiser's errors


def grown(old: Autoencoder, channels: int) -> Autoencoder:
    """An autoencoder of so many latent channels, which says with the first ones what the old one said with all.

    The decoder does not hear the others yet.
    """
    c, k = old.config, old.config.latent_channels
    if c.kind != "AutoencoderKL" or channels <= k or not (c.use_quant_conv and c.use_post_quant_conv):
        raise InputError(
            f"{channels} latent channels instead of the {k} of a {c.kind}",
            remedy="take more, of a KL one with quant_conv and post_quant_conv",
        )
    new, kept = Autoencoder(replace(c, latent_channels=channels, latent_rgb=None)), old.state_dict()
    with torch.no_grad():
        for name, weight in new.state_dict().items():
            if kept[name].shape == weight.shape:
                weight.copy_(kept[name])
        said, heard = new.encoder.conv_out, new.decoder.conv_in
        moments = [*range(k), *range(channels, channels + k)]  # means, then log-variances
        said.weight[channels:].zero_()
        said.bias.zero_()
        said.bias[channels + k :] = CERTAIN
        said.weight[moments], said.bias[moments] = old.encoder.conv_out.weight, old.encoder.conv_out.bias
        extend(new.quant_conv, old.quant_conv, moments)
        extend(new.post_quant_conv, old.post_quant_conv, list(range(k)))
        heard.weight.zero_()
        heard.weight[:, :k] = old.decoder.conv_in.weight
    return new


def extend(new: nn.Conv2d, old: nn.Conv2d, places: list[int]) -> None:
    """Let a 1x1 convolution do at these places what the old one did, and leave other channels as they are."""
    new.weight[:, :, 0, 0] = torch.eye(new.out_channels)
    new.bias.zero_()
    rows = torch.tensor(places)
    new.weight[rows[:, None], rows, 0, 0] = old.weight[:, :, 0, 0]
    new.bias[rows] = old.bias


def wider(old: UNet, channels: int) -> UNet:
    """The U-Net with so many latent channels, of which it overlooks the new ones and says nothing yet."""
    c = old.config
    if c.in_channels != c.out_channels:  # such as one for inpainting
        raise InputError(
            f"a U-Net that reads {c.in_channels} channels and writes {c.out_channels}",
            remedy="take one that reads latents alone",
        )
    if channels <= c.in_channels:
        raise InputError(f"{channels} latent channels instead of the U-Net's {c.in_channels}", remedy="take more")
    new, kept = UNet(replace(c, in_channels=channels, out_channels=channels)), old.state_dict()
    with torch.no_grad():
        for name, weight in new.state_dict().items():
            if name.startswith(("conv_in.", "conv_out.")):
                weight.zero_()
            weight[tuple(map(slice, kept[name].shape))] = kept[name]
    return new


class MoreLatents(Growing):
    """The new encoder says what the old one says, and more; the decoder draws from all of it."""

    def __init__(self, old: Autoencoder, channels: int, steps: int, rate: float) -> None:
        super().__init__(old, grown(old, channels), steps, rate)
        for network in (self.old, self.new):
            kernels.prepare(network)  # convolutions in C have gradients

    def losses(self, x: Tensor) -> tuple[Tensor, dict[str, float]]:
        """Likeness, the old latents' as well, and how far the new latents spread."""
        with torch.no_grad():
            taught = self.old.encode(x)
        said, k, scale = self.new.encode(x), taught.mean.shape[1], self.new.config.scaling_factor
        share = DISTURBED / scale * torch.rand(len(x), 1, 1, 1, generator=self.generator)
        own = torch.where(torch.arange(said.mean.shape[1]) < k, 1.0, SPREAD)[:, None, None]
        z = said.mean + (said.std.square() + (own * share).square()).sqrt() * self.noise(said.mean)
        squared = (self.new.decoder(self.new.post_quant_conv(z)) - x).square().mean((1, 2, 3))
        mean = (said.mean[:, :k] - taught.mean).square().mean()
        certain = (said.std[:, :k].log() - taught.std.log()).square().mean()
        spread = said.mean[:, k:].square().mean((0, 2, 3)).sqrt() * (scale / SPREAD)
        kept = spread.clamp_min(1e-3).log().square().mean()
        likeness = squared.log().mean()  # of each picture, as PSNR has it: plain ones weigh as much as full ones
        loss = 0.3 * likeness + 4 * mean + 0.1 * certain + 0.02 * kept
        psnr = 10 * (math.log10(4) - likeness.item() / math.log(10))
        figures = {"psnr": psnr, "latents": mean.item(), "spread": spread.mean().item()}
        return loss, figures


def main() -> int:
    """Grow the autoencoder, and then the model around it."""
    asked = arguments(__doc__, channels=32, meaning="of the new latents")
    parts = load_parts(asked.model, dtype=torch.float32)  # first, so that what cannot grow is not trained for hours
    unet = wider(parts.unet, asked.channels)
    grow(asked, MoreLatents)
    made = load_autoencoder(asked.run / "model", dtype=torch.float32)
    save_folder(replace(parts, autoencoder=made, unet=unet), asked.run / "grown")
    print(f"written: {asked.run / 'grown'}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
