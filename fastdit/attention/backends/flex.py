"""Compiled FlexAttention: one fused kernel that skips the dropped blocks (CUDA and CPU, no gradient on the CPU)."""

from __future__ import annotations

import importlib.util
import shutil
from collections.abc import Callable, Hashable
from functools import lru_cache
from types import FunctionType
from typing import Any

import torch
from torch import Tensor

from fastdit.attention.backends.base import BACKENDS, Backend, SparseCall
from fastdit.attention.cover import unpack

WORTH_COMPILING = 4096  # tokens: a new shape or mask size costs some seconds to a minute of compilation
USUAL_TILE = 128  # tokens: every tile that Inductor takes by itself divides it, and a tile has to divide the block


def attend(call: SparseCall) -> Tensor:
    """Sparse attention of a checked call, (B, S, H, D); RuntimeError in one line if the kernel does not compile."""
    clean = call.without_padding()
    q, k, v = (x.transpose(1, 2) for x in (clean.q, clean.k, clean.v))  # (B, H, S, D)
    block_mask = _block_mask(call.packed, len(call.mask), call.block_size, q.shape[2], call.lengths, q.device)
    variant = q.shape, q.dtype, q.device, call.differentiable, block_mask.kv_indices.shape, call.block_size
    try:
        out = _kernel(*variant)(q, k, v, block_mask, tile_options(call.block_size, q.dtype, q.device))
    except Exception as error:  # the compiler's own errors have no common class
        first = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise RuntimeError(
            f"attention backend 'flex' could not be compiled for {tuple(call.q.shape)} in blocks of {call.block_size} "
            f"on {q.device}: {first[:200]}; use backend='sdpa'"
        ) from error
    if call.padded:
        out = out.masked_fill(call.beyond[:, None, :, None], 0)
    return out.transpose(1, 2)


def _flex(q: Tensor, k: Tensor, v: Tensor, block_mask: Any, options: dict[str, int] | None) -> Tensor:
    from torch.nn.attention.flex_attention import flex_attention

    return flex_attention(q, k, v, block_mask=block_mask, kernel_options=options)  # type: ignore[no-any-return,arg-type]


@lru_cache(maxsize=32)
def _kernel(*variant: Hashable) -> Callable[..., Tensor]:
    """A compiled function of its own for each variant: torch.compile gives up after 8 variants of one function.

    It counts by code object, so each gets a copy of that too.
    """
    own = FunctionType(_flex.__code__.replace(), _flex.__globals__, _flex.__name__)
    return torch.compile(own, fullgraph=True, dynamic=False)


def tile_options(block_size: int, dtype: torch.dtype, device: torch.device) -> dict[str, int] | None:
    """Kernel options that make the tiles on CUDA divide small blocks; None where the usual tiles do."""
    if device.type != "cuda" or block_size >= USUAL_TILE:
        return None
    side = min(block_size, 64 // dtype.itemsize)  # no larger than the usual tiles, which fit a GPU's shared memory
    names = ("fwd_BLOCK_M", "fwd_BLOCK_N", "bwd_BLOCK_M1", "bwd_BLOCK_N1", "bwd_BLOCK_M2", "bwd_BLOCK_N2")
    return dict.fromkeys(names, side)


@lru_cache(maxsize=16)
@torch.inference_mode(False)  # what is kept must serve training as well
def _block_mask(
    packed: bytes, side: int, block_size: int, tokens: int, lengths: tuple[int, ...], device: torch.device
) -> Any:
    """The mask as flex wants it: blocks before the valid length as full ones, those that it cuts with a mask."""
    from torch.nn.attention.flex_attention import BlockMask

    mask = torch.from_numpy(unpack(packed, side))
    own = lengths if len(set(lengths)) > 1 else lengths[:1]  # one list serves samples that are alike
    ends = torch.tensor(own, device="cpu")[:, None, None]  # (B or 1, 1, 1)
    first = torch.arange(side, device="cpu") * block_size
    whole = mask & (first + block_size <= ends)  # (B or 1, nb, nb)
    cut = mask & (first < ends) & ~whole
    limit = torch.tensor(lengths, device=device)  # (B,)

    def valid(b: Tensor, h: Tensor, query: Tensor, key: Tensor) -> Tensor:
        return key < limit[b]

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
    size = call.block_size
    if call.q.device.type == "cuda" and size % USUAL_TILE and (size < 16 or size & (size - 1)):
        return f"needs blocks of 16, 32, 64 or a multiple of {USUAL_TILE} tokens on CUDA, not {size}"
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
