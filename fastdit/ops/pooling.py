"""Token pooling: each frame is averaged onto a smaller grid; it costs nothing to find and is equal for all samples."""

from __future__ import annotations

from functools import lru_cache
from math import log

import torch
from torch import Tensor

from fastdit.ops.reducers import REDUCERS, Reducer, rows_at_density
from fastdit.ops.reduction import Grid, Reduction, check_keep, identity


@lru_cache(maxsize=256)
def pool_grid(height: int, width: int, rows: int) -> tuple[int, int]:
    """The largest (h', w') inside (height, width) with at most `rows` cells whose aspect changes by at most 2 times.

    Of equal ones that nearest to the aspect wins; if none is so small, the limit on the aspect is dropped. The number
    of cells never falls as `rows` grows. ValueError if rows < 1.
    """
    if rows < 1:
        raise ValueError(f"rows={rows}: a pooled frame needs at least one row")
    shapes = [(h, min(width, rows // h)) for h in range(1, min(height, rows) + 1)]
    # Twice as wide as the aspect asks for is the limit, so a tall h' has a cap on w' and a flat one a floor.
    capped = [(h, min(w, 2 * h * width // height)) for h, w in shapes]
    fair = [(h, w) for h, w in capped if w >= 1 and 2 * w * height >= h * width]
    return max(fair or shapes, key=lambda shape: (shape[0] * shape[1], -_distortion(shape, height, width)))


def pool(grid: Grid, keep: int, device: torch.device | str | None = None) -> Reduction:
    """Average each frame of `grid` onto its pool_grid so that at most `keep` rows are left over all frames.

    ValueError if keep is outside [frames, N]: frames are never pooled together.
    """
    frames, height, width = grid
    check_keep(frames * height * width, keep, grid)
    if keep < frames:
        raise ValueError(
            f"keep={keep} rows for {frames} frames: pooling keeps at least one row a frame; raise the density"
        )
    return _pool(frames, height, width, *pool_grid(height, width, keep // frames), torch.device(device or "cpu"))


def pooled_rows(density: float, grid: Grid) -> int:
    """The rows left over all frames when each frame is pooled to at most a share `density` of its own rows."""
    frames, height, width = grid
    small = pool_grid(height, width, rows_at_density(density, (1, height, width)))
    return frames * small[0] * small[1]


def _distortion(shape: tuple[int, int], height: int, width: int) -> float:
    """How far (h'/h) / (w'/w) is from 1, as a ratio either way."""
    return abs(log(shape[0] * width / (shape[1] * height)))


@lru_cache(maxsize=64)
def _pool(frames: int, height: int, width: int, small_h: int, small_w: int, device: torch.device) -> Reduction:
    """Row (f, y, x) belongs to cell (f, y h' // h, x w' // w): with h' <= h and w' <= w no cell is empty."""
    with torch.inference_mode(False):  # a cached tensor may serve training later, where inference tensors are refused
        if (small_h, small_w) == (height, width):
            return identity(frames * height * width, device)
        f = torch.arange(frames, device=device).view(-1, 1, 1)
        y = torch.arange(height, device=device).view(1, -1, 1) * small_h // height
        x = torch.arange(width, device=device).view(1, 1, -1) * small_w // width
        cell = (f * small_h + y) * small_w + x  # (f, h, w)
        return Reduction(cell.reshape(1, -1), frames * small_h * small_w)


def _find(metric: Tensor, keep: int, grid: Grid) -> Reduction:
    """Pool to `keep` rows on the metric's device; ValueError if the metric (B, N, C) does not lie on the grid."""
    check_keep(metric.shape[1], keep, grid)
    return pool(grid, keep, metric.device)


REDUCERS.register(
    "pool",
    Reducer(
        name="pool",
        summary="average neighbours onto a smaller grid, frame by frame",
        find=_find,
        rows=pooled_rows,
    ),
)
