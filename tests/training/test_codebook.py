"""Codebook use, perplexity, and the revival of dead codes, alone and in a stage."""

import math

import pytest
import torch
from first_stage import TINY_VQ, one_step, stage

from safelight.models.bottleneck import VectorQuantizer
from safelight.training.stages.codebook import CodebookUse, perplexity, revive


def test_perplexity():
    assert float(perplexity(torch.tensor([0.0, 1.0, 0.0]))) == pytest.approx(1)
    assert float(perplexity(torch.full((8,), 0.1))) == pytest.approx(8)
    entropy = -(0.5 * math.log(0.5) + 2 * 0.25 * math.log(0.25))
    assert float(perplexity(torch.tensor([2.0, 1.0, 1.0]))) == pytest.approx(math.exp(entropy))


def test_shares_are_a_moving_average_over_steps_of_all_passes():
    use = CodebookUse(4, device="cpu", decay=0.5)
    use.see(torch.tensor([[0, 0], [1, 0]]))
    use.see(torch.tensor([2, 2, 2, 2]))
    use.update()
    torch.testing.assert_close(use.shares, 0.5 * torch.tensor([3.0, 1.0, 4.0, 0.0]) / 8)
    use.see(torch.tensor([3]))
    use.update()
    torch.testing.assert_close(use.shares, torch.tensor([3.0, 1.0, 4.0, 0.0]) / 32 + torch.tensor([0, 0, 0, 0.5]))


def test_dead_codes_are_those_far_below_an_equal_share():
    use = CodebookUse(4, device="cpu", decay=0.0, threshold=0.1)
    assert use.dead().all()  # nothing seen yet
    use.see(torch.tensor([0] * 60 + [1] * 39 + [2]))
    use.update()
    assert use.dead().tolist() == [False, False, True, True]
    figures = use.figures()
    assert float(figures["codes_used"]) == 2
    assert float(figures["perplexity"]) == pytest.approx(math.exp(-sum(p * math.log(p) for p in (0.6, 0.39, 0.01))))


def test_state_goes_through_tensors():
    use, other = CodebookUse(4, device="cpu"), CodebookUse(4, device="cpu")
    use.see(torch.tensor([1, 1]))
    use.update()
    use.see(torch.tensor([2]))
    other.load({name: tensor.clone() for name, tensor in use.tensors().items()})
    use.update(), other.update()
    assert torch.equal(use.shares, other.shares)


def revived(seed=0, latents=None):
    torch.manual_seed(0)
    quantizer = VectorQuantizer(6, 2)
    weight = quantizer.embedding.weight
    optimizer = torch.optim.AdamW([weight], lr=0.1, fused=True)
    weight.grad = torch.ones_like(weight)
    optimizer.step()
    before = weight.detach().clone()
    latents = torch.randn(3, 2, 4, 4) if latents is None else latents
    dead = torch.tensor([False, True, False, True, True, False])
    moved = revive(weight, dead, latents, torch.Generator().manual_seed(seed), optimizer)
    return quantizer, before, dead, latents, moved, optimizer.state[weight]


def test_dead_codes_move_onto_latents_and_the_living_stay():
    quantizer, before, dead, latents, moved, state = revived()
    weight = quantizer.embedding.weight
    assert torch.equal(moved, dead) and torch.equal(weight[~dead], before[~dead])
    rows = latents.movedim(1, -1).reshape(-1, 2)
    assert all((rows == code).all(1).any() for code in weight[dead])
    assert (state["exp_avg"][dead] == 0).all() and (state["exp_avg_sq"][dead] == 0).all()
    assert (state["exp_avg"][~dead] != 0).all() and float(state["step"]) == 1
    used = quantizer.usage(quantizer.nearest(latents)).used
    fresh = VectorQuantizer(6, 2)
    assert used > fresh.usage(fresh.nearest(latents + 3)).used  # a codebook beside its latents uses hardly any code


def test_revival_is_a_function_of_the_generator():
    a, b, c = (revived(seed)[0].embedding.weight for seed in (0, 0, 1))
    assert torch.equal(a, b) and not torch.equal(a, c)


