"""What stands in for the forwards of blocks, norms and attentions: pooled attention, and blocks between two grids.

A block that attends to tokens of another grid gets them beside its own ones through its norm, so the host itself norms
and modulates both streams alike; its attention then takes queries from the first and keys and values from the second.
"""

import functools
import inspect
from dataclasses import dataclass
from operator import attrgetter
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.weak import WeakTensorKeyDictionary

from fastdit.core.ledger import PatchLedger
from fastdit.models.base import BlockGroup
from fastdit.ops.token_grid import Grid, average_onto, spread_over


@dataclass(frozen=True)
class GridPlan:
    """The full grid of a forward, and the sparse one of its modules (equal where it has no modules)."""

    grid: Grid
    small: Grid


class Passage:
    """What the blocks of one transformer share: the plan of a forward, and the full map from generation to recovery.

    Gradient checkpointing computes a block again while another forward may be under way, or over. The tensor that
    enters a block is the same then, so what belongs to it is kept by it, for as long as the tensor itself is.
    """

    def __init__(self) -> None:
        self.plan: GridPlan | None = None
        self.full: Tensor | None = None  # (B, N, C)
        self._known = WeakTensorKeyDictionary()

    def begin(self, full: Tensor) -> GridPlan:
        """A module begins with this full map (B, N, C)."""
        plan = self._of(full)
        if plan is None:
            self.full, plan = full, self.plan
            self._keep(full, plan)
        assert plan is not None
        return plan

    def end(self, sparse: Tensor) -> tuple[GridPlan, Tensor]:
        """The plan and full map (B, N, C) of the module whose sparse tokens (B, M, C) come back; they are dropped."""
        found = self._of(sparse)
        if found is None:
            found = self.plan, self.full
            self.full = None
            if found[1] is None:
                raise RuntimeError(
                    "flexdit: a module has lost its full token map, as something skipped its first block (a cache?) or "
                    "computes its last one again on other tensors: use gradient checkpointing with use_reentrant=False"
                )
            self._keep(sparse, found)
        return found

    def _of(self, tokens: Tensor) -> Any:
        return self._lookup(tokens) if torch.is_grad_enabled() else None

    def _keep(self, tokens: Tensor, what: Any) -> None:
        if torch.is_grad_enabled():
            self._store(tokens, what)

    @torch.compiler.disable
    def _lookup(self, tokens: Tensor) -> Any:
        return self._known.get(tokens)

    @torch.compiler.disable
    def _store(self, tokens: Tensor, what: Any) -> None:
        self._known[tokens] = what


