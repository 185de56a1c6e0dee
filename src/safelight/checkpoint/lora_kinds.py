"""The kinds of additions to a weight W (out, in, ...), each an equation of the pieces that a file holds for a layer.

    LoRA    ΔW = up·down                      Hu et al. 2021, arXiv 2106.09685, 4.1
            ΔW = mid ×1 up ×2 down            of convolutions, by Tucker's decomposition
    LoHa    ΔW = (w1_a·w1_b) ∘ (w2_a·w2_b)    FedPara: Hyeon-Woo et al. 2021, arXiv 2108.06098, 2.2
            with t ×1 w_a ×2 w_b              in each product's place for convolutions
    LoKr    ΔW = w1 ⊗ w2                      Yeh et al. 2023, arXiv 2309.14859; either may be a product w_a·w_b,
                                              or t2 ×1 w2_a ×2 w2_b
    full    ΔW = diff                         of any parameter, biases and norms among them
    DoRA    W' = m·(W + ΔW)/‖W + ΔW‖          Liu et al. 2024, arXiv 2402.09353, eq. 5, over any ΔW

×n is the product along axis n of a core (r, r, ...), ⊗ Kronecker's. ΔW counts s·alpha/r times, r being the inner size;
what has none, diff and a LoKr of two whole matrices, counts s times, as in LyCORIS. A DoRA counts s times what it
changes W by, as in AUTOMATIC1111's web UI and ComfyUI. The norm is over all axes but that along which m varies: LyCORIS
has it along the outputs or along the inputs, PEFT along the outputs.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

Pieces = Mapping[str, Tensor]
CORE = "ij...,ip,jq->pq..."  # a core times a matrix along each of its first two axes


@dataclass(frozen=True, eq=False)
class Addition:
    """What is added to a network's parameter: `scale` times what its `pieces` make; a `magnitude` makes it a DoRA.

    `magnitude` has W's axes, all but one of length 1.
    """

    network: str
    parameter: str
    pieces: Pieces
    scale: float = 1.0
    magnitude: Tensor | None = None

    def total(self, weight: Tensor, share: float = 1.0) -> Tensor:
        """The sum of a weight and `share` of this, in the weight's shape and float32."""
        change = delta({name: piece.float() for name, piece in self.pieces.items()})
        change = change.reshape(weight.shape).to(weight.device)
        if self.magnitude is None:
            return weight.float() + share * self.scale * change
        whole = weight.float() + self.scale * change
        magnitude = self.magnitude.float().to(weight.device)
        others = [axis for axis in range(whole.ndim) if magnitude.shape[axis] == 1]
        norm = torch.linalg.vector_norm(whole, dim=others, keepdim=True)
        return torch.lerp(weight.float(), whole * (magnitude / norm), share)


def _lora(p: Pieces) -> Tensor:
    up, down = p["up"].flatten(1), p["down"].flatten(1)
    return torch.einsum(CORE, p["mid"], up.T, down) if "mid" in p else up @ down


def _loha(p: Pieces) -> Tensor:
    return _product(p, "hada_w1", "hada_t1") * _product(p, "hada_w2", "hada_t2")


def _lokr(p: Pieces) -> Tensor:
    w1, w2 = _product(p, "lokr_w1"), _product(p, "lokr_w2", "lokr_t2")
    w2 = w2.contiguous()  # torch.kron needs it so
    return torch.kron(w1.reshape(*w1.shape, *[1] * (w2.ndim - w1.ndim)), w2)


def _product(p: Pieces, name: str, core: str = "") -> Tensor:
    """A matrix that is whole, or a product of two, or of two and a core."""
    if name in p:
        return p[name]
    a, b = p[f"{name}_a"], p[f"{name}_b"]
    return torch.einsum(CORE, p[core], a, b) if core in p else a @ b


@dataclass(frozen=True)
class Kind:
    """A kind: the pieces it `needs`, one of each row, or all of it where a row holds several; what it `may` have; and
    the pieces whose length is its rank, if it has one of them.
    """

    name: str
    make: Callable[[Pieces], Tensor]
    needs: tuple[tuple[tuple[str, ...], ...], ...]
    may: tuple[str, ...] = ()
    ranked: tuple[str, ...] = ()

    @property
    def pieces(self) -> set[str]:
        """All pieces that it may have."""
        return {piece for row in self.needs for choice in row for piece in choice} | set(self.may)

    def lacking(self, pieces: Pieces) -> list[str]:
        """The pieces that are still needed: none if it is whole."""
        rows = [row for row in self.needs if not any(set(choice) <= pieces.keys() for choice in row)]
        return [piece for row in rows for piece in row[-1] if piece not in pieces]

    def rank(self, pieces: Pieces) -> int | None:
        """The inner size r, None where there is none."""
        lengths = [len(pieces[piece]) for piece in self.ranked if piece in pieces]
        return lengths[0] if lengths else None


KINDS = (
    Kind("LoRA", _lora, ((("down",),), (("up",),)), may=("mid",), ranked=("down",)),
    Kind("LoHa", _loha, tuple(((f"hada_w{n}_{side}",),) for n in "12" for side in "ab"),
         may=("hada_t1", "hada_t2"), ranked=("hada_w1_b",)),
    Kind("LoKr", _lokr, tuple(((f"lokr_w{n}",), (f"lokr_w{n}_a", f"lokr_w{n}_b")) for n in "12"),
         may=("lokr_t2",), ranked=("lokr_w2_b", "lokr_w1_b")),
    Kind("full", lambda p: p["diff"], ((("diff",),),)),
)  # fmt: skip


def kinds(pieces: Pieces) -> list[Kind]:
    """The kinds that these pieces are of: one, if they belong together."""
    return [kind for kind in KINDS if kind.pieces & pieces.keys()]


def delta(pieces: Pieces) -> Tensor:
    """ΔW of whole pieces: (out, in, ...), or (out, product of the other sizes). On the meta device its shape alone."""
    return kinds(pieces)[0].make(pieces)
