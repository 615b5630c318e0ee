"""The block mask of Radial Attention (Li et al., arXiv 2506.19852), in closed form from the geometry of a video.

Tokens are ordered frame by frame. Between frames at distance d a query at position k of its frame sees the key
positions l with |k - l| <= w(d), a band that halves with every doubling of d. A block pair is kept if enough of its
columns are dense in that band. Both the columns that the band touches and those that it fills to a given share are
intervals, so a block pair is decided from a few integers and no matrix of tokens is ever built.
"""

from __future__ import annotations

from functools import lru_cache

import torch
from torch import Tensor

DROPPED = -1  # the width of a frame pair of which nothing is kept


@torch.inference_mode(False)  # a cached tensor may serve training later, where inference tensors are refused
def radial_block_mask(
    frames: int,
    tokens_per_frame: int,
    *,
    block_size: int = 128,
    decay: float = 1.0,
    sink: bool = True,
    unit: int = 128,
    near_width: float = 1.0,
) -> Tensor:
    """Which key blocks each query block attends to: bool (nb, nb) on the CPU, nb = ceil(frames tokens / block_size).

    `decay` scales the bands from d = 2 on, to no less than one block; `sink` keeps the first frame's keys for all
    (Wan has it, HunyuanVideo not). `unit` thins out frames: where the band before decay is narrower, only distances
    divisible by int(unit / band) are kept. `near_width` is the half-width at d = 1 in frames: 1 dense, 0.5 older form.

    Where frames x tokens is a multiple of the block and unit is 128, this is the published mask bit for bit, plus
    the block diagonal, so that no row is empty. Elsewhere the last block, which is partial, is kept whole as
    row and as column: what the published code makes of a sequence padded to whole blocks. One or two frames are dense.
    ValueError naming the field if one is out of range.
    """
    _check(frames, tokens_per_frame, block_size, decay, unit, near_width)
    return _mask(frames, tokens_per_frame, block_size, decay, sink, unit, near_width).clone()


@torch.inference_mode(False)
def with_text(mask: Tensor, video_length: int, text_length: int, block_size: int) -> Tensor:
    """The mask of [video | text] from that of the video: text rows and columns full, the straddling block full.

    Only whole blocks of video keep their own pattern. ValueError if the mask is not that of video_length tokens.
    """
    if text_length < 0:
        raise ValueError(f"text_length={text_length} is negative; give the number of text tokens, 0 for none")
    _check_shape(mask, "video_length", video_length, block_size)
    if text_length == 0:
        return mask.clone()
    joint = mask.new_ones([_ceil_div(video_length + text_length, block_size)] * 2)
    whole = video_length // block_size
    joint[:whole, :whole] = mask[:whole, :whole]
    return joint


def density(mask: Tensor) -> float:
    """The share of block pairs that the mask keeps."""
    return mask.count_nonzero().item() / mask.numel()


