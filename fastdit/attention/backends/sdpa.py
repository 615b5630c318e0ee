"""Portable sparse attention in plain PyTorch: the pieces of a mask's cover as matrix products, one tile at a time.

Sums of weights and of weighted values are kept in fp32 and divided once at the end, so pieces need no merging. What is
subtracted from the scores before exp cancels out; it only has to keep exp in range, and is chosen per group of queries:
nothing where |q| |k| bounds them well, a guess that is checked afterwards where it bounds them loosely, else the
running maximum (Milakov and Gimelshein, arXiv 1805.02867). The gradient recomputes the weights from the log-sum-exp
(Dao, arXiv 2307.08691).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from itertools import zip_longest
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

from fastdit.attention.backends.base import BACKENDS, Backend, SparseCall
from fastdit.attention.cover import Group, cover
from fastdit.attention.tiles import Heads, Queries, add_values, by_row, keys_of, scores, standing
from fastdit.attention.workers import run

BOUND = 60.0  # exp(60) times a million keys is far from the end of fp32, and exp(-60) from its smallest normal number
LOOSE = 240.0  # up to this bound a guess is nearly always good enough; a bad one costs the work twice
RANGE = (
    80.0  # beyond it exp leaves the numbers that CPUs are fast with; exp(-80) is nothing beside a sum of TRUSTED size
)
TRUSTED = (1e-20, 1e30)  # sums of weights in this range have lost nothing to a badly guessed shift
PROBES = 64  # keys from which the shift is guessed
SHORT_SEQUENCE = 1024  # tokens
WITH_GRADIENT = 4  # times as long is short where a gradient is wanted: its pieces are many small products
TILE = 2**19  # scores: 2 MB in fp32, about a usual second-level cache
GPU_TILE = 2**26
SPARE = (
    0.15  # memory for copies beside that of q, k, v and the result: rows that lie far apart cost a tenth of the time
)
HEADS = 8  # in each operation on a GPU


def attend(call: SparseCall) -> Tensor:
    """Sparse attention of a checked call, (B, S, H, D); a mask without gaps goes to PyTorch's own kernel unchanged."""
    if bool(call.mask.all()):
        return _dense(call)
    if call.q.shape[1] <= SHORT_SEQUENCE * (WITH_GRADIENT if call.differentiable else 1):
        return _masked(call)
    with torch.autocast(call.q.device.type, enabled=False):
        if call.differentiable:
            return _Attention.apply(call.q, call.k, call.v, call)  # type: ignore[no-any-return]
        return _forward(call)


def _dense(call: SparseCall) -> Tensor:
    q, k, v = (x.transpose(1, 2) for x in (call.q, call.k, call.v))  # (B, H, S, D)
    if not call.padded:
        return F.scaled_dot_product_attention(q, k, v).transpose(1, 2)
    parts = []
    for b, length in enumerate(call.lengths):
        own = slice(b, b + 1), slice(None), slice(length)
        out = F.scaled_dot_product_attention(q[own], k[own], v[own])
        parts.append(F.pad(out, (0, 0, 0, q.shape[2] - length)))
    return torch.cat(parts).transpose(1, 2)


def _masked(call: SparseCall) -> Tensor:
    """PyTorch's kernel with a mask of tokens, for sequences where splitting the work would cost more than it saves."""
    clean = call.without_padding()
    q, k, v = (x.transpose(1, 2) for x in (clean.q, clean.k, clean.v))  # (B, H, S, D)
    block = torch.arange(q.shape[2], device=q.device) // call.block_size
    mask = call.mask.to(q.device)[block[:, None], block]  # (S, S)
    if not call.padded:
        return F.scaled_dot_product_attention(q, k, v, attn_mask=mask).transpose(1, 2)
    beyond = call.beyond  # (B, S)
    alone = torch.eye(len(mask), dtype=torch.bool, device=q.device)  # for padded queries: a row of nothing would be NaN
    mask = torch.where(beyond[:, :, None], alone, mask & ~beyond[:, None])
    out = F.scaled_dot_product_attention(q, k, v, attn_mask=mask[:, None])
    return out.masked_fill(beyond[:, None, :, None], 0).transpose(1, 2)


class _Attention(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, q: Tensor, k: Tensor, v: Tensor, call: SparseCall) -> Tensor:
        lse = torch.zeros(*q.transpose(1, 2).shape[:3], 1, dtype=_working(q.dtype), device=q.device)  # (B, H, S, 1)
        out = _forward(call, lse)
        ctx.call = call
        ctx.save_for_backward(q, k, v, out, lse)
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor, Tensor, None]:
        with torch.autocast(grad.device.type, enabled=False):
            q, k, v, out, lse = ctx.saved_tensors
            return *_backward(ctx.call, q, k, v, out, lse, grad), None


