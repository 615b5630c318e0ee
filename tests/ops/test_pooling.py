import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from fastdit.ops.pooling import pool, pool_grid, pooled_rows
from fastdit.ops.reducers import REDUCERS


def slow_pool_grid(height, width, rows):
    shapes = [(h, w) for h in range(1, height + 1) for w in range(1, width + 1) if h * w <= rows]
    skew = {s: (s[0] * width) / (s[1] * height) for s in shapes}
    fair = [s for s in shapes if 0.5 <= skew[s] <= 2] or shapes
    area = max(h * w for h, w in fair)
    return min((s for s in fair if s[0] * s[1] == area), key=lambda s: max(skew[s], 1 / skew[s]))


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 20), st.integers(1, 20))
def test_pool_grid_agrees_with_a_full_search_and_never_falls(height, width):
    areas = []
    for rows in range(1, height * width + 1):
        h, w = pool_grid(height, width, rows)
        want = slow_pool_grid(height, width, rows)
        assert h * w == want[0] * want[1] and h <= height and w <= width
        skew, best = (h * width) / (w * height), (want[0] * width) / (want[1] * height)
        assert max(skew, 1 / skew) == pytest.approx(max(best, 1 / best))
        areas.append(h * w)
    assert areas == sorted(areas) and areas[-1] == height * width


@settings(max_examples=30, deadline=None)
@given(st.data(), st.integers(1, 3), st.integers(1, 9), st.integers(1, 9))
def test_assign_by_hand(data, frames, height, width):
    keep = data.draw(st.integers(frames, frames * height * width))
    got = pool((frames, height, width), keep)
    h, w = pool_grid(height, width, keep // frames)
    want = [
        (f * h + y * h // height) * w + x * w // width
        for f in range(frames)
        for y in range(height)
        for x in range(width)
    ]
    assert got.assign.tolist() == [want] and got.length == frames * h * w <= keep and (got.sizes > 0).all()


def test_an_even_grid_is_average_pooling_and_nearest_upsampling():
    x = torch.randn(2, 3, 8, 12, 5)  # (B, F, H, W, C)
    image = x.permute(0, 1, 4, 2, 3).flatten(0, 1)  # (B F, C, H, W)
    small = F.avg_pool2d(image, 2)
    got = pool((3, 8, 12), 3 * 4 * 6)
    y = got.reduce(x.flatten(1, 3))
    torch.testing.assert_close(y.view(6, 4, 6, 5), small.permute(0, 2, 3, 1))
    back = F.interpolate(small, scale_factor=2, mode="nearest")
    torch.testing.assert_close(got.restore(y).view(6, 8, 12, 5), back.permute(0, 2, 3, 1))


def test_rows_and_sharing():
    assert pooled_rows(0.25, (5, 16, 16)) == 5 * 64 and pooled_rows(1e-6, (5, 16, 16)) == 5
    assert pool((1, 8, 8), 16) is pool((1, 8, 8), 17)  # same pooled grid, one cached result
    assert REDUCERS["pool"].find(torch.empty(4, 64, 0), 16, (1, 8, 8)).length == 16
    with pytest.raises(ValueError, match="at least one row a frame"):
        pool((4, 8, 8), 3)
    with pytest.raises(ValueError, match="at least one row"):
        pool_grid(4, 4, 0)