def keeps_neighbours(
    mask: Tensor, frames: int, tokens_per_frame: int, block_size: int, place: Tensor | None = None
) -> bool:
    """Whether in every frame at least half of the tokens see their own place in the frame before and the frame after.

    `place` (N,) tells where each token stands in the order that the mask is made for; None: where it is.

    Block rounding may cost the edges of a frame this; a small frame at too large a unit loses all of it, and the
    motion with it. ValueError if the mask is not that of frames x tokens.
    """
    _check_shape(mask, "frames x tokens_per_frame", frames * tokens_per_frame, block_size)
    token = torch.arange(frames * tokens_per_frame, device=mask.device) if place is None else place
    block = (token // block_size).view(frames, tokens_per_frame)
    here, after = block[:-1], block[1:]
    seen = torch.stack([mask[here, after], mask[after, here]])  # (2, F - 1, S)
    return bool((2 * seen.sum(-1) >= tokens_per_frame).all())


def band_width(
    distance: int, tokens_per_frame: int, *, block_size: int, decay: float, unit: int, near_width: float
) -> int:
    """w(d), the largest |k - l| kept between frames `distance` apart, at most a frame; DROPPED if none is kept."""
    # log2 of the undecayed band; the bit length makes steps of d at powers of two: 1 | 2-3 | 4-7 | 8-15 | ...
    log_length = tokens_per_frame.bit_length() - distance.bit_length()
    every = unit >> log_length if log_length >= 0 else unit << -log_length  # int(unit / length)
    if every > 1 and distance % every:
        return DROPPED
    if distance == 0:
        return tokens_per_frame
    if distance == 1:
        return int(near_width * tokens_per_frame)
    return int(min(tokens_per_frame, max(block_size, decay * 2.0**log_length)))


def keeps_block(rows: tuple[Tensor, Tensor], columns: tuple[Tensor, Tensor], width: Tensor, block_size: int) -> Tensor:
    """Whether a block is kept for the band |k - l| <= width: bool, of the shape to which the arguments broadcast.

    rows and columns are the (first, last) positions k and l in their frames that lie in the block. Kept is a block if
    of the columns with any row in the band more than 3/5 have more than block_size / 3 rows in it.
    """
    (top, bottom), (left, right) = rows, columns
    least = block_size // 3 + 1  # rows of a dense column
    # Column l has min(bottom, l + w) - max(top, l - w) + 1 rows in the band: those with at least one are an interval,
    # and those with at least `least` the same interval less (least - 1) at either end, if the band is that high at all.
    inset = width - (least - 1)
    touched = torch.minimum(right, bottom + width) - torch.maximum(left, top - width) + 1
    dense = torch.minimum(right, bottom + inset) - torch.maximum(left, top - inset) + 1
    high_enough = (bottom - top + 1 >= least) & (2 * width + 1 >= least)
    return (5 * dense > 3 * touched) & (dense > 0) & high_enough


@lru_cache(maxsize=8)
def _mask(frames: int, tokens: int, block_size: int, decay: float, sink: bool, unit: int, near_width: float) -> Tensor:
    """radial_block_mask after its checks; shared, so never handed out."""
    blocks = _ceil_div(frames * tokens, block_size)
    mask = torch.zeros(blocks, blocks, dtype=torch.uint8, device="cpu")
    if frames <= 2:
        return mask.fill_(1).view(torch.bool)

    # A frame decides over ceil(tokens / block_size) blocks from its first one on. If it begins in mid-block its last
    # tokens may reach into one more, which is then the next frame's to decide, as published.
    per_frame = _ceil_div(tokens, block_size)
    start = torch.arange(frames, device="cpu") * tokens  # (F,)
    edge = torch.arange(per_frame + 1, device="cpu") * block_size - (start % block_size).unsqueeze(1)  # (F, P + 1)
    first = edge[:, :-1].clamp(min=0).int()  # (F, P) positions in the frame
    last = edge[:, 1:].clamp(max=tokens).int() - 1  # (F, P)
    block = (start // block_size).unsqueeze(1) + torch.arange(per_frame, device="cpu")  # (F, P)

    # Columns of all frames against the rows of one: in int32 this takes a third of the time of int64.
    widths = [
        band_width(distance, tokens, block_size=block_size, decay=decay, unit=unit, near_width=near_width)
        for distance in range(frames)
    ]
    columns, column_block = (first.flatten(), last.flatten()), block.flatten()
    for i in range(frames):
        width = [tokens if sink and j == 0 else widths[abs(i - j)] for j in range(frames)]
        of_column = torch.tensor(width, dtype=torch.int32, device="cpu").repeat_interleave(per_frame)  # (F P,)
        rows = (first[i].unsqueeze(1), last[i].unsqueeze(1))
        kept = keeps_block(rows, columns, of_column, block_size)  # (P, F P)
        begin = int(block[i, 0])
        target = mask[begin : begin + per_frame]
        target.scatter_reduce_(1, column_block.expand_as(kept), kept.view(torch.uint8), "amax")  # or, block by block
    if frames * tokens % block_size:
        mask[-1] = mask[:, -1] = 1
    return mask.fill_diagonal_(1).view(torch.bool)


def _ceil_div(a: int, b: int) -> int:
    return -(-a // b)


def _check(frames: int, tokens: int, block_size: int, decay: float, unit: int, near_width: float) -> None:
    """ValueError naming the field and the mend."""
    counts = {"frames": frames, "tokens_per_frame": tokens, "block_size": block_size, "unit": unit}
    for name, value in counts.items():
        if value < 1:
            raise ValueError(f"{name}={value}: must be at least 1")
    if block_size > frames * tokens:
        raise ValueError(
            f"block_size={block_size} is larger than the sequence of {frames * tokens} tokens; take at most that many"
        )
    if not decay > 0:
        raise ValueError(f"decay={decay}: the width of the bands is multiplied by it; take a value above 0, such as 1")
    if not 0 < near_width <= 1:
        raise ValueError(f"near_width={near_width}: a share of the frame; take a value in (0, 1]")


def _check_shape(mask: Tensor, name: str, length: int, block_size: int) -> None:
    """ValueError if the mask is not (nb, nb) for `length` tokens."""
    if block_size < 1 or length < 1:
        raise ValueError(f"{name}={length}, block_size={block_size}: both must be at least 1")
    blocks = _ceil_div(length, block_size)
    if mask.shape != (blocks, blocks):
        raise ValueError(
            f"{name}={length} at block_size={block_size} asks for a mask of shape {(blocks, blocks)}, "
            f"not {tuple(mask.shape)}; pass the mask made for them"
        )
