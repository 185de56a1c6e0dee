"""The C kernels beside torch, shape by shape of Stable Diffusion 1 at 512² and of a tiny model, in one process.

    python bench/kernels.py [--dtype float32] [--rounds 5] [--only conv3x3] [--threads 2] [--blocks] [--networks]

Calls alternate, and medians of the process's CPU time, divided by the threads, are printed: so a busy machine does not
change who wins. Rates are those of the plain algorithm: Winograd's convolution may exceed the CPU's peak. |Δ| is each
side's distance from the twin in float64, relative to its norm. With --blocks networks' parts are timed as well, as
drawn and prepared; with --networks whole ones: a tiny U-Net, where calls cost more than what they compute, and Stable
Diffusion's, for which 10 GB of memory are needed. Rows of int8 have the exact layer or network beside them: in torch,
and of networks prepared.
"""

import argparse
import time
from collections.abc import Callable
from copy import deepcopy
from dataclasses import dataclass
from functools import partial
from statistics import median

import torch
from torch import Tensor, nn

from safelight import kernels
from safelight.kernels import twins
from safelight.kernels.native import Kernels
from safelight.models.attention import Transformer
from safelight.models.autoencoder import Autoencoder
from safelight.models.layers import ResBlock, Upsample
from safelight.models.presets import AUTOENCODERS, UNETS
from safelight.models.unet import UNet, UNetConfig

# (batch, channels in, channels out, side, up or down): of a guided U-Net step at 512² and, smaller, at 128², of the
# autoencoder's decoder, and of tiny models.
CONVOLUTIONS = ((2, 320, 320, 64, ""), (2, 640, 640, 32, ""), (2, 1280, 1280, 16, ""), (2, 2560, 1280, 16, ""),
                (2, 1280, 1280, 8, ""), (2, 640, 640, 32, "up"), (2, 320, 320, 16, ""), (2, 640, 640, 8, ""),
                (2, 1280, 1280, 4, ""), (2, 1280, 1280, 2, ""), (2, 640, 640, 8, "down"), (2, 1280, 1280, 16, "down"),
                (1, 512, 512, 64, ""), (1, 512, 512, 128, ""), (1, 256, 256, 256, ""), (1, 128, 128, 512, ""),
                (1, 256, 256, 256, "up"),
                (1, 640, 640, 4, ""), (2, 192, 192, 4, ""), (2, 96, 96, 8, ""), (1, 64, 64, 16, ""),
                (8, 96, 96, 8, ""))  # fmt: skip
# (batch, channels in, channels out, side): forward and both gradients, of small models' trainings and of large ones'.
TRAININGS = ((16, 96, 96, 8), (16, 192, 192, 4), (16, 288, 96, 8), (4, 256, 256, 4), (16, 256, 256, 8), (8, 64, 64, 64),
             (8, 16, 16, 128), (8, 256, 256, 16), (1, 512, 512, 64), (1, 320, 320, 64), (2, 1280, 1280, 8))  # fmt: skip
# (batch, heads, queries, keys, width of a head)
ATTENTIONS = ((2, 8, 4096, 4096, 40), (2, 8, 4096, 77, 40), (2, 8, 1024, 1024, 80), (2, 8, 1024, 77, 80),
              (2, 8, 256, 256, 160), (2, 8, 64, 64, 160), (1, 1, 4096, 4096, 512),
              (2, 4, 16, 77, 48), (2, 4, 64, 64, 24), (2, 4, 256, 77, 24))  # fmt: skip
NORMS = ((2, 320, 64), (2, 640, 32), (2, 1280, 16), (2, 1280, 8), (1, 512, 64), (1, 256, 256), (1, 128, 512),
         (1, 64, 4), (2, 192, 4), (2, 96, 8))  # fmt: skip
# (rows, features in, features out, gate)
LINEARS = ((8192, 320, 320, 0), (8192, 320, 1280, 1), (8192, 1280, 320, 0), (2048, 640, 640, 0), (2048, 640, 2560, 1),
           (512, 1280, 1280, 0), (512, 1280, 5120, 1), (512, 5120, 1280, 0), (154, 768, 640, 0),
           (2, 96, 384, 1), (16, 192, 768, 1), (128, 96, 384, 1))  # fmt: skip


@dataclass
class Row:
    """One comparison: two calls of the same meaning, and the twin of float64."""

    what: str
    flops: float
    ours: Callable[[], Tensor]
    torchs: Callable[[], Tensor]
    exact: Callable[[], Tensor] | None = None


def last(x: Tensor) -> Tensor:
    return x.contiguous(memory_format=torch.channels_last)


def double(x: Tensor | int) -> Tensor | int:
    return x.double() if isinstance(x, Tensor) else x


