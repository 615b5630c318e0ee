"""Compiled FlexAttention: one fused kernel that skips the dropped blocks (CUDA and CPU, no gradient on the CPU)."""

from __future__ import annotations

import importlib.util
import shutil
from collections.abc import Callable
from functools import cache, lru_cache
from typing import Any

import torch
from torch import Tensor

from fastdit.attention.backends.base import BACKENDS, Backend, SparseCall

WORTH_COMPILING = 4096  # tokens: a new shape or mask size costs some seconds to a minute of compilation


def attend(call: SparseCall) -> Tensor:
    """Sparse attention of a checked call, (B, S, H, D); RuntimeError in one line if the kernel does not compile."""
    clean = call.without_padding()
    q, k, v = (x.transpose(1, 2) for x in (clean.q, clean.k, clean.v))  # (B, H, S, D)
    lengths = call.lengths if len(set(call.lengths)) > 1 else call.lengths[:1]
    block_mask = _block_mask(call.packed, len(call.mask), call.block_size, q.shape[2], lengths, q.device)
    try:
        out = _kernel()(q, k, v, block_mask=block_mask)
    except Exception as error:  # the compiler's own errors have no common class
        first = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise RuntimeError(
            f"attention backend 'flex' could not be compiled for {tuple(call.q.shape)} in blocks of {call.block_size} "
            f"on {q.device}: {first[:200]}; use backend='sdpa'"
        ) from error
    if call.padded:
        out = out.masked_fill(call.beyond[:, None, :, None], 0)
    return out.transpose(1, 2)


@cache
def _kernel() -> Callable[..., Tensor]:
    from torch.nn.attention.flex_attention import flex_attention

    return torch.compile(flex_attention, fullgraph=True)  # type: ignore[no-any-return]


@lru_cache(maxsize=16)
def _block_mask(
    packed: bytes, side: int, block_size: int, tokens: int, lengths: tuple[int, ...], device: torch.device
) -> Any:
    """The mask as flex wants it: blocks before the valid length as full ones, those that it cuts with a mask."""
    from torch.nn.attention.flex_attention import BlockMask

    bits = torch.frombuffer(bytearray(packed), dtype=torch.uint8)
    bits = (bits[:, None] >> torch.arange(7, -1, -1, dtype=torch.uint8)) & 1  # big end first, as numpy packs them
    mask = bits.flatten()[: side * side].view(side, side).bool()
    ends = torch.tensor(lengths, device="cpu")  # (B,)
    first = torch.arange(side) * block_size
    whole = mask & (first + block_size <= ends[:, None, None])  # (B, nb, nb)
    cut = mask & (first < ends[:, None, None]) & ~whole
    limit = ends.to(device)

    def valid(b: Tensor, h: Tensor, query: Tensor, key: Tensor) -> Tensor:
        return key < (limit[b] if len(lengths) > 1 else limit[0])

    return BlockMask.from_kv_blocks(
        *_listed(cut, device), *_listed(whole, device), BLOCK_SIZE=block_size, mask_mod=valid, seq_lengths=(tokens,) * 2
    )


def _listed(kept: Tensor, device: torch.device) -> tuple[Tensor, Tensor]:
    """Number (B, 1, nb) and list (B, 1, nb, nb) of the kept key blocks of each row, the others behind them."""
    order = kept.to(torch.uint8).argsort(dim=-1, descending=True, stable=True)
    return kept.sum(-1).int()[:, None].to(device), order.int()[:, None].to(device)


def _missing() -> str | None:
    if torch.cuda.is_available():
        return None if importlib.util.find_spec("triton") else "needs triton, which is not installed"
    if any(shutil.which(compiler) for compiler in ("g++", "clang++", "c++")):
        return None
    return "needs a C++ compiler to compile for the CPU, and none is on the path"


def _refuses(call: SparseCall) -> str | None:
    if call.q.device.type not in ("cuda", "cpu"):
        return f"runs on CUDA and CPU and the tensors are on {call.q.device.type}"
    if call.q.device.type == "cpu" and call.differentiable:
        return "has no gradient on the CPU"
    if call.q.dtype == torch.float64:
        return "does not take float64"
    if call.q.device.type == "cuda" and call.block_size % 16:
        return f"needs blocks of a multiple of 16 tokens on CUDA, not {call.block_size}"
    return None


def _suits(call: SparseCall) -> tuple[int, str]:
    if call.q.device.type != "cuda" or call.q.shape[1] < WORTH_COMPILING or bool(call.mask.all()):
        return 0, "on the CPU, for short sequences and for dense masks nothing is gained by compiling"
    return 2, "one compiled kernel on CUDA"


BACKENDS.register(
    "flex",
    Backend(
        name="flex",
        summary="compiled flex_attention, on CUDA (with gradient) and on the CPU (without)",
        attend=attend,
        missing=_missing,
        refuses=_refuses,
        suits=_suits,
    ),
)
