"""Latents as colours at almost no cost: rgb = latent · table, a linear map fitted to each autoencoder.

A latent keeps the layout of its picture, and its few channels tell mostly brightness and colour: a linear map is enough
to see what is coming. It makes one pixel of a preview from one of the latent, some thousand times faster than decoding.
"""

from collections.abc import Callable
from copy import deepcopy
from pathlib import Path

import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from safelight.checkpoint.configs import autoencoder as read_config
from safelight.checkpoint.load import load_autoencoder
from safelight.checkpoint.writing import write_json
from safelight.errors import CheckpointError
from safelight.models.autoencoder import Autoencoder
from safelight.models.presets import SD_AUTOENCODER, SDXL_AUTOENCODER
from safelight.pipeline.bundle import LatentDiffusion
from safelight.pipeline.pictures import to_pil

Table = tuple[tuple[float, ...], ...]  # a row (R, G, B) for each channel of a scaled latent, and one to add

# Stable Diffusion 1 and 2, as keturn found them: discuss.huggingface.co/t/decoding-latents-to-rgb-without-upscaling
STABLE_DIFFUSION: Table = (
    (0.298, 0.207, 0.208),
    (0.187, 0.286, 0.173),
    (-0.158, 0.189, 0.264),
    (-0.184, -0.271, -0.473),
    (0.0, 0.0, 0.0),
)
# Stable Diffusion XL, as ComfyUI has it (comfy/latent_formats.py)
STABLE_DIFFUSION_XL: Table = (
    (0.3651, 0.4232, 0.4341),
    (-0.2533, -0.0042, 0.1068),
    (0.1076, 0.1111, -0.0362),
    (-0.3165, -0.2492, -0.2188),
    (0.1084, -0.0175, -0.0011),
)
KNOWN = {SD_AUTOENCODER.scaling_factor: STABLE_DIFFUSION, SDXL_AUTOENCODER.scaling_factor: STABLE_DIFFUSION_XL}


def latent_rgb(autoencoder: Autoencoder) -> Table:
    """The table of an autoencoder: the one stored with it, Stable Diffusion's if it is that one, else a new fit."""
    config = autoencoder.config
    if config.latent_rgb is not None:
        return config.latent_rgb
    if config.scaling_factor in KNOWN and config.block_out_channels == SD_AUTOENCODER.block_out_channels:
        return KNOWN[config.scaling_factor]
    return fit_latent_rgb(autoencoder)


@torch.no_grad()
def fit_latent_rgb(autoencoder: Autoencoder, pictures: Tensor | None = None) -> Table:
    """Fit the table by least squares: to decoded latents, each pixel of a latent beside the mean colour of its patch.

    pictures: (B, 3, H, W) in [-1, 1], whose latents to fit to; by default smooth random ones, which need no data.
    In float16 some autoencoders overflow: it is fitted in float32.
    """
    if autoencoder.dtype == torch.float16:
        autoencoder = deepcopy(autoencoder).float()
    factor, weight = autoencoder.config.factor, autoencoder.decoder.conv_in.weight
    pictures = smooth_pictures(8, 16 * factor) if pictures is None else pictures
    latent = autoencoder.encode(pictures.to(weight.device)).mode()
    shown = F.avg_pool2d(autoencoder.decode(latent).clamp(-1, 1), factor)
    channels = F.pad(latent.movedim(1, -1).flatten(0, -2), (0, 1), value=1.0).cpu().double()
    colours = shown.movedim(1, -1).flatten(0, -2).cpu().double()
    # An autoencoder may leave a channel unused; gelsd then takes the smallest of all solutions.
    table = torch.linalg.lstsq(channels, colours, driver="gelsd").solution
    return tuple(tuple(round(value, 4) for value in row) for row in table.tolist())


def approximate(latent: Tensor, table: Table) -> Tensor:
    """Scaled latents (B, C, h, w) as small pictures (B, 3, h, w) in [-1, 1]."""
    rows = torch.tensor(table, dtype=latent.dtype, device=latent.device)
    colours = torch.einsum("bchw,cr->brhw", latent, rows[:-1]) + rows[-1].view(1, 3, 1, 1)
    return colours.clamp(-1, 1)


def previewer(model: LatentDiffusion) -> Callable[[Tensor], list[Image.Image]]:
    """What turns scaled latents (B, C, h, w), such as a step's x0, into B pictures.

    A model with a tiny decoder shows them in full size; else they are small, and a table is fitted if need be.
    """
    if (decoder := model.decoder) is not None:
        return torch.no_grad()(lambda latent: [to_pil(one) for one in decoder(latent.to(model.device)).cpu()])
    table = latent_rgb(model.autoencoder)
    return lambda latent: [to_pil(one) for one in approximate(latent, table)]


def store_latent_rgb(folder: str | Path) -> Table:
    """Fit the table of a model's folder, or of an autoencoder's own, and store it in the autoencoder's config.json.

    Raises CheckpointError where `folder` is no such folder, or cannot be written to.
    """
    path = Path(folder)
    inner = next((path / name for name in ("vae", "vqvae", ".") if (path / name / "config.json").is_file()), None)
    if inner is None:
        raise CheckpointError("holds no autoencoder's config.json", path=path, remedy="name a model's folder")
    table = fit_latent_rgb(load_autoencoder(inner))
    config = read_config(inner).to_diffusers()
    write_json(inner / "config.json", config | {"_latent_rgb": [list(row) for row in table]})
    return table


def smooth_pictures(count: int, side: int) -> Tensor:
    """Random pictures (count, 3, side, side) in [-1, 1], the same each time, with patches of all sizes and colours."""
    generator = torch.Generator().manual_seed(0)
    pictures = torch.zeros(count, 3, side, side)
    for cells in (1, 2, 4, 8):
        patches = torch.rand(count, 3, cells, cells, generator=generator) * 2 - 1
        pictures += F.interpolate(patches, (side, side), mode="bicubic", align_corners=False)
    return (pictures * 0.7).clamp(-1, 1)
