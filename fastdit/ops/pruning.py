"""Token pruning: keep the most diverse rows unchanged; each dropped row is stood for by the kept row most like it.

Farthest-point selection on cosine distance as in DivPrune (arXiv 2503.02175), run in all tiles of the grid at once, so
that the work grows with N and not with N squared and every part of the picture keeps its share.
"""

from __future__ import annotations

from functools import lru_cache
from math import prod

import torch
from torch import Tensor

from fastdit.ops.reducers import REDUCERS, Reducer
from fastdit.ops.reduction import Grid, Reduction, check_keep, identity, unit_rows

TILE: Grid = (1, 8, 8)


def farthest_point(metric: Tensor, keep: int, grid: Grid, tile: Grid = TILE) -> Reduction:
    """Keep `keep` rows of metric (B, N, C): in each tile the row nearest to its mean, then always the farthest.

    Tiles share `keep` by their size. A dropped row takes the most similar kept row of its tile, or of the whole sample
    if its tile kept none.
    """
    batch, rows, channels = metric.shape
    check_keep(rows, keep, grid)
    if keep == rows:
        return identity(rows, metric.device)
    grid, tile = (grid[0], grid[1], grid[2]), (tile[0], tile[1], tile[2])  # a list would not do as a cache key
    layout, place = _tiles(grid, tile, metric.device)  # (T, P) with -1 where no row is, (N,)
    counts = tile_counts(grid, keep, tile)
    unit = unit_rows(metric)  # (B, N, C)
    real = (layout >= 0).unsqueeze(0)  # (1, T, P)
    tiles = unit.index_select(1, layout.clamp(min=0).flatten())  # (B, T P, C)
    tiles = tiles.view(batch * layout.shape[0], layout.shape[1], channels)  # (B T, P, C)
    gram = (tiles @ tiles.transpose(1, 2)).view(batch, *layout.shape, layout.shape[1])  # (B, T, P, P)

    chosen = _select(gram, real, torch.tensor(counts, device=metric.device), max(counts))  # (B, T, P) bool
    is_kept = chosen.flatten(1).index_select(1, place)  # (B, N) bool
    # A stable sort and not nonzero, whose shape depends on data.
    kept = is_kept.long().argsort(dim=1, descending=True, stable=True)[:, :keep]  # (B, M) rising

    best = gram.masked_fill(~chosen.unsqueeze(2), -torch.inf).argmax(3)  # (B, T, P): place in the tile
    likest = layout.expand(batch, -1, -1).gather(2, best)  # (B, T, P): row number
    nearest = likest.flatten(1).index_select(1, place).clamp(min=0)  # (B, N): the clamp only meets tiles that kept none
    empty = [i for i, count in enumerate(counts) if count == 0]
    if empty:
        orphans = sum(_tile_sizes(grid, tile)[i] for i in empty)  # rows of these tiles; their padding sorts first
        nearest = _fill_empty_tiles(nearest, unit, kept, layout[empty].flatten().sort().values[-orphans:])
    # A kept row stands for itself, even if a copy of it was kept as well.
    nearest = torch.where(is_kept, torch.arange(rows, device=metric.device), nearest)  # (B, N)
    rank = is_kept.cumsum(1) - 1  # (B, N): the kept rows in original order
    return Reduction(rank.gather(1, nearest), keep, kept)


def tile_counts(grid: Grid, keep: int, tile: Grid = TILE) -> list[int]:
    """How many rows each tile keeps: its share by size, rounded on the running sum so that the total is `keep`."""
    total = prod(grid)
    counts, seen, given = [], 0, 0
    for size in _tile_sizes(grid, tile):
        seen += size
        due = (2 * keep * seen + total) // (2 * total)  # keep * seen / total, rounded half up in integers
        counts.append(due - given)
        given = due
    return counts


def _select(gram: Tensor, real: Tensor, counts: Tensor, most: int) -> Tensor:
    """Farthest-point selection in all tiles of gram (B, T, P, P) at once: (B, T, P) bool, counts[t] rows in tile t."""
    never = torch.inf  # a similarity that the search for the least similar row passes over
    # Likeness to the tile's mean, less the row's own share: that is 1 for all, and its rounding would decide ties.
    others = real.unsqueeze(2) & ~torch.eye(gram.shape[3], dtype=torch.bool, device=gram.device)  # (1, T, P, P)
    central = (gram * others).sum(3).masked_fill(~real, -never)  # (B, T, P)
    pick = central.argmax(2, keepdim=True)  # (B, T, 1)
    closest = torch.full_like(central, -never).masked_fill(~real, never)  # (B, T, P): greatest similarity to a kept row
    chosen = torch.zeros_like(central, dtype=torch.bool)  # (B, T, P)
    for step in range(most):
        wanted = (counts > step).view(1, -1, 1)  # (1, T, 1): tiles that are not full yet
        chosen = chosen | (torch.zeros_like(chosen).scatter(2, pick, True) & wanted)
        row = gram.gather(2, pick.unsqueeze(3).expand(-1, -1, -1, gram.shape[3])).squeeze(2)  # (B, T, P)
        closest = torch.maximum(closest, row).scatter(2, pick, never)
        pick = closest.argmin(2, keepdim=True)  # (B, T, 1)
    return chosen


def _fill_empty_tiles(nearest: Tensor, unit: Tensor, kept: Tensor, orphans: Tensor) -> Tensor:
    """`nearest` (B, N) with the rows `orphans` (K,), whose tiles kept none, given the most similar of all kept rows."""
    values = unit.gather(1, kept.unsqueeze(2).expand(-1, -1, unit.shape[2]))  # (B, M, C)
    best = (unit.index_select(1, orphans) @ values.transpose(1, 2)).argmax(2)  # (B, K)
    return nearest.index_copy(1, orphans, kept.gather(1, best))


def _tile_sizes(grid: Grid, tile: Grid) -> list[int]:
    """The number of rows in each tile, tiles counted in row-major order."""
    sides = [[min(side, whole - at) for at in range(0, whole, side)] for side, whole in zip(tile, grid, strict=True)]
    return [t * h * w for t in sides[0] for h in sides[1] for w in sides[2]]


@lru_cache(maxsize=64)
def _tiles(grid: Grid, tile: Grid, device: torch.device) -> tuple[Tensor, Tensor]:
    """The row number in each place of each tile (T, P), -1 past the border, and the flat place (N,) of each row."""
    tile = (min(tile[0], grid[0]), min(tile[1], grid[1]), min(tile[2], grid[2]))
    count = [-(-whole // side) for side, whole in zip(tile, grid, strict=True)]
    padded = torch.full([c * side for c, side in zip(count, tile, strict=True)], -1, device=device)
    padded[: grid[0], : grid[1], : grid[2]] = torch.arange(prod(grid), device=device).view(grid)
    split = padded.view(count[0], tile[0], count[1], tile[1], count[2], tile[2])
    layout = split.permute(0, 2, 4, 1, 3, 5).reshape(prod(count), prod(tile))  # (T, P)
    place = layout.flatten().argsort(stable=True)[layout.numel() - prod(grid) :]  # (N,): the padding sorts first
    return layout, place


REDUCERS.register(
    "prune",
    Reducer(
        name="prune",
        summary="keep the most diverse rows of each 8x8 tile unchanged (farthest points)",
        find=farthest_point,
    ),
)
