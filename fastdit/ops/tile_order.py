"""Video tokens reordered so that a block is a compact patch, and the radial mask for that order.

In raster order 128 tokens are a strip of two or three rows over the whole width of a frame, and "near" means near in
one dimension. Here a block is about as high as wide. The law is that of Radial Attention (Li et al., arXiv 2506.19852):
the next frame is seen whole, and the area seen halves with every doubling of the distance in time. How many block pairs
a mask keeps is given: as many as the raster mask of the same settings, so that the two can be compared.
"""

from __future__ import annotations

from functools import lru_cache

import torch
from torch import Tensor

Grid = tuple[int, int, int]


@torch.inference_mode(False)  # a cached tensor may serve training later, where inference tensors are refused
def tile_order(frames: int, height: int, width: int, block_size: int = 128, patch_frames: float = 1.0) -> Tensor:
    """The permutation from new place to raster index (frame, row, column): (N,) int64 on the CPU, N = F H W.

    Each run of block_size tokens is a patch; the last may be shorter. Whole blocks of about `patch_frames` frames make
    a slab, which is bisected along its longer side until one block is left. A slab's blocks follow one another like a
    Gray code, so that those kept together tend to be neighbours in the order too. Grids whose frames are not whole
    blocks have patches that lie in two frames. Of depths from 0.5 to 4 frames, 1 kept most attention
    (benchmarks/attention_recall.py). ValueError naming the field if one is out of range.
    """
    _check((frames, height, width), block_size, patch_frames)
    return _order((frames, height, width), block_size, patch_frames).clone()


def inverse_order(order: Tensor) -> Tensor:
    """The permutation (N,) back: x[order][inverse_order(order)] is x."""
    return torch.empty_like(order).scatter_(0, order, torch.arange(len(order), device=order.device))


@torch.inference_mode(False)
def tile_block_mask(
    frames: int,
    height: int,
    width: int,
    *,
    kept: int,
    block_size: int = 128,
    sink: bool = True,
    patch_frames: float = 1.0,
) -> Tensor:
    """Which key blocks each query block sees in `tile_order`: bool (nb, nb) on the CPU, nb = ceil(F H W / block_size).

    `kept` is the number of block pairs, such as that of a `radial_block_mask`; it may be one less, as the mask is
    symmetric but for the sink. Kept are the diagonal, with `sink` the key blocks that hold tokens of the first frame
    (these two whatever the number), then blocks up to one frame apart, then those of least r^2 2^floor(log2 d), r being
    the distance of their centres in the frame and d that in time, rounded to frames. ValueError naming the field if one
    is out of range.
    """
    _check((frames, height, width), block_size, patch_frames)
    blocks = -(-frames * height * width // block_size)
    if not 1 <= kept <= blocks**2:
        raise ValueError(f"kept={kept} is outside [1, {blocks**2}], the number of block pairs")
    return _mask((frames, height, width), block_size, patch_frames, kept, sink).clone()


@lru_cache(maxsize=8)
def _order(grid: Grid, block_size: int, patch_frames: float) -> Tensor:
    """tile_order after its checks; shared, so never handed out."""
    frames, height, width = grid
    tokens = torch.arange(frames * height * width, device="cpu")
    slab = max(1, round(patch_frames * height * width / block_size)) * block_size
    whole = len(tokens) // slab * slab
    # Slabs are raster ranges of equal length, cut alike; where they begin in mid-frame each wraps around to the next.
    parts = [_bisect(tokens[:whole].view(-1, slab), grid, block_size)] if whole else []
    if whole < len(tokens):
        parts.append(_bisect(tokens[whole:].unsqueeze(0), grid, block_size))
    return torch.cat([torch.cat(part, 1).flatten() for part in parts])  # (N,)


def _bisect(slabs: Tensor, grid: Grid, block_size: int) -> list[Tensor]:
    """The blocks, each (S, block_size), of slabs (S, L) of raster indices; only the last may be shorter."""
    blocks = -(-slabs.shape[1] // block_size)
    if blocks == 1:
        return [slabs]
    frames, height, width = grid
    t, y, x = _coordinates(slabs, grid)
    high, wide = (side.amax(1, True) - side.amin(1, True) for side in (y, x))  # (S, 1)
    key = torch.where(high > wide, y * width + x, x * height + y) * frames + t  # (S, L), all different
    slabs = slabs.gather(1, key.argsort(1))
    cut = blocks // 2 * block_size
    first, second = (_bisect(half, grid, block_size) for half in (slabs[:, :cut], slabs[:, cut:]))
    short = second[-1].shape[1] < block_size
    return first + (second if short else second[::-1])  # reflected, as in a Gray code; a short block stays last


@lru_cache(maxsize=8)
def _mask(grid: Grid, block_size: int, patch_frames: float, kept: int, sink: bool) -> Tensor:
    """tile_block_mask after its checks; shared, so never handed out."""
    order = _order(grid, block_size, patch_frames)
    block = torch.arange(len(order), device="cpu") // block_size
    count = torch.bincount(block)  # (nb,)
    blocks, first_frame = len(count), grid[1] * grid[2]

    mask = torch.eye(blocks, dtype=torch.bool, device="cpu")
    if sink:
        mask[:, block[order < first_frame]] = True

    sides = torch.stack(_coordinates(order, grid)).double()  # (3, N)
    centre = torch.zeros(3, blocks, dtype=torch.float64, device="cpu").index_add_(1, block, sides) / count  # (3, nb)
    i, j = torch.triu_indices(blocks, blocks, 1, device="cpu")  # (P,) each, pairs of different blocks
    best = _scores((centre[:, i] - centre[:, j]).abs_()).argsort(stable=True)  # (P,)
    i, j = i[best], j[best]
    cost = (~mask[i, j]).long() + (~mask[j, i]).long()  # a pair is two entries of the mask, or one beside the sink
    taken = int((cost.cumsum(0) <= kept - int(mask.sum())).sum())
    i, j = i[:taken], j[:taken]
    mask[i, j] = mask[j, i] = True
    return mask


def _scores(distance: Tensor) -> Tensor:
    """By which block pairs are chosen, the least first: (P,) from distances (3, P) in frames, rows and columns."""
    frames = distance[0].round()
    area = distance[1].square() + distance[2].square()
    doublings = torch.frexp(frames.clamp(min=1)).exponent - 1  # floor(log2 d), exact
    score = torch.ldexp(area, doublings)
    beyond = torch.where(frames <= 1, 0, score.max()) if len(score) else 0  # all of the next frame comes before
    return score + beyond + 1e-6 * distance[0]  # of equals those nearer in time


def _coordinates(index: Tensor, grid: Grid) -> tuple[Tensor, Tensor, Tensor]:
    """Frame, row and column of raster indices."""
    _, height, width = grid
    return index // (height * width), index // width % height, index % width


def _check(grid: Grid, block_size: int, patch_frames: float) -> None:
    """ValueError naming the field and the mend."""
    for name, value in zip(("frames", "height", "width", "block_size"), (*grid, block_size)):
        if value < 1:
            raise ValueError(f"{name}={value}: must be at least 1")
    tokens = grid[0] * grid[1] * grid[2]
    if block_size > tokens:
        raise ValueError(
            f"block_size={block_size} is larger than the sequence of {tokens} tokens; take at most that many"
        )
    if not patch_frames > 0:
        raise ValueError(
            f"patch_frames={patch_frames}: how deep a patch is; take a number of frames above 0, such as 1"
        )
