"""Low-rank changes against sums written out, and the folded form against the one beside the layer."""

import pytest
import torch
from torch.nn import functional as F

from fastdit.ops.low_rank import folded_change, low_rank_change, up_shares

DOWN, UP = torch.randn(3, 7), torch.randn(4, 5, 3)


def slow_change(row, down, up, shares):
    """One row (in) of one sample: sum_k a_k B_k (A x)."""
    inner = [sum(down[r, i] * row[i] for i in range(len(row))) for r in range(len(down))]
    return torch.stack(
        [sum(shares[k] * up[k, o, r] * inner[r] for k in range(len(up)) for r in range(len(down))) for o in range(5)]
    )


@pytest.mark.parametrize("shape", [(2, 7), (2, 6, 7), (2, 3, 2, 7)])
def test_each_sample_has_its_own_shares(shape):
    rows, shares = torch.randn(shape), torch.rand(2, 4)
    change = low_rank_change(rows, DOWN, UP, shares)
    assert change.shape == (*shape[:-1], 5)
    for sample in range(2):
        for row, found in zip(rows[sample].reshape(-1, 7), change[sample].reshape(-1, 5), strict=True):
            assert torch.allclose(found, slow_change(row, DOWN, UP, shares[sample]), atol=1e-5)


def test_shares_are_a_softmax_of_a_linear_layer():
    embedding, weight, bias = torch.randn(3, 6), torch.randn(4, 6), torch.randn(4)
    shares = up_shares(embedding.bfloat16(), weight, bias)
    assert shares.dtype == torch.float32 and torch.allclose(shares.sum(1), torch.ones(3))
    logits = [[sum(weight[k] * row) + bias[k] for k in range(4)] for row in embedding.bfloat16().float()]
    powers = torch.tensor(logits).exp()
    assert torch.allclose(shares, powers / powers.sum(1, keepdim=True), atol=1e-6)


def test_folded_equals_beside():
    rows, shares = torch.randn(2, 6, 7), torch.rand(4)
    folded = F.linear(rows, folded_change(DOWN, UP, shares))
    assert torch.allclose(folded, low_rank_change(rows, DOWN, UP, shares.expand(2, 4)), atol=1e-5)
    assert torch.allclose(folded, low_rank_change(rows, DOWN, UP, shares[None]), atol=1e-5)


def test_one_up_matrix_needs_no_shares():
    assert torch.allclose(folded_change(DOWN, UP[:1]), UP[0] @ DOWN)
    assert folded_change(DOWN.bfloat16(), UP[:1].bfloat16()).dtype == torch.float32
    rows = torch.randn(2, 6, 7)
    assert torch.allclose(low_rank_change(rows, DOWN, UP[:1]), rows @ DOWN.T @ UP[0].T, atol=1e-5)
    for change in (lambda: folded_change(DOWN, UP), lambda: low_rank_change(rows, DOWN, UP)):
        with pytest.raises(ValueError, match="4 up matrices need the share of each"):
            change()