def _forward(call: SparseCall, lse: Tensor | None = None) -> Tensor:
    """The result (B, S, H, D); the log-sum-exp of each query's scores is written to lse (B, H, S, 1) if given."""
    q, k, v, out = (x.transpose(1, 2) for x in (call.q, call.k, call.v, torch.empty_like(call.q)))  # (B, H, S, D)

    def attend_group(heads: Heads, group: Group, key_norm: Tensor, b: int, some: slice, tile: Tensor) -> None:
        rows = heads.tokens_of(group)
        values, total, shift = _attend_group(heads, group, key_norm, tile)
        out[b, some, rows] = values.div_(total).to(out.dtype)
        if lse is not None:
            lse[b, some, rows] = total.log() if shift is None else total.log() + shift

    at_once, rooms = _rooms(call)
    parts = list(_parts(call))
    for first in range(0, len(parts), at_once):
        tasks: list[Callable[[Tensor], None]] = []
        for i, (b, some, length) in enumerate(parts[first : first + at_once]):
            heads = _load(call, q[b, some, :length], k[b, some, :length], v[b, some, :length], rooms[i])
            key_norm = torch.linalg.vector_norm(heads.k, dim=-1).amax()
            tasks += [partial(attend_group, heads, group, key_norm, b, some) for group in _groups(call, length)]
        run(tasks, partial(_new_tile, call), _threads(call))
    for b, length in enumerate(call.lengths):
        out[b, :, length:] = 0
    return out.transpose(1, 2)


