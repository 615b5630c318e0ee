"""How much of the true attention a block mask keeps: the measure by which masks of equal density are compared."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from fastdit.ops.tile_order import inverse_order

CHUNK = 2**23  # scores at a time: 32 MB in fp32


@torch.no_grad()
def block_mass(
    q: Tensor, k: Tensor, *, block_size: int = 128, order: Tensor | None = None, rows: Tensor | None = None
) -> Tensor:
    """The attention of query tokens `rows` to every key block: (B, H, R, nb) fp32, each row sums to 1.

    q, k are (B, S, H, D), scores scaled by 1/sqrt(D). Key block j holds the tokens order[j block_size :][:block_size],
    for `order` a permutation (S,), or None for 0, 1, 2, ...; `rows` (R,) are token numbers, None for all. ValueError
    for shapes that do not fit.
    """
    _check(q, k, block_size, order)
    batch, tokens, heads, channels = k.shape
    blocks = -(-tokens // block_size)
    rows = torch.arange(tokens, device=q.device) if rows is None else rows.to(q.device)
    ordered = k if order is None else k.index_select(1, order.to(k.device))
    keys = ordered.float().permute(0, 2, 3, 1)  # (B, H, D, S)
    mass = torch.zeros(batch, heads, len(rows), blocks, device=q.device)
    step = max(1, CHUNK // tokens)
    for b in range(batch):
        for h in range(heads):
            for first in range(0, len(rows), step):
                some = rows[first : first + step]
                queries = q[b, some, h].float() / math.sqrt(channels)  # (r, D)
                weights = (queries @ keys[b, h]).softmax(-1)  # (r, S)
                mass[b, h, first : first + step] = _sum_blocks(weights, block_size)
    return mass


def attention_recall(
    q: Tensor,
    k: Tensor,
    masks: Sequence[Tensor],
    orders: Sequence[Tensor | None] | None = None,
    *,
    block_size: int = 128,
    rows: int | None = None,
) -> Tensor:
    """The share of the true softmax attention that each block mask keeps, a mean over queries: (masks, B, H) fp32.

    q, k are (B, S, H, D) in the user's order. Mask i, bool (nb, nb), holds for the tokens in the order orders[i], a
    permutation (S,) from new to old places, or None for as they are. `rows` takes that many evenly spaced query tokens,
    the same ones for every mask, None all of them. ValueError for shapes that do not fit or if rows is outside [1, S].
    """
    tokens = q.shape[1]
    orders = [None] * len(masks) if orders is None else list(orders)
    if len(orders) != len(masks):
        raise ValueError(f"orders has {len(orders)} entries for {len(masks)} masks; give one for each, None for raster")
    if rows is not None and not 1 <= rows <= tokens:
        raise ValueError(f"rows={rows} is outside [1, {tokens}], the number of tokens")
    count = tokens if rows is None else rows
    some = torch.arange(count, device=q.device) * tokens // count  # (R,)

    recall = q.new_zeros(len(masks), q.shape[0], q.shape[2], dtype=torch.float32)
    for order in {id(order): order for order in orders}.values():
        mass = block_mass(q, k, block_size=block_size, order=order, rows=some)  # (B, H, R, nb)
        place = some if order is None else inverse_order(order.to(q.device))[some]
        for i, mask in enumerate(masks):
            if orders[i] is order:
                if mask.shape != (mass.shape[-1],) * 2:
                    raise ValueError(f"masks[{i}] has shape {tuple(mask.shape)}, not {(mass.shape[-1],) * 2}")
                kept = mask.to(q.device)[place // block_size]  # (R, nb)
                recall[i] = (mass * kept).sum(-1).mean(-1)
    return recall


def _sum_blocks(weights: Tensor, block_size: int) -> Tensor:
    """Sums of (R, S) over blocks of columns, the last of which may be short: (R, nb)."""
    whole = weights.shape[1] // block_size * block_size
    sums = weights[:, :whole].unflatten(1, (-1, block_size)).sum(-1)  # (R, whole blocks)
    rest = weights[:, whole:]
    return torch.cat([sums, rest.sum(-1, keepdim=True)], 1) if rest.shape[1] else sums


def _check(q: Tensor, k: Tensor, block_size: int, order: Tensor | None) -> None:
    if q.ndim != 4 or q.shape != k.shape:
        raise ValueError(f"q and k have shapes {tuple(q.shape)} and {tuple(k.shape)}; give (B, S, H, D) twice")
    if not 1 <= block_size <= q.shape[1]:
        raise ValueError(f"block_size={block_size} is outside [1, {q.shape[1]}], the number of tokens")
    if order is not None and order.shape != (q.shape[1],):
        raise ValueError(f"order has shape {tuple(order.shape)}; {q.shape[1]} tokens need ({q.shape[1]},)")
