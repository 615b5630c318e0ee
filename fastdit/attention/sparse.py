"""Block-sparse attention: one function for every backend, and what it computes in numbers."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from operator import index
from typing import Any

import numpy as np
import torch
from torch import Tensor

import fastdit.attention.backends  # noqa: F401  (each file registers its backend)
from fastdit.attention.backends.base import Choice, SparseCall, choose

Length = int | Sequence[int] | Tensor | None


@torch.compiler.disable  # the cover of a mask is Python; the flex backend compiles its own kernel
def sparse_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    block_mask: Tensor,
    *,
    block_size: int = 128,
    kv_length: Length = None,
    backend: str | Choice = "auto",
) -> Tensor:
    """Softmax attention over the kept blocks: q, k, v (B, S, H, D) -> (B, S, H, D), scores scaled by 1/sqrt(D).

    `block_mask` is bool (nb, nb), nb = ceil(S / block_size), the last block ragged: query block i sees key block j
    where it is True (keep it on the CPU: it is read there). `kv_length`, int or (B,): keys from there on are never
    attended and query rows from there on are 0. ValueError for shapes, devices or lengths that do not fit, for a query
    block without any key, and where the named backend cannot take the call; `choose_backend` tells what "auto" takes,
    and what it returned for such a call may be given as `backend`, to be taken as it is.
    """
    call = _checked(q, k, v, block_mask, block_size, kv_length)
    if q.is_meta:  # shapes only
        return torch.empty_like(q)
    choice = choose(backend, call) if isinstance(backend, str) else backend
    return choice.backend.attend(call)


def choose_backend(
    q: Tensor, block_mask: Tensor, *, block_size: int = 128, kv_length: Length = None, backend: str = "auto"
) -> Choice:
    """The backend that `sparse_attention` takes for a query like q (B, S, H, D), and why; ValueError as there."""
    return choose(backend, _checked(q, q, q, block_mask, block_size, kv_length))


def executed_pairs(block_mask: Tensor, block_size: int, tokens: int, kv_length: Length = None) -> int:
    """Query-key pairs of the kept blocks for one head, padding left out; summed over the samples if kv_length is (B,).

    Times 2 D it is the number of MACs.
    """
    _check_mask(block_mask, block_size, tokens)
    lengths = _lengths(kv_length, None, tokens)
    first = torch.arange(len(block_mask), device="cpu") * block_size  # (nb,)
    mask = block_mask.cpu().double()  # exact up to 2^53 pairs
    sizes = (torch.tensor(lengths, device="cpu")[:, None] - first).clamp(0, block_size).double()  # (B, nb)
    return int(torch.einsum("bi,ij,bj->", sizes, mask, sizes))


def _checked(q: Tensor, k: Tensor, v: Tensor, mask: Tensor, block_size: int, kv_length: Length) -> SparseCall:
    if q.ndim != 4:
        raise ValueError(f"q has shape {tuple(q.shape)}; give (batch, tokens, heads, head_dim)")
    for name, x in (("k", k), ("v", v)):
        for axis, what in ((0, "samples"), (1, "tokens"), (2, "heads"), (3, "channels per head")):
            if x.ndim != 4 or x.shape[axis] != q.shape[axis]:
                have = x.shape[axis] if x.ndim == 4 else f"shape {tuple(x.shape)}"
                raise ValueError(f"{name} has {have} {what} and q has {q.shape[axis]}; they have to be equal")
        if x.dtype != q.dtype or x.device != q.device:
            raise ValueError(f"{name} is {x.dtype} on {x.device} and q is {q.dtype} on {q.device}; convert one of them")
    if not q.is_floating_point() or 0 in q.shape:
        raise ValueError(f"q is {q.dtype} of shape {tuple(q.shape)}; give floating-point numbers, no empty axis")
    batch, tokens = q.shape[:2]
    _check_mask(mask, block_size, tokens)
    lengths = _lengths(kv_length, batch, tokens)
    if not mask.is_meta:
        mask = mask.detach().cpu()
        for length in set(lengths):
            blocks = -(-length // block_size)
            empty = (~mask[:blocks, :blocks].any(1)).nonzero().flatten().tolist()
            if empty:
                where = "" if length == tokens else f" before kv_length={length}"
                raise ValueError(f"block_mask row {empty[0]} keeps no key{where}; keep at least its diagonal block")
    return SparseCall(q, k, v, mask, block_size, lengths)


def _check_mask(mask: Tensor, block_size: int, tokens: int) -> None:
    if not isinstance(block_size, int) or not 1 <= block_size <= tokens:
        raise ValueError(f"block_size={block_size} is outside [1, {tokens}], the number of tokens")
    blocks = -(-tokens // block_size)
    if mask.shape != (blocks, blocks) or mask.dtype != torch.bool:
        raise ValueError(
            f"block_mask is {mask.dtype} of shape {tuple(mask.shape)}; {tokens} tokens in blocks of {block_size} need "
            f"torch.bool of shape ({blocks}, {blocks})"
        )


def _lengths(kv_length: Length, batch: int | None, tokens: int) -> tuple[int, ...]:
    """The valid length of every sample; where their number is not known (None), of as many as are given, at least 1."""
    given: Any = tokens if kv_length is None else kv_length
    if isinstance(given, (Tensor, np.ndarray)):
        given = given.tolist()
    if not isinstance(given, Iterable):
        return (_length(given, tokens),) * (batch or 1)
    lengths = tuple(_length(one, tokens) for one in given)
    if batch is not None and len(lengths) != batch:
        raise ValueError(f"kv_length has {len(lengths)} entries for {batch} samples; give one for each, or one number")
    return lengths


def _length(given: Any, tokens: int) -> int:
    try:
        length = index(given)  # NumPy's integers as well
    except TypeError:
        raise ValueError(f"kv_length={given} is no whole number; give one in [1, {tokens}]") from None
    if not 1 <= length <= tokens:
        raise ValueError(f"kv_length={length} is outside [1, {tokens}], the number of tokens")
    return length
