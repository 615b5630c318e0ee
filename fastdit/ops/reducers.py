"""The registry of token reducers: each file of this folder that finds a Reduction registers itself here at its end."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor

from fastdit.core.registry import Registry
from fastdit.ops.reduction import Grid, Reduction


def rows_at_density(density: float, grid: Grid) -> int:
    """The number of rows nearest to a share `density` of the grid, at least one and at most all."""
    rows = grid[0] * grid[1] * grid[2]
    return max(1, min(rows, round(density * rows)))


@dataclass(frozen=True)
class Reducer:
    """One way to let few rows stand for many; at density 1 each of them gives the identity."""

    name: str
    summary: str
    find: Callable[[Tensor, int, Grid], Reduction]  # (metric (B, N, C), keep, grid) -> Reduction of length keep
    rows: Callable[[float, Grid], int] = rows_at_density  # (density, grid) -> keep


REDUCERS: Registry[Reducer] = Registry("reducer")
