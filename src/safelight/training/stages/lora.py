"""Training a LoRA: the model stays as it is, and beside some of its layers a product of two narrow matrices is learned.

    W x  ->  (W + alpha/r · B A) x        A (r, in), B (out, r); B begins at zero, so that at first nothing changes

Hu et al. 2021, "LoRA: low-rank adaptation of large language models", arXiv 2106.09685.
"""

import math
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from safelight.checkpoint.lora import FILE
from safelight.checkpoint.writing import outgoing, write_safetensors
from safelight.errors import InputError

# Which layers: the projections of attention, as diffusers' and kohya's trainers have them, or all linear ones.
LAYERS = {
    "attention": re.compile(r".*(\.to_(q|k|v)|\.to_out\.0|\.(q|k|v|out)_proj)"),
    "linear": re.compile(r"(?!.*(time_emb|embedding)).*"),
}
PREFIXES = {"unet": "lora_unet", "text_encoder": "lora_te"}  # kohya's names, which all programs read


class Addition(nn.Module):
    """What is added to one layer's weight (out, in)."""

    def __init__(self, weight: Tensor, rank: int, alpha: float) -> None:
        super().__init__()
        self.scale = alpha / rank
        self.down = nn.Parameter(torch.empty(rank, weight.shape[1], device=weight.device))
        self.up = nn.Parameter(torch.zeros(len(weight), rank, device=weight.device))
        nn.init.kaiming_uniform_(self.down, a=math.sqrt(5))

    def forward(self, weight: Tensor) -> Tensor:
        """The weight with its addition."""
        return weight + self.scale * (self.up @ self.down)


class Adapted(nn.Module):
    """A network with additions. Its parameters are theirs alone, so that averages and checkpoints hold nothing else.

    `network` is the one that was given, changed in place; it is no part of this module.
    """

    network: nn.Module

    def __init__(self, network: nn.Module, *, rank: int, alpha: float | None = None, layers: str = "attention") -> None:
        super().__init__()
        object.__setattr__(self, "network", network.requires_grad_(False))
        linear = [name for name, part in network.named_modules() if isinstance(part, nn.Linear)]
        self.names = [name for name in linear if LAYERS[layers].fullmatch(name)]
        if not self.names:
            raise InputError(f"the network has no layers {layers!r}", remedy=f"choose of {', '.join(LAYERS)}")
        self.alpha = float(rank if alpha is None else alpha)
        self.additions = nn.ModuleList()
        for name in self.names:
            layer = network.get_submodule(name)
            self.additions.append(Addition(layer.weight, rank, self.alpha))  # type: ignore[arg-type]
            parametrize.register_parametrization(layer, "weight", self.additions[-1])

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """What the network answers."""
        return self.network(*args, **kwargs)


def tensors(network: str, adapted: Adapted, state: dict[str, Tensor]) -> Iterator[tuple[str, Tensor]]:
    """The tensors of a LoRA file, in kohya's names, of an `Adapted`'s state."""
    for number, name in enumerate(adapted.names):
        key = f"{PREFIXES[network]}_{name.replace('.', '_')}"
        yield f"{key}.lora_down.weight", state[f"additions.{number}.down"].contiguous()
        yield f"{key}.lora_up.weight", state[f"additions.{number}.up"].contiguous()
        yield f"{key}.alpha", torch.tensor(adapted.alpha)


def write_lora(folder: Path, networks: dict[str, tuple[Adapted, dict[str, Tensor]]]) -> Path:
    """Write what was learned as a file that Safelight, diffusers, A1111 and ComfyUI read."""
    told = {key: tensor for name, pair in networks.items() for key, tensor in tensors(name, *pair)}
    write_safetensors(folder / FILE, outgoing(told), {"format": "pt"})
    return folder / FILE
