"""The three ways to draw a seed's noise, A1111's options for it, and what must never change: the frozen hashes."""

from hashlib import sha256

import numpy as np
import pytest
import torch

from safelight.diffusion.noise import BrownianNoise, NoiseSource, Origin, SeededNoise, make_noise, origins, slerp
from safelight.diffusion.philox import CudaGenerator

SHAPE = (4, 8, 6)

# sha256 (its first 16 digits) of the first noise (4, 8, 6) and of the first step's, for seeds 0 to 9
FROZEN = {
    "cpu": """
        139158fda521b5eb 7c3b35635e4d5284 f61d67a08560dcd6 001988de7883f384 12361edf219228a5
        4f3d96d622ad606c 9a7519c0817dabf6 781b9e93deb89dc1 60cd855dc07d5e7f 680467c12d7e09c6""",
    "cuda": """
        c79a956b07088cb8 5ab6c025986b0c57 6897b2bd78924695 e7ecd2e8723ed4cb 6c3d18c2bc40b4ea
        7eae6c516fdb40ad e4e4cf6f011a1148 4a5832342d2b36da ca438d1799dcfc18 15fb3a8d1dc5de84""",
    "comfyui": """
        549aa742d8d66db9 67d66e05702cbc4f f9eccd46b539d1e7 854f1dd37ce38a62 2bedc703db56818a
        42e5f3c9608d5603 caf96a32647fd652 e382269716fb1974 2c1a59ca6c6fc1b9 2f2c76e12afdec6c""",
}
BROWNIAN = """
    5982de7de0b78dbb 978c2a7f0016bc57 f37abb63f01f0ccb 42e8f39a247c42b7 64565ae22f0f7c15
    afd6f6de1e078e32 b44b09bb4cefd50d 5b8635a1c439c627 8c9a99e061c20888 f290558a792a500e"""


def drawn(origin, shape=SHAPE, draws=2, **source):
    noise = SeededNoise([origin], shape, source=NoiseSource(**source))
    return [noise.draw()[0] for _ in range(draws)]


def digest(tensors):
    return sha256(b"".join(tensor.numpy().tobytes() for tensor in tensors)).hexdigest()[:16]


@pytest.mark.parametrize("kind", FROZEN)
def test_frozen_hashes(kind):
    if kind != "cuda" and torch.backends.cpu.get_cpu_capability() != "AVX2":
        pytest.skip("torch's logarithm and cosine have other last bits on this processor")
    assert [digest(drawn(seed, kind=kind)) for seed in range(10)] == FROZEN[kind].split()


def test_frozen_hashes_of_brownian_paths():
    paths = [BrownianNoise([seed], SHAPE) for seed in range(10)]
    assert [digest([path(14.0, 3.0), path(3.0, 0.1)]) for path in paths] == BROWNIAN.split()


def test_cuda_is_one_cuda_stream():
    generator = CudaGenerator(5)
    for noise in drawn(5, draws=3, kind="cuda"):
        assert np.array_equal(noise.numpy(), generator.randn(SHAPE))


def test_comfyui_draws_a_batch_at_once():
    """Its prepare_noise takes torch.randn of the whole batch; the steps' noise comes from the GPU, of the same seed."""
    count = 3
    batch = torch.randn((count, *SHAPE), generator=torch.Generator().manual_seed(9))
    steps = CudaGenerator(9)
    wanted = [batch, *(torch.from_numpy(steps.randn((count, *SHAPE))) for _ in range(2))]
    noise = SeededNoise([Origin(9, batch_index=k) for k in range(count)], SHAPE, source=NoiseSource("comfyui"))
    for whole in wanted:
        assert torch.equal(noise.draw(), whole)
    alone = SeededNoise([Origin(9, batch_index=2)], SHAPE, source=NoiseSource("comfyui"))
    for whole in wanted:
        assert torch.equal(alone.draw()[0], whole[2])


@pytest.mark.parametrize("kind", ["cpu", "cuda", "comfyui"])
def test_pictures_are_independent_of_the_batch(kind):
    source = NoiseSource(kind, seed_delta=31337, subseed_strength=0.3, resize_from=(6, 6))
    origins = [Origin(3, 100, 0), Origin(4, 101, 1), Origin(3, 102, 2)]
    together = SeededNoise(origins, SHAPE, source=source)
    draws = [together.draw() for _ in range(2)]
    for k, origin in enumerate(origins):
        alone = SeededNoise([origin], SHAPE, source=source)
        for noise in draws:
            assert torch.equal(alone.draw()[0], noise[k])