def convolutions(k: Kernels):
    for b, ci, co, side, way in CONVOLUTIONS:
        x = last(torch.randn(b, ci, side, side).to(k.dtype))
        w, bias = last(torch.randn(co, ci, 3, 3).mul((9 * ci) ** -0.5).to(k.dtype)), torch.randn(co).to(k.dtype)
        changed = {"up": way == "up", "down": way == "down"}
        yield Row(
            f"conv3x3 {b}x{ci}x{side}² -> {co} {way}",
            2 * 9 * b * ci * co * side * side * {"up": 4, "": 1, "down": 1 / 4}[way],
            lambda a=(x, w, bias), changed=changed: kernels.conv3x3(*a, **changed, fast=True),
            lambda a=(x, w, bias), changed=changed: twins.conv3x3(*a, **changed),
            lambda a=(x, w, bias), changed=changed: twins.conv3x3(*map(double, a), **changed),
        )


def trainings(k: Kernels):
    for b, ci, co, side in TRAININGS if k.dtype == torch.float32 else ():
        x, w = last(torch.randn(b, ci, side, side)), last(torch.randn(co, ci, 3, 3).mul((9 * ci) ** -0.5))
        dy = last(torch.randn(b, co, side, side))
        yield Row(
            f"train conv3x3 {b}x{ci}x{side}² -> {co}",
            3 * 2 * 9 * b * ci * co * side * side,
            lambda a=(x, w, dy): gradients(partial(kernels.conv3x3, fast=True), *a),
            lambda a=(x, w, dy): gradients(twins.conv3x3, *a),
            lambda a=(x, w, dy): gradients(twins.conv3x3, *map(double, a)),
        )


@torch.enable_grad()
def gradients(convolution: Callable[..., Tensor], x: Tensor, w: Tensor, dy: Tensor) -> Tensor:
    """Both gradients of a convolution, in one row."""
    x, w = x.detach().requires_grad_(), w.detach().requires_grad_()
    return torch.cat([g.flatten() for g in torch.autograd.grad(convolution(x, w), (x, w), dy)])


def attentions(k: Kernels):
    for b, heads, n, m, d in ATTENTIONS:
        q, key, v = (torch.randn(b, s, heads, d).to(k.dtype).transpose(1, 2) for s in (n, m, m))
        yield Row(
            f"attention {b}x{heads} {n}x{m} d {d}",
            4 * b * heads * n * m * d,
            lambda a=(q, key, v): k.attention(*a),
            lambda a=(q, key, v): twins.attention(*a),
            lambda a=(q, key, v): twins.attention(*map(double, a)),
        )


def norms(k: Kernels):
    for b, c, side in NORMS:
        x, w, bias = (
            last(torch.randn(b, c, side, side).to(k.dtype)),
            torch.randn(c).to(k.dtype),
            torch.randn(c).to(k.dtype),
        )
        yield Row(
            f"group_norm+silu {b}x{c}x{side}²",
            0,
            lambda a=(x, 32, w, bias): k.group_norm(*a, 1e-5, silu=True),
            lambda a=(x, 32, w, bias): twins.group_norm(*a, 1e-5, silu=True),
            lambda a=(x, 32, w, bias): twins.group_norm(*map(double, a), 1e-5, silu=True),
        )


def linears(k: Kernels):
    for rows, n_in, n_out, gate in LINEARS:
        x, bias = torch.randn(rows, n_in).to(k.dtype), torch.randn(n_out * (1 + gate)).to(k.dtype)
        w = torch.randn(n_out * (1 + gate), n_in).mul(n_in**-0.5).to(k.dtype)
        twin = twins.geglu if gate else twins.linear
        yield Row(
            f"{'geglu' if gate else 'linear'} {rows}x{n_in} -> {n_out}",
            2 * rows * n_in * w.shape[0],
            lambda a=(x, w, bias), gate=gate: k.linear(*a, gate=bool(gate)),
            lambda a=(x, w, bias), twin=twin: twin(*a),
            lambda a=(x, w, bias), twin=twin: twin(*map(double, a)),
        )


def whole_numbers(k: Kernels):
    for rows, n_in, n_out, gate in LINEARS:
        x, bias = torch.randn(rows, n_in).to(k.dtype), torch.randn(n_out * (1 + gate)).to(k.dtype)
        w = torch.randn(n_out * (1 + gate), n_in).mul(n_in**-0.5).to(k.dtype)
        (whole, scale), twin = kernels.quantize(w), twins.geglu if gate else twins.linear
        whole, scale = whole.to(torch.int8), scale[:, 0]
        yield Row(
            f"int8 {'geglu' if gate else 'linear'} {rows}x{n_in} -> {n_out}",
            2 * rows * n_in * w.shape[0],
            lambda a=(x, whole, bias), scale=scale, gate=gate: k.linear(*a, scale=scale, gate=bool(gate)),
            lambda a=(x, w, bias), twin=twin: twin(*a),
            lambda a=(x, w, bias), twin=twin: twin(*map(double, a)),
        )


