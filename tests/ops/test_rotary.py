import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fastdit.ops.rotary import axis_steps, grid_positions, rows_at


def wan(grid):
    from diffusers.models.transformers.transformer_wan import WanRotaryPosEmbed

    cos, sin = WanRotaryPosEmbed(128, (1, 2, 2), 1024)(torch.empty(1, 1, grid[0], 2 * grid[1], 2 * grid[2]))
    return cos[0], sin[0]  # (N, 1, D)


def hunyuan(grid):
    from diffusers.models.transformers.transformer_hunyuan_video import HunyuanVideoRotaryPosEmbed

    embed = HunyuanVideoRotaryPosEmbed(2, 1, [16, 56, 56], 256.0)
    return embed(torch.empty(1, 1, grid[0], 2 * grid[1], 2 * grid[2]))  # (N, D)


FAMILIES = {"wan": (wan, (44, 42, 42), 10000.0), "hunyuan": (hunyuan, (16, 56, 56), 256.0)}


def exact(positions, dims, theta):
    """Angles (B, M, D) by the published formula in float64, each frequency for two columns."""
    parts = []
    for axis, dim in enumerate(dims):
        frequency = theta ** (-torch.arange(0, dim, 2, dtype=torch.float64) / dim)
        parts.append(positions[..., axis, None].double() * frequency.repeat_interleave(2))
    return torch.cat(parts, -1)


@pytest.mark.parametrize("name", FAMILIES)
@pytest.mark.parametrize("grid", [(21, 30, 52), (1, 5, 4), (3, 1, 7)])
def test_whole_positions_give_the_models_own_rows(name, grid):
    cos, sin = FAMILIES[name][0](grid)
    every = grid_positions(*grid)
    some = every[torch.randperm(len(every), generator=torch.Generator().manual_seed(0))[:500]]
    index = ((some[:, 0] * grid[1] + some[:, 1]) * grid[2] + some[:, 2]).long()
    got_cos, got_sin = rows_at((cos, sin), grid, some.unsqueeze(0))
    assert torch.equal(got_cos[0], cos[index]) and torch.equal(got_sin[0], sin[index])


@pytest.mark.parametrize("name", FAMILIES)
def test_fractional_positions_follow_the_formula(name):
    family, dims, theta = FAMILIES[name]
    grid = (21, 30, 52)
    table = family(grid)
    positions = torch.rand(2, 300, 3, generator=torch.Generator().manual_seed(0)) * (torch.tensor(grid) - 1)
    got_cos, got_sin = rows_at(table, grid, positions)
    angle = exact(positions, dims, theta)
    # HunyuanVideo multiplies position and frequency in float32, which is 2e-6 off at 52 in its own table already.
    tolerance = {"wan": 1e-6, "hunyuan": 4e-6}[name]
    assert got_cos.shape == (2, 300, *table[0].shape[1:]) and got_cos.dtype == table[0].dtype
    assert (got_cos.view_as(angle) - angle.cos()).abs().max() < tolerance
    assert (got_sin.view_as(angle) - angle.sin()).abs().max() < tolerance


@settings(max_examples=30, deadline=None)
@given(st.tuples(st.integers(1, 4), st.integers(1, 5), st.integers(1, 6)))
def test_any_columns_and_a_shifted_origin(grid):
    frequency = torch.tensor([[0.9, 0.0, 0.1], [0.0, 0.7, -0.3], [2.5, 0.01, 0.0]], dtype=torch.float64)  # (3, D)
    angle = 0.4 + grid_positions(*grid).double() @ frequency  # (N, D)
    table = (angle.cos(), angle.sin())
    for axis, side in enumerate(grid):
        want = frequency[axis] if side > 1 else torch.zeros(3, dtype=torch.float64)
        torch.testing.assert_close(axis_steps(table, grid)[axis], want)
    positions = torch.rand(2, 9, 3, dtype=torch.float64) * (torch.tensor(grid) - 1)
    want = 0.4 + positions @ frequency
    got_cos, got_sin = rows_at(table, grid, positions)
    torch.testing.assert_close(got_cos, want.cos())
    torch.testing.assert_close(got_sin, want.sin())


def test_rows_are_counted_as_the_grid_counts_them():
    assert grid_positions(2, 1, 3).tolist() == [[0, 0, 0], [0, 0, 1], [0, 0, 2], [1, 0, 0], [1, 0, 1], [1, 0, 2]]


def test_shapes_are_checked():
    table = (torch.ones(6, 4), torch.zeros(6, 4))
    with pytest.raises(ValueError, match="has 8 rows"):
        rows_at(table, (2, 2, 2), torch.zeros(1, 1, 3))
    with pytest.raises(ValueError, match="positions are"):
        rows_at(table, (1, 2, 3), torch.zeros(6, 3))
