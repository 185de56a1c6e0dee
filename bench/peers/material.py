"""One model for all: Stable Diffusion 1.5 at full size with seeded random weights, and what it is asked about."""

from pathlib import Path

import numpy as np
import torch
from torch import nn

from safelight import Tokenizer, convert
from safelight.checkpoint.configs import default_scheduler
from safelight.checkpoint.parts import Parts
from safelight.checkpoint.save import save_folder
from safelight.models.autoencoder import Autoencoder
from safelight.models.clip import TextEncoder
from safelight.models.presets import AUTOENCODERS, TEXT_ENCODERS, UNETS
from safelight.models.unet import UNet

from .rows import Row

PROMPT = "a red fox in the snow, watercolour"


def fill(network: nn.Module, seed: int) -> nn.Module:
    """Random weights that keep activations near 1: normal with variance 1 / fan-in, norms near 1; float16."""
    generator = torch.Generator().manual_seed(seed)
    for name, parameter in network.named_parameters():
        if parameter.dim() > 1:
            parameter.data.normal_(std=parameter[0].numel() ** -0.5, generator=generator)
        else:
            parameter.data.normal_(std=0.1, generator=generator)
            parameter.data += 1.0 if "norm" in name and name.endswith("weight") else 0.0
    return network.half().eval().requires_grad_(False)


def model_folder(cache: Path) -> Path:
    """The model as a diffusers folder of float16 weights, 2 GB; made when it is first asked for."""
    folder = cache / "sd15-random"
    if not folder.exists():
        print("making Stable Diffusion 1.5 of random weights, once", flush=True)
        save_folder(
            Parts(
                unet=fill(UNet(UNETS["sd15"]), 0),
                autoencoder=fill(Autoencoder(AUTOENCODERS["sd15"]), 1),
                text_encoder=fill(TextEncoder(TEXT_ENCODERS["sd15"]), 2),
                tokenizer=Tokenizer.clip(),
                scheduler_config=default_scheduler("sd1"),
                family="sd1",
            ),
            folder,
        )
    return folder


def single_file(cache: Path) -> Path:
    """The same weights as one file in the CompVis layout."""
    file = cache / "sd15-random.safetensors"
    if not file.exists():
        convert(model_folder(cache), file)
    return file


def inputs(row: Row, cache: Path) -> Path:
    """A file of the arrays that a row's part takes."""
    file = cache / "inputs" / f"{row.key}.npz"
    file.parent.mkdir(parents=True, exist_ok=True)
    np.savez(file, **arrays(row))
    return file


def arrays(row: Row) -> dict[str, np.ndarray]:
    """Seeded numbers of the right shapes. `draw` takes a prompt and a seed."""
    g = np.random.default_rng(row.side + row.batch)

    def normal(*shape: int) -> np.ndarray:
        return g.standard_normal(shape, dtype=np.float32)

    b, n = row.batch, row.side // 8
    match row.part:
        case "text":
            ids = g.integers(0, 49406, (b, 77))
            ids[:, 0], ids[:, 20:] = 49406, 49407
            return {"ids": ids}
        case "unet":
            latents = 1 if row.kind == "guided" else b  # in a run the same prompts look at one latent
            return {"x": normal(latents, 4, n, n), "t": np.float32(500), "context": normal(b, 77, 768)}
        case "encode":
            return {"picture": np.tanh(normal(b, 3, row.side, row.side))}
        case "decode":
            return {"latent": normal(b, 4, n, n)}
        case _:
            return {"prompt": np.array(PROMPT), "seed": np.int64(0)}
