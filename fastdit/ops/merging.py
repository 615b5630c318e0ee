"""Token merging: rows join the most similar row of a fixed, evenly spread set of destinations.

Bipartite soft matching of Bolya et al., Token Merging (arXiv 2210.09461), with destinations on a regular grid as in
Bolya and Hoffman, Token Merging for Fast Stable Diffusion (arXiv 2303.17604), here over frames, height and width.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache
from math import ceil

import torch
from torch import Tensor

from fastdit.ops.reducers import REDUCERS, Reducer
from fastdit.ops.reduction import Grid, Reduction, check_keep, identity, unit_rows

CHUNK_ELEMENTS = 2**24  # scores held at once: 64 MB in float32
DESTINATION_SHARE = 0.75  # destinations per kept row, at most: the rest are sources that were too unlike to merge


def bipartite_soft_matching(
    metric: Tensor, remove: int, *, grid: Grid | None = None, window: Grid = (1, 2, 2)
) -> tuple[Callable[[Tensor], Tensor], Callable[[Tensor], Tensor]]:
    """The pair (merge, unmerge) that averages `remove` rows of metric (B, N, C) into their most similar destinations.

    merge takes (B, N, ...) to (B, N - remove, ...), unmerge copies back; one row of each `window` of `grid` (default:
    (1, 1, N)) is a destination, the others are sources. ValueError if there are fewer than `remove` sources.
    """
    rows = metric.shape[1]
    if not 0 <= remove < rows:
        raise ValueError(f"remove={remove} is outside [0, {rows - 1}]; at least one of the {rows} rows has to stay")
    reduction = match_bipartite(metric, rows - remove, (1, 1, rows) if grid is None else grid, window)
    return reduction.reduce, reduction.restore


def match_bipartite(metric: Tensor, keep: int, grid: Grid, window: Grid | None = None) -> Reduction:
    """Merge the rows of metric (B, N, C) that are most like a destination until `keep` are left, for each sample.

    With window None the smallest that leaves room for `keep` is taken; ValueError if a given one leaves too little.
    """
    batch, rows = metric.shape[:2]
    check_keep(rows, keep, grid)
    if keep == rows:
        return identity(rows, metric.device)
    grid = (grid[0], grid[1], grid[2])  # a list would not do as a cache key
    window = window_for(grid, keep) if window is None else (window[0], window[1], window[2])
    if destinations(grid, window) > keep:
        count = destinations(grid, window)
        raise ValueError(f"window {window} has {count} destinations, which all stay; keep={keep} needs a larger window")
    dst, src = _partition(grid, window, metric.device)  # (D,), (S,)
    score, nearest = _best_destination(unit_rows(metric), dst, src)  # (B, S) each

    best = score.topk(rows - keep, dim=1).indices  # (B, R)
    merged = src[best]  # (B, R) rows that go
    target = dst[nearest.gather(1, best)]  # (B, R) rows that they join
    stays = torch.ones(batch, rows, dtype=torch.bool, device=metric.device).scatter(1, merged, False)  # (B, N)
    rank = stays.cumsum(1) - 1  # (B, N): the reduced rows in original order
    return Reduction(rank.scatter(1, merged, rank.gather(1, target)), keep)


def window_for(grid: Grid, keep: int) -> Grid:
    """The smallest window, doubled side by side from one row, whose destinations are at most about 3/4 of `keep`."""
    _, height, width = grid
    window = (1, 1, 1)
    while destinations(grid, window) > max(1, int(keep * DESTINATION_SHARE)):
        t, h, w = window
        # Width first, then height, as square as the grid allows; frames only when a window spans the whole picture,
        # because neighbours in space are more alike than the same place a latent frame later.
        if w < width and (w <= h or h >= height):
            window = (t, h, 2 * w)
        elif h < height:
            window = (t, 2 * h, w)
        else:
            window = (2 * t, h, w)
    return window


def destinations(grid: Grid, window: Grid) -> int:
    """How many windows, whole or cut by the border, cover the grid: each has one destination."""
    return ceil(grid[0] / window[0]) * ceil(grid[1] / window[1]) * ceil(grid[2] / window[2])


@lru_cache(maxsize=64)
def _partition(grid: Grid, window: Grid, device: torch.device) -> tuple[Tensor, Tensor]:
    """Row numbers (D,) of the first row of each window, and (S,) of all others, both rising."""
    rows = torch.arange(grid[0] * grid[1] * grid[2], device=device)  # (N,)
    dst = rows.view(grid)[:: window[0], :: window[1], :: window[2]].flatten()  # (D,)
    is_dst = torch.zeros_like(rows).index_fill(0, dst, 1)  # (N,)
    # A stable sort and not nonzero, whose shape depends on data and would break torch.compile(fullgraph=True).
    return dst, is_dst.argsort(stable=True)[: rows.shape[0] - dst.shape[0]]


def _best_destination(unit: Tensor, dst: Tensor, src: Tensor) -> tuple[Tensor, Tensor]:
    """Each source's greatest cosine similarity, and the destination it has it with: (B, S) values and places in dst."""
    targets = unit.index_select(1, dst).transpose(1, 2)  # (B, C, D)
    sources = unit.index_select(1, src)  # (B, S, C)
    chunk = max(1, CHUNK_ELEMENTS // (unit.shape[0] * dst.shape[0]))
    parts = [(part @ targets).max(dim=2) for part in torch.split(sources, chunk, dim=1)]  # (B, chunk) each
    return torch.cat([part.values for part in parts], 1), torch.cat([part.indices for part in parts], 1)


REDUCERS.register(
    "bipartite",
    Reducer(
        name="bipartite",
        summary="average rows into the most similar row of a regular grid (ToMe)",
        find=match_bipartite,
    ),
)
