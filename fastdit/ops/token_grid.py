"""A sparse token grid beside the full one: how coarse at which noise, and averaging and spreading between the two.

FlexDiT / SparseDiT (arXiv 2412.06028): the share of tokens that is left out follows the noise time, and each module of
blocks works on the grid nearest to it. Tokens are in row-major order.
"""

import math

import torch
from torch import Tensor
from torch.nn import functional as F

Grid = tuple[int, int]  # rows, columns


def pruning_rate(time: float, low: float, high: float) -> float:
    """Share of tokens left out at noise time t / T in [0, 1]: `low` up to 1/4, then linear up to `high` at pure noise.

    r(t) = low + (high - low) (4 t - T) / (3 T) for t >= T / 4.
    """
    return low + (high - low) * max(0.0, (4 * time - 1) / 3)


def nearest_grid(grid: Grid, rate: float) -> Grid:
    """The grid of the same aspect with about (1 - rate) of the tokens: both sides by sqrt(1 - rate), at least 1."""
    scale = math.sqrt(1 - rate)
    height, width = (max(1, math.floor(side * scale + 0.5)) for side in grid)
    return height, width


def average_onto(tokens: Tensor, grid: Grid, small: Grid) -> Tensor:
    """Tokens (B, N, C) of a grid averaged onto a smaller one: (B, M, C).

    Along a side of W cells, cell i of W' is the mean of floor(i W / W') to ceil((i + 1) W / W'), its end left out; the
    windows overlap where W' does not divide W.
    """
    if small == grid:
        return tokens
    picture = tokens.unflatten(1, grid).permute(0, 3, 1, 2)  # (B, C, H, W), channels last in memory
    return F.adaptive_avg_pool2d(picture, small).permute(0, 2, 3, 1).flatten(1, 2)  # (B, M, C)


def spread_over(tokens: Tensor, small: Grid, grid: Grid) -> Tensor:
    """Tokens (B, M, C) of a small grid repeated over a larger one (B, N, C): place i of W is cell floor(i W' / W)."""
    if small == grid:
        return tokens
    rows, columns = (torch.arange(w, device=tokens.device) * s // w for w, s in zip(grid, small, strict=True))
    return tokens.index_select(1, (rows[:, None] * small[1] + columns).flatten())
