"""Random arguments for the C kernels and their twins.

As a program it checks one variant: tests and `bench/fuzz_kernels.py` run it so under AddressSanitizer and UBSan.

    python tests/kernels/fuzz.py VARIANT CASES SEED [--sanitize] FOLDER
"""

import random
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from math import ceil
from pathlib import Path

import torch
from torch import Tensor

from safelight.kernels import build, twins
from safelight.kernels.native import ACTS, Kernels

SANITIZE = ("-fsanitize=address,undefined", "-fno-sanitize-recover=undefined", "-g", "-O1")

# Of the result's norm, or eight times torch's own distance from float64 where that is more: sums that cancel. float32:
# Winograd's transforms cost a digit against a direct sum. bfloat16: results are rounded to 2^-9, and with PAIRS what
# goes into a product as well.
TOLERANCE = {torch.float32: 1e-5, torch.bfloat16: 1e-2}


Twin = Callable[[Callable[[Tensor | None], Tensor | None]], Tensor]


@dataclass
class Case:
    """One call: what it is, the C kernel's result, and the twin's, of arguments made `double` or left `as_is`.

    `rounding` is what float32 may do to the result whoever computes it, where that is more than the tolerance.
    """

    what: str
    ours: Callable[[], Tensor]
    twin: Twin
    rounding: float = 0.0

    def check(self, dtype: torch.dtype) -> float:
        """The distance of the C kernel's result from the twin's in float64; an AssertionError if it is too far."""
        ours, exact = self.ours(), self.twin(double)
        assert (ours.shape, ours.dtype) == (exact.shape, dtype), f"{self.what} -> {ours.dtype} {tuple(ours.shape)}"
        far = distance(ours, exact)
        if not far <= max(TOLERANCE[dtype], self.rounding):
            theirs = distance(self.twin(as_is), exact)
            assert far <= 8 * theirs, f"{self.what}: {far:.1e} of the norm away, torch {theirs:.1e}"
        return far


