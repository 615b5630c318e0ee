"""A sparse kernel in the place of a host's scaled-dot-product call: its mask, its text, its order of tokens."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from fastdit.attention.backends import sdpa
from fastdit.attention.backends.base import Choice
from fastdit.attention.sparse import choose_backend, executed_pairs, sparse_attention
from fastdit.core.macs import attention_macs, book_macs
from fastdit.ops.tile_order import inverse_order


@dataclass(eq=False)
class SparseKernel:
    """Answers `F.scaled_dot_product_attention` over [visual | text] tokens by block-sparse attention.

    `mask` is that of the whole sequence, `block_size` its unit. `order` (N,), if given, lists the visual tokens in the
    order that the mask is made for; the result comes back in the host's own. `chosen` is told which backend is taken.
    """

    mask: Tensor  # (nb, nb)
    block_size: int
    tokens: int  # visual and text
    backend: str = "auto"
    order: Tensor | None = None  # (N,), N <= tokens
    chosen: Callable[[Choice], None] = lambda choice: None
    _lengths: dict[tuple, list[int] | None] = field(default_factory=dict)
    _orders: dict[torch.device, tuple[Tensor, Tensor]] = field(default_factory=dict)
    pairs: int = field(init=False)  # query-key pairs that one head and sample keeps, all text valid
    computed: int = field(init=False)  # those that are multiplied: short sequences run dense under the mask

    def __post_init__(self) -> None:
        self.pairs = executed_pairs(self.mask, self.block_size, self.tokens)
        masked = self.tokens <= sdpa.SHORT_SEQUENCE and self.backend in ("auto", "sdpa")
        self.computed = self.tokens**2 if masked else self.pairs

    def __call__(
        self, query: Tensor, key: Tensor, value: Tensor, attn_mask: Tensor | None = None, **options: Any
    ) -> Tensor:
        """query, key, value (B, H, S, D) -> (B, H, S, D); attn_mask, if any, tells the valid text (B, 1, 1, S)."""
        self._check(query, key, options)
        if query.is_meta:  # the count of MACs; how much text is valid is not known there
            book_macs(query.shape[0] * attention_macs(1, self.computed, query.shape[1] * query.shape[3]))
            return torch.empty_like(query)
        if torch.is_autocast_enabled(query.device.type):  # PyTorch's own call is cast so before it runs
            dtype = torch.get_autocast_dtype(query.device.type)
            query, key, value = query.to(dtype), key.to(dtype), value.to(dtype)
        lengths = self._valid(attn_mask, query.shape[0])
        q, k, v = (self._ordered(x.transpose(1, 2)) for x in (query, key, value))  # (B, S, H, D)
        about: dict[str, Any] = {"block_size": self.block_size, "kv_length": lengths}
        choice = choose_backend(q, self.mask, backend=self.backend, **about)
        self.chosen(choice)
        out = sparse_attention(q, k, v, self.mask, backend=choice, **about)
        return self._ordered(out, back=True).transpose(1, 2)

    @property
    def density(self) -> float:
        """The share of query-key pairs that is kept."""
        return self.pairs / self.tokens**2

    def forget(self) -> None:
        """A new forward begins: masks of text may have changed."""
        self._lengths.clear()

    def _check(self, query: Tensor, key: Tensor, options: dict[str, Any]) -> None:
        if query.shape[2] != self.tokens or key.shape[2] != self.tokens:
            raise RuntimeError(
                f"the attention call has {query.shape[2]} queries and {key.shape[2]} keys where {self.tokens} tokens "
                "are expected: something else changes the sequence; remove it or the sparse method"
            )
        scale = options.get("scale")
        usual = scale is None or abs(scale * query.shape[-1] ** 0.5 - 1) < 1e-6
        if options.get("dropout_p") or options.get("is_causal") or not usual:
            raise RuntimeError(
                f"the attention call asks for {options}: it knows no dropout, no causal mask and only the "
                "scale 1/sqrt(head_dim); run this model without the sparse method"
            )

    def _valid(self, mask: Tensor | None, batch: int) -> list[int] | None:
        """How many leading keys of each sample are valid; read once per forward, as it waits for the device."""
        if mask is None:
            return None
        key = (mask.data_ptr(), tuple(mask.shape), mask.stride())
        if key not in self._lengths:
            self._lengths[key] = valid_lengths(mask, batch)
        return self._lengths[key]

    def _ordered(self, x: Tensor, back: bool = False) -> Tensor:
        """x (B, S, H, D) with its visual tokens in the mask's order, or from that back in the host's."""
        if self.order is None:
            return x
        if x.device not in self._orders:
            with torch.inference_mode(False):  # kept, and training refuses inference tensors
                rest = torch.arange(len(self.order), self.tokens, device="cpu")
                whole = torch.cat([self.order, rest])  # (S,)
                self._orders[x.device] = whole.to(x.device), inverse_order(whole).to(x.device)
        return x.index_select(1, self._orders[x.device][back])


def valid_lengths(mask: Tensor, batch: int) -> list[int] | None:
    """Of a boolean key mask (B or 1, 1, 1, S) the number of leading valid keys per sample; None if all are.

    ValueError for masks of another kind: one per query, additive, or with gaps.
    """
    if mask.dtype != torch.bool or mask.ndim != 4 or mask.shape[1:3] != (1, 1):
        raise ValueError(
            f"attention_mask of {mask.dtype} and shape {tuple(mask.shape)} is no mask of padded text: sparse attention "
            "takes booleans (batch, 1, 1, tokens)"
        )
    rows = mask[:, 0, 0].expand(batch, -1)  # (B, S)
    lengths = rows.sum(1)
    if not bool((rows.cumsum(1)[torch.arange(batch, device=rows.device), (lengths - 1).clamp(min=0)] == lengths).all()):
        raise ValueError("attention_mask has gaps: sparse attention wants valid text first and padding behind it")
    found: list[int] = lengths.tolist()
    return None if min(found) == rows.shape[1] else found
