"""Covering a block mask exactly by few large pieces, so that matrix products are long although the mask is not.

A piece is a run of query blocks against either the same key blocks (whole frames, text, a sink) or against a window of
key blocks that moves along with the query (the bands of a video mask). Both kinds are found by the same search: a band
is a rectangle once every row is shifted by its number.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import numpy as np

GROUP = 1024  # queries that are worked on together
STANDING = 1.3  # how much more a standing run is worth than a moving one of the same width: its products are taller
SHORT = 256  # runs of up to so many keys are copied together instead of costing a call each


@dataclass(frozen=True)
class Piece:
    """Query blocks [row, row + rows) against key blocks [start, start + width), `step` blocks further with each row.

    step is 0 or 1. Where `blocks` is given the keys are these blocks instead, which are all whole, and step is 0.
    """

    row: int
    rows: int
    start: int
    width: int
    step: int = 0
    blocks: tuple[int, ...] = ()


@dataclass(frozen=True)
class Group:
    """Query blocks [row, row + rows) with all of their keys."""

    row: int
    rows: int
    pieces: tuple[Piece, ...]


@lru_cache(maxsize=32)
def cover(packed: bytes, side: int, block_size: int, length: int) -> tuple[Group, ...]:
    """Pieces that hold every kept pair among the blocks of the first `length` tokens of a mask (side, side) once.

    `packed` are the mask's bits (`pack`). A last block that is not full of tokens stands in no moving window and no
    copied list, whose blocks are all of one size.
    """
    blocks, whole = -(-length // block_size), length // block_size
    size, short = max(1, GROUP // block_size), max(1, SHORT // block_size)
    mask = unpack(packed, side)[:blocks, :blocks].copy()
    return tuple(
        Group(row, len(rows), tuple(_gather_short(_cover_rows(rows, row, whole), whole, short)))
        for row in range(0, blocks, size)
        for rows in [mask[row : row + size]]
    )


def pack(mask: np.ndarray) -> bytes:
    """A boolean mask as bits: the key under which its cover is kept."""
    return np.packbits(mask).tobytes()


def unpack(packed: bytes, side: int) -> np.ndarray:
    """The boolean mask (side, side) of these bits."""
    return np.unpackbits(np.frombuffer(packed, np.uint8), count=side * side).reshape(side, side).astype(bool)


def _cover_rows(left: np.ndarray, row: int, whole: int) -> list[Piece]:
    """Cover the rows `left` (R, nb), which begin at block `row`, and clear them; halves of them get what remains."""
    rows, pieces = len(left), list[Piece]()
    while left.any():
        found = _candidates(left, row, whole)
        if not found:
            middle = rows // 2
            return pieces + _cover_rows(left[:middle], row, whole) + _cover_rows(left[middle:], row + middle, whole)
        for piece in sorted(found, key=lambda piece: -piece.width * (1 if piece.step else STANDING)):
            inside = left if not piece.step else _shifted(left)
            window = inside[:, piece.start : piece.start + piece.width]
            if window.all():  # an earlier piece may have taken a part
                window[:] = False
                pieces.append(piece)
    return pieces


def _candidates(left: np.ndarray, row: int, whole: int) -> list[Piece]:
    """All runs of key blocks that every row has, standing and moving."""
    rows = len(left)
    pieces = [Piece(row, rows, start, width) for start, width in _runs(np.all(left, axis=0))]
    if rows > 1 and row + rows <= whole and whole >= rows:
        moving = np.all(_shifted(left[:, :whole]), axis=0)
        pieces += [Piece(row, rows, start, width, 1) for start, width in _runs(moving)]
    return pieces


def _shifted(x: np.ndarray) -> np.ndarray:
    """A view (R, n - R + 1) of x (R, n) whose row r begins at column r."""
    rows, columns = x.shape
    strides = (x.strides[0] + x.strides[1], x.strides[1])
    return np.lib.stride_tricks.as_strided(x, (rows, columns - rows + 1), strides)


def _runs(row: np.ndarray) -> list[tuple[int, int]]:
    """(start, length) of the runs of True in a vector."""
    edges = np.flatnonzero(np.diff(np.concatenate([[False], row, [False]])))
    return [(int(start), int(stop - start)) for start, stop in zip(edges[::2], edges[1::2], strict=True)]


def _gather_short(pieces: list[Piece], whole: int, limit: int) -> list[Piece]:
    """The pieces with all short standing runs of the same rows put together into one list of blocks."""
    short: dict[tuple[int, int], list[Piece]] = {}
    for piece in pieces:
        if not piece.step and piece.width <= limit and piece.start + piece.width <= whole:
            short.setdefault((piece.row, piece.rows), []).append(piece)
    together = []
    for (row, rows), parts in short.items():
        if len(parts) > 1:
            keys = tuple(sorted(part.start + i for part in parts for i in range(part.width)))
            together.append(Piece(row, rows, keys[0], len(keys), 0, keys))
            pieces = [piece for piece in pieces if piece not in parts]
    return pieces + together