class Fuzz:
    """Cases from a seed, for one library."""

    def __init__(self, kernels: Kernels, seed: int) -> None:
        self.kernels = kernels
        self.rng = random.Random(seed)
        self.generator = torch.Generator().manual_seed(seed)

    def cases(self, count: int) -> Iterator[Case]:
        kinds = (
            self.conv3x3,
            self.conv3x3_input,
            self.conv3x3_weights,
            self.attention,
            self.group_norm,
            self.linear,
            self.geglu,
            self.linear_int8,
            self.geglu_int8,
        )
        for i in range(count):
            torch.set_num_threads(self.rng.randint(1, 4))
            yield kinds[i % len(kinds)]()

    def values(self, *shape: int, std: float = 1.0) -> Tensor:
        """Normal numbers, sometimes scaled to extremes or with denormals and zeros; in the kernels' dtype."""
        x = torch.randn(shape, generator=self.generator) * std
        kind = self.rng.randrange(12)
        if kind == 0:
            x = x * 1e-40
        elif kind == 1:
            x = x * 100 + 1000
        elif kind == 2:
            x = torch.where(x > 0.3, x, 0.0)
        return x.to(self.kernels.dtype)

    def strided(self, *shape: int, std: float = 1.0) -> Tensor:
        """As `values`, but sometimes a view into something larger, or with its dimensions stored in disorder."""
        kind = self.rng.randrange(4)
        if kind == 0:
            return (
                self.values(*shape, std=std).to(memory_format=torch.channels_last)
                if len(shape) == 4
                else self.values(*shape, std=std)
            )
        if kind == 1:
            wide = self.values(*shape[:-1], shape[-1] + 3, std=std)
            return wide[..., 1 : 1 + shape[-1]]
        if kind == 2:
            order = self.rng.sample(range(len(shape)), len(shape))
            stored = self.values(*(shape[i] for i in order), std=std)
            return stored.permute(*(order.index(i) for i in range(len(shape))))
        return self.values(*shape, std=std)

    def maybe(self, make: Callable[[], Tensor]) -> Tensor | None:
        return make() if self.rng.random() < 0.5 else None

    def size(self, most: int) -> int:
        return self.rng.choice((1, 2, 3, self.rng.randint(1, most), self.rng.randint(1, most)))

    def conv3x3(self) -> Case:
        k, lanes = self.kernels, self.kernels.lanes
        b, h, w = self.size(3), self.size(17), self.size(17)
        c1, c2 = lanes * self.size(9), lanes * self.size(4) if self.rng.random() < 0.3 else 0
        co, up, of_few = 2 * lanes * self.size(3), self.rng.random() < 0.3, self.rng.random() < 0.3
        down = of_few and self.rng.random() < 0.4
        x, beside = self.strided(b, c1, h, w), self.strided(b, c2, h, w) if c2 else None
        weight = self.strided(co, c1 + c2, 3, 3, std=(9 * (c1 + c2)) ** -0.5)
        bias, shift = self.maybe(lambda: self.values(co)), self.maybe(lambda: self.values(self.rng.choice((1, b)), co))
        sides = (ceil((side << up) / (1 + down)) for side in (h, w))
        residual = self.maybe(lambda: self.strided(b, co, *sides))
        silu = self.rng.random() < 0.5
        assert k.takes_conv3x3(x, weight, bias, beside, shift, residual)
        rough = not of_few and not up and self.rng.random() < 0.3
        settings = {"up": up, "silu": silu, **({"down": down} if of_few else {})}
        ours = k.conv3x3_of_few if of_few else partial(k.conv3x3, rough=rough)
        name = "conv3x3_of_few" if of_few else "conv3x3_rough" if rough else "conv3x3"

        def twin(to: Callable[[Tensor | None], Tensor | None], **other: bool) -> Tensor:
            around = {"beside": to(beside), "shift": to(shift), "residual": to(residual)}
            return twins.conv3x3(to(x), to(weight), to(bias), **around, **{**settings, **other})

        return Case(
            f"{name} {b}x{c1}+{c2}x{h}x{w} -> {co} {settings}",
            lambda: ours(x, weight, bias, beside=beside, shift=shift, residual=residual, **settings),
            twin,
            rounding=self.winograd(lambda to: twin(to, silu=False), twin(double), rough),
        )

    def conv3x3_input(self) -> Case:
        k, lanes = self.kernels, self.kernels.lanes
        b, h, w = self.size(3), self.size(17), self.size(17)
        ci, co = 2 * lanes * self.size(4), lanes * self.size(9)
        dy, weight = self.strided(b, co, h, w), self.strided(co, ci, 3, 3, std=(9 * co) ** -0.5)
        return Case(
            f"conv3x3_input {b}x{co}x{h}x{w} -> {ci}",
            lambda: k.conv3x3_input(dy, weight),
            twin := lambda to: twins.conv3x3_input(to(dy), to(weight)),
            rounding=self.winograd(twin, twin(double)),
        )

    def winograd(self, twin: Twin, exact: Tensor, rough: bool = False) -> float:
        """What Winograd's transforms may cost: they round what is summed by its size, whatever cancels in the sum.

        In float32 that is least beside the sum of sizes. Pairs of bfloat16 are each rounded, so their errors add up as
        squares do.
        """
        if "-DPAIRS" not in self.kernels.variant.flags:
            return 2**-23 * ratio(twin(size_of), exact)
        return 2 ** (-4 if rough else -6) * ratio(twin(square_of).sqrt(), exact)

    def conv3x3_weights(self) -> Case:
        k, lanes = self.kernels, self.kernels.lanes
        b, h, w = self.size(3), self.size(17), self.size(17)
        ci, co = 2 * lanes * self.size(5), lanes * self.size(7)
        x, dy = self.strided(b, ci, h, w), self.strided(b, co, h, w)
        return Case(
            f"conv3x3_weights {b}x{ci}x{h}x{w} -> {co}",
            lambda: k.conv3x3_weights(x, dy),
            lambda to: twins.conv3x3_weights(to(x), to(dy)),
        )

    def attention(self) -> Case:
        k = self.kernels
        b, heads, n, m = self.size(3), self.size(4), self.size(150), self.size(250)
        d, causal = 8 * self.rng.choice((1, 2, 3, 5, 8, 10, 20)), self.rng.random() < 0.3
        n = m if causal else n
        logits = self.rng.choice((1.0, 1.0, 1.0, 8.0, 200.0))  # huge: the softmax takes one key alone
        if self.rng.random() < 0.5:  # as the networks make them: heads next to each other in a row
            q, key, v = (
                self.values(b, s, heads, d, std=std).transpose(1, 2) for s, std in ((n, logits), (m, 1), (m, 1))
            )
        else:
            q, key, v = (self.strided(b, heads, s, d, std=std) for s, std in ((n, logits), (m, 1), (m, 1)))
        assert k.takes_attention(q, key, v, causal=causal)
        rough = not causal and self.rng.random() < 0.5
        asked, told = of_bytes(q, key) if rough and "-DPAIRS" in k.variant.flags else (q, key)
        return Case(
            f"attention{'_rough' if rough else ''} {b}x{heads}x{n}x{m}x{d} logits {logits} {causal=}",
            lambda: k.attention(q, key, v, causal=causal, rough=rough),
            lambda to: twins.attention(to(asked), to(told), to(v), causal=causal),
            # A score is off by half a bit of its own, and its exponential by as large a share of itself.
            rounding=2**-24 * float((q.float() @ key.float().transpose(-1, -2)).abs().max()) * d**-0.5,
        )

    def group_norm(self) -> Case:
        k = self.kernels
        b, c, h, w = self.size(3), k.lanes * self.size(6), self.size(30), self.size(30)
        groups = self.rng.choice([g for g in range(1, c + 1) if c % g == 0 and g < b * c * h * w])
        x = self.strided(b, c, h, w)
        weight, bias = self.maybe(lambda: self.values(c)), self.maybe(lambda: self.values(c))
        silu = self.rng.random() < 0.5
        assert k.takes_group_norm(x, groups, weight, bias)
        return Case(
            f"group_norm {b}x{c}x{h}x{w} in {groups} {silu=}",
            lambda: k.group_norm(x, groups, weight, bias, 1e-5, silu=silu),
            lambda to: twins.group_norm(to(x), groups, to(weight), to(bias), 1e-5, silu=silu),
        )

    def linear(self) -> Case:
        k = self.kernels
        n_in, n_out, rows = k.lanes * self.size(70), 2 * k.lanes * self.size(6), self.size(130)
        x, weight = self.strided(2, rows, n_in), self.strided(n_out, n_in, std=n_in**-0.5)
        bias, residual = self.maybe(lambda: self.values(n_out)), self.maybe(lambda: self.strided(2, rows, n_out))
        act = self.rng.choice(ACTS)
        assert k.takes_linear(x, weight, bias, residual=residual, act=act)
        return Case(
            f"linear {rows}x{n_in} -> {n_out} {act=}",
            lambda: k.linear(x, weight, bias, residual=residual, act=act),
            lambda to: twins.linear(to(x), to(weight), to(bias), residual=to(residual), act=act),
        )

    def geglu(self) -> Case:
        k = self.kernels
        n_in, n_out, rows = k.lanes * self.size(40), k.lanes * self.size(12), self.size(130)
        x, weight = self.strided(rows, n_in), self.strided(2 * n_out, n_in, std=n_in**-0.5)
        bias = self.maybe(lambda: self.values(2 * n_out))
        assert k.takes_linear(x, weight, bias)
        return Case(
            f"geglu {rows}x{n_in} -> {n_out}",
            lambda: k.linear(x, weight, bias, gate=True),
            lambda to: twins.geglu(to(x), to(weight), to(bias)),
        )

    def linear_int8(self) -> Case:
        k = self.kernels
        n_in, n_out, rows = k.lanes * self.size(70), 2 * k.lanes * self.size(6), self.size(130)
        x, (weight, scale) = self.strided(2, rows, n_in), self.int8(n_out, n_in)
        bias, residual = self.maybe(lambda: self.values(n_out)), self.maybe(lambda: self.strided(2, rows, n_out))
        assert k.takes_linear(x, weight, bias, scale=scale, residual=residual)
        return Case(
            f"linear_int8 {rows}x{n_in} -> {n_out}",
            lambda: k.linear(x, weight, bias, scale=scale, residual=residual),
            lambda to: twins.linear(to(x), weight, to(bias), scale=scale, residual=to(residual)),
        )

    def geglu_int8(self) -> Case:
        k = self.kernels
        n_in, n_out, rows = k.lanes * self.size(40), k.lanes * self.size(12), self.size(130)
        x, (weight, scale) = self.strided(rows, n_in), self.int8(2 * n_out, n_in)
        bias = self.maybe(lambda: self.values(2 * n_out))
        assert k.takes_linear(x, weight, bias, scale=scale)
        return Case(
            f"geglu_int8 {rows}x{n_in} -> {n_out}",
            lambda: k.linear(x, weight, bias, scale=scale, gate=True),
            lambda to: twins.geglu(to(x), weight, to(bias), scale=scale),
        )

    def int8(self, rows: int, columns: int) -> tuple[Tensor, Tensor]:
        """A weight in whole numbers, and what one of each row is worth."""
        whole, scale = twins.quantize(self.strided(rows, columns, std=columns**-0.5))
        return whole.to(torch.int8), scale[:, 0]


