"""Linear layers of a block with some heads and channels left out: masked while training, sliced at inference."""

import functools
from collections.abc import Callable
from dataclasses import dataclass
from operator import attrgetter
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fastdit.methods.dydit.tokens import TokenRouting, on_rows
from fastdit.models.base import BlockGroup
from fastdit.ops.gates import spread

Side = Literal["heads out", "heads in", "channels out", "channels in", "both in", "whole"]
Gates = tuple[bool, ...]

ATTENTION: dict[str, Side] = {  # diffusers' names; those of joint attention with the text begin with add
    "to_q": "heads out", "to_k": "heads out", "to_v": "heads out", "to_out.0": "heads in",
    "add_q_proj": "heads out", "add_k_proj": "heads out", "add_v_proj": "heads out", "to_add_out": "heads in",
}  # fmt: skip


class Slot:
    """Stands for a linear layer's forward: its own, of gated inputs, or with another weight; on some rows if told so.

    `gate` (B, 1, in) multiplies the input; `cut()` gives the (weight, bias) in place of the layer's; `routing` names
    the rows that are computed, of the whole sequence of a parallel block.
    """

    def __init__(self, layer: nn.Module, side: Side, path: str, routing: TokenRouting | None = None) -> None:
        functools.update_wrapper(self, layer.forward)
        self.layer, self.original, self.side, self.path, self.routing = layer, layer.forward, side, path, routing
        self.clear()

    def clear(self) -> None:
        self.gate: Tensor | None = None
        self.cut: Callable[[], tuple[Tensor, Tensor | None]] | None = None

    def __call__(self, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        if self.gate is not None:
            x = x * self.gate.to(x.dtype)
        routing = self.routing
        if routing is None or x.ndim != 3 or x.shape[1] != routing.length:
            return self.run(x, *args, **kwargs)
        if routing.rows is not None:
            return on_rows(self.run, x, routing.rows)
        out = self.run(x, *args, **kwargs)
        closes = routing.gate is not None and self.side == "both in"  # the branch ends here
        return out * routing.gate[..., None].to(out.dtype) if closes and routing.gate is not None else out

    def run(self, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        if self.cut is None:
            out: Tensor = self.original(x, *args, **kwargs)
            return out
        return F.linear(x, *self.cut())


class HeadsOfNorm:
    """Stands for a norm over all heads of queries or keys: leaves heads out behind it, so that the norm is the same."""

    def __init__(self, norm: nn.Module) -> None:
        functools.update_wrapper(self, norm.forward)
        self.original, self.columns = norm.forward, None

    columns: Tensor | None

    def __call__(self, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        out: Tensor = self.original(x, *args, **kwargs)
        return out if self.columns is None else out[..., self.columns]


@dataclass(eq=False)
class BlockWidth:
    """The routed layers of one block, and how many heads and groups they have."""

    attention: Any
    heads: int
    groups: int
    width: int
    channels: int
    slots: list[Slot]
    norms: list[HeadsOfNorm]

    def mask(self, heads: Tensor, channels: Tensor) -> None:
        """Training form: gates (B, H) and (B, G) on the inputs of the layers behind."""
        self.open()
        of_heads, of_channels = spread(heads, self.width), spread(channels, self.channels)
        gates = {"heads in": of_heads, "channels in": of_channels, "both in": torch.cat([of_heads, of_channels], -1)}
        for slot in self.slots:
            if slot.side in gates:
                slot.gate = gates[slot.side][:, None]  # (B, 1, in)

    def open(self) -> None:
        """Everything at work, as the host has it."""
        for slot in self.slots:
            slot.clear()
        for norm in self.norms:
            norm.columns = None
        self.attention.heads = self.heads

    def slice(self, heads: Gates, channels: Gates, weight_of: Callable[..., Any], device: torch.device) -> None:
        """Inference form; `weight_of(slot, rows, columns)` is what cuts a layer's weight, None: the host's own."""
        self.open()
        of_heads = columns_of(heads, self.width)
        of_channels = columns_of(channels, self.channels)
        both = None
        if of_heads is not None or of_channels is not None:
            whole_heads = torch.arange(self.width) if of_heads is None else of_heads
            both = torch.cat(
                [whole_heads, self.width + (torch.arange(self.channels) if of_channels is None else of_channels)]
            )
        sides: dict[Side, tuple[Tensor | None, Tensor | None]] = {
            "heads out": (of_heads, None), "heads in": (None, of_heads), "channels out": (of_channels, None),
            "channels in": (None, of_channels), "both in": (None, both), "whole": (None, None),
        }  # fmt: skip
        for slot in self.slots:
            slot.cut = weight_of(slot, *sides[slot.side])
        for norm in self.norms:
            norm.columns = None if of_heads is None else of_heads.to(device)
        self.attention.heads = sum(heads)


def columns_of(gates: Gates, width: int) -> Tensor | None:
    """Channels that open gates leave of `width`; None where all are left."""
    if all(gates):
        return None
    return torch.nonzero(spread(torch.tensor(gates), width)).squeeze(1)


def at(module: Any, path: str) -> Any:
    """A submodule by its path, None where a step of it is absent."""
    try:
        return attrgetter(path)(module) if "." not in path else module.get_submodule(path)
    except AttributeError:
        return None


def routed_layers(
    block: nn.Module, name: str, group: BlockGroup, routing: TokenRouting | None, norm_over_heads: bool
) -> list[Slot]:
    """Slots of a block's routed linear layers, not installed yet, each with its path from the transformer."""
    found: list[tuple[str, Side, TokenRouting | None]] = []
    for path, side in ATTENTION.items():
        whole = norm_over_heads and path in ("to_q", "to_k")
        rows = routing if group.parallel and path == "to_q" else None
        found.append((f"{group.attention}.{path}", "whole" if whole else side, rows))
    if group.parallel:
        found += [("proj_mlp", "channels out", routing), ("proj_out", "both in", routing)]
    elif group.feed_forward:
        found += [
            (f"{group.feed_forward}.net.0.proj", "channels out", None),
            (f"{group.feed_forward}.net.2", "channels in", None),
        ]
    slots = []
    for path, side, rows in found:
        layer = at(block, path)
        if layer is not None:
            slots.append(Slot(layer, side, f"{name}.{path}", rows))
    return slots
