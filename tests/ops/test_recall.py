import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fastdit.ops import recall
from fastdit.ops.recall import attention_recall, block_mass


def slow_recall(q, k, mask, order, block_size, rows):
    """The whole matrix of attention, and a matrix of tokens for the mask: (B, H)."""
    tokens, channels = q.shape[1], q.shape[3]
    weights = torch.einsum("bqhd,bkhd->bhqk", q.double(), k.double()).div(math.sqrt(channels)).softmax(-1)
    block = torch.empty(tokens, dtype=torch.long)
    for place, token in enumerate(range(tokens) if order is None else order.tolist()):
        block[token] = place // block_size
    kept = torch.tensor([[bool(mask[block[i], block[j]]) for j in range(tokens)] for i in range(tokens)])
    chosen = [i * tokens // rows for i in range(rows)]
    return (weights * kept).sum(-1)[..., chosen].mean(-1)


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 40), st.integers(1, 12), st.integers(1, 2), st.integers(1, 3), st.data())
def test_recall_is_that_of_the_whole_matrix(tokens, block_size, batch, heads, data):
    block_size = min(block_size, tokens)
    blocks = -(-tokens // block_size)
    q, k = (3 * torch.randn(batch, tokens, heads, 4) for _ in range(2))
    masks = [torch.rand(blocks, blocks) < 0.5 for _ in range(4)]
    one, other = torch.randperm(tokens), torch.randperm(tokens)
    orders = [one, None, other, one]
    rows = data.draw(st.none() | st.integers(1, tokens))
    got = attention_recall(q, k, masks, orders, block_size=block_size, rows=rows)
    want = [slow_recall(q, k, m, order, block_size, rows or tokens) for m, order in zip(masks, orders)]
    torch.testing.assert_close(got, torch.stack(want).float())
    raster = attention_recall(q, k, masks, block_size=block_size, rows=rows)
    torch.testing.assert_close(raster[1], got[1])


def test_everything_and_nothing():
    q = torch.randn(1, 20, 2, 8, dtype=torch.bfloat16)  # softmax and sums are fp32 all the same
    every = torch.ones(3, 3, dtype=torch.bool)
    got = attention_recall(q, q, [every, ~every], block_size=8)
    assert got.shape == (2, 1, 2) and got.dtype == torch.float32
    torch.testing.assert_close(got[0], torch.ones(1, 2))
    assert not got[1].any()


@pytest.mark.parametrize("chunk", [1, 50, 1000])
def test_mass_of_some_rows_in_chunks(monkeypatch, chunk):
    q, k = torch.randn(2, 2, 23, 3, 8).unbind()
    order, rows = torch.randperm(23), torch.tensor([5, 0, 22, 5])
    whole = block_mass(q, k, block_size=5, order=order)
    monkeypatch.setattr(recall, "CHUNK", chunk)
    some = block_mass(q, k, block_size=5, order=order, rows=rows)
    assert whole.shape == (2, 3, 23, 5)
    torch.testing.assert_close(some, whole[:, :, rows])
    torch.testing.assert_close(whole.sum(-1), torch.ones(2, 3, 23))
    weights = torch.einsum("bqhd,bkhd->bhqk", q, k).div(8**0.5).softmax(-1)
    torch.testing.assert_close(whole[..., 4], weights[..., order[20:]].sum(-1))


def test_misfits_are_refused():
    q, mask = torch.randn(1, 20, 2, 4), torch.ones(3, 3, dtype=torch.bool)
    with pytest.raises(ValueError, match=r"q and k have shapes"):
        attention_recall(q, q[:, :10], [mask], block_size=8)
    with pytest.raises(ValueError, match=r"block_size=21 is outside \[1, 20\]"):
        block_mass(q, q, block_size=21)
    with pytest.raises(ValueError, match=r"masks\[1\] has shape \(2, 2\), not \(3, 3\)"):
        attention_recall(q, q, [mask, mask[:2, :2]], block_size=8)
    with pytest.raises(ValueError, match="orders has 1 entries for 2 masks"):
        attention_recall(q, q, [mask, mask], [None], block_size=8)
    with pytest.raises(ValueError, match=r"order has shape \(19,\); 20 tokens need \(20,\)"):
        attention_recall(q, q, [mask], [torch.arange(19)], block_size=8)
    with pytest.raises(ValueError, match=r"rows=21 is outside \[1, 20\]"):
        attention_recall(q, q, [mask], block_size=8, rows=21)
