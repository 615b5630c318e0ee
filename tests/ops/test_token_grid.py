"""The sparse grid against slow references that follow the published rules cell by cell."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fastdit.ops.token_grid import average_onto, nearest_grid, pruning_rate, spread_over

GRIDS = st.tuples(st.integers(1, 12), st.integers(1, 12))


@st.composite
def grid_and_smaller(draw):
    grid = draw(GRIDS)
    return grid, tuple(draw(st.integers(1, side)) for side in grid)


def at(tokens, grid, row, column):
    return tokens[:, row * grid[1] + column]


def slow_average(tokens, grid, small):
    (h, w), cells = grid, []
    for i in range(small[0]):
        for j in range(small[1]):
            rows = range(math.floor(i * h / small[0]), math.ceil((i + 1) * h / small[0]))
            columns = range(math.floor(j * w / small[1]), math.ceil((j + 1) * w / small[1]))
            cells.append(torch.stack([at(tokens, grid, y, x) for y in rows for x in columns]).mean(0))
    return torch.stack(cells, 1)


def slow_spread(tokens, small, grid):
    h, w = grid
    return torch.stack([at(tokens, small, y * small[0] // h, x * small[1] // w) for y in range(h) for x in range(w)], 1)


@settings(max_examples=80, deadline=None)
@given(grid_and_smaller(), st.integers(1, 3), st.integers(1, 5))
def test_averaging_and_spreading_follow_the_index_rules(grids, batch, channels):
    grid, small = grids
    generator = torch.Generator().manual_seed(0)
    full = torch.randn(batch, math.prod(grid), channels, generator=generator, dtype=torch.float64)
    sparse = torch.randn(batch, math.prod(small), channels, generator=generator, dtype=torch.float64)
    torch.testing.assert_close(average_onto(full, grid, small), slow_average(full, grid, small))
    assert torch.equal(spread_over(sparse, small, grid), slow_spread(sparse, small, grid))


def test_windows_overlap_where_the_grids_do_not_divide():
    """16 to 10: cell 1 covers places floor(1.6) = 1 to ceil(3.2) = 4, and cell 0 the places 0 and 1."""
    row = torch.arange(16.0).view(1, 16, 1)
    pooled = average_onto(row, (1, 16), (1, 10))
    assert pooled[0, :2, 0].tolist() == [0.5, 2.0]
    assert spread_over(torch.arange(10).view(1, 10, 1), (1, 10), (1, 16))[0, :, 0].tolist() == [
        i * 10 // 16 for i in range(16)
    ]


def test_the_full_grid_is_the_tokens_themselves():
    tokens = torch.randn(2, 12, 4)
    assert average_onto(tokens, (3, 4), (3, 4)) is tokens and spread_over(tokens, (3, 4), (3, 4)) is tokens


@settings(max_examples=40, deadline=None)
@given(grid_and_smaller())
def test_gradients_are_those_of_the_references(grids):
    grid, small = grids
    for fast, slow, source, target in (
        (average_onto, slow_average, grid, small),
        (spread_over, slow_spread, small, grid),
    ):
        found = []
        for function in (fast, slow):
            tokens = torch.ones(1, math.prod(source), 2, dtype=torch.float64, requires_grad=True)
            weights = torch.arange(2.0 * math.prod(target), dtype=torch.float64).view(1, -1, 2)
            (function(tokens, source, target) * weights).sum().backward()
            found.append(tokens.grad)
        torch.testing.assert_close(*found)


@pytest.mark.parametrize(
    ("side", "rates", "sides"),
    [
        (16, (0.61, 0.86), (10, 6)),
        (16, (0.44, 0.61), (12, 10)),
        (32, (0.61, 0.86), (20, 12)),
        (32, (0.90, 0.96), (10, 6)),
    ],
)
def test_the_published_grids(side, rates, sides):
    for time, expected in zip((0.0, 1.0), sides, strict=True):
        assert nearest_grid((side, side), pruning_rate(time, *rates)) == (expected, expected)


def test_the_published_rate():
    low, high = 0.61, 0.86
    assert pruning_rate(0, low, high) == pruning_rate(0.25, low, high) == low
    assert pruning_rate(1, low, high) == pytest.approx(high)
    assert pruning_rate(0.5, low, high) == pytest.approx(low + (high - low) / 3)  # (4 / 2 - 1) / 3
    rates = [pruning_rate(step / 100, low, high) for step in range(101)]
    assert rates == sorted(rates) and len(set(rates[25:])) == 76


@settings(max_examples=60, deadline=None)
@given(GRIDS, st.floats(0, 0.999))
def test_the_nearest_grid_of_a_rectangle(grid, rate):
    small = nearest_grid(grid, rate)
    for side, cells in zip(grid, small, strict=True):
        wanted = side * math.sqrt(1 - rate)
        assert 1 <= cells <= side and abs(cells - max(1, wanted)) <= 0.5 + 1e-9
    assert nearest_grid(grid, 0) == grid
