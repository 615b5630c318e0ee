"""FlashInfer's block-sparse kernel, the one behind the published figures of Radial Attention (CUDA, half precision).

It wants whole blocks of keys. Where a sequence ends inside a block, the keys of that block are attended densely by the
queries that see it, and the two partial results are merged by their log-sum-exp.
"""

from __future__ import annotations

from functools import cache, lru_cache
from types import ModuleType
from typing import Any

import torch
from torch import Tensor

from fastdit.attention.backends.base import BACKENDS, Backend, SparseCall, load, needs_cuda
from fastdit.attention.cover import unpack

WORKSPACE = 128 * 2**20  # bytes, as FlashInfer's documentation recommends
HEAD_DIMS = (64, 128, 256)


def attend(call: SparseCall) -> Tensor:
    """Sparse attention of a checked call, (B, S, H, D), one sample after the other."""
    out = torch.zeros_like(call.q)
    for b, length in enumerate(call.lengths):
        out[b, :length] = _attend_one(call, *(x[b, :length].contiguous() for x in (call.q, call.k, call.v)))
    return out


def _attend_one(call: SparseCall, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """The result (L, H, D) of one sample, cut to its valid length."""
    module, (length, heads, channels) = _module(), q.shape
    whole = length // call.block_size * call.block_size  # keys in whole blocks
    if not whole:
        return module.single_prefill_with_kv_cache(q, k, v)  # type: ignore[no-any-return]
    wrapper, late, alone = _plan(
        call.packed, len(call.mask), call.block_size, length, heads, channels, q.dtype, q.device
    )
    if not len(late):
        return wrapper.run(q, k[:whole], v[:whole])  # type: ignore[no-any-return]
    out, lse = wrapper.run(q, k[:whole], v[:whole], return_lse=True)  # (L, H, D), (L, H)
    rest = module.single_prefill_with_kv_cache(q[late], k[whole:], v[whole:], return_lse=True)
    merged, _ = module.merge_state(out[late], lse[late], *rest)
    out[late] = torch.where(alone, rest[0], merged)
    return out  # type: ignore[no-any-return]


# Each wrapper holds 8 MB on the device, as much pinned memory, and 4 bytes for each kept block. Four are the two text
# lengths of classifier-free guidance under two masks.
@lru_cache(maxsize=4)
@torch.inference_mode(False)  # what is kept must serve calls outside of it as well
def _plan(
    packed: bytes,
    side: int,
    block_size: int,
    length: int,
    heads: int,
    channels: int,
    dtype: torch.dtype,
    device: torch.device,
) -> tuple[Any, Tensor, Tensor]:
    """A wrapper planned for the whole blocks of keys, the T queries that see the ragged one, and which see it alone.

    The queries are indices (T,), the last is bool (T, 1, 1).
    """
    blocks, whole = -(-length // block_size), length // block_size
    mask = torch.from_numpy(unpack(packed, side)[:blocks, :blocks])
    kept = mask[:, :whole]
    wrapper = _module().BlockSparseAttentionWrapper(_workspace(device))
    wrapper.plan(
        row_pointers(kept.sum(1)).to(device), kept.nonzero()[:, 1].int().to(device),
        length, whole * block_size, block_size, block_size, heads, heads, channels,
        q_data_type=dtype, kv_data_type=dtype, o_data_type=dtype,
    )  # fmt: skip
    sees, empty = (x.repeat_interleave(block_size)[:length] for x in (mask[:, whole:].any(1), ~kept.any(1)))
    late = sees.nonzero().flatten()
    return wrapper, late.to(device), empty[late][:, None, None].to(device)


def row_pointers(counts: Tensor) -> Tensor:
    """Where each row of `counts` (n,) entries begins, and the end: int32 (n + 1,) on the CPU."""
    return torch.cat([torch.zeros(1, dtype=torch.int64, device="cpu"), counts.cumsum(0)]).int()


@cache
@torch.inference_mode(False)
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
