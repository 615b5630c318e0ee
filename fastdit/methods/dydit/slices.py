"""Sliced and changed weights, made once for each set of gates and kept within a memory."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from fastdit.methods.dydit.width import Slot
from fastdit.methods.lora import LowRank

Pair = tuple[Tensor, Tensor | None]  # weight (out, in) and bias (out)


class Slices:
    """Sliced weights by layer and gates, kept up to `memory` bytes, each with the stamp of the weight it was cut from.

    What no longer fits is cut anew whenever it is needed: layers follow each other in a circle, where dropping what was
    unused longest would always drop what is needed next.
    """

    def __init__(self, memory: float) -> None:
        self.memory, self.bytes = memory, 0
        self.known: dict[tuple, tuple[Any, Pair]] = {}

    def get(self, key: tuple, stamp: Any, size: int, cut: Callable[[], Pair]) -> Pair | None:
        """The slices (weight, bias) of `size` bytes, or None where there is no room to keep them."""
        if key in self.known:
            if self.known[key][0] == stamp:
                return self.known[key][1]
            self.bytes -= _bytes(self.known.pop(key)[1])
        if self.bytes + size > self.memory:
            return None
        self.known[key] = stamp, cut()
        self.bytes += size
        return self.known[key][1]

    def clear(self) -> None:
        self.known.clear()
        self.bytes = 0


def _bytes(pair: Pair) -> int:
    return sum(x.numel() * x.element_size() for x in pair if x is not None)


def sliced_weights(
    slices: Slices, low_rank: LowRank | None, embedding: Tensor | None, key: tuple[Any, ...], dtype: torch.dtype,
    device: torch.device,
) -> Callable[[Slot, Tensor | None, Tensor | None], Callable[[], Pair] | None]:  # fmt: skip
    """What gives, for a layer and the rows and columns left of it, its (weight, bias) when called; None: its own.

    `key` are the gates of heads and channels and the timestep, which rows, columns and the low-rank change follow from.
    """
    heads, channels, timestep = key

    def weight_of(slot: Slot, rows: Tensor | None, columns: Tensor | None) -> Callable[[], Pair] | None:
        change = low_rank if low_rank is not None and slot.path in low_rank.paths else None
        if rows is None and columns is None and change is None:
            return None
        layer: Any = slot.layer

        @torch.no_grad()
        def cut() -> Pair:
            weight, bias = layer.weight.detach(), None if layer.bias is None else layer.bias.detach()
            if change is not None:
                weight = weight.float() + change.delta(slot.path, embedding).to(weight.device)
            if rows is not None:
                weight = weight.index_select(0, rows.to(weight.device))
                bias = bias if bias is None else bias.index_select(0, rows.to(bias.device))
            if columns is not None:
                weight = weight.index_select(1, columns.to(weight.device))
            return weight.to(device, dtype), bias if bias is None else bias.to(device, dtype)

        gates = (heads, channels) if slot.side == "both in" else heads if "heads" in slot.side else channels
        out, inside = layer.weight.shape
        numbers = (out if rows is None else len(rows)) * ((inside if columns is None else len(columns)) + 1)
        stamp = dtype, device, *(_stamp(x) for x in (layer.weight, layer.bias))
        kept = slices.get((slot.path, gates, timestep), stamp, numbers * dtype.itemsize, cut)
        return cut if kept is None else lambda: kept

    return weight_of


def _stamp(tensor: Tensor | None) -> Any:
    """What changes when a weight does (but not when it is written through `.data`)."""
    return (
        tensor if tensor is None else (tensor.data_ptr(), 0 if tensor.is_inference() else tensor._version, tensor.dtype)
    )
