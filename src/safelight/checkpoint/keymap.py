"""The engine of key tables: rows of two columns, theirs and ours, good in both directions.

A table is text, so that it can be read beside the drawing of the network:

    input_blocks.{n}.0.in_layers.0.*      down_blocks.{i}.resnets.{j}.norm1.*
    {t}.attn.in_proj_*                    {o}.q_proj.*  {o}.k_proj.*  {o}.v_proj.*      thirds

Names in braces are filled in from a list of points ({"i": 0, "j": 1, "n": 2}, ...); `*` stands for the rest of a name,
the same on both sides; several names of ours beside one of theirs are cut out of it by the transform that ends the row.
A row holds where the network has the parameter, so tables need no conditions: what a network lacks is not mapped. The
inverse is not written: it is the same table, read from right to left, which is possible because every table is checked
to be a bijection on the parameters of the network at hand.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from safelight.errors import MissingPartError, nearest


@dataclass(frozen=True)
class Transform:
    """How a tensor of theirs becomes one or several of ours (`split`), and back (`merge`)."""

    name: str
    split: Callable[[Tensor], Sequence[Tensor]]
    merge: Callable[[Sequence[Tensor]], Tensor]


SAME = Transform("same", lambda theirs: (theirs,), lambda ours: ours[0])
# Their 1x1 convolution (C, C, 1, 1) is our linear layer (C, C); some converters wrote it flat already.
CONV2D = Transform(
    "conv2d", lambda t: (t.flatten(1) if t.ndim > 1 else t,), lambda o: o[0][..., None, None] if o[0].ndim > 1 else o[0]
)
CONV1D = Transform(
    "conv1d", lambda t: (t.flatten(1) if t.ndim > 1 else t,), lambda o: o[0][..., None] if o[0].ndim > 1 else o[0]
)
TRANSPOSED = Transform("transposed", lambda t: (t.T,), lambda o: o[0].T)
THIRDS = Transform("thirds", lambda t: t.chunk(3), lambda o: torch.cat(list(o)))


def head_major(heads: int) -> Transform:
    """LDM's AttentionBlock: a 1-d convolution whose 3C outputs run head by head, and q, k, v within each head.

    (3C, C, 1) -> three of (C, C); its bias (3C) -> three of (C). `QKVAttentionLegacy` in CompVis' openaimodel.py splits
    the heads before q, k and v.
    """

    def split(qkv: Tensor) -> list[Tensor]:
        parts = qkv.unflatten(0, (heads, 3, -1)).unbind(1)  # three of (heads, C/heads, C, 1)
        return [part.flatten(0, 1).flatten(1) if qkv.ndim > 1 else part.flatten() for part in parts]

    def merge(parts: Sequence[Tensor]) -> Tensor:
        merged = torch.stack([part.unflatten(0, (heads, -1)) for part in parts], 1).flatten(0, 2)
        return merged[..., None] if merged.ndim > 1 else merged

    return Transform(f"head_major({heads})", split, merge)


TRANSFORMS = {transform.name: transform for transform in (SAME, CONV2D, CONV1D, TRANSPOSED, THIRDS)}


@dataclass(frozen=True)
class Link:
    """One tensor of theirs and the parameters of ours that it holds."""

    theirs: str
    ours: tuple[str, ...]
    transform: Transform = SAME


class KeyMap:
    """A bijection between the names in a file (theirs) and the parameters of a network (ours)."""

    def __init__(self, links: Iterable[Link]) -> None:
        self.links = tuple(links)
        self.by_theirs = {link.theirs: link for link in self.links}
        self.by_ours = {name: link for link in self.links for name in link.ours}
        if len(self.by_theirs) != len(self.links) or len(self.by_ours) != sum(len(link.ours) for link in self.links):
            raise AssertionError("a key table maps two names onto one")

    def under(self, prefix: str) -> "KeyMap":
        """The same map where their names start with `prefix`."""
        return KeyMap(replace(link, theirs=prefix + link.theirs) for link in self.links)

    def to_ours(self, theirs: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Rename and split all tensors of a file."""
        return {
            name: tensor
            for link in self.links
            for name, tensor in zip(link.ours, link.transform.split(theirs[link.theirs]), strict=True)
        }

    def to_theirs(self, ours: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Rename and merge all parameters of a network."""
        return {link.theirs: link.transform.merge([ours[name] for name in link.ours]) for link in self.links}


def identity(ours: Iterable[str]) -> KeyMap:
    """The map of a file that uses our names."""
    return KeyMap(Link(name, (name,)) for name in ours)


class Rows:
    """Gathers links for the parameters of one network. The first row that fits a parameter takes it."""

    def __init__(self, ours: Iterable[str]) -> None:
        self.free = dict.fromkeys(ours)  # an ordered set
        self.links: list[Link] = []

    def add(self, table: str, points: Iterable[Mapping[str, Any]] = ({},), **transforms: Transform) -> "Rows":
        """Expand a table over points. `transforms` are further names for the last column."""
        known = {**TRANSFORMS, **transforms}
        rows = [line.split() for line in table.strip().splitlines()]
        for point in points:
            for row in rows:
                transform = known.get(row[-1], SAME)
                names = [name.format_map(point) for name in (row[:-1] if row[-1] in known else row)]
                self._link(names[0], tuple(names[1:]), transform)
        return self

    def _link(self, theirs: str, ours: tuple[str, ...], transform: Transform) -> None:
        start, star, _ = ours[0].partition("*")
        fits = (
            [name for name in self.free if name.startswith(start)] if star else [n for n in (start,) if n in self.free]
        )
        for name in fits:
            rest = name[len(start) :]
            taken = tuple(our.replace("*", rest) for our in ours)
            self.links.append(Link(theirs.replace("*", rest), taken, transform))
            for our in taken:
                del self.free[our]

    def done(self) -> KeyMap:
        """Return the map, once no parameter is left without a name."""
        if self.free:
            name = next(iter(self.free))
            what = f"this file layout has no name for {len(self.free)} parameters, such as {name!r}"
            raise MissingPartError(what, remedy=f"save a diffusers folder; {nearest(name, self.by_row())}")
        return KeyMap(self.links)

    def by_row(self) -> list[str]:
        """All names of ours that have been mapped so far."""
        return [name for link in self.links for name in link.ours]
