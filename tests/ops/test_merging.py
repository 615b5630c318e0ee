import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fastdit.ops import merging
from fastdit.ops.merging import bipartite_soft_matching, destinations, match_bipartite, window_for


def slow_match(metric, keep, grid, window):
    """Assign of one sample (N, C), by loops over rows: no rank is taken from sorted tensors."""
    rows = [(t, y, x) for t in range(grid[0]) for y in range(grid[1]) for x in range(grid[2])]
    is_dst = [all(p % w == 0 for p, w in zip(row, window, strict=True)) for row in rows]
    best = {}
    for n in range(len(rows)):
        if not is_dst[n]:
            scores = {
                m: float(torch.cosine_similarity(metric[n], metric[m], dim=0)) for m in range(len(rows)) if is_dst[m]
            }
            target = max(scores, key=scores.get)
            best[n] = (scores[target], target)
    merged = sorted(best, key=lambda n: best[n][0], reverse=True)[: len(rows) - keep]
    left = [n for n in range(len(rows)) if n not in merged]
    assert len(left) == keep
    return [left.index(best[n][1] if n in merged else n) for n in range(len(rows))]


@settings(max_examples=30, deadline=None)
@given(st.data(), st.tuples(st.integers(1, 3), st.integers(1, 6), st.integers(1, 6)))
def test_agrees_with_loops(data, grid):
    n = grid[0] * grid[1] * grid[2]
    keep = data.draw(st.integers(1, n))
    metric = torch.randn(2, n, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(n + keep))
    got = match_bipartite(metric, keep, grid)
    assert got.length == keep
    window = window_for(grid, keep)
    assert destinations(grid, window) <= keep
    for b in range(2):
        want = slow_match(metric[b], keep, grid, window) if keep < n else list(range(n))
        assert got.assign[b % got.assign.shape[0]].tolist() == want


def test_a_given_window_with_a_ragged_border():
    metric = torch.randn(1, 3 * 5 * 7, 4, dtype=torch.float64)
    for window in ((1, 2, 2), (2, 3, 4), (1, 1, 2)):
        got = match_bipartite(metric, 70, (3, 5, 7), window)
        assert got.assign[0].tolist() == slow_match(metric[0], 70, (3, 5, 7), window)


def test_chunks_do_not_change_the_choice(monkeypatch):
    metric = torch.randn(2, 64, 8, dtype=torch.float64)
    whole = match_bipartite(metric, 40, (1, 8, 8))
    monkeypatch.setattr(merging, "CHUNK_ELEMENTS", 7 * 16 * 2)
    assert torch.equal(match_bipartite(metric, 40, (1, 8, 8)).assign, whole.assign)


def test_the_public_pair():
    metric, x = torch.randn(2, 36, 4), torch.randn(2, 36, 6, 3)
    merge, unmerge = bipartite_soft_matching(metric, 10, grid=(1, 6, 6))
    assert merge(x).shape == (2, 26, 6, 3) and unmerge(merge(x)).shape == x.shape
    torch.testing.assert_close(merge(unmerge(merge(x))), merge(x))
    merge, unmerge = bipartite_soft_matching(metric, 18)  # one row of 36: every second is a destination
    assert merge(x).shape == (2, 18, 6, 3)
    merge, unmerge = bipartite_soft_matching(metric, 0)
    assert torch.equal(unmerge(merge(x)), x)
    with pytest.raises(ValueError, match="larger window"):
        bipartite_soft_matching(metric, 28, grid=(1, 6, 6))
    with pytest.raises(ValueError, match="remove=36"):
        bipartite_soft_matching(metric, 36)


def test_equal_rows_merge_without_loss():
    x = torch.randn(1, 4, 4, 3).repeat_interleave(2, 1).repeat_interleave(2, 2).reshape(1, 64, 3)
    merge, unmerge = bipartite_soft_matching(x, 48, grid=(1, 8, 8))
    torch.testing.assert_close(unmerge(merge(x)), x)


def test_permuting_samples_permutes_the_result():
    metric = torch.randn(3, 30, 4)
    order = torch.tensor([2, 0, 1])
    assert torch.equal(
        match_bipartite(metric, 17, (1, 5, 6)).assign[order], match_bipartite(metric[order], 17, (1, 5, 6)).assign
    )


def test_windows_grow_in_space_before_time():
    assert window_for((1, 64, 64), 4000) == (1, 1, 2)
    assert window_for((1, 64, 64), 2048) == (1, 2, 2)
    assert window_for((1, 64, 64), 600) == (1, 4, 4)
    assert window_for((4, 8, 8), 8) == (1, 8, 8)
    assert window_for((4, 8, 8), 4) == (2, 8, 8)
    assert window_for((1, 1, 50), 10) == (1, 1, 8)
    assert destinations((3, 5, 7), (2, 2, 4)) == 2 * 3 * 2
