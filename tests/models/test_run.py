"""A run gives what the U-Net gives, counts less work for it, and leaves gradients, hooks and the next run alone."""

import pytest
import torch
from test_unet import CONDITIONAL, UNCONDITIONAL, inputs, peer_and_ours

import safelight
from safelight.diffusion.condition import Condition
from safelight.diffusion.denoiser import Denoiser
from safelight.diffusion.guidance import guided, loss_guided
from safelight.diffusion.schedule import noise_schedule
from safelight.errors import InputError
from safelight.models.attention import Attention
from safelight.models.layers import ResBlock
from safelight.models.once import Once, fan_out
from safelight.models.run import Run, untouched
from safelight.pipeline.standin import random_model

torch.set_num_threads(1)

# A matrix product of another number of rows may add in another order; in double precision nothing but 1e-15 is left.
ROUNDING = {torch.float32: 3e-6, torch.float64: 1e-14}
TIMES = (981.25, 500.0, 3.5)
NETS = [("cond", name) for name in CONDITIONAL] + [("plain", name) for name in UNCONDITIONAL]


def far(found, expected) -> float:
    assert found.shape == expected.shape
    return float((found - expected).norm() / expected.norm())


@pytest.mark.parametrize("dtype", ROUNDING)
@pytest.mark.parametrize(("kind", "name"), NETS)
@torch.no_grad()
def test_equals_the_net_at_every_step(kind, name, dtype):
    net = peer_and_ours(kind, name)[1].to(dtype)
    x, _, context, labels = inputs(net, size=(9, 12))
    x, context = x.to(dtype), None if context is None else context.to(dtype)
    labels = labels.to(dtype) if labels is not None and labels.is_floating_point() else labels
    run = Run(net, TIMES)
    for t in (*TIMES, 77.7, *TIMES):  # one off the grid, and the grid again
        found = run(x, t, context=context, class_labels=labels)
        assert far(found, net(x, t, context, class_labels=labels)) < ROUNDING[dtype]


@pytest.mark.parametrize("dtype", ROUNDING)
@pytest.mark.parametrize("name", CONDITIONAL)
@torch.no_grad()
def test_several_contexts_for_each_picture(name, dtype):
    net = peer_and_ours("cond", name)[1].to(dtype)
    x, _, context, labels = inputs(net)
    context = torch.cat([context, context.flip(1), -context]).to(dtype)
    if labels is not None:
        labels = labels.to(dtype) if labels.is_floating_point() else labels
    emb = net.embed_time(500.0, labels)
    every = torch.cat([labels] * 3) if labels is not None else None
    expected = net(torch.cat([x.to(dtype)] * 3), 500.0, context, class_labels=every)
    assert far(net.forward_embedded(x.to(dtype), emb, context), expected) < ROUNDING[dtype]


@torch.no_grad()
def test_keys_values_and_times_are_computed_once():
    net = peer_and_ours("cond", "sd1")[1]
    x, _, context, _ = inputs(net)
    calls = {"keys": 0, "time": 0}
    for module in net.modules():
        if isinstance(module, Attention):
            module.to_k.register_forward_hook(
                lambda m, args, out: calls.update(keys=calls["keys"] + (args[0].shape[1] == 7))
            )
        if isinstance(module, ResBlock):
            module.time_emb_proj.register_forward_hook(lambda *_: calls.update(time=calls["time"] + 1))
    cross = sum(name.endswith("attn2") for name, _ in net.named_modules())
    blocks = sum(isinstance(module, ResBlock) for module in net.modules())
    run = Run(net, TIMES)
    for t in TIMES:
        run(x, t, context=context)
    assert calls == {"keys": cross, "time": blocks}
    for t in TIMES:
        net(x, t, context)
    assert calls == {"keys": 4 * cross, "time": 4 * blocks}


