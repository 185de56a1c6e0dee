"""What a network predicts, as one row of three numbers each: x0 = c_skip * x + c_out * F(c_in * x, t).

One table serves sampling (`denoised`), training (`target`) and the diffusers face (Karras et al. 2022, eq. 7, Tab. 1).
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeVar

from torch import Tensor

Sigma = TypeVar("Sigma", float, Tensor)


@dataclass(frozen=True)
class Parameterization:
    """A prediction type. `coefficients(sigma)` gives (c_skip, c_out, c_in), for a float or for a tensor of sigmas.

    `c_noise(sigma)` is what the network is told about the noise level, where that is not the schedule's timestep.
    """

    name: str
    coefficients: Callable[..., tuple[Sigma, Sigma, Sigma]]
    c_noise: Callable[[float], float] | None = None

    def denoised(self, output: Tensor, x: Tensor, sigma: float | Tensor) -> Tensor:
        """The picture x0 that the network's `output` at (x, sigma) stands for. `sigma`: a number, or (B,)."""
        c_skip, c_out, _ = self.coefficients(_broadcast(sigma, x))
        return c_skip * x + c_out * output

    def target(self, x0: Tensor, noise: Tensor, sigma: float | Tensor) -> Tensor:
        """What the network should answer at x = x0 + sigma * noise: (x0 - c_skip * x) / c_out. `sigma` as above."""
        s = _broadcast(sigma, x0)
        c_skip, c_out, _ = self.coefficients(s)
        # (x0 - c_skip x) is written out: for epsilon the two x0 cancel, and at small sigma that would cost all digits
        return (((1 - c_skip) * x0 - c_skip * s * noise) / c_out).to(x0.dtype)


def _broadcast(sigma: float | Tensor, x: Tensor) -> float | Tensor:
    """A (B,) tensor of sigmas as (B, 1, 1, 1), to stand beside x (B, C, H, W)."""
    if isinstance(sigma, Tensor) and sigma.ndim == 1:
        return sigma.reshape(-1, *[1] * (x.ndim - 1))
    return sigma


def _epsilon(s: Sigma) -> tuple[Sigma, Sigma, Sigma]:
    """The noise itself (Ho et al. 2020)."""
    return s * 0 + 1, -s, (s * s + 1) ** -0.5


def _v_prediction(s: Sigma) -> tuple[Sigma, Sigma, Sigma]:
    """v = alpha * noise - sqrt(1 - alpha²) * x0 (Salimans and Ho 2022)."""
    return 1 / (s * s + 1), -s * (s * s + 1) ** -0.5, (s * s + 1) ** -0.5


def _sample(s: Sigma) -> tuple[Sigma, Sigma, Sigma]:
    """The picture itself."""
    return s * 0, s * 0 + 1, (s * s + 1) ** -0.5


def edm(sigma_data: float = 0.5) -> Parameterization:
    """The preconditioning of Karras et al. 2022 (Tab. 1, last column), for data of standard deviation `sigma_data`."""

    def coefficients(s: Sigma) -> tuple[Sigma, Sigma, Sigma]:
        total = s * s + sigma_data**2
        return sigma_data**2 / total, s * sigma_data * total**-0.5, total**-0.5

    return Parameterization("edm", coefficients, c_noise=lambda s: math.log(s) / 4)


PARAMETERIZATIONS: dict[str, Parameterization] = {
    p.name: p
    for p in (
        Parameterization("epsilon", _epsilon),
        Parameterization("v_prediction", _v_prediction),
        Parameterization("sample", _sample),
        edm(),
    )
}
