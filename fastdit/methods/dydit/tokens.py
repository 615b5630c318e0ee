"""Which tokens of a block are let in: decided from the stream when it comes by, carried out at the layers behind."""

import functools
import inspect
from collections.abc import Callable
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fastdit.ops.gates import gumbel_gates, open_gates, padded_rows, top_flat, top_rows

Mode = Literal["all", "train", "mask", "rows", "top"]


class TokenRouting:
    """Decision of one block in one forward.

    `mode`: all tokens; gates that are drawn ("train") or hard ("mask") and multiplied; or the rows that are let in are
    gathered, as many as there are ("rows") or the `keep` best of each sample ("top"). In a parallel block `before` and
    `behind` text tokens of the sequence are always let in. `tied`: both halves of the batch let in the same.
    """

    def __init__(self, router: nn.Module | None) -> None:
        self.router = router
        self.mode: Mode = "all"
        self.keep, self.before, self.behind, self.tied = 0, 0, 0, False
        self.text: Tensor | None = None
        self.condition: Tensor | None = None
        self.forget()

    def forget(self) -> None:
        """Nothing is decided."""
        self.gate: Tensor | None = None  # (B, S)
        self.rows: Tensor | None = None  # flat rows of (B * S)
        self.queries: Tensor | None = None  # (B, M) rows of each sample, padded
        self.length = 0
        self.tokens = self.passed = self.padded = 0  # visual tokens, those that pass, rows that pad the queries

    def decide(self, stream: Tensor) -> None:
        """From the visual tokens (B, N, C)."""
        self.forget()
        if self.mode == "all" or self.router is None:
            return
        weight = next(self.router.parameters())
        text, condition = (None if x is None else x.to(weight.dtype) for x in (self.text, self.condition))
        logits = self.router(stream.to(weight.dtype), text, condition)  # (B, N)
        if self.tied:
            logits = torch.maximum(*logits.chunk(2)).repeat(2, 1)
        batch, tokens = logits.shape
        self.tokens, self.length = batch * tokens, self.before + tokens + self.behind
        if self.mode in ("train", "mask"):
            hard = top_rows(logits, self.keep) if self.keep else open_gates(logits)
            gate = gumbel_gates(logits) if self.mode == "train" else hard.to(logits.dtype)
            self.gate = F.pad(F.pad(gate, (self.before, 0), value=1.0), (0, self.behind), value=1.0)
        elif self.mode == "top" and not self.before + self.behind:
            self.rows = top_flat(logits, self.keep)
            self.passed = self.tokens - batch * self.keep
        else:
            self._gather(top_rows(logits, self.keep) if self.mode == "top" else open_gates(logits))

    def _gather(self, mask: Tensor) -> None:
        """Rows of a mask (B, N), text included."""
        if mask.is_meta:  # which tokens is unknown: all of them are counted, and what passed is taken out later
            if self.mode == "top":
                self._shapes(mask)
            return
        mask = F.pad(F.pad(mask, (self.before, 0), value=True), (0, self.behind), value=True)
        rows = torch.nonzero(mask.flatten()).squeeze(1)
        self.passed = mask.numel() - rows.numel()
        if not self.passed:
            return
        self.rows = rows
        if self.before + self.behind:
            self.queries = padded_rows(mask)
            self.padded = self.queries.numel() - rows.numel()

    def _shapes(self, mask: Tensor) -> None:
        """Rows of the right number, for counting."""
        kept = self.keep + self.before + self.behind
        self.rows = torch.empty(len(mask) * kept, dtype=torch.long, device="meta")
        self.queries = torch.empty(len(mask), kept, dtype=torch.long, device="meta")
        self.passed = self.tokens - len(mask) * self.keep


class StreamTap:
    """Stands for the norm before the feed-forward layer: its input is the stream that decides."""

    def __init__(self, norm: nn.Module, routing: TokenRouting) -> None:
        functools.update_wrapper(self, norm.forward)
        self.original, self.routing = norm.forward, routing

    def __call__(self, hidden_states: Tensor, *args: Any, **kwargs: Any) -> Any:
        self.routing.decide(hidden_states)
        return self.original(hidden_states, *args, **kwargs)


class TokenGate:
    """Stands for the feed-forward layer: runs it on the tokens that are let in, and gives zeros for the others."""

    def __init__(self, feed_forward: nn.Module, routing: TokenRouting) -> None:
        functools.update_wrapper(self, feed_forward.forward)
        self.original, self.routing = feed_forward.forward, routing

    def __call__(self, hidden_states: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        routing = self.routing
        if routing.rows is not None:
            return on_rows(lambda rows: self.original(rows, *args, **kwargs), hidden_states, routing.rows)
        out: Tensor = self.original(hidden_states, *args, **kwargs)
        return out if routing.gate is None else out * routing.gate[..., None].to(out.dtype)


class BlockTap:
    """Stands for a block's forward: keeps what its router needs besides the stream; in parallel blocks it decides."""

    def __init__(self, block: nn.Module, routing: TokenRouting, hidden_states: str, decides: bool) -> None:
        functools.update_wrapper(self, block.forward)
        self.original, self.routing, self.hidden_states, self.decides = block.forward, routing, hidden_states, decides
        self.names = tuple(inspect.signature(block.forward).parameters)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        arguments = dict(zip(self.names, args, strict=False)) | kwargs
        self.routing.text, self.routing.condition = arguments.get("encoder_hidden_states"), arguments.get("temb")
        if self.decides:
            self.routing.decide(arguments[self.hidden_states])
        try:
            return self.original(*args, **kwargs)
        finally:
            self.routing.text = self.routing.condition = None


def on_rows(function: Callable[[Tensor], Tensor], x: Tensor, rows: Tensor) -> Tensor:
    """`function` of some flat rows of (B, S, C), zeros for all others."""
    flat = x.flatten(0, 1)
    out = function(flat.index_select(0, rows))
    return out.new_zeros(len(flat), out.shape[-1]).index_copy_(0, rows, out).unflatten(0, x.shape[:2])


def attend_from(routing: TokenRouting) -> Callable[..., Tensor]:
    """Scaled-dot-product attention from the queries of the tokens that are let in; all are keys."""

    def attention(query: Tensor, key: Tensor, value: Tensor, attn_mask: Tensor | None = None, **kwargs: Any) -> Tensor:
        rows = routing.queries
        if rows is None or query.shape[2] != routing.length:  # (B, H, S, D)
            return F.scaled_dot_product_attention(query, key, value, attn_mask=attn_mask, **kwargs)
        index = rows[:, None, :, None]  # (B, 1, M, 1)
        if attn_mask is not None and attn_mask.shape[-2] > 1:
            per_query = index.expand(-1, attn_mask.shape[1], -1, attn_mask.shape[-1])
            attn_mask = attn_mask.expand(len(query), -1, -1, -1).gather(2, per_query)
        some = query.gather(2, index.expand(-1, query.shape[1], -1, query.shape[3]))
        out = F.scaled_dot_product_attention(some, key, value, attn_mask=attn_mask, **kwargs)  # (B, H, M, D)
        whole = out.new_zeros(*query.shape[:3], out.shape[-1])
        return whole.scatter(2, index.expand(-1, out.shape[1], -1, out.shape[-1]), out)

    return attention
