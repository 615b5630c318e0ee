"""Tiles of attention: scores of a run of queries against a run of keys, and the weighted values that they give.

A tile is as large as the cache likes it. Keys are read where they lie: runs as slices, the windows of a band as
overlapping views; only scattered single blocks are copied.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from fastdit.attention.cover import Group, Piece


@dataclass(frozen=True)
class Heads:
    """Some heads of one sample, cut to its valid length, in the dtype of the computation."""

    q: Tensor  # (H, L, D), not scaled yet (`Queries` are)
    k: Tensor  # (H, L, D)
    v: Tensor  # (H, L, D)
    block_size: int

    def tokens_of(self, part: Group | Piece) -> slice:
        """The tokens of its query blocks."""
        size = self.block_size
        return slice(part.row * size, min((part.row + part.rows) * size, self.q.shape[1]))


@dataclass(frozen=True)
class Keys:
    """The keys of a tile: tokens [start, start + width), further on by a block with each query block if moving."""

    start: int
    width: int
    moving: bool = False
    apart: tuple[slice, ...] = ()  # or these tokens

    def pick(self, x: Tensor) -> Tensor:
        """Their rows (H, n, D) of x (H, L, D)."""
        if self.apart:  # not index_select, which first copies all of an x that is not contiguous
            return torch.cat([x[:, some] for some in self.apart], dim=1)
        return x[:, self.start : self.start + self.width]

    def add(self, x: Tensor, part: Tensor) -> None:
        """Add part (H, n, D) to their rows of x (H, L, D)."""
        places = self.apart or (slice(self.start, self.start + self.width),)
        for place, own in zip(places, part.chunk(len(places), dim=1), strict=True):
            x[:, place] += own

    def windows(self, x: Tensor, rows: int, size: int) -> Tensor:
        """For one head x (L, D) the window of each query block: overlapping views (R, n, D) of the same memory."""
        strides = (size * x.stride(0), x.stride(0), x.stride(1))
        return x.as_strided((rows, self.width, x.shape[1]), strides, x.storage_offset() + self.start * x.stride(0))


def keys_of(piece: Piece, heads: Heads, tile: int) -> Iterator[Keys]:
    """A piece's keys in runs whose scores fit into `tile` numbers; one block of keys is the least."""
    size = heads.block_size
    most = max(1, tile // (len(heads.q) * piece.rows * size * size))
    step = math.ceil(piece.width / math.ceil(piece.width / most))
    for at in range(0, piece.width, step):
        stop = min(at + step, piece.width)
        if piece.blocks:
            apart = tuple(slice(block * size, (block + 1) * size) for block in piece.blocks[at:stop])
            yield Keys(0, len(apart) * size, apart=apart)
        else:
            first, last = (piece.start + at) * size, (piece.start + stop) * size
            yield Keys(first, min(last, heads.k.shape[1]) - first, moving=bool(piece.step))


def standing(piece: Piece) -> list[Piece]:
    """The piece as pieces whose keys do not move: itself, or one for each of its rows."""
    if not piece.step:
        return [piece]
    return [replace(piece, row=piece.row + r, rows=1, start=piece.start + r, step=0) for r in range(piece.rows)]


def by_row(x: Tensor, keys: Keys, size: int) -> Tensor:
    """Per-query numbers x (H, m, c) in the shape that goes with `scores`: moving keys have an axis for the blocks."""
    return x.unflatten(1, (-1, size)) if keys.moving else x


class Queries:
    """The scaled queries (H, M, D) of a group, and their blocks as columns, made when a moving piece first asks."""

    def __init__(self, q: Tensor, size: int) -> None:
        self.q, self.size = q, size
        self._columns: Tensor | None = None

    def columns(self, rows: slice) -> Tensor:
        """Blocks (H, R, D, size) of some whole rows."""
        if self._columns is None:
            whole = self.q.shape[1] // self.size * self.size
            self._columns = self.q[:, :whole].unflatten(1, (-1, self.size)).transpose(2, 3).contiguous()
        return self._columns[:, rows.start // self.size : rows.stop // self.size]


def scores(queries: Queries, rows: slice, keys: Keys, heads: Heads, tile: Tensor) -> Tensor:
    """Scores (H, m, n) of some rows, for moving keys (H, R, size, n); written into `tile` where they fit."""
    count, size = len(queries.q) * (rows.stop - rows.start) * keys.width, heads.block_size
    tile = tile[:count] if count <= len(tile) else tile.new_empty(count)
    if not keys.moving:
        q = queries.q[:, rows]
        return torch.bmm(q, keys.pick(heads.k).transpose(1, 2), out=tile.view(*q.shape[:2], keys.width))
    # Keys times queries: MKL is 15 % faster with the long matrix on the left.
    columns = queries.columns(rows)  # (H, R, D, size)
    result = tile.view(*columns.shape[:2], keys.width, size)
    for h, one in enumerate(columns):
        torch.bmm(keys.windows(heads.k[h], len(one), size), one, out=result[h])
    return result.transpose(2, 3)


def add_values(out: Tensor, weights: Tensor, keys: Keys, heads: Heads) -> None:
    """Add the values weighted by `weights`, shaped as `scores`, to out (H, m, D)."""
    if not keys.moving:
        out.baddbmm_(weights, keys.pick(heads.v))
        return
    size = heads.block_size
    for h, one in enumerate(by_row(out, keys, size)):
        one.baddbmm_(weights[h], keys.windows(heads.v[h], len(one), size))
