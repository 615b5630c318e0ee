"""FlashInfer's block-sparse kernel, the one behind the published figures of Radial Attention (CUDA, half precision).

It wants whole blocks of keys. A sequence that ends inside a block is described in smaller ones: blocks of
gcd(block_size, length) keys fit any length exactly, so no padded key has to be masked.
"""

from __future__ import annotations

import math
from functools import cache, lru_cache
from types import ModuleType
from typing import Any

import numpy as np
import torch
from torch import Tensor

from fastdit.attention.backends.base import BACKENDS, Backend, SparseCall, load, needs_cuda

WORKSPACE = 128 * 2**20  # bytes, as FlashInfer's documentation recommends
HEAD_DIMS = (64, 128, 256)


def attend(call: SparseCall) -> Tensor:
    """Sparse attention of a checked call, (B, S, H, D), one sample after the other."""
    out = torch.zeros_like(call.q)
    heads, channels = call.q.shape[2:]
    for b, length in enumerate(call.lengths):
        wrapper = _plan(
            call.packed, len(call.mask), call.block_size, length, heads, channels, call.q.dtype, call.q.device
        )
        q, k, v = (x[b, :length].contiguous() for x in (call.q, call.k, call.v))  # (L, H, D)
        out[b, :length] = wrapper.run(q, k, v)
    return out


@lru_cache(maxsize=8)  # a wrapper holds 8 MB of its own
def _plan(
    packed: bytes,
    side: int,
    block_size: int,
    length: int,
    heads: int,
    channels: int,
    dtype: torch.dtype,
    device: torch.device,
) -> Any:
    """A wrapper with its plan made: rows of block_size queries, columns of gcd(block_size, length) keys."""
    wrapper = _module().BlockSparseAttentionWrapper(_workspace(device))
    indptr, indices, width = block_lists(packed, side, block_size, length)
    wrapper.plan(
        indptr.to(device), indices.to(device), length, length, block_size, width, heads, heads, channels,
        q_data_type=dtype, kv_data_type=dtype, o_data_type=dtype,
    )  # fmt: skip
    return wrapper


def block_lists(packed: bytes, side: int, block_size: int, length: int) -> tuple[Tensor, Tensor, int]:
    """Compressed rows of the mask up to `length` tokens: int32 indptr (nb + 1,), indices, and keys per index."""
    blocks = math.ceil(length / block_size)
    bits = np.unpackbits(np.frombuffer(packed, np.uint8), count=side * side).reshape(side, side)
    width = math.gcd(block_size, length)
    fine = torch.from_numpy(bits[:blocks, :blocks].astype(bool)).repeat_interleave(block_size // width, dim=1)
    fine = fine[:, : length // width]  # (blocks, L / width)
    return torch.cat([torch.zeros(1), fine.sum(1).cumsum(0)]).int(), fine.nonzero()[:, 1].int(), width


@cache
def _workspace(device: torch.device) -> Tensor:
    return torch.empty(WORKSPACE, dtype=torch.uint8, device=device)


def _module() -> ModuleType:
    return load("flashinfer")


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
    if call.q.dtype not in (torch.float16, torch.bfloat16):
        return f"takes float16 and bfloat16, not {call.q.dtype}"
    if call.q.shape[3] not in HEAD_DIMS:
        return f"takes heads of {', '.join(map(str, HEAD_DIMS))} channels, not {call.q.shape[3]}"
    if call.differentiable:
        return "has no gradient"
    return None


def _suits(call: SparseCall) -> tuple[int, str]:
    if call.q.device.type != "cuda" or bool(call.mask.all()):
        return 0, "only for sparse masks on CUDA"
    return 3, "block-sparse kernel on CUDA in half precision"


BACKENDS.register(
    "flashinfer",
    Backend(
        name="flashinfer",
        summary="FlashInfer's block-sparse kernel: CUDA, float16 and bfloat16, no gradient",
        attend=attend,
        missing=_missing,
        refuses=_refuses,
        suits=_suits,
    ),
)