def _attend_group(heads: Heads, group: Group, key_norm: Tensor, tile: Tensor) -> tuple[Tensor, Tensor, Tensor | None]:
    """Sum of weighted values (H, M, D), sum of weights (H, M, 1), and what was subtracted from the scores (H, M, 1)."""
    rows = heads.tokens_of(group)
    q = heads.q[:, rows]
    q = q * (1 / math.sqrt(q.shape[-1]))  # (H, M, D), contiguous
    bound = float(torch.linalg.vector_norm(q, dim=-1).amax() * key_norm)
    if bound <= BOUND:
        return *_accumulate(heads, group, q, tile, None), None
    if bound <= LOOSE:
        near = heads.k[:, rows]  # keys nearby tend to matter most
        near = near[:, :: max(1, near.shape[1] // PROBES)]
        shift = torch.bmm(q, near.transpose(1, 2)).amax(-1, keepdim=True)
        values, total = _accumulate(heads, group, q, tile, shift)
        if TRUSTED[0] < float(total.amin()) and float(total.amax()) < TRUSTED[1]:
            return values, total, shift
    shift = torch.full_like(q[..., :1], -math.inf)
    return *_accumulate(heads, group, q, tile, shift, running=True), shift


def _accumulate(
    heads: Heads, group: Group, q: Tensor, tile: Tensor, shift: Tensor | None, running: bool = False
) -> tuple[Tensor, Tensor]:
    """Sums of weighted values (H, M, D) and of weights (H, M, 1), a weight being exp(score - shift).

    With `running` the shift becomes the maximum of each row as it goes, and the sums so far are scaled to it.
    """
    values, total = torch.zeros_like(q), torch.zeros_like(q[..., :1])
    queries = Queries(q, heads.block_size)
    for piece in group.pieces:
        rows = _inside(heads, group, piece)
        own_values, own_total = values[:, rows], total[:, rows]
        own_shift = None if shift is None else shift[:, rows]
        for keys in keys_of(piece, heads, len(tile)):
            weights = scores(queries, rows, keys, heads, tile)  # (H, m, n) or (H, R, size, n)
            if own_shift is not None:
                if running:
                    peak = torch.maximum(own_shift, weights.amax(-1).view_as(own_shift))
                    fade = torch.exp(own_shift - peak)
                    own_values.mul_(fade)
                    own_total.mul_(fade)
                    own_shift.copy_(peak)
                weights.sub_(by_row(own_shift, keys, heads.block_size)).clamp_(-RANGE, RANGE)
            weights.exp_()
            own_total.add_(weights.sum(-1).view_as(own_total))
            add_values(own_values, weights, keys, heads)
    return values, total


def _backward(
    call: SparseCall, q: Tensor, k: Tensor, v: Tensor, out: Tensor, lse: Tensor, grad: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of q, k and v, each (B, S, H, D)."""
    q, k, v, out, grad = (x.transpose(1, 2) for x in (q, k, v, out, grad))  # (B, H, S, D)
    results = [torch.zeros_like(x) for x in (q, k, v)]

    def differentiate(b: int, some: slice, length: int, tile: Tensor) -> None:
        parts = _backward_heads(call, *(x[b, some, :length] for x in (q, k, v, out, lse, grad)), tile)  # type: ignore[call-arg]
        for whole, part in zip(results, parts, strict=True):
            whole[b, some, :length] = part.to(whole.dtype)

    run((partial(differentiate, *part) for part in _parts(call)), partial(_new_tile, call), _threads(call))
    return tuple(x.transpose(1, 2) for x in results)  # type: ignore[return-value]


def _backward_heads(
    call: SparseCall, q: Tensor, k: Tensor, v: Tensor, out: Tensor, lse: Tensor, grad: Tensor, tile: Tensor
) -> list[Tensor]:
    """Gradients of q, k and v of some heads of one sample, each (H, L, D)."""
    heads, size, scale = _load(call, q, k, v), call.block_size, 1 / math.sqrt(q.shape[-1])
    dq, dk, dv = sums = [
        torch.zeros_like(x, memory_format=torch.contiguous_format) for x in (heads.q, heads.k, heads.v)
    ]
    for group in _groups(call, q.shape[1]):
        for piece in (part for whole in group.pieces for part in standing(whole)):
            rows = heads.tokens_of(piece)
            own, g = heads.q[:, rows] * scale, grad[:, rows].to(heads.q.dtype)  # (H, m, D)
            delta = (g * out[:, rows]).sum(-1, keepdim=True)  # (H, m, 1)
            queries, everything = Queries(own, size), slice(0, own.shape[1])
            for keys in keys_of(piece, heads, len(tile)):
                weights = scores(queries, everything, keys, heads, tile).sub_(lse[:, rows])
                weights.clamp_(-RANGE, RANGE).exp_()  # (H, m, n)
                keys.add(dv, weights.transpose(1, 2) @ g)
                weights *= (g @ keys.pick(heads.v).transpose(1, 2)).sub_(delta)  # by the scores
                dq[:, rows] += (weights @ keys.pick(heads.k)).mul_(scale)
                keys.add(dk, weights.transpose(1, 2) @ own)
    return sums


def _threads(call: SparseCall) -> int:
    """How many groups of queries are worked on at once."""
    return torch.get_num_threads() if call.q.device.type == "cpu" else 1


def _parts(call: SparseCall) -> Iterator[tuple[int, slice, int]]:
    """(sample, heads, valid length): one head on a CPU, several in each operation on a GPU."""
    step = 1 if call.q.device.type == "cpu" else HEADS
    for b, length in enumerate(call.lengths):
        for h in range(0, call.q.shape[2], step):
            yield b, slice(h, min(h + step, call.q.shape[2])), length


def _groups(call: SparseCall, length: int) -> tuple[Group, ...]:
    return cover(call.packed, len(call.mask), call.block_size, length)


def _rooms(call: SparseCall) -> tuple[int, Sequence[Sequence[Tensor]]]:
    """How many parts to load at once, and for each of them the room to copy keys and values (1, S, D) to, if any."""
    dtype, (batch, tokens, heads, channels) = _working(call.q.dtype), call.q.shape
    copies = int(SPARE * 4 * batch * heads * call.q.dtype.itemsize / dtype.itemsize)
    if call.q.device.type != "cpu" or copies < 2:
        return 1, [[]]
    return copies // 2, torch.empty(copies // 2, 2, 1, tokens, channels, dtype=dtype, device="cpu")  # type: ignore[return-value]


def _load(call: SparseCall, q: Tensor, k: Tensor, v: Tensor, room: Sequence[Tensor] = ()) -> Heads:
    """Heads (H, L, D) as the tiles want them, keys and values copied to `room` where they are not contiguous."""
    dtype, loaded = _working(q.dtype), []
    for x, place in zip_longest((k, v), room):
        fits = x.dtype == dtype and x.is_contiguous()
        loaded.append(x.to(dtype) if fits or place is None else place[:, : x.shape[1]].copy_(x))
    return Heads(q.to(dtype), loaded[0], loaded[1], call.block_size)


def _new_tile(call: SparseCall) -> Tensor:
    """Room for the scores of one tile."""
    size = TILE if call.q.device.type == "cpu" else GPU_TILE
    return torch.empty(size, dtype=_working(call.q.dtype), device=call.q.device)


def _working(dtype: torch.dtype) -> torch.dtype:
    """fp32, or fp64 for fp64 inputs."""
    return torch.promote_types(dtype, torch.float32)


def _inside(heads: Heads, group: Group, piece: Any) -> slice:
    """The piece's queries, counted from the group's first."""
    first, own = heads.tokens_of(group).start, heads.tokens_of(piece)
    return slice(own.start - first, own.stop - first)


BACKENDS.register(
    "sdpa",
    Backend(
        name="sdpa",
        summary="portable PyTorch on any device, nothing to compile; dense masks go to PyTorch's own kernel",
        attend=attend,
        missing=lambda: None,
        refuses=lambda call: None,
        suits=lambda call: (1, f"plain PyTorch on {call.q.device.type}, nothing to compile"),
    ),
)
