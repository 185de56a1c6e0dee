"""What peers call samplers and grids: "Euler a", "DPM++ 2M Karras", `k_dpm_2_a`, `uni_pc`, "Normal".

Our names and labels, A1111's, k-diffusion's, ComfyUI's and InvokeAI's differ in case, spaces, "+" for "p", and in what
stands before and behind; the tables hold only the words that differ in more. No options follow from a name: "uni_pc" is
our `unipc`, with our defaults.
"""

from collections.abc import Iterable, Mapping
from typing import Protocol

SAMPLERS = {"unipcbh2": "unipc", "dpmad": "dpm_adaptive"}
GRIDS = {"normal": "uniform", "turbo": "trailing"}  # ComfyUI's and A1111's; Forge's
BEFORE = ("", "k", "sample")  # A1111's and InvokeAI's k_euler, k-diffusion's sample_euler
BEHIND = ("", "gpu")  # ComfyUI's
KARRAS = ("ka", "k")  # what A1111's aliases and InvokeAI's names of samplers end with


class Row(Protocol):
    """What both registries hold."""

    @property
    def name(self) -> str:
        """Ours."""

    @property
    def label(self) -> str:
        """A1111's, where it has one."""


def plain(name: str) -> str:
    """A name without case, spaces and signs, "+" as "p": "DPM++ 2M" and "dpmpp_2m" are "dpmpp2m"."""
    return "".join(sign for sign in name.lower().replace("+", "p") if sign.isalnum())


def sampler(name: str, registry: Mapping[str, Row]) -> str | None:
    """Our name of a sampler, whatever it is called, or None."""
    known, word = _words(registry.values(), SAMPLERS), plain(name)
    bare = [word.removeprefix(before).removesuffix(behind) for before in BEFORE for behind in BEHIND]
    return next((known[one] for one in bare if one in known), None)


def grid(name: str, registry: Mapping[str, Row]) -> str | None:
    """Our name of a grid, whatever it is called, or None."""
    return _words(registry.values(), GRIDS).get(plain(name))


def split(name: str, samplers: Mapping[str, Row], grids: Mapping[str, Row]) -> tuple[str, str | None] | None:
    """Our names of a sampler and of the grid that its name ends with, as in "DPM++ 2M Karras"; or None."""
    if (whole := sampler(name, samplers)) is not None:
        return whole, None
    endings = _words(grids.values(), GRIDS) | dict.fromkeys(KARRAS, "karras")
    for ending, laid in endings.items():
        if plain(name).endswith(ending) and (first := sampler(plain(name).removesuffix(ending), samplers)) is not None:
            return first, laid
    return None


def _words(rows: Iterable[Row], more: Mapping[str, str]) -> dict[str, str]:
    """plain word -> our name; names go before labels."""
    listed = list(rows)
    return dict(more) | {plain(row.label): row.name for row in listed} | {plain(row.name): row.name for row in listed}
