import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fastdit.ops.pruning import farthest_point, tile_counts


def similarity(metric):
    unit = metric / metric.norm(dim=1, keepdim=True)
    return unit @ unit.T


def slow_tile(sim, rows, count):
    """Farthest-point selection among `rows`, one row at a time; of two rows, equally near to their mean, the first."""
    kept = []
    while len(kept) < count:
        left = [n for n in rows if n not in kept]
        if kept:
            kept.append(min(left, key=lambda n: max(float(sim[n, k]) for k in kept)))
        else:
            kept.append(max(left, key=lambda n: round(sum(float(sim[n, k]) for k in rows), 12)))
    return kept


def slow_prune(metric, keep, grid, tile):
    """(kept rows, representative of each row) of one sample (N, C), by loops over tiles."""
    sim, tiles = similarity(metric), {}
    for n in range(len(metric)):
        t, y, x = n // (grid[1] * grid[2]), n // grid[2] % grid[1], n % grid[2]
        tiles.setdefault((t // tile[0], y // tile[1], x // tile[2]), []).append(n)
    rows_of, counts, seen = [tiles[key] for key in sorted(tiles)], [], 0
    for rows in rows_of:
        counts.append(int(keep * (seen + len(rows)) / len(metric) + 0.5) - int(keep * seen / len(metric) + 0.5))
        seen += len(rows)
    picked = [slow_tile(sim, rows, count) for rows, count in zip(rows_of, counts, strict=True)]
    kept, stands = sorted(n for here in picked for n in here), {}
    for rows, here in zip(rows_of, picked, strict=True):
        for n in rows:
            stands[n] = n if n in kept else max(here or kept, key=lambda k: float(sim[n, k]))
    return kept, [stands[n] for n in range(len(metric))]


@settings(max_examples=40, deadline=None)
@given(st.data(), st.tuples(st.integers(1, 2), st.integers(1, 7), st.integers(1, 7)))
def test_agrees_with_loops(data, grid):
    n = grid[0] * grid[1] * grid[2]
    keep = data.draw(st.integers(1, n))
    tile = data.draw(st.sampled_from([(1, 8, 8), (1, 3, 3), (2, 2, 4), (1, 1, 2)]))
    metric = torch.randn(2, n, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(n + keep))
    got = farthest_point(metric, keep, grid, tile)
    if keep == n:
        assert got.is_identity
        return
    for b in range(2):
        kept, stands = slow_prune(metric[b], keep, grid, tile)
        assert got.kept[b].tolist() == kept
        assert got.kept[b][got.assign[b]].tolist() == stands


def test_kept_rows_come_back_unchanged():
    x = torch.randn(2, 60, 4)
    got = farthest_point(x, 23, (1, 6, 10))
    back = got.restore(got.reduce(x))
    same = (back == x).all(2)
    assert torch.equal(same, ~got.dropped) and (same.sum(1) == 23).all()


def test_copies_are_kept_last():
    distinct = torch.eye(8)
    x = distinct.repeat(8, 1)[torch.randperm(64)].unsqueeze(0)  # 8 copies of 8 orthogonal rows in one tile
    got = farthest_point(x, 8, (1, 8, 8))
    assert torch.equal(got.reduce(x)[0].sum(0), torch.ones(8))
    torch.testing.assert_close(got.restore(got.reduce(x)), x)  # each dropped copy is stood for by its twin
    more = farthest_point(x, 20, (1, 8, 8))  # copies have to be kept: each still stands for itself
    assert torch.equal(more.assign[0][more.kept[0]], torch.arange(20))


@settings(max_examples=60, deadline=None)
@given(st.data(), st.tuples(st.integers(1, 4), st.integers(1, 30), st.integers(1, 30)))
def test_tile_counts_add_up_and_fit(data, grid):
    n = grid[0] * grid[1] * grid[2]
    keep = data.draw(st.integers(1, n))
    assert sum(tile_counts(grid, keep)) == keep
    assert all(0 <= count <= min(n, 64) for count in tile_counts(grid, keep))
    assert tile_counts(grid, n, (1, 1, 1)) == [1] * n
