"""Gates and the rows they leave, each against a slow reference."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fastdit.ops.gates import (
    group_count,
    gumbel_gates,
    open_gates,
    padded_rows,
    share_of_rows,
    spread,
    top_flat,
    top_rows,
    with_first_open,
)

SHAPES = st.tuples(st.integers(1, 3), st.integers(1, 9))


def test_hard_gates_open_above_zero():
    logits = torch.tensor([-1.0, 0.0, 1e-6, 15.0])
    assert open_gates(logits).tolist() == [False, False, True, True]


@pytest.mark.parametrize("logit", [-3.0, -0.5, 0.0, 2.0])
def test_drawn_gates_open_with_the_logits_probability_whatever_the_temperature(logit):
    logits = torch.full((40_000,), logit)
    for temperature in (0.5, 5.0):
        gates = gumbel_gates(logits, temperature)
        assert set(gates.unique().tolist()) <= {0.0, 1.0}
        assert gates.mean().item() == pytest.approx(torch.sigmoid(logits[0]).item(), abs=0.01)


def test_the_gradient_is_that_of_the_soft_gate():
    logits = torch.linspace(-2, 2, 7, dtype=torch.float64, requires_grad=True)
    torch.manual_seed(3)
    uniform = torch.rand_like(logits).clamp(1e-6, 1 - 1e-6)
    soft = torch.sigmoid((logits + torch.logit(uniform)) / 5)
    (expected,) = torch.autograd.grad(soft.sum(), logits)
    torch.manual_seed(3)
    (actual,) = torch.autograd.grad(gumbel_gates(logits).sum(), logits)
    torch.testing.assert_close(actual, expected)


def test_the_first_part_is_always_open_and_groups_are_contiguous():
    gates = with_first_open(torch.tensor([[0.0, 1.0, 0.0]]))
    assert gates.tolist() == [[1, 0, 1, 0]]
    assert spread(gates, 8).tolist() == [[1, 1, 0, 0, 1, 1, 0, 0]]


@pytest.mark.parametrize(
    ("heads", "channels", "groups"),
    [(16, 4608, 16), (40, 13824, 32), (12, 8960, 32), (24, 14336, 32), (24, 12288, 24), (5, 7, 7)],
)
def test_groups_are_as_many_as_heads_where_that_divides(heads, channels, groups):
    assert group_count(heads, channels) == groups and channels % groups == 0


@given(SHAPES, st.data())
@settings(max_examples=50, deadline=None)
def test_the_best_rows_against_sorting(shape, data):
    batch, tokens = shape
    keep = data.draw(st.integers(1, tokens))
    logits = torch.randn(batch, tokens)
    expected = [sorted(sorted(range(tokens), key=lambda i: -row[i])[:keep]) for row in logits.tolist()]
    assert [mask.nonzero().squeeze(1).tolist() for mask in top_rows(logits, keep)] == expected
    assert top_flat(logits, keep).tolist() == [i + b * tokens for b, row in enumerate(expected) for i in row]


@given(SHAPES, st.data())
@settings(max_examples=50, deadline=None)
def test_padded_rows_hold_the_open_ones_in_order_and_repeat_the_first(shape, data):
    batch, tokens = shape
    mask = torch.tensor([[data.draw(st.booleans()) for _ in range(tokens)] for _ in range(batch)])
    mask[:, data.draw(st.integers(0, tokens - 1))] = True
    rows = padded_rows(mask).tolist()
    longest = int(mask.sum(1).max())
    for row, open_ in zip(rows, mask, strict=True):
        own = open_.nonzero().squeeze(1).tolist()
        assert row == own + [own[0]] * (longest - len(own))


@pytest.mark.parametrize(
    ("share", "tokens", "kept"),
    [(1, 7, 7), (0.5, 256, 128), (0.6, 256, 160), (0.01, 64, 4), (0.5, 1, 1), (0.97, 16, 16)],
)
def test_shares_go_to_sixteenths(share, tokens, kept):
    assert share_of_rows(share, tokens) == kept
