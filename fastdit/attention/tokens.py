"""What a token method decides for one forward, and the reduction it has found for the tokens at hand."""

from dataclasses import dataclass, field
from typing import Literal, Protocol

import torch
from torch import Tensor

from fastdit.core.layout import TokenLayout
from fastdit.ops.reduction import Reduction
from fastdit.ops.rotary import grid_positions, rows_at

Side = Literal["both", "q", "kv"]


@dataclass
class Match:
    """A reduction together with the rotary rows of the reduced tokens, made when first asked for."""

    reduction: Reduction
    _rows: tuple[Tensor, Tensor] | None = field(default=None, repr=False)

    def rotary_rows(self, cos: Tensor, sin: Tensor, layout: TokenLayout) -> tuple[Tensor, Tensor]:
        """Tables (N, ...) of the visual tokens at the reduced tokens' mean positions: (B or 1, M, ...)."""
        if self._rows is None:
            positions = grid_positions(*layout.grid, device=cos.device)  # (N, 3)
            mean = self.reduction.reduce(positions.expand(len(self.reduction.assign), -1, -1))  # (B, M, 3)
            self._rows = rows_at((cos, sin), layout.grid, mean)
        return self._rows


class TokenMatcher(Protocol):
    """Finds the reduction for the tokens of one call, or hands out the one that an earlier call has found."""

    def match(self, visual: Tensor) -> Match:
        """From visual tokens (B, N, C)."""


@dataclass(frozen=True)
class TokenStep:
    """What the attention calls of one forward do to their tokens; with `cross`, keys and mask are those of the text."""

    layout: TokenLayout
    matcher: TokenMatcher
    side: Side = "both"
    proportional: bool = False
    cross: bool = False


def split(hidden_states: Tensor, layout: TokenLayout) -> tuple[Tensor, Tensor, Tensor]:
    """(text before, visual, text behind) of a joint or purely visual sequence (B, S, C)."""
    extra = hidden_states.shape[1] - layout.tokens
    first = extra if layout.text == "first" else 0
    return tuple(hidden_states.split([first, layout.tokens, extra - first], dim=1))  # type: ignore[return-value]


def reduce_rotary(
    tables: tuple[Tensor, Tensor], axis: int, layout: TokenLayout, match: Match
) -> tuple[tuple[Tensor, Tensor], ...]:
    """Rotary tables with the visual rows reduced, one pair per distinct sample; text rows are kept.

    `axis` is the row axis. Tables with a batch axis (axis 1) come back with one, as a single pair.
    """
    cos, sin = (table.movedim(axis, 0) for table in tables)  # (S, ...); a batch axis of 1 comes second
    text = len(cos) - layout.tokens
    first = text if layout.text == "first" else 0
    visual = slice(first, first + layout.tokens)
    if axis == 1:
        cos, sin = cos[:, 0], sin[:, 0]
    rows = match.rotary_rows(cos[visual], sin[visual], layout)  # (B, M, ...) twice
    if axis == 1:
        return (rows,)

    def whole(table: Tensor, reduced: Tensor) -> Tensor:
        return torch.cat([table[:first], reduced, table[first + layout.tokens :]])

    return tuple((whole(cos, c), whole(sin, s)) for c, s in zip(*rows, strict=True))


def reduce_mask(mask: Tensor | None, removed: int, sequence: int, layout: TokenLayout) -> Tensor | None:
    """A key mask (..., S) over a joint sequence without `removed` of its visual entries; other masks are unchanged.

    Hosts mask padded text only, so the visual entries are all alike and any of them may go.
    """
    if mask is None or mask.shape[-1] != sequence:
        return mask
    first = sequence - layout.tokens if layout.text == "first" else 0
    return torch.cat([mask[..., :first], mask[..., first + removed :]], dim=-1)


def check_maskless(mask: Tensor | None, layout: TokenLayout) -> None:
    """Refuse a mask over the visual tokens themselves where there is no text: no host sets one."""
    if mask is not None and layout.text == "none":
        raise ValueError(
            "attention_mask over image or video tokens cannot be combined with token merging: leave it out"
        )
