"""Wrappers that steer: each makes a `Denoise` (x, sigma) -> x0 from a denoiser or from another `Denoise`, so they nest.

conditioned   a denoiser and what it is told
guided        classifier-free guidance, with rescaling and an interval of sigmas
masked        keep a part of the picture, on x0; `blending` does it on x between the steps, as diffusers and CompVis
loss_guided   follow the gradient of a loss on the predicted picture
"""

from collections.abc import Callable
from functools import cache
from math import inf

import torch
from torch import Tensor

from safelight.diffusion.condition import Condition
from safelight.diffusion.denoiser import Denoiser
from safelight.diffusion.samplers import Denoise, Edit
from safelight.errors import InputError


def conditioned(denoiser: Denoiser, condition: Condition) -> Denoise:
    """The denoiser, told `condition`: one pass, no guidance."""
    return lambda x, sigma: denoiser(x, sigma, condition)


def guided(
    denoiser: Denoiser,
    positive: Condition,
    negative: Condition | None,
    scale: float,
    *,
    rescale: float = 0.0,
    interval: tuple[float, float] = (0.0, inf),
) -> Denoise:
    """Classifier-free guidance (Ho and Salimans 2022): away from `negative`, toward `positive`, `scale` times as far.

    scale: 1 is `positive` alone and costs one pass; 0 is `negative` alone. interval: (low, high) sigmas, both included,
    within which guidance acts; outside it is `positive` alone (Kynkäänniemi et al. 2024). rescale: in [0, 1], how much
    of the contrast that guidance adds is taken back (Lin et al. 2023, section 3.4). As in diffusers, the two standard
    deviations are of the network's raw output, picture by picture, so the result depends on the prediction type.

    Both conditions go through the network in one batch, [negative, positive]; in two passes where their shapes differ.
    Raises InputError without a negative condition where one is needed.
    """
    low, high = interval
    if scale != 1 and negative is None:
        raise InputError("guidance needs a negative condition", remedy="encode an empty prompt, or set the scale to 1")

    @cache
    def conditions(batch: int) -> list[Condition]:
        assert negative is not None
        return joined(negative.expand(batch), positive.expand(batch))

    def denoise(x: Tensor, sigma: float) -> Tensor:
        if scale == 1 or negative is None or not low <= sigma <= high:
            return denoiser(x, sigma, positive)
        away, toward = torch.cat([denoiser.outputs(x, sigma, each) for each in conditions(len(x))]).chunk(2)
        output = away + scale * (toward - away)
        if rescale > 0:
            output = rescaled(output, toward, rescale)
        return denoiser.parameterization.denoised(output, x, sigma)

    return denoise


def joined(a: Condition, b: Condition) -> list[Condition]:
    """What goes through the network at once: both conditions, or one after the other where their shapes differ."""
    return [Condition.cat([a, b])] if a.shapes == b.shapes else [a, b]


def rescaled(output: Tensor, reference: Tensor, amount: float) -> Tensor:
    """`output` toward the standard deviation of `reference`, picture by picture (Lin et al. 2023, eq. 15, 16)."""
    dims = tuple(range(1, output.ndim))
    ratio = reference.std(dims, keepdim=True) / output.std(dims, keepdim=True)
    return output * (amount * ratio + (1 - amount))


def masked(denoise: Denoise, mask: Tensor, latent: Tensor, noise: Tensor | None = None) -> Denoise:
    """Inpainting with any network: outside the mask, the predicted picture is `latent`, whatever the network says.

    mask: (B or 1, 1, H, W) in [0, 1], 1 where to repaint. latent: the picture to keep. noise: if given, the network is
    also shown the kept part as latent + sigma * noise, instead of as the sampler has it. The result, at sigma 0, is
    exactly `latent` where the mask is 0. A1111 and ComfyUI work this way, on x0.
    """

    def inpaint(x: Tensor, sigma: float) -> Tensor:
        seen = x if noise is None else _blend(mask, x, latent + sigma * noise)
        return _blend(mask, denoise(seen, sigma), latent)

    return inpaint


def blending(mask: Tensor, latent: Tensor, noise: Tensor | Callable[[], Tensor], *, below: float = inf) -> Edit:
    """Inpainting as an `edit` of x between the steps (`sample(..., edit=blending(...))`): the kept part is noised anew.

    noise: one tensor for all steps, as diffusers does, or a function that draws fresh noise, as CompVis does. below:
    only at sigmas under this. For diffusers' StableDiffusionInpaintPipeline with a network of 4 channels take the
    initial noise and below=grid.sigmas[0], since it leaves the start alone. The last edit is at the grid's final sigma;
    where that is not 0, diffusers pastes `latent` without noise into the finished picture.
    """

    def edit(x: Tensor, sigma: float) -> Tensor:
        if sigma >= below:
            return x
        return _blend(mask, x, latent + sigma * (noise if isinstance(noise, Tensor) else noise()))

    return edit


def _blend(mask: Tensor, inside: Tensor, outside: Tensor) -> Tensor:
    return mask * inside + (1 - mask) * outside


def loss_guided(
    denoise: Denoise,
    loss: Callable[[Tensor], Tensor],
    scale: float | Callable[[float], float],
    *,
    decode: Callable[[Tensor], Tensor] | None = None,
    through_network: bool = True,
) -> Denoise:
    """Guidance by any differentiable loss on the predicted picture: x0 - scale * sigma² * gradient of the loss.

    This is the score of exp(-scale * loss) added to the network's (Dhariwal and Nichol 2021; Latent Diffusion, appendix
    C). loss: of x0, or of decode(x0) where `decode` is given; it should give one number per picture (B,), since a mean
    over the batch makes a picture depend on its neighbours. scale: a number, or a function of sigma; at 0 no gradient
    is taken.

    through_network: take the gradient with respect to x, through the network, which is exact and costs its memory.
    False holds the network's noise prediction fixed, so that x0 moves as x does: the way of the "Stable Diffusion Deep
    Dive" notebook. (The notebook also moves x itself by the same amount.)
    """

    def steered(x: Tensor, sigma: float) -> Tensor:
        """The x0 of `denoise`, moved down the loss."""
        strength = scale(sigma) if callable(scale) else scale
        if strength == 0:
            return denoise(x, sigma)
        with torch.enable_grad():
            if through_network:
                variable = x.detach().requires_grad_()
                x0 = denoise(variable, sigma)
            else:
                variable = x0 = denoise(x, sigma).detach().requires_grad_()
            badness = loss(x0 if decode is None else decode(x0)).sum()
            (gradient,) = torch.autograd.grad(badness, variable)
        return x0.detach() - strength * sigma**2 * gradient

    return steered