class PooledAttention:
    """Every token gets the mean of all values: W_o (W_v mean(x) + b_v) + b_o, exact with one token and O(C^2)."""

    def __init__(self, attention: Any, passage: Passage) -> None:
        functools.update_wrapper(self, attention.forward)
        self.original, self.attention, self.passage = attention.forward, attention, passage

    def __call__(self, hidden_states: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        if self.passage.plan is None:
            return self.original(hidden_states, *args, **kwargs)
        _check_maskless(kwargs)
        mixed = self.attention.to_v(hidden_states.mean(dim=1, keepdim=True))  # (B, 1, C)
        for layer in self.attention.to_out:
            mixed = layer(mixed)
        return mixed.expand_as(hidden_states)  # (B, N, C)


@dataclass
class Lane:
    """Tokens (B, K, C) on their way beside a block's own, from its norm to its attention; None: there are none."""

    tokens: Tensor | None = None


class NormOfBoth:
    """A norm, and its modulation, on a block's own tokens and those beside them."""

    def __init__(self, norm: nn.Module, lane: Lane) -> None:
        functools.update_wrapper(self, norm.forward)
        self.original, self.lane = norm.forward, lane

    def __call__(self, hidden_states: Tensor, *args: Any, **kwargs: Any) -> Any:
        if self.lane.tokens is not None:
            hidden_states = torch.cat([hidden_states, self.lane.tokens], dim=1)  # (B, Q + K, C)
        return self.original(hidden_states, *args, **kwargs)


class AttentionToOthers:
    """Self-attention with queries from a block's own tokens, and keys and values from those beside them."""

    def __init__(self, attention: nn.Module, lane: Lane) -> None:
        functools.update_wrapper(self, attention.forward)
        self.original, self.lane = attention.forward, lane

    def __call__(self, hidden_states: Tensor, *args: Any, **kwargs: Any) -> Any:
        if self.lane.tokens is None:
            return self.original(hidden_states, *args, **kwargs)
        _check_maskless(kwargs)
        keys = self.lane.tokens.shape[1]
        queries, others = hidden_states.split([hidden_states.shape[1] - keys, keys], dim=1)
        return self.original(queries, *args, **{**kwargs, "encoder_hidden_states": others})


class GridBlock:
    """A block whose own tokens and keys are of two grids: `change` gives both, the block's forward does the rest."""

    def __init__(self, block: nn.Module, group: BlockGroup, passage: Passage) -> None:
        functools.update_wrapper(self, block.forward)
        self.original, self.hidden_states, self.passage = block.forward, group.hidden_states, passage
        self.names = tuple(inspect.signature(block.forward).parameters)
        self.norm, self.attention = (attrgetter(path)(block) for path in (group.attention_norm, group.attention))
        self.lane = Lane()

    def install(self, name: str, group: BlockGroup, block: nn.Module, ledger: PatchLedger) -> None:
        """Stand in for the forwards of the block, its norm and its attention."""
        ledger.set_attribute(block, "forward", self, f"{name}.forward")
        norm, attention = NormOfBoth(self.norm, self.lane), AttentionToOthers(self.attention, self.lane)
        ledger.set_attribute(self.norm, "forward", norm, f"{name}.{group.attention_norm}.forward")
        ledger.set_attribute(self.attention, "forward", attention, f"{name}.{group.attention}.forward")

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        if self.passage.plan is None:
            return self.original(*args, **kwargs)
        arguments = dict(zip(self.names, args, strict=False)) | kwargs
        own, others = self.change(arguments[self.hidden_states])
        self.lane.tokens = others
        try:
            return self.original(**arguments | {self.hidden_states: own})
        finally:
            self.lane.tokens = None

    def change(self, tokens: Tensor) -> tuple[Tensor, Tensor]:
        """The block's own tokens and those that it attends to, from the tokens that come in."""
        raise NotImplementedError


class Generate(GridBlock):
    """The first block of a module: sparse tokens, averaged from the full map, attend to the full map."""

    def change(self, tokens: Tensor) -> tuple[Tensor, Tensor]:
        plan = self.passage.begin(tokens)
        return average_onto(tokens, plan.grid, plan.small), tokens  # (B, M, C), (B, N, C)


class Recover(GridBlock):
    """The block that puts the sparse tokens back onto the full map, which then attends to the sparse tokens."""

    def __init__(self, block: nn.Module, group: BlockGroup, passage: Passage, recovery: "Recovery") -> None:
        super().__init__(block, group, passage)
        self.recovery = recovery

    def change(self, tokens: Tensor) -> tuple[Tensor, Tensor]:
        plan, full = self.passage.end(tokens)
        return self.recovery(tokens, full, plan), tokens  # (B, N, C), (B, M, C)


class OwnLinear(nn.Linear):
    """A linear layer that computes in the type of its input, as the host may run in another than that of this."""

    def forward(self, x: Tensor) -> Tensor:
        assert self.bias is not None
        return F.linear(x, self.weight.to(x.dtype), self.bias.to(x.dtype))


class Recovery(nn.Module):
    """W1 U + b1 + W2 X + b2 of a full map X and the sparse tokens repeated over it, U; untrained it is X itself.

    W1 goes before the repetition, which saves (N - M) C^2 MACs.
    """

    def __init__(self, width: int) -> None:
        super().__init__()
        self.sparse, self.full = OwnLinear(width, width), OwnLinear(width, width)
        for parameter in self.parameters():
            nn.init.zeros_(parameter)
        nn.init.eye_(self.full.weight)

    def forward(self, sparse: Tensor, full: Tensor, plan: GridPlan) -> Tensor:
        """From (B, M, C) and (B, N, C): (B, N, C)."""
        return spread_over(self.sparse(sparse), plan.small, plan.grid) + self.full(full)


class Recoveries(nn.Module):
    """The parameters of FlexDiT: one recovery a module."""

    def __init__(self, modules: int, width: int) -> None:
        super().__init__()
        self.recover = nn.ModuleList(Recovery(width) for _ in range(modules))


def _check_maskless(arguments: dict[str, Any]) -> None:
    """Refuse a mask over image tokens: no host sets one, and it would fit the full grid only."""
    if arguments.get("attention_mask") is not None:
        raise ValueError("attention_mask over image tokens cannot be combined with flexdit's token grids: leave it out")