def of_bytes(q: Tensor, k: Tensor) -> tuple[Tensor, Tensor]:
    """Queries, and keys less their mean, rounded as c/scores_bytes.h has them: in float32."""
    k = k.float() - k.float().mean(2, keepdim=True)
    parts = k.split(192, dim=2)
    rounded = [multiplied(twins.quantize(part.flatten(2))).view(part.shape) for part in parts]
    return multiplied(twins.quantize(q)), torch.cat(rounded, 2)


def multiplied(whole_and_worth: tuple[Tensor, Tensor]) -> Tensor:
    return whole_and_worth[0] * whole_and_worth[1]


def double(x: Tensor | None) -> Tensor | None:
    return None if x is None else x.double()


def size_of(x: Tensor | None) -> Tensor | None:
    return None if x is None else x.double().abs()


def square_of(x: Tensor | None) -> Tensor | None:
    return None if x is None else x.double().square()


def ratio(a: Tensor, b: Tensor) -> float:
    """|a| / |b|, b counting as 1e-20 where it is less."""
    return float(a.norm() / (b.norm() + 1e-20 * b.numel() ** 0.5))


def as_is(x: Tensor | None) -> Tensor | None:
    return x


def distance(ours: Tensor, twin: Tensor) -> float:
    """|ours - twin| / |twin|, Euclidean norms over the whole tensor; numbers below 1e-20 count as that."""
    return ratio(ours.double() - twin, twin)


def variant(name: str) -> build.Variant:
    return next(v for v in (*build.VARIANTS, *build.EMULATED) if v.name == name)


def built(name: str, folder: Path, flags: Sequence[str] = ()) -> Kernels:
    """A variant's kernels, compiled with these flags in a folder where they may lie already."""
    path = folder / build.file_name(variant(name), flags)
    return Kernels(variant(name), path if path.is_file() else build.build(variant(name), folder, flags))


def main(name: str, cases: str, seed: str, *more: str) -> None:
    *options, folder = more
    library = built(name, Path(folder), SANITIZE if "--sanitize" in options else ())
    worst = dict[str, float]()
    for case in Fuzz(library, int(seed)).cases(int(cases)):
        kind = case.what.split()[0]
        worst[kind] = max(worst.get(kind, 0), case.check(library.dtype))
    print(name, cases, "cases, furthest from the twin:", ", ".join(f"{kind} {far:.1e}" for kind, far in worst.items()))


if __name__ == "__main__":
    main(*sys.argv[1:])
