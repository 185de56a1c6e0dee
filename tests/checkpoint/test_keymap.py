import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from safelight.checkpoint.keymap import CONV1D, CONV2D, THIRDS, TRANSPOSED, KeyMap, Link, Rows, head_major, identity
from safelight.errors import MissingPartError


def test_a_table_is_read_in_both_directions():
    table = """
    in.{n}.proj_*        layers.{i}.q.*  layers.{i}.k.*  layers.{i}.v.*    thirds
    in.{n}.*             layers.{i}.*
    """
    ours = [f"layers.{i}.{part}.weight" for i in (0, 1) for part in ("q", "k", "v", "out")]
    keymap = Rows(ours).add(table, [{"i": 0, "n": 1}, {"i": 1, "n": 4}]).done()
    assert keymap.by_theirs.keys() == {"in.1.proj_weight", "in.1.out.weight", "in.4.proj_weight", "in.4.out.weight"}
    weights = {name: torch.randn(2, 3) for name in ours}
    again = keymap.to_ours(keymap.to_theirs(weights))
    assert again.keys() == weights.keys()
    assert all(torch.equal(again[name], weights[name]) for name in ours)


def test_the_first_row_that_fits_takes_the_parameter():
    keymap = Rows(["a.norm.weight", "a.rest"]).add("x.n.*   a.norm.*\nx.*   a.*").done()
    assert {link.theirs: link.ours for link in keymap.links} == {
        "x.n.weight": ("a.norm.weight",),
        "x.rest": ("a.rest",),
    }


def test_a_parameter_without_a_row_is_an_error_that_names_it():
    with pytest.raises(MissingPartError, match=r"a\.odd"):
        Rows(["a.odd", "a.even"]).add("x   a.even").done()


def test_two_names_for_one_are_no_bijection():
    with pytest.raises(AssertionError, match="two names"):
        KeyMap([Link("x", ("a",)), Link("x", ("b",))])


def test_identity_and_prefix():
    keymap = identity(["a", "b"]).under("net.")
    assert [link.theirs for link in keymap.links] == ["net.a", "net.b"]


@settings(max_examples=30, deadline=None)
@given(heads=st.integers(1, 4), width=st.integers(1, 3), inputs=st.integers(1, 5))
def test_transforms_are_undone_bit_for_bit(heads, width, inputs):
    c = heads * width
    for transform, theirs in [
        (head_major(heads), torch.randn(3 * c, inputs, 1)), (head_major(heads), torch.randn(3 * c)),
        (THIRDS, torch.randn(3 * c, inputs)), (THIRDS, torch.randn(3 * c)), (TRANSPOSED, torch.randn(c, inputs)),
        (CONV2D, torch.randn(c, inputs, 1, 1)), (CONV2D, torch.randn(c)), (CONV1D, torch.randn(c, inputs, 1)),
    ]:  # fmt: skip
        assert torch.equal(transform.merge(list(transform.split(theirs))), theirs)


def test_head_major_is_the_order_of_ldms_attention_block():
    """Run LDM's AttentionBlock as its paper code does (split heads first, then q, k, v), and ours with split
    weights."""
    from safelight.models.attention import AttentionBlock

    heads, c, length = 2, 8, 5
    ours = AttentionBlock(c, heads, groups=4, eps=1e-5)
    torch.manual_seed(0)
    qkv, bias, out, out_bias = torch.randn(3 * c, c, 1), torch.randn(3 * c), torch.randn(c, c, 1), torch.randn(c)
    split, split_bias = head_major(heads).split(qkv), head_major(heads).split(bias)
    ours.load_state_dict({
        "group_norm.weight": torch.ones(c), "group_norm.bias": torch.zeros(c),
        **{f"to_{n}.weight": t for n, t in zip("qkv", split, strict=True)},
        **{f"to_{n}.bias": t for n, t in zip("qkv", split_bias, strict=True)},
        "to_out.0.weight": CONV1D.split(out)[0], "to_out.0.bias": out_bias,
    })  # fmt: skip
    x = torch.randn(2, c, length)
    h = torch.nn.functional.conv1d(torch.nn.functional.group_norm(x, 4), qkv, bias)  # (B, 3C, L)
    q, k, v = h.reshape(2 * heads, 3 * c // heads, length).split(c // heads, dim=1)
    weight = torch.einsum("bct,bcs->bts", q, k).mul((c // heads) ** -0.5).softmax(-1)
    attended = torch.einsum("bts,bcs->bct", weight, v).reshape(2, c, length)
    expected = x + torch.nn.functional.conv1d(attended, out, out_bias)
    assert torch.allclose(ours(x[..., None])[..., 0], expected, atol=1e-5)