@pytest.mark.parametrize("kind", ["cpu", "cuda"])
def test_ensd_moves_the_steps_noise_alone(kind):
    first, step = drawn(7, kind=kind, seed_delta=31337)
    assert torch.equal(first, drawn(7, kind=kind)[0])
    assert torch.equal(step, drawn(7 + 31337, kind=kind)[0])  # the other seed's first, as A1111 has it


def test_subseed_strength_turns_one_first_noise_into_another():
    seed, subseed = drawn(1)[0], drawn(2)[0]
    assert torch.equal(drawn(Origin(1, 2), subseed_strength=0.0)[0], seed)
    torch.testing.assert_close(drawn(Origin(1, 2), subseed_strength=1.0)[0], subseed, rtol=0, atol=1e-5)
    mixed, step = drawn(Origin(1, 2), subseed_strength=0.25)
    assert torch.equal(step, drawn(1)[1])  # the sub-seed has a part in the first noise only
    a, b = seed.double().numpy(), subseed.double().numpy()
    cosine = (a * b).sum(1) / np.linalg.norm(a, axis=1) / np.linalg.norm(b, axis=1)
    angle = np.arccos(cosine)[:, None]
    expected = (np.sin(0.75 * angle) * a + np.sin(0.25 * angle) * b) / np.sin(angle)
    np.testing.assert_allclose(mixed.numpy(), expected, rtol=0, atol=1e-5)  # float32 against float64


def test_slerp_keeps_the_length_and_stays_where_both_are_one():
    a = torch.randn((2, 400, 3), generator=torch.Generator().manual_seed(0))
    b = torch.randn((2, 400, 3), generator=torch.Generator().manual_seed(1))
    between = slerp(a, b * a.norm(dim=1, keepdim=True) / b.norm(dim=1, keepdim=True), 0.4)
    torch.testing.assert_close(between.norm(dim=1), a.norm(dim=1), rtol=1e-4, atol=0)
    torch.testing.assert_close(slerp(a, a, 0.4), a, rtol=0, atol=1e-6)


@pytest.mark.parametrize(
    ("small", "to", "taken"),
    [
        ((4, 4), np.s_[:, 2:6, 1:5], np.s_[:, :, :]),  # a larger picture has the old one's noise in its middle
        ((12, 10), np.s_[:, :, :], np.s_[:, 2:10, 2:8]),  # a smaller one is cut out of the old one's middle
        ((5, 6), np.s_[:, 1:6, :], np.s_[:, :, :]),  # (8 - 5) // 2 = 1 row above
        ((9, 6), np.s_[:, 0:7, :], np.s_[:, 1:8, :]),  # (8 - 9) // 2 = -1: 9 - 2 rows of it, as A1111 counts
    ],
)
@pytest.mark.parametrize("kind", ["cpu", "cuda"])
def test_seed_resize_keeps_the_middle(kind, small, to, taken):
    first, step = drawn(4, kind=kind, resize_from=small)
    inner, outer = drawn(4, (4, *small), 1, kind=kind)[0], drawn(4, kind=kind)
    expected = outer[0].clone()
    expected[to] = inner[taken]
    assert torch.equal(first, expected)
    assert torch.equal(step, outer[1])


def test_every_sampler_starts_a_seed_alike():
    source = NoiseSource("cuda", subseed_strength=0.5)
    starts = [make_noise(kind, [Origin(1, 2)], SHAPE, source=source).initial() for kind in ("", "fresh", "brownian")]
    assert torch.equal(starts[0], starts[1]) and torch.equal(starts[0], starts[2])


def test_brownian_paths_differ_within_a_comfyui_batch():
    source = NoiseSource("comfyui")
    noise = make_noise("brownian", [Origin(1, batch_index=0), Origin(1, batch_index=1)], SHAPE, source=source)
    a, b = noise(3.0, 2.0)
    assert not torch.equal(a, b)
    assert torch.equal(a, make_noise("brownian", [1], SHAPE)(3.0, 2.0)[0])


@pytest.mark.parametrize("kind", ["cpu", "cuda", "comfyui"])
def test_seeds_of_64_bits_and_negative_sums(kind):
    for seed, delta in ((2**64 - 1, 31337), (3, -10), (2**63, 0)):
        for noise in drawn(seed, kind=kind, seed_delta=delta):
            assert noise.isfinite().all()


def test_what_the_pictures_of_a_batch_grow_from():
    assert origins(5, 3) == [Origin(5), Origin(6), Origin(7)]
    assert origins(5, 2, batch_index=1) == origins(5, 3)[1:]
    comfyui, mixed = NoiseSource("comfyui"), NoiseSource("cuda", subseed_strength=0.1)
    assert origins(5, 2, batch_index=1, source=comfyui) == [Origin(5, batch_index=1), Origin(5, batch_index=2)]
    assert origins(5, 2, subseed=9, source=mixed) == [Origin(5, 9), Origin(5, 10)]
