"""The losses of a picture's reconstruction, as functions of tensors: likelihood, and a game against a discriminator.

Rombach et al. 2022 (arXiv 2112.10752, appendix G) train first stages as VQGAN does (Esser et al. 2021, arXiv
2012.09841, equations 4 to 7). Everything here is computed in float32; logits are of any shape (B, 1, h, w).
"""

from collections.abc import Callable, Iterable
from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional as F

Reduction = Literal["sum", "mean", "log"]

EXACT = 1e-8  # the smallest error of a picture whose logarithm is told apart: 86 dB
EPS, LARGEST = 1e-4, 1e4  # of the adaptive weight, as VQGAN has them


def pixel_error(x: Tensor, reconstruction: Tensor, kind: str = "l1") -> Tensor:
    """|x - x̂|, or its square for "l2", of pictures (B, C, H, W): the same shape."""
    difference = reconstruction.float() - x.float()
    return difference.abs() if kind == "l1" else difference.square()


def negative_log_likelihood(error: Tensor, distance: Tensor, logvar: Tensor, reduction: Reduction) -> Tensor:
    """How unlikely pictures are, given their reconstructions: a scalar.

    error (B, C, H, W) is the pixels' and distance (B,) the whole pictures' perceptual one, which is added to every
    pixel. With r = error + distance, each pixel gives r/exp(logvar) + logvar. "sum" adds them over C, H and W and takes
    the mean over B, as the paper's KL models do, whose KL weight of 1e-6 stands beside such sums; "mean" takes the mean
    over everything, as its VQ models do. "log" is the mean over B of log(mean r), which is what "mean" comes to when
    each picture has the logvar that suits it best: plain pictures weigh as much as full ones. With squares it is PSNR.
    """
    errors = error + distance[:, None, None, None]
    if reduction == "log":
        return errors.flatten(1).mean(1).clamp_min(EXACT).log().mean()
    terms = errors / logvar.exp() + logvar
    return terms.sum() / len(terms) if reduction == "sum" else terms.mean()


def generator_loss(fake: Tensor) -> Tensor:
    """-mean D(x̂): what the autoencoder pays for reconstructions that do not look real. For hinge and vanilla alike."""
    return -fake.float().mean()


def hinge_loss(real: Tensor, fake: Tensor) -> Tensor:
    """½(mean max(0, 1 - D(x)) + mean max(0, 1 + D(x̂))) (Lim & Ye 2017, arXiv 1705.02894)."""
    return 0.5 * (F.relu(1 - real.float()).mean() + F.relu(1 + fake.float()).mean())


def vanilla_loss(real: Tensor, fake: Tensor) -> Tensor:
    """-½(mean log σ(D(x)) + mean log(1 - σ(D(x̂)))) (Goodfellow et al. 2014, arXiv 1406.2661)."""
    return 0.5 * (F.softplus(-real.float()).mean() + F.softplus(fake.float()).mean())


DISCRIMINATOR_LOSSES: dict[str, Callable[[Tensor, Tensor], Tensor]] = {"hinge": hinge_loss, "vanilla": vanilla_loss}


def r1_penalty(logits: Tensor, real: Tensor) -> Tensor:
    """½ mean_b |∇ₓ D(x_b)|², where D(x) is the mean of a picture's logits (Mescheder et al. 2018, arXiv 1801.04406).

    `logits` (B, 1, h, w) must have been computed from `real`, which wants gradients. Its own gradient is defined.
    """
    (gradient,) = torch.autograd.grad(logits.float().mean(dim=(1, 2, 3)).sum(), real, create_graph=True)
    return 0.5 * gradient.square().sum(dim=(1, 2, 3)).mean()


def adaptive_weight(likelihood: Tensor, adversarial: Tensor) -> Tensor:
    """|∇nll| / (|∇g| + 1e-4), between 0 and 1e4: how strong the adversarial loss may be to pull as hard as the other.

    Both are gradients at the decoder's last weight (VQGAN, equation 7); the result is a scalar without gradient.
    """
    ratio = torch.linalg.vector_norm(likelihood.float()) / (torch.linalg.vector_norm(adversarial.float()) + EPS)
    return ratio.clamp(0, LARGEST).detach()


def with_gradient(value: Tensor, gradients: Iterable[tuple[Tensor, Tensor]]) -> Tensor:
    """A scalar of this value whose gradients are already known: pairs (tensor, gradient there), and none elsewhere."""
    linear = torch.stack([(tensor * gradient.detach()).sum() for tensor, gradient in gradients]).sum()
    return value.detach() + (linear - linear.detach())
