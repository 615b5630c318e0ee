"""xFormers' memory-efficient attention, for dense and block-diagonal masks (CUDA): the dense steps and layers."""

from __future__ import annotations

from functools import lru_cache
from types import ModuleType

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from fastdit.attention.backends.base import BACKENDS, Backend, SparseCall, load, needs_cuda
from fastdit.attention.cover import unpack


def attend(call: SparseCall) -> Tensor:
    """Attention of a checked call with a block-diagonal mask, (B, S, H, D); without padding all samples at once."""
    ops = _module()
    sizes = diagonal_sizes(call.packed, len(call.mask)) or ()
    if not call.padded and len(sizes) == 1:
        return ops.memory_efficient_attention(call.q, call.k, call.v)  # type: ignore[no-any-return]
    parts = []
    for b, length in enumerate(call.lengths):
        own = (x[b : b + 1, :length] for x in (call.q, call.k, call.v))
        ends = [min(end * call.block_size, length) for end in np.cumsum(sizes).tolist()]  # tokens
        tokens = [end - begin for begin, end in zip([0, *ends], ends) if end > begin]
        bias = ops.fmha.attn_bias.BlockDiagonalMask.from_seqlens(tokens, device=call.q.device)
        out = ops.memory_efficient_attention(*own, attn_bias=bias)
        parts.append(F.pad(out, (0, 0, 0, 0, 0, call.q.shape[1] - length)))
    return torch.cat(parts)


@lru_cache(maxsize=32)
def diagonal_sizes(packed: bytes, side: int) -> tuple[int, ...] | None:
    """The sides, in blocks, of the squares along the diagonal that make up a mask; None if it is of another kind."""
    mask = unpack(packed, side)
    number = np.cumsum(np.r_[True, (mask[1:] != mask[:-1]).any(1)])  # rows alike follow one another
    if not (mask == (number[:, None] == number)).all():
        return None
    return tuple(np.unique(number, return_counts=True)[1].tolist())


def _module() -> ModuleType:
    return load("xformers.ops", extra="xformers")


def _missing() -> str | None:
    try:
        _module()
    except ImportError as error:
        return str(error)
    return None


def _refuses(call: SparseCall) -> str | None:
    elsewhere = needs_cuda(call)
    if elsewhere:
        return elsewhere
    if diagonal_sizes(call.packed, len(call.mask)) is None:
        return "takes dense and block-diagonal masks only"
    if call.q.dtype == torch.float64:
        return "does not take float64"
    return None


BACKENDS.register(
    "xformers",
    Backend(
        name="xformers",
        summary="memory-efficient attention on CUDA, for dense and block-diagonal masks",
        attend=attend,
        missing=_missing,
        refuses=_refuses,
        suits=lambda call: (0, "PyTorch's own kernel serves dense masks as well"),
    ),
)
