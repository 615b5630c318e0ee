"""Sliced and changed weights, made once for each set of gates and kept within a memory."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from fastdit.methods.dydit.width import Slot
from fastdit.methods.lora import LowRank


class Slices:
    """Sliced weights by layer and gates, kept up to `memory` bytes.

    What no longer fits is made anew whenever it is asked for: layers follow each other in a circle, where dropping
    what was unused longest would always drop what is needed next.
    """

    def __init__(self, memory: float) -> None:
        self.memory, self.bytes = memory, 0
        self.known: dict[tuple, tuple[Tensor, Tensor | None]] = {}

    def get(self, key: tuple, make: Callable[[], tuple[Tensor, Tensor | None]]) -> tuple[Tensor, Tensor | None]:
        if key in self.known:
            return self.known[key]
        pair = make()
        size = _bytes(pair)
        if self.bytes + size <= self.memory:
            self.known[key] = pair
            self.bytes += size
        return pair

    def clear(self) -> None:
        self.known.clear()
        self.bytes = 0


def _bytes(pair: tuple[Tensor, Tensor | None]) -> int:
    return sum(x.numel() * x.element_size() for x in pair if x is not None)


def sliced_weights(
    slices: Slices, low_rank: LowRank | None, embedding: Tensor | None, key: tuple[Any, ...], dtype: torch.dtype,
    device: torch.device,
) -> Callable[[Slot, Tensor | None, Tensor | None], tuple[Tensor, Tensor | None] | None]:  # fmt: skip
    """What gives a layer's (weight, bias) with some rows and columns only and its low-rank change; None: its own.

    `key` are the gates of heads and channels and the timestep, which rows, columns and change follow from.
    """
    heads, channels, timestep = key

    def weight_of(slot: Slot, rows: Tensor | None, columns: Tensor | None) -> tuple[Tensor, Tensor | None] | None:
        change = low_rank if low_rank is not None and slot.path in low_rank.paths else None
        if rows is None and columns is None and change is None:
            return None
        layer: Any = slot.layer

        @torch.no_grad()
        def make() -> tuple[Tensor, Tensor | None]:
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
        version = 0 if layer.weight.is_inference() else layer.weight._version
        stored = layer.weight.data_ptr(), version, layer.weight.dtype
        return slices.get((slot.path, gates, timestep, stored, dtype, device), make)

    return weight_of
