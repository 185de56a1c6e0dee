"""Keeping a codebook alive: which of its vectors are used, and new places for those that are not.

A vector that is nobody's nearest gets no gradient and stays where it is for ever. It is therefore moved onto a latent
that the encoder has just made (random restarts: Dhariwal et al. 2020, arXiv 2005.00341, appendix B).
"""

from collections.abc import Mapping

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.tensor import DTensor, distribute_tensor

__all__ = ["CodebookUse", "perplexity", "revive"]


from safelight.diffusion.noise import sent


def perplexity(shares: Tensor) -> Tensor:
    """exp(entropy) of a codebook's use, from each code's share (n,): 1 if one code does all, n if all do the same."""
    shares = shares / shares.sum().clamp(min=torch.finfo(shares.dtype).tiny)
    return torch.special.entr(shares).sum().exp()


class CodebookUse:
    """Each code's share of the latents lately: a moving average over steps, (n,), from 0 for all.

    `dead` are the codes with less than `threshold` of an equal share.
    """

    def __init__(self, size: int, *, device: torch.device | str, decay: float = 0.99, threshold: float = 0.03) -> None:
        self.decay, self.threshold = decay, threshold
        self.shares = torch.zeros(size, device=device)
        self._seen = torch.zeros_like(self.shares)

    def see(self, indices: Tensor) -> None:
        """Count the codes of one micro-batch; `indices` have any shape."""
        # Whole numbers in float32 add up exactly, so that the order of the additions does not matter.
        rows = indices.flatten()
        self._seen.scatter_add_(0, rows, torch.ones_like(rows, dtype=self._seen.dtype))

    def update(self) -> None:
        """Take what all processes have seen since the last call into the shares."""
        if dist.is_available() and dist.is_initialized():
            dist.all_reduce(self._seen)
        now = self._seen / self._seen.sum().clamp(min=1)
        self.shares.mul_(self.decay).add_(now, alpha=1 - self.decay)
        self._seen.zero_()

    def dead(self) -> Tensor:
        """Which codes (n,) are hardly used."""
        return self.shares <= self.threshold * self.shares.mean()

    def figures(self) -> dict[str, Tensor]:
        """Scalars for the log: how many codes are in use, and the perplexity."""
        return {"codes_used": (~self.dead()).float().sum(), "perplexity": perplexity(self.shares)}

    def tensors(self) -> dict[str, Tensor]:
        """All state, to be saved."""
        return {"shares": self.shares, "seen": self._seen}

    def load(self, tensors: Mapping[str, Tensor]) -> None:
        """Take saved state back."""
        self.shares.copy_(tensors["shares"])
        self._seen.copy_(tensors["seen"])


@torch.no_grad()
def revive(
    weight: Tensor,
    dead: Tensor,
    latents: Tensor,
    generator: torch.Generator,
    optimizer: torch.optim.Optimizer | None = None,
) -> Tensor:
    """Move the dead codes of a codebook onto latents drawn at random; return which were moved, (n,).

    weight (n, C) is the codebook, dead (n,) a mask, latents (B, C, h, w) what the encoder has just made; `generator` is
    on the CPU. The optimizer forgets what it knew of the moved codes. All processes call this together, with equal
    generators, and each gives latents for every `world size`-th code. Latents that are not finite move nothing.
    """
    rows = latents.detach().movedim(1, -1).flatten(0, -2).float()
    chosen = sent(torch.randint(len(rows), (len(dead),), generator=generator), rows.device)
    places = rows[chosen]
    if dist.is_available() and dist.is_initialized():
        ours = torch.arange(len(places), device=places.device) % dist.get_world_size() == dist.get_rank()
        places = torch.where(ours[:, None], places, torch.zeros_like(places))
        dist.all_reduce(places)  # every code has one process that does not give zeros
    moved = dead & places.isfinite().all(dim=1)
    column = placed(moved[:, None], weight)
    weight.copy_(torch.where(column, placed(places.to(weight.dtype), weight), weight))
    for moment in (optimizer.state[weight] if optimizer else {}).values():
        if isinstance(moment, Tensor) and moment.shape == weight.shape:
            moment.copy_(torch.where(column, torch.zeros_like(moment), moment))
    return moved


def placed(whole: Tensor, like: Tensor) -> Tensor:
    """The part of a tensor that this process holds of `like`, if that is spread over processes row by row."""
    if not isinstance(like, DTensor):
        return whole
    return distribute_tensor(whole.contiguous(), like.device_mesh, like.placements, src_data_rank=None)