def blocks(k: Kernels):
    """A network's parts as they are drawn, and prepared."""
    context = torch.randn(2, 77, 768).to(k.dtype)
    parts = (
        ("U-Net residual block 320 at 64²", ResBlock(320, 320, emb_channels=1280), (2, 320, 64), torch.randn(1, 1280)),
        ("U-Net transformer 320 at 64²", Transformer(320, 8, 768), (2, 320, 64), context),
        (
            "U-Net residual block 1280 at 16²",
            ResBlock(1280, 1280, emb_channels=1280),
            (2, 1280, 16),
            torch.randn(1, 1280),
        ),
        ("decoder residual block 128 at 512²", ResBlock(128, 128), (1, 128, 512), None),
        ("decoder upsampling 256 to 512²", Upsample(256), (1, 256, 256), None),
    )
    for what, part, (b, c, side), other in parts:
        part = part.to(k.dtype)
        fast = deepcopy(part)
        kernels.prepare(fast)
        x, other = last(torch.randn(b, c, side, side).to(k.dtype)), None if other is None else other.to(k.dtype)
        part.to(memory_format=torch.channels_last)
        yield Row(what, 0, lambda a=(x, other), f=fast: f(*a), lambda a=(x, other), f=part: f(*a))


def networks(k: Kernels):
    """Whole networks as they are loaded, and prepared; the U-Nets for both halves of guidance."""
    tiny = UNetConfig(
        block_out_channels=(96, 192),
        down_block_types=("CrossAttnDownBlock2D",) * 2,
        up_block_types=("CrossAttnUpBlock2D",) * 2,
        cross_attention_dim=256,
        attention_head_dim=4,
    )
    for what, config, side in (
        ("tiny U-Net at 8²", tiny, 8),
        ("tiny U-Net at 16²", tiny, 16),
        ("Stable Diffusion 1's U-Net at 32²", UNETS["sd15"], 32),
    ):
        x, context = torch.randn(2, 4, side, side), torch.randn(2, 77, config.cross_attention_dim)
        yield pair(what, UNet(config), x.to(k.dtype), 500, context.to(k.dtype))
        yield pair(f"int8 {what}", UNet(config), x.to(k.dtype), 500, context.to(k.dtype), int8=True)
    decoder = Autoencoder(AUTOENCODERS["sd15"]).decoder
    yield pair("Stable Diffusion 1's decoder at 32²", decoder, torch.randn(1, 4, 32, 32).to(k.dtype))


def pair(what: str, network: nn.Module, *inputs: Tensor | int, int8: bool = False) -> Row:
    """A network with random weights, beside itself prepared; or prepared, beside itself in int8."""
    for parameter in network.parameters():  # a new one is full of zeros
        spread = parameter[0].numel() ** -0.5 if parameter.ndim > 1 else 0.1
        nn.init.normal_(parameter, std=spread)
    network = network.to(dtype=inputs[0].dtype).eval()
    fast = deepcopy(network)
    kernels.prepare(fast, int8=int8)
    kernels.prepare(network, fast=int8)
    return Row(what, 0, lambda: fast(*inputs), lambda: network(*inputs))


def seconds(call: Callable[[], Tensor], threads: int) -> float:
    start = time.process_time()
    call()
    return (time.process_time() - start) / threads


def distance(a: Tensor, exact: Tensor) -> float:
    return float((a.double() - exact).norm() / exact.norm())


def show(row: Row, rounds: int, threads: int) -> None:
    ours, theirs = row.ours(), row.torchs()
    times = [(seconds(row.ours, threads), seconds(row.torchs, threads)) for _ in range(rounds)]
    a, b = (median(t) for t in zip(*times, strict=True))
    rate = f"{row.flops / a / 1e9:5.0f} {row.flops / b / 1e9:5.0f}" if row.flops else " " * 11
    if row.exact is None:
        far = f"{distance(ours, theirs.double()):.1e} apart"
    else:
        exact = row.exact()
        far = f"{distance(ours, exact):.1e} {distance(theirs, exact):.1e}"
    print(f"{row.what:42} {a * 1e3:8.1f} {b * 1e3:8.1f} ms  x{b / a:4.2f}  {rate}  {far}", flush=True)


@torch.no_grad()
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--dtype", default="float32", choices=("float32", "bfloat16"))
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--only", default="", help="show the rows that begin so")
    parser.add_argument("--blocks", action="store_true", help="and parts of networks")
    parser.add_argument("--networks", action="store_true", help="and whole networks")
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    torch.manual_seed(0)
    k = kernels.kernels_for(getattr(torch, given.dtype))
    if k is None:
        raise SystemExit(f"there are no C kernels here: {kernels.report()}")
    capability = torch.backends.cpu.get_cpu_capability()
    print(f"{k.variant.name}, torch {torch.__version__} ({capability}), {given.threads} threads")
    print(f"{'':42} {'ours':>8} {'torch':>8}     ratio  {'GFLOP/s':>11}  |Δ| ours, torch")
    wholes = [*([blocks] if given.blocks else []), *([networks] if given.networks else [])]
    for family in (convolutions, trainings, attentions, norms, linears, whole_numbers, *wholes):
        for row in family(k):
            if row.what.startswith(given.only):
                show(row, given.rounds, given.threads)


if __name__ == "__main__":
    main()