@torch.no_grad()
def test_halves_of_guidance_share_what_comes_before_the_context():
    net = peer_and_ours("cond", "sd1")[1]
    x, _, context, _ = inputs(net)
    a, b = Condition(context=context), Condition(context=-context)
    plain, shared = Denoiser(net, noise_schedule()), Denoiser(Run(net, TIMES), noise_schedule())
    rows = {"conv_in": [], "conv_out": [], "attn1": [], "attn2": []}
    for name, module in net.named_modules():
        if (last := name.split(".")[-1]) in rows:
            module.register_forward_pre_hook(lambda m, args, last=last: rows[last].append(len(args[0])))
    found = guided(shared, a, b, 5.0)(x, 3.0)
    assert rows["conv_in"] == [2] and rows["attn1"][:2] == [2, 4] and rows["attn2"][0] == rows["conv_out"][0] == 4
    assert far(found, guided(plain, a, b, 5.0)(x, 3.0)) < 1e-5  # guidance multiplies rounding by its scale
    assert rows["conv_in"] == [2, 4]


@torch.no_grad()
def test_a_context_changed_is_another_context():
    net = peer_and_ours("cond", "sd1")[1]
    x, _, context, _ = inputs(net)
    run = Run(net, TIMES)
    many = [context + i for i in range(9)]
    for _ in range(2):
        for one in many:
            assert far(run(x, TIMES[0], context=one), net(x, TIMES[0], one)) < ROUNDING[torch.float32]
    assert len(run.contexts) < len(many)  # and what is kept is bounded


def test_gradients_are_those_of_the_net():
    """Of the latent through guidance by a loss, step after step, and of the weights and the prompt."""
    net = peer_and_ours("cond", "sd1")[1].double()
    x, _, context, _ = inputs(net)
    x, context = x.double(), context.double().requires_grad_()
    run = Run(net, TIMES)
    with torch.no_grad():
        run(x, TIMES[0], context=context)  # now everything is known
    wanted = [context, net.conv_in.weight, net.time_embedding.linear_1.weight]
    wanted.append(net.get_parameter("down_blocks.0.attentions.0.transformer_blocks.0.attn2.to_k.weight"))
    expected = torch.autograd.grad(net(x, TIMES[0], context).square().sum(), wanted)
    both = run.told(context), run.unet.embed_time(TIMES[0])
    found = torch.autograd.grad(net.forward_embedded(x, both[1], both[0]).square().sum(), wanted)
    for a, b in zip(found, expected, strict=True):
        torch.testing.assert_close(a, b)
    told = Condition(context=context.detach())
    plain, shared = (Denoiser(n, noise_schedule()) for n in (net, Run(net, TIMES)))
    by_loss = [
        loss_guided(guided(d, told, told, 3.0), lambda x0: x0.square().flatten(1).sum(1), 0.01) for d in (plain, shared)
    ]
    for sigma in (5.0, 2.0):
        torch.testing.assert_close(by_loss[1](x, sigma), by_loss[0](x, sigma))


def test_a_wrong_context_is_named():
    net = peer_and_ours("cond", "sd1")[1]
    x, _, context, _ = inputs(net)
    run = Run(net, TIMES)
    for wrong in (context[..., 1:], context[0], None):
        with pytest.raises(InputError, match="context"):
            run(x, 3.5, context=wrong)
    with pytest.raises(InputError, match="in 0 cannot be full"):
        Run(net, TIMES, every=0)


# ------------------------------------------------------------------------------------------------ deep features


def evaluations(run, net, steps=6):
    """The answers of some steps, and at which of them the middle of the net was computed."""
    x, _, context, _ = inputs(net)
    middle, answers = [], []
    handle = net.mid_block.resnets[0].register_forward_hook(lambda *_: middle.append(len(answers)))
    for t in range(60, 60 - 10 * steps, -10):
        answers.append(run(x, float(t), context=context))
    handle.remove()
    return answers, middle