def test_latents_that_are_not_finite_move_nothing():
    quantizer, before, _, _, moved, _ = revived(latents=torch.full((1, 2, 2, 2), torch.nan))
    assert torch.equal(quantizer.embedding.weight, before) and not moved.any()


def test_straight_through():
    """The decoder's gradient reaches the latents as if there were no codebook; the codebook gets none of it."""
    torch.manual_seed(0)
    quantizer, z = VectorQuantizer(5, 3), torch.randn(2, 3, 4, 4, requires_grad=True)
    weights = torch.randn(2, 3, 4, 4)
    (quantizer(z).codes * weights).sum().backward()
    assert torch.equal(z.grad, weights) and quantizer.embedding.weight.grad is None


def trained(steps=60, **options):
    made = stage(TINY_VQ, reduction="mean", disc_weight=0.0, **options)
    return made, [one_step(made, step, count=8) for step in range(steps)]


def test_a_collapsed_codebook_comes_back_to_life():
    """All codes but one are far away, and stay there in the original; corrected, they are put to use."""
    perplexities = {}
    for original in (False, True):
        made = stage(TINY_VQ, reduction="mean", disc_weight=0.0, original=original, revive_every=10)
        made._new_codes = False
        with torch.no_grad():
            made.generator.autoencoder.quantize.embedding.weight[1:] += 100
        rows = [one_step(made, step, count=8) for step in range(30)]
        perplexities[original] = float(rows[-1]["perplexity"])
    assert perplexities[True] == pytest.approx(1, abs=1e-3) and perplexities[False] > 3


def test_a_new_codebook_is_drawn_from_the_first_latents():
    made, _ = trained(steps=1)
    weight = made.generator.autoencoder.quantize.embedding.weight
    assert made._new_codes and weight.abs().max() > 1 / 16
    original, _ = trained(steps=1, original=True)
    assert original.generator.autoencoder.quantize.embedding.weight.abs().max() < 1 / 16 + 2e-3  # one step of Adam


def test_resuming_goes_on_exactly():
    """Weights, moments and `state_tensors` are all there is: revival included, and no hidden generator."""
    straight, _ = trained(steps=12, revive_every=4)
    first, _ = trained(steps=6, revive_every=4)
    second = stage(TINY_VQ, reduction="mean", disc_weight=0.0, revive_every=4)
    second.generator.load_state_dict(first.generator.state_dict())
    second.optimizers["autoencoder"].load_state_dict(first.optimizers["autoencoder"].state_dict())
    second.load_state_tensors({name: tensor.clone() for name, tensor in first.state_tensors().items()})
    for step in range(6, 12):
        one_step(second, step, count=8)
    for a, b in zip(straight.generator.parameters(), second.generator.parameters(), strict=True):
        assert torch.equal(a, b)
    assert torch.equal(straight.use.shares, second.use.shares)


def test_two_processes_see_one_codebook(tmp_path):
    """Counts are added up, and both give latents: their codebooks stay equal."""
    torch.multiprocessing.spawn(_process, (str(tmp_path / "meet"), str(tmp_path)), nprocs=2)
    first, second = (torch.load(tmp_path / f"{rank}.pt", weights_only=True) for rank in range(2))
    assert torch.equal(first["shares"], second["shares"]) and torch.equal(first["weight"], second["weight"])
    torch.testing.assert_close(first["shares"], 0.01 * torch.tensor([0.75, 0.25, 0, 0]))
    rows = [each["latents"].movedim(1, -1).reshape(-1, 3) for each in (first, second)]
    givers = [[bool((latents == code).all(1).any()) for latents in rows] for code in first["weight"][2:]]
    assert givers == [[True, False], [False, True]]  # of the two dead codes, one from each process


def _process(rank, meet, folder):
    torch.distributed.init_process_group("gloo", init_method=f"file://{meet}", rank=rank, world_size=2)
    use = CodebookUse(4, device="cpu")
    use.see(torch.tensor([0, rank]))
    use.update()
    torch.manual_seed(rank)
    latents, weight = torch.randn(2, 3, 2, 2), torch.zeros(4, 3)
    revive(weight, use.dead(), latents, torch.Generator().manual_seed(1))
    torch.save({"shares": use.shares, "weight": weight, "latents": latents}, f"{folder}/{rank}.pt")
    torch.distributed.destroy_process_group()
