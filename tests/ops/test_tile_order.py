import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fastdit.ops.radial_mask import radial_block_mask
from fastdit.ops.tile_order import inverse_order, tile_block_mask, tile_order

WAN = (21, 30, 52)


def slow_order(grid, block_size, patch_frames):
    """The order slab by slab and token by token."""
    frames, height, width = grid
    slab = max(1, round(patch_frames * height * width / block_size)) * block_size
    tokens = [(t, y, x) for t in range(frames) for y in range(height) for x in range(width)]

    def bisect(part):
        blocks = math.ceil(len(part) / block_size)
        if blocks == 1:
            return [part]
        high, wide = (max(p[axis] for p in part) - min(p[axis] for p in part) for axis in (1, 2))
        part = sorted(part, key=lambda p: (p[1], p[2], p[0]) if high > wide else (p[2], p[1], p[0]))
        cut = blocks // 2 * block_size
        first, second = bisect(part[:cut]), bisect(part[cut:])
        return first + (second[::-1] if len(second[-1]) == block_size else second)

    blocks = [block for i in range(0, len(tokens), slab) for block in bisect(tokens[i : i + slab])]
    return [(t * height + y) * width + x for block in blocks for t, y, x in block]


def slow_mask(order, grid, block_size, kept, sink):
    """The pairs one by one, the best first."""
    _, height, width = grid
    blocks = [order[i : i + block_size] for i in range(0, len(order), block_size)]
    count = len(blocks)
    mask = torch.eye(count, dtype=torch.bool)
    for j, block in enumerate(blocks):
        if sink and min(block) < height * width:
            mask[:, j] = True
    axes = (lambda n: n // (height * width), lambda n: n // width % height, lambda n: n % width)
    centres = [[sum(map(axis, block)) / len(block) for axis in axes] for block in blocks]
    pairs = []
    for i in range(count):
        for j in range(i + 1, count):
            dt, dy, dx = (abs(a - b) for a, b in zip(centres[i], centres[j]))
            pairs.append([round(dt), (dy * dy + dx * dx) * 2 ** (max(1, round(dt)).bit_length() - 1), dt, i, j])
    most = max((pair[1] for pair in pairs), default=0)
    budget = kept - int(mask.sum())
    for *_, i, j in sorted(pairs, key=lambda p: (p[1] + (0 if p[0] <= 1 else most) + 1e-6 * p[2], p[3], p[4])):
        budget -= 2 - int(mask[i, j]) - int(mask[j, i])
        if budget < 0:
            break
        mask[i, j] = mask[j, i] = True
    return mask


@st.composite
def geometries(draw):
    """(grid, block size, patch frames), no more than 600 tokens."""
    grid = draw(st.tuples(st.integers(1, 8), st.integers(1, 8), st.integers(1, 9)))
    block_size = draw(st.integers(1, min(40, math.prod(grid))))
    return grid, block_size, draw(st.sampled_from([0.3, 1.0, 1.0, 1.5, 2, 4, 100]))


@settings(max_examples=100, deadline=None)
@given(geometries())
def test_the_order_is_that_of_the_slow_reference_and_comes_back(geometry):
    grid, block_size, patch_frames = geometry
    order = tile_order(*grid, block_size, patch_frames)
    assert order.dtype == torch.int64 and order.tolist() == slow_order(*geometry)
    x = torch.randn(math.prod(grid), 2)
    assert torch.equal(order.sort().values, torch.arange(len(x)))
    assert torch.equal(x[order][inverse_order(order)], x)


def number_of_pairs(geometry, share):
    """A share of the block pairs, at least one."""
    grid, block_size, _ = geometry
    return max(1, round(share * (-(-math.prod(grid) // block_size)) ** 2))


@settings(max_examples=80, deadline=None)
@given(geometries(), st.floats(0, 1), st.booleans())
def test_the_mask_is_that_of_the_slow_reference(geometry, share, sink):
    grid, block_size, patch_frames = geometry
    kept = number_of_pairs(geometry, share)
    mask = tile_block_mask(*grid, kept=kept, block_size=block_size, sink=sink, patch_frames=patch_frames)
    want = slow_mask(tile_order(*grid, block_size, patch_frames).tolist(), grid, block_size, kept, sink)
    assert mask.dtype == torch.bool and torch.equal(mask, want)


@settings(max_examples=80, deadline=None)
@given(geometries(), st.floats(0, 1), st.floats(0, 1), st.booleans())
def test_as_many_blocks_as_asked_for(geometry, one, other, sink):
    grid, block_size, patch_frames = geometry
    less, more = (number_of_pairs(geometry, share) for share in sorted([one, other]))
    options = {"block_size": block_size, "patch_frames": patch_frames, "sink": sink}
    least, small, large = (tile_block_mask(*grid, kept=kept, **options) for kept in (1, less, more))
    first = tile_order(*grid, block_size, patch_frames) < grid[1] * grid[2]  # tokens of the first frame
    of_sink = torch.tensor([bool(part.any()) for part in first.split(block_size)])
    asked = max(less, int(least.sum()))
    assert int(small.sum()) in (asked, asked - 1)
    assert torch.equal(least, torch.eye(len(least), dtype=torch.bool) | (of_sink & sink))
    assert not (least & ~small).any() and not (small & ~large).any()  # a larger number only adds
    rest = ~of_sink | (not sink)
    assert torch.equal(small[rest][:, rest], small[rest][:, rest].T)


@pytest.mark.parametrize(
    ("grid", "block_size"), [(WAN, 128), ((21, 45, 80), 128), ((7, 31, 53), 64), ((5, 33, 33), 100)]
)
def test_patches_are_compact(grid, block_size):
    """About as high as wide and in no more than two frames; in raster order they are as wide as the frame."""
    _, height, width = grid
    order = tile_order(*grid, block_size)
    whole = order[: len(order) // block_size * block_size].view(-1, block_size)
    sides = [whole // (height * width), whole // width % height, whole % width]
    extent = torch.stack([side.amax(1) - side.amin(1) + 1 for side in sides])  # (3, blocks)
    inner = extent[:, : -(height * width // block_size)].double()  # the last slab need not be a frame
    square = block_size**0.5
    assert inner[0].max() <= 2 and inner[1:].mean() < 1.3 * square and inner[1:].max() < 2.5 * square


def test_a_grid_of_whole_patches_by_hand():
    order = tile_order(2, 4, 8, 8)
    columns = [sorted({int(n) % 8 for n in part}) for part in order.split(8)]
    assert columns == [[0, 1], [2, 3], [6, 7], [4, 5]] * 2 and torch.equal(order[32:], order[:32] + 32)
    deep = tile_order(4, 4, 4, 8, patch_frames=2)  # 2 frames of 2 x 2
    assert sorted(deep[:8].tolist()) == [0, 1, 4, 5, 16, 17, 20, 21]

    # 2 frames of 2 x 2 patches each, 2 x 2 tokens a patch, then a third: the frame before whole, then the same place.
    mask = tile_block_mask(3, 4, 4, block_size=4, sink=False, kept=3 * 16 + 4 * 16 + 8)
    frame, place = torch.arange(12) // 4, torch.arange(12) % 4
    apart = (frame[:, None] - frame).abs()
    assert torch.equal(mask, (apart <= 1) | (place[:, None] == place))


@pytest.mark.parametrize("decay", [1.0, 0.5, 0.2])
@pytest.mark.parametrize(
    ("grid", "block_size"), [(WAN, 128), ((31, 22, 40), 128), ((16, 8, 8), 16), ((41, 45, 80), 128), ((9, 13, 11), 16)]
)
def test_at_the_density_of_the_raster_mask_tokens_see_their_places_before_and_after(grid, block_size, decay):
    frames, height, width = grid
    raster = radial_block_mask(frames, height * width, block_size=block_size, unit=block_size, decay=decay)
    mask = tile_block_mask(*grid, kept=int(raster.sum()), block_size=block_size)
    assert 0 <= int(raster.sum() - mask.sum()) <= 1
    block = inverse_order(tile_order(*grid, block_size)).view(frames, -1) // block_size  # (F, H W)
    seen = torch.stack([mask[block[:-1], block[1:]], mask[block[1:], block[:-1]]])  # (2, F - 1, H W)
    assert seen.double().mean(-1).min() > 0.99  # a few tokens of a patch in two frames may miss theirs
    assert mask[:, block[0]].all()


@pytest.mark.parametrize("grid", [(1, 5, 7), (2, 8, 8)])
def test_one_or_two_frames_are_dense_as_in_raster_order(grid):
    raster = radial_block_mask(grid[0], grid[1] * grid[2], block_size=16)
    assert tile_block_mask(*grid, kept=int(raster.sum()), block_size=16).all()


def test_callers_share_nothing():
    order, mask = tile_order(3, 4, 4, 8), tile_block_mask(3, 4, 4, kept=9, block_size=8)
    kept = order.clone(), mask.clone()
    order[:], mask[:] = 0, False
    with torch.inference_mode():
        again = tile_order(3, 4, 4, 8), tile_block_mask(3, 4, 4, kept=9, block_size=8)
    assert all(torch.equal(a, b) and not a.is_inference() for a, b in zip(again, kept))
    with torch.device("meta"):  # a default device of the caller's does not reach the cache
        assert tile_order(3, 4, 5, 8).device.type == tile_block_mask(3, 4, 5, kept=9, block_size=8).device.type == "cpu"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"frames": 0}, "frames=0: must be at least 1"),
        ({"height": 0}, "height=0: must be at least 1"),
        ({"width": -1}, "width=-1: must be at least 1"),
        ({"block_size": 0}, "block_size=0: must be at least 1"),
        ({"block_size": 49}, "block_size=49 is larger than the sequence of 48 tokens"),
        ({"patch_frames": 0}, "patch_frames=0: .* above 0"),
        ({"patch_frames": float("nan")}, "patch_frames=nan: .* above 0"),
        ({"kept": 0}, r"kept=0 is outside \[1, 36\]"),
        ({"kept": 37}, r"kept=37 is outside \[1, 36\]"),
    ],
)
def test_bad_values_name_the_field_and_the_mend(options, message):
    given_options = {"frames": 3, "height": 4, "width": 4, "block_size": 8, "kept": 9, **options}
    with pytest.raises(ValueError, match=message):
        tile_block_mask(**given_options)
    if "kept" not in options:
        del given_options["kept"]
        with pytest.raises(ValueError, match=message):
            tile_order(**given_options)