@torch.no_grad()
def test_deep_features_are_computed_once_in_every_so_many_evaluations():
    net = peer_and_ours("cond", "sd1")[1]
    exact, full = evaluations(Run(net, ()), net)
    assert full == [0, 1, 2, 3, 4, 5]
    for every, below, expected in ((2, 99, [0, 2, 4]), (3, 99, [0, 3]), (2, 40, [0, 1, 2, 4]), (2, 0, full)):
        answers, middle = evaluations(Run(net, (), every=every, below=below), net)
        assert middle == expected
        for step, (a, b) in enumerate(zip(answers, exact, strict=True)):
            assert torch.equal(a, b) == (step in middle)  # what is computed in full is exact to the bit


@torch.no_grad()
def test_deep_features_are_not_used_for_others():
    net = peer_and_ours("cond", "sd1")[1]
    x, _, context, _ = inputs(net)
    run = Run(net, (), every=99)
    run(x, 500.0, context=context)
    for other in (
        lambda r: r(x, 500.0, context=context.clone()),  # another prompt
        lambda r: r(x[..., 2:], 500.0, context=context),  # another size
        lambda r: r(x, 600.0, context=context),  # more noise, as samplers that go back bring it
    ):
        assert torch.equal(other(run), other(Run(net, ())))
        run(x, 500.0, context=context)


# ------------------------------------------------------------------------------------------------ whole pictures

QUICK = {"steps": 6, "seed": 3, "width": 64, "height": 64}


@pytest.mark.parametrize("options", [{}, {"guidance_scale": 1}, {"sampler": "heun"}, {"count": 3, "batch_size": 2},
                                     {"guidance_end": 0.5}, {"prompt": "[a|b] AND c"}], ids=str)  # fmt: skip
def test_pictures_are_those_of_plain_steps(options):
    """A hook on the U-Net makes the task call it step by step.

    The net runs in double precision, since guidance by a random one makes much of rounding: what is left, at most 1e-5,
    comes from x, which is float32. (In float32 it is 4e-4.)
    """
    model = random_model().to(dtype=torch.float64)
    prompt = options.pop("prompt", "a fox")
    quick = safelight.text_to_image(model, prompt, **QUICK | options).latents
    calls = []
    model.unet.register_forward_hook(lambda *_: calls.append(1))
    assert not untouched(model.unet)
    plain = safelight.text_to_image(model, prompt, **QUICK | options).latents
    assert calls and far(quick, plain) < 1e-5


def test_a_patched_net_is_called():
    model = random_model()
    forward, calls = model.unet.forward, []
    model.unet.forward = lambda *args, **kwargs: calls.append(1) or forward(*args, **kwargs)
    safelight.text_to_image(model, "a", **QUICK)
    assert len(calls) == 6
    with pytest.raises(InputError, match="feature_cache"):
        safelight.text_to_image(model, "a", feature_cache=2, **QUICK)


def test_the_option_of_deep_features():
    model = random_model()
    exact = safelight.text_to_image(model, "a fox", **QUICK).latents
    assert torch.equal(safelight.text_to_image(model, "a fox", feature_cache=1, **QUICK).latents, exact)
    never = safelight.text_to_image(model, "a fox", feature_cache=3, feature_cache_start=1, **QUICK).latents
    assert torch.equal(never, exact)
    late = safelight.text_to_image(model, "a fox", feature_cache=2, **QUICK).latents
    assert far(late, exact) > 1e-2
    with pytest.raises(InputError, match="feature_cache"):
        safelight.text_to_image(model, "a fox", feature_cache=0, **QUICK)


def test_once_computes_once_without_gradients_and_anew_with_them():
    calls = []
    once = Once(torch.arange(3.0))
    part = lambda x: calls.append(1) or x + 1  # noqa: E731
    with torch.no_grad():
        assert once.of(part) is once.of(part)
    assert len(calls) == 1
    assert once.of(part) is not once.of(part) and len(calls) == 3


def test_what_several_contexts_share_keeps_its_order_of_memory():
    """Else each layer that reads it beside others copies both."""
    x = torch.randn(2, 8, 6, 6).to(memory_format=torch.channels_last)
    found = fan_out(x, 6)
    assert torch.equal(found, x.repeat(3, 1, 1, 1)) and found.is_contiguous(memory_format=torch.channels_last)
    assert fan_out(x, 2) is x
