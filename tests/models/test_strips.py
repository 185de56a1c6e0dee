"""Strips give the whole's numbers, whatever is kept and however high they are, and hold less memory for it."""

import gc
import weakref

import pytest
import torch
from test_autoencoder import KL, VQ, random_weights, relative_error, small
from torch.utils._python_dispatch import TorchDispatchMode

from safelight import kernels
from safelight.models.autoencoder import Autoencoder
from safelight.models.presets import AUTOENCODERS
from safelight.models.strips import decode_in_strips

torch.set_num_threads(1)

# Norms add in another order, and a convolution may, too. Measured: at most 1.1e-6, and 2e-15 in double precision.
ROUNDING = {torch.float32: 5e-6, torch.float64: 1e-14}


@pytest.mark.parametrize("dtype", ROUNDING)
@pytest.mark.parametrize("config", (KL | VQ).values(), ids=KL | VQ)
@torch.no_grad()
def test_strips_are_the_whole(config, dtype):
    model = random_weights(Autoencoder(config)).to(dtype)
    z = torch.randn(2, config.embed_dim, 11, 6, generator=torch.Generator().manual_seed(1)).to(dtype)
    expected = model.decode_raw(z)
    assert relative_error(model.decode_raw(z, strips=True), expected) < ROUNDING[dtype]
    if dtype == torch.float64:
        inner = model.post_quant_conv(model.quantize.snap(z))
        for rows in (1, 3, 4, 100):
            for keep in (0, 3_000_000, 2**40):
                assert relative_error(decode_in_strips(model.decoder, inner, rows=rows, keep=keep), expected) < 1e-14


@torch.no_grad()
def test_a_bright_corner_is_felt_everywhere():
    """Statistics are of the whole map, not of a strip: with another top, the bottom changes as it does in the whole."""
    model = random_weights(Autoencoder(KL["f8, as Stable Diffusion"])).double()
    z = torch.randn(1, 4, 24, 4, generator=torch.Generator().manual_seed(2)).double()
    bright = z.clone()
    bright[:, :, 0] += 30
    bottoms = [model.decode_raw(one, strips=True)[..., -8:, :] for one in (z, bright)]
    assert relative_error(bottoms[1], bottoms[0]) > 0.01
    assert relative_error(bottoms[1], model.decode_raw(bright)[..., -8:, :]) < 1e-14


@torch.no_grad()
def test_half_precision():
    """Rounding to bfloat16 at other places gives other last digits: as far from float32 as the whole is."""
    model = random_weights(Autoencoder(KL["f8, as Stable Diffusion"]))
    z = torch.randn(1, 4, 12, 10, generator=torch.Generator().manual_seed(3))
    exact = model.decode_raw(z)
    half = model.to(torch.bfloat16)
    whole, strips = half.decode_raw(z), half.decode_raw(z, strips=True)
    assert strips.dtype == torch.bfloat16
    assert relative_error(strips.float(), exact) < 1.2 * relative_error(whole.float(), exact) < 0.1


class Live(TorchDispatchMode):
    """Counts the bytes of all tensors that are alive, and remembers the most."""

    def __init__(self):
        super().__init__()
        self.bytes = self.peak = 0
        self.seen = set()

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        out = function(*args, **(kwargs or {}))
        for tensor in out if isinstance(out, tuple | list) else [out]:
            if isinstance(tensor, torch.Tensor):
                self.count(tensor.untyped_storage())
        return out

    def count(self, storage):
        pointer = storage._cdata
        if pointer in self.seen:
            return
        self.seen.add(pointer)
        size = storage.nbytes()
        self.bytes += size
        self.peak = max(self.peak, self.bytes)
        weakref.finalize(storage, self.gone, pointer, size)

    def gone(self, pointer, size):
        self.seen.discard(pointer)
        self.bytes -= size


def peak(function) -> int:
    gc.collect()
    with Live() as live:
        function()
    return live.peak


@torch.no_grad()
def test_strips_hold_a_quarter_of_the_memory():
    """Of widths in Stable Diffusion's proportions, and of a picture of many strips."""
    config = small((16, 32, 64, 64))
    model = random_weights(Autoencoder(config))
    z = torch.randn(1, 4, 64, 32, generator=torch.Generator().manual_seed(4))
    full = 16 * (8 * 64) * (8 * 32) * 4  # bytes of the one map that must be held
    whole = peak(lambda: model.decode_raw(z))
    strips = peak(lambda: decode_in_strips(model.decoder, model.post_quant_conv(z), rows=8, keep=0))
    assert strips < 1.6 * full < whole / 4


@torch.no_grad()
def test_stable_diffusions_decoder_holds_little_more_than_one_map(monkeypatch):
    """2048x2048 pixels in float32, on the meta device, where nothing is computed and sizes are what they are."""
    monkeypatch.setattr(kernels, "attention", lambda q, k, v, **_: torch.empty_like(q))  # meta's own is not fused
    with torch.device("meta"):
        model = Autoencoder(AUTOENCODERS["sd15"])
        z = torch.empty(1, 4, 256, 256)
    full = 128 * 2048 * 2048 * 4  # 2 GiB
    strips = peak(lambda: decode_in_strips(model.decoder, model.post_quant_conv(z), rows=24))
    assert full < strips < 1.4 * full  # with `decode`'s own 8 rows 1.10, the whole 7.0
