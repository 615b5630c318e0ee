"""Rotary position tables at fractional positions, read off the model's own table whatever its base or layout.

Rotary embedding (Su et al., arXiv 2104.09864) turns by an angle linear in the position on each axis. The step along an
axis is therefore the difference of two neighbouring rows, and any position is its nearest row turned a little further.
"""

from __future__ import annotations

import torch
from torch import Tensor

from fastdit.ops.reduction import Grid


def grid_positions(frames: int, height: int, width: int, device: torch.device | str | None = None) -> Tensor:
    """The (t, y, x) index of every row of a grid in row-major order: (N, 3) float32."""
    axes = [torch.arange(side, device=device, dtype=torch.float32) for side in (frames, height, width)]
    return torch.stack(torch.meshgrid(*axes, indexing="ij"), dim=-1).flatten(0, 2)  # (N, 3)


def rows_at(table: tuple[Tensor, Tensor], reference_grid: Grid, positions: Tensor) -> tuple[Tensor, Tensor]:
    """The (cos, sin) rows (B, M, ...) at positions (B, M, 3), given the table (N, ...) of a full grid, in its dtype.

    Positions are fractional (t, y, x) indices. At whole positions the table's own rows come back bit for bit; columns
    are treated one by one, so that repeated, paired and halved layouts all work. ValueError if the shapes do not fit.
    """
    cos, sin = table
    frames, height, width = reference_grid
    if cos.shape != sin.shape or cos.shape[0] != frames * height * width:
        shapes = f"{tuple(cos.shape)} and {tuple(sin.shape)}"
        raise ValueError(f"a table of grid {tuple(reference_grid)} has {frames * height * width} rows, not {shapes}")
    if positions.dim() != 3 or positions.shape[2] != 3:
        raise ValueError(f"positions are (B, M, 3) for (t, y, x), not {tuple(positions.shape)}")

    # Counting angles from row 0 would multiply the rounding of a float32 step by up to the side of the grid (2e-6 at
    # 52); from the nearest row it is at most halved.
    sides = torch.tensor([frames, height, width], device=positions.device)
    anchor = torch.minimum(positions.round().long().clamp(min=0), sides - 1)  # (B, M, 3)
    row = ((anchor[..., 0] * height + anchor[..., 1]) * width + anchor[..., 2]).flatten()  # (B M,)
    rest = (positions - anchor).flatten(0, 1).to(torch.promote_types(cos.dtype, torch.float32))  # (B M, 3)
    turn = rest @ axis_steps(table, reference_grid).flatten(1).to(rest.device, rest.dtype)  # (B M, D)

    near_cos = cos.index_select(0, row).flatten(1).to(rest.dtype)  # (B M, D)
    near_sin = sin.index_select(0, row).flatten(1).to(rest.dtype)  # (B M, D)
    turn_cos, turn_sin = turn.cos(), turn.sin()
    shape = (*positions.shape[:2], *cos.shape[1:])
    new_cos = (near_cos * turn_cos - near_sin * turn_sin).to(cos.dtype)
    new_sin = (near_sin * turn_cos + near_cos * turn_sin).to(sin.dtype)
    return new_cos.reshape(shape), new_sin.reshape(shape)


def axis_steps(table: tuple[Tensor, Tensor], reference_grid: Grid) -> Tensor:
    """The angle per unit step on t, y and x: (3, ...) float64 in (-pi, pi], 0 along an axis of length 1."""
    cos, sin = table
    frames, height, width = reference_grid
    steps = []
    for side, stride in ((frames, height * width), (height, width), (width, 1)):
        row = stride if side > 1 else 0  # row 0 against itself turns by 0
        c0, s0, c1, s1 = (_double(table[index]) for index in (0, row) for table in (cos, sin))
        # The angle between two rows by the difference formulas: it comes out wrapped, and exactly 0 for equal rows.
        steps.append(torch.atan2(s1 * c0 - c1 * s0, c1 * c0 + s1 * s0))
    return torch.stack(steps)  # (3, ...)


def _double(row: Tensor) -> Tensor:
    """float64, on the CPU where the device has none (MPS)."""
    return row.cpu().double() if row.device.type == "mps" else row.double()
