"""A whole transformer block on merged tokens (scope "block"): replaces `forward` on the block's instance."""

import functools
import inspect
from typing import Any

import torch
from torch import Tensor, nn

from fastdit.attention.reduced import join, per_sample
from fastdit.attention.tokens import Match, TokenStep, reduce_mask, reduce_rotary
from fastdit.models.base import BlockGroup, Rotary
from fastdit.ops.reducers import Reducer


class MergedBlock:
    """Calls a block's own forward on reduced tokens and adds what it changed to all of them.

    The residual stream keeps every token: x + restore(block(reduce(x)) - reduce(x)). A pruned row receives nothing, so
    it is restored by the residual alone. `protected` leading rows go through unmerged.
    """

    def __init__(self, block: nn.Module, group: BlockGroup, rotary: Rotary | None, reducer: Reducer) -> None:
        functools.update_wrapper(self, block.forward)
        self.original, self.group, self.rotary, self.reducer = block.forward, group, rotary, reducer
        self.names = tuple(inspect.signature(block.forward).parameters)
        self.step: TokenStep | None = None
        self.protected = 0

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        if self.step is None:
            return self.original(*args, **kwargs)
        arguments = dict(zip(self.names, args, strict=False)) | kwargs
        hidden = arguments[self.group.hidden_states]  # (B, N, C)
        match = self.step.matcher.match(hidden[:, self.protected :])
        arguments, rotary_pairs = self.reduce(arguments, match)
        reduced = arguments[self.group.hidden_states]
        if rotary_pairs is None or len(rotary_pairs) == 1:
            if rotary_pairs and self.group.rotary:
                arguments[self.group.rotary] = rotary_pairs[0]
            result = self.original(**arguments)
        else:
            result = per_sample(lambda own, _: self.original(**own), arguments, self.group.rotary or "", rotary_pairs)
        return self.restore(result, hidden, reduced, match)

    def reduce(self, arguments: dict[str, Any], match: Match) -> tuple[dict[str, Any], Any]:
        """Arguments with hidden states, per-token modulation and mask reduced, and the rotary pairs beside them."""
        group, step = self.group, self.step
        assert step is not None
        arguments = dict(arguments)

        def shorten(x: Tensor) -> Tensor:
            return join(x[:, : self.protected], match.reduction.reduce(x[:, self.protected :]))

        tokens = arguments[group.hidden_states].shape[1]
        arguments[group.hidden_states] = shorten(arguments[group.hidden_states])
        if group.per_token and arguments.get(group.per_token) is not None and arguments[group.per_token].ndim == 4:
            arguments[group.per_token] = shorten(arguments[group.per_token])  # (B, N, 6, C)
        if group.mask and arguments.get(group.mask) is not None:
            removed = step.layout.tokens - match.reduction.length
            sequence = tokens + arguments["encoder_hidden_states"].shape[1]
            arguments[group.mask] = reduce_mask(arguments[group.mask], removed, sequence, step.layout)
        pairs = None
        if self.rotary and group.rotary and arguments.get(group.rotary) is not None:
            pairs = self.reduce_rotary(arguments.pop(group.rotary), match)
        return arguments, pairs

    def reduce_rotary(self, tables: tuple[Tensor, Tensor], match: Match) -> tuple:
        assert self.rotary is not None and self.step is not None
        axis, protected = self.rotary.axis, self.protected
        kept = tuple(table.narrow(axis, 0, protected) for table in tables)
        rest = tuple(table.narrow(axis, protected, table.shape[axis] - protected) for table in tables)
        pairs = reduce_rotary(rest, axis, self.step.layout, match)  # type: ignore[arg-type]
        if not protected:
            return pairs
        return tuple(
            tuple(
                torch.cat([k.expand(*r.shape[:axis], *k.shape[axis:]), r], axis)
                for k, r in zip(kept, pair, strict=True)
            )
            for pair in pairs
        )

    def restore(self, result: Any, hidden: Tensor, reduced: Tensor, match: Match) -> Any:
        out = result if torch.is_tensor(result) else result[self.group.output]  # (B, P + M, C)
        change = match.reduction.restore((out - reduced)[:, self.protected :])  # (B, N - P, C)
        if match.reduction.kept is not None:
            change = change.masked_fill(match.reduction.dropped[..., None], 0)
        whole = join(out[:, : self.protected], hidden[:, self.protected :] + change)
        if torch.is_tensor(result):
            return whole
        return tuple(whole if i == self.group.output else part for i, part in enumerate(result))
