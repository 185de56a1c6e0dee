"""CUDA's normal numbers: Random123's known answers, numbers that people printed on GPUs, and the rule of threads."""

import numpy as np
import pytest
import torch

from safelight.diffusion.philox import CudaGenerator, philox4x32

# Random123 (Salmon et al.), kat_vectors: philox4x32, 10 rounds
KNOWN_ANSWERS = [
    ("00000000 00000000 00000000 00000000", "00000000 00000000", "6627e8d5 e169c58d bc57ac4c 9b00dbd8"),
    ("ffffffff ffffffff ffffffff ffffffff", "ffffffff ffffffff", "408f276d 41c83b0e a20bc7c6 6d5451fd"),
    ("243f6a88 85a308d3 13198a2e 03707344", "a4093822 299f31d0", "d16cfe09 94fdcceb 5001e420 24126ea1"),
]

# torch.randn(8, 8, device="cuda") after torch.manual_seed(0), as several people's notes show it
SEED_0 = """
-0.9247 -0.4253 -2.6438  0.1452 -0.1209 -0.5797 -0.6229 -0.3284 -1.0745 -0.3631 -1.6711  2.2655  0.3117 -0.1842  1.2866
 1.1820 -0.1271  1.2169  1.4353  1.0605 -0.4941 -1.4244 -0.7244 -1.2973  0.0697 -0.0074  1.8969  0.6878 -0.0779 -0.8373
 1.3506 -0.2879 -0.5965 -0.3283 -0.9086 -0.8059 -0.7407 -0.0504  0.5435  1.5150  0.0141  0.4532  1.6349  0.7124 -0.1806
 1.0252 -1.4622 -0.7554 -0.1836  0.3824  0.3918 -0.0830  0.8971 -1.1123  0.1116  0.4863 -0.5499 -0.3231 -0.5469  0.9049
 0.2837  0.1210  0.4730 -1.0823"""
SEED_42 = """
 0.1940  2.1614 -0.1721  0.8491 -1.9244  0.6530 -0.6494 -0.8175  0.5280 -1.2753 -1.6621 -0.3033 -0.0926  0.1992 -1.1204
 1.8577 -0.7145  0.6881  0.7968"""


def words(text):
    return np.array([int(word, 16) for word in text.split()], np.uint32)


@pytest.mark.parametrize(("counter", "key", "block"), KNOWN_ANSWERS)
def test_random123s_known_answers(counter, key, block):
    low, high = (int(word) for word in words(key))
    assert np.array_equal(philox4x32(words(counter)[:, None], low | high << 32)[:, 0], words(block))


@pytest.mark.parametrize(("seed", "printed"), [(0, SEED_0), (42, SEED_42)])
def test_numbers_that_gpus_printed(seed, printed):
    expected = np.array(printed.split(), np.float64)
    drawn = CudaGenerator(seed).randn(expected.shape)
    np.testing.assert_allclose(drawn, expected, rtol=0, atol=5.1e-5)  # half of the last printed place


def test_a1111s_published_example():
    """From the head of its "NV" source: printed by an earlier state of its code, hence 1e-6 and no equality."""
    expected = [[-0.92466259, -0.42534415, -2.6438457, 0.14518388],
                [-0.12086647, -0.57972564, -0.62285122, -0.32838709],
                [-1.07454231, -0.36314407, -1.67105067, 2.26550497]]  # fmt: skip
    np.testing.assert_allclose(CudaGenerator(0).randn((3, 4)), expected, rtol=0, atol=1e-6)


def test_the_stream_goes_on_with_the_next_counter():
    generator = CudaGenerator(7)
    first, second = generator.randn((300,)), generator.randn((300,))
    counter = np.zeros((4, 300), np.uint32)
    counter[0], counter[2] = 1, np.arange(300)
    x, y = philox4x32(counter, 7)[:2].astype(np.float64)
    expected = np.sqrt(-2 * np.log((x + 0.5) / 2**32)) * np.sin(2 * np.pi * (y + 0.5) / 2**32)
    np.testing.assert_allclose(second, expected, rtol=0, atol=1e-6)
    assert not np.array_equal(first, second)


def test_a_part_of_a_larger_tensor():
    whole = CudaGenerator(3).randn((5, 4, 9, 7))
    assert np.array_equal(CudaGenerator(3).randn((4, 9, 7), start=3 * 4 * 9 * 7), whole[3])


def test_beyond_the_gpus_threads_each_draws_four():
    """With 512 threads, number 512 t + i is the t-th of thread i: four from a block, then on with its next block."""
    few, many = CudaGenerator(5, threads=512), CudaGenerator(5)
    drawn = few.randn((3000,)).reshape(-1)
    assert np.array_equal(drawn[:512], many.randn((512,)))
    counter = np.zeros((4, 512), np.uint32)
    counter[2] = np.arange(512)
    a, b, c, d = philox4x32(counter, 5).astype(np.float64) + 0.5
    radius = [np.sqrt(-2 * np.log(word / 2**32)) for word in (a, c)]
    np.testing.assert_allclose(drawn[512:1024], radius[0] * np.cos(2 * np.pi * b / 2**32), rtol=0, atol=1e-6)
    np.testing.assert_allclose(drawn[1024:1536], radius[1] * np.sin(2 * np.pi * d / 2**32), rtol=0, atol=1e-6)
    assert np.array_equal(drawn[2048:2560], many.randn((512,)))  # its second block, as `many` takes it next
    assert few.used == 2


def test_numbers_are_normal_and_seeds_are_64_bits():
    drawn = CudaGenerator(2**64 - 1).randn((200_000,)).astype(np.float64)
    assert abs(drawn.mean()) < 5 / 200_000**0.5
    assert abs(drawn.var() - 1) < 5 * (2 / 200_000) ** 0.5
    assert np.array_equal(CudaGenerator(-1).randn((9,)), CudaGenerator(2**64 - 1).randn((9,)))


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs an NVIDIA GPU")
@pytest.mark.parametrize("seed", [0, 1, 2**40 + 3])
def test_against_this_machines_gpu(seed):
    """float32 and the GPU's fast sine against float64: within 4e-6 on the whole latent of a 512-pixel picture."""
    generator, ours = torch.Generator("cuda").manual_seed(seed), CudaGenerator(seed)
    for _ in range(3):
        theirs = torch.randn((4, 64, 64), generator=generator, device="cuda").cpu()
        torch.testing.assert_close(torch.from_numpy(ours.randn((4, 64, 64))), theirs, rtol=0, atol=4e-6)
