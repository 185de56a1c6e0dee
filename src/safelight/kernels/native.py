"""The C kernels behind ctypes: `Kernels` is one library, compiled for one dtype and kind of CPU.

A method has its twin's signature. It checks what it is given (`takes_...` says what it can do), hands over addresses,
sizes and strides, and allocates the result. The calls release the GIL, keep no state and use as many threads as torch.
"""

import ctypes
from ctypes import POINTER, c_float, c_int, c_long, c_void_p
from pathlib import Path

import torch
from torch import Tensor
from torch.nn import functional as F

from safelight.kernels import twins
from safelight.kernels.buffers import empty
from safelight.kernels.build import Variant

ARGUMENTS = {
    **dict.fromkeys(
        ("attention", "attention_rough"), [c_void_p] * 4 + [POINTER(c_long)] + [c_long] * 5 + [c_float, c_int, c_int]
    ),
    **dict.fromkeys(("conv3x3", "conv3x3_up", "conv3x3_rough"), [c_void_p] * 6 + [c_long] * 7 + [c_int] * 3),
    "conv3x3_weights": [c_void_p] * 3 + [c_long] * 5 + [c_int],
    "group_norm": [c_void_p] * 4 + [c_long] * 4 + [c_float, c_int, c_int],
    "linear": [c_void_p] * 5 + [c_long] * 5 + [c_int] * 3,
    "linear_int8": [c_void_p] * 6 + [c_long] * 3 + [c_int] * 2,
}
ACTS = (None, "gelu", "quick_gelu")  # as c/linear.c counts them
ROUGH_HEAD = 512  # features at most in a head of rough attention: MOST_D of c/scores_bytes.h


class Kernels:
    """The kernels of one library."""

    def __init__(self, variant: Variant, path: Path) -> None:
        self.variant = variant
        self.dtype: torch.dtype = getattr(torch, variant.dtype)
        self.lanes = variant.lanes
        library = ctypes.CDLL(str(path))
        self._calls = {name: getattr(library, f"{name}_{variant.name}") for name in ARGUMENTS}
        for name, call in self._calls.items():
            call.argtypes, call.restype = ARGUMENTS[name], c_int

    def takes(self, *tensors: Tensor | None) -> bool:
        """Whether these are plain tensors on the CPU, in this dtype, not part of a graph, and none of autocast's."""
        graph = torch.is_grad_enabled()
        if torch.is_autocast_enabled("cpu"):
            return False
        for t in tensors:
            if t is None:
                continue
            if not (t.is_cpu and t.dtype is self.dtype and t.layout is torch.strided) or (graph and t.requires_grad):
                return False
        return True

    def takes_attention(self, q: Tensor, k: Tensor, v: Tensor, *, causal: bool = False) -> bool:
        """(B, heads, L, d) and (B, heads, M, d), of any strides but within d, which is a multiple of 8."""
        same = q.shape[0] == k.shape[0] == v.shape[0] and q.shape[1::2] == k.shape[1::2] and k.shape == v.shape
        if causal and q.shape != k.shape:
            return False
        return (
            self.takes(q, k, v)
            and q.ndim == k.ndim == 4
            and same
            and q.shape[-1] % 8 == 0
            and q.numel() * k.numel() > 0
        )

    def attention(self, q: Tensor, k: Tensor, v: Tensor, *, causal: bool = False, rough: bool = False) -> Tensor:
        """As `kernels.attention`. The result is laid out (B, L, heads, d), so that joining the heads copies nothing."""
        q, k, v = (t if t.stride(-1) == 1 else t.contiguous() for t in (q, k, v))
        (batch, heads, length, d), keys = q.shape, k.shape[2]
        o = empty((batch, length, heads, d), q.dtype).transpose(1, 2)
        strides = (c_long * 12)(*(s for t in (q, k, v, o) for s in t.stride()[:3]))
        name = "attention_rough" if rough and not causal and d <= ROUGH_HEAD else "attention"
        self._run(name, q, k, v, o, strides, batch, heads, length, keys, d, d**-0.5, causal)
        return o

    def takes_group_norm(self, x: Tensor, groups: int, weight: Tensor | None, bias: Tensor | None) -> bool:
        """(B, C, H, W), C a multiple of the groups and of the lanes."""
        fits = x.ndim == 4 and x.shape[1] % groups == 0 and x.shape[1] % self.lanes == 0 and x.numel() > groups
        return fits and is_row(weight, x.shape[1]) and is_row(bias, x.shape[1]) and self.takes(x, weight, bias)

    def group_norm(
        self, x: Tensor, groups: int, weight: Tensor | None, bias: Tensor | None, eps: float, *, silu: bool = False
    ) -> Tensor:
        """As `kernels.group_norm`; the result is channels-last."""
        x = channels_last(x)
        batch, channels, height, width = x.shape
        y = empty((batch, height, width, channels), x.dtype).permute(0, 3, 1, 2)
        self._run(
            "group_norm", x, float32(weight), float32(bias), y, batch, height * width, channels, groups, eps, silu
        )
        return y

    def takes_conv3x3(
        self,
        x: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        beside: Tensor | None,
        shift: Tensor | None,
        residual: Tensor | None,
    ) -> bool:
        """Channels in, of each source, a multiple of the lanes, and channels out of twice the lanes."""
        if x.ndim != 4 or weight.shape[2:] != (3, 3) or x.numel() == 0 or not is_row(bias, co := weight.shape[0]):
            return False
        sources = [x.shape[1], *([] if beside is None else [beside.shape[1]])]
        fits = co % (2 * self.lanes) == 0 and not any(c % self.lanes for c in sources)
        same = beside is None or (beside.shape[0], *beside.shape[2:]) == (x.shape[0], *x.shape[2:])
        known = same and sum(sources) == weight.shape[1] and (shift is None or shift.shape in ((1, co), (len(x), co)))
        return fits and known and self.takes(x, weight, bias, beside, shift, residual)

    def conv3x3(
        self,
        x: Tensor,
        weight: Tensor,
        bias: Tensor | None = None,
        *,
        beside: Tensor | None = None,
        shift: Tensor | None = None,
        residual: Tensor | None = None,
        up: bool = False,
        silu: bool = False,
        rough: bool = False,
    ) -> Tensor:
        """As `kernels.conv3x3`; the result is channels-last."""
        x, weight = channels_last(x), channels_last(weight)
        beside = None if beside is None else channels_last(beside)
        batch, c1, height, width = x.shape
        co, ci, height, width = *weight.shape[:2], height << up, width << up
        y = empty((batch, height, width, co), x.dtype).permute(0, 3, 1, 2)
        residual = None if residual is None else channels_last(residual.expand_as(y))
        added, step = float32(bias), 0
        if shift is not None:
            total = shift.float() if added is None else shift.float() + added
            added, step = total.expand(batch, co).contiguous(), co
        sizes = batch, height, width, c1, ci, co, step
        name = "conv3x3_up" if up else "conv3x3_rough" if rough else "conv3x3"
        self._run(name, x, beside, weight, added, residual, y, *sizes, False, silu)
        return y

    def conv3x3_input(self, dy: Tensor, weight: Tensor) -> Tensor:
        """As `twins.conv3x3_input`, channels-last; C' is a multiple of the lanes, C of twice the lanes."""
        dy, weight = channels_last(dy), channels_last(weight)
        (batch, co, height, width), ci = dy.shape, weight.shape[1]
        dx = empty((batch, height, width, ci), dy.dtype).permute(0, 3, 1, 2)
        sizes = batch, height, width, co, co, ci, 0
        self._run("conv3x3", dy, None, weight, None, None, dx, *sizes, True, False)
        return dx

    def conv3x3_weights(self, x: Tensor, dy: Tensor) -> Tensor:
        """As `twins.conv3x3_weights`, channels-last; C is a multiple of twice the lanes, C' of the lanes."""
        x, dy = channels_last(x), channels_last(dy)
        (batch, ci, height, width), co = x.shape, dy.shape[1]
        dw = empty((co, 3, 3, ci), x.dtype).permute(0, 3, 1, 2)
        self._run("conv3x3_weights", x, dy, dw, batch, height, width, ci, co)
        return dw

    def conv3x3_of_few(
        self,
        x: Tensor,
        weight: Tensor,
        bias: Tensor | None = None,
        *,
        beside: Tensor | None = None,
        shift: Tensor | None = None,
        residual: Tensor | None = None,
        up: bool = False,
        down: bool = False,
        silu: bool = False,
    ) -> Tensor:
        """As `kernels.conv3x3`, for few pixels: a linear layer of each one's 3x3 neighbours, on the plain weights.

        To transform weights, as Winograd does, takes longer than all products where few tiles share them.
        """
        x, stride = twins.source(x, beside, up), 1 + down
        batch, channels, height, width = x.shape
        padded = F.pad(x.permute(0, 2, 3, 1), (0, 0, 1, 1, 1, 1)).contiguous()  # pad keeps whatever order x is in
        height, width, (picture, row, pixel, _) = -(-height // stride), -(-width // stride), padded.stride()
        windows = padded.as_strided(
            (batch, height, width, 3, 3, channels), (picture, stride * row, stride * pixel, row, pixel, 1)
        )
        if shift is not None:
            residual = shift[:, :, None, None] if residual is None else residual + shift[:, :, None, None]
        y = self.linear(
            windows.reshape(batch, height, width, 9 * channels),
            weight.permute(0, 2, 3, 1).reshape(len(weight), 9 * channels),
            bias,
            residual=None if residual is None else residual.permute(0, 2, 3, 1),
        )
        return (F.silu(y) if silu else y).permute(0, 3, 1, 2)

    def takes_linear(
        self,
        x: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        *,
        scale: Tensor | None = None,
        residual: Tensor | None = None,
        act: str | None = None,
    ) -> bool:
        """In features a multiple of the lanes; out features of twice the lanes (with a gate, before it: so as well).

        With `scale`, weight is int8 and has at most 65,536 features in, and there is no `act`.
        """
        n, k = weight.shape
        fits = n % (2 * self.lanes) == 0 and k % self.lanes == 0
        same = x.shape[-1] == k and is_row(bias, n) and is_row(scale, n)
        if scale is None:
            return fits and same and x.numel() > 0 and self.takes(x, weight, bias, residual)
        whole = act is None and weight.dtype == torch.int8 and weight.device.type == "cpu" and 0 < k <= 65_536
        return whole and fits and same and x.numel() > 0 and self.takes(x, bias, residual)

    def linear(
        self,
        x: Tensor,
        weight: Tensor,
        bias: Tensor | None = None,
        *,
        scale: Tensor | None = None,
        residual: Tensor | None = None,
        act: str | None = None,
        gate: bool = False,
    ) -> Tensor:
        """As `kernels.linear`, or with `gate` as `kernels.geglu`."""
        n, k = weight.shape
        n, rows = n // 2 if gate else n, x.numel() // k
        x, weight, y = x.contiguous(), weight.contiguous(), empty((*x.shape[:-1], n), x.dtype)
        residual = None if residual is None else residual.expand_as(y).contiguous()
        if scale is None:
            self._run("linear", x, weight, float32(bias), residual, y, rows, k, n, k, n, gate, ACTS.index(act))
        else:
            self._run("linear_int8", x, weight, float32(scale), float32(bias), residual, y, rows, k, n, gate)
        return y

    def _run(self, name: str, *arguments: object) -> None:
        """Call a kernel: tensors go as addresses, flags as 0 or 1, the number of threads last."""
        raw = [a.data_ptr() if isinstance(a, Tensor) else a for a in arguments]
        code = self._calls[name](*raw, torch.get_num_threads())
        if code == 2:
            raise MemoryError(f"no memory for the scratch space of the kernel {name!r}")
        if code:
            raise AssertionError(f"the kernel {name!r} was given what it does not take: {raw}")


def is_row(x: Tensor | None, length: int) -> bool:
    """Whether x is (length,), or absent."""
    return x is None or x.shape == (length,)


def channels_last(x: Tensor) -> Tensor:
    """x (B, C, H, W) with channels next to each other in memory, and no gaps: itself where it is so."""
    return x.contiguous(memory_format=torch.channels_last)


def float32(x: Tensor | None) -> Tensor | None:
    """A small tensor in float32, contiguous; None stays None."""
    return None if x is None else x.float().contiguous()
