"""Gates: logits that open or close parts of a network, and rows that are left where gates over tokens are closed."""

import math

import torch
from torch import Tensor


def open_gates(logits: Tensor) -> Tensor:
    """The decision at inference: a gate is open where its logit is above 0 (its sigmoid above 1/2)."""
    return logits > 0


def gumbel_gates(logits: Tensor, temperature: float = 5.0) -> Tensor:
    """Straight-through Gumbel gates: 0 or 1 forwards, the gradient of a soft gate backwards.

    y = sigmoid((logits + g1 - g2) / temperature) with Gumbel noise g; the gate is 1[y > 1/2]. The temperature changes
    the gradient only: a gate is open with probability sigmoid(logit). Source: DyDiT (Zhao et al., ICLR 2025), eq. 3.
    """
    uniform = torch.rand_like(logits).clamp(1e-6, 1 - 1e-6)
    logistic = uniform.log() - (-uniform).log1p()  # the difference of two Gumbel variables
    soft = torch.sigmoid((logits + logistic) / temperature)
    return (soft > 0.5).to(soft.dtype) + (soft - soft.detach())


def with_first_open(gates: Tensor) -> Tensor:
    """Gates (..., n - 1) behind one that is always open (..., n), so that no layer is ever empty."""
    return torch.cat([torch.ones_like(gates[..., :1]), gates], dim=-1)


def spread(gates: Tensor, width: int) -> Tensor:
    """Gates (..., n) of n contiguous groups as gates of all their channels (..., width)."""
    return gates.repeat_interleave(width // gates.shape[-1], dim=-1)


def group_count(heads: int, channels: int) -> int:
    """Groups that feed-forward channels are cut into: as many as heads where that divides, else at most 32."""
    if channels % heads == 0:
        return heads
    return max(groups for groups in range(1, 33) if channels % groups == 0)


def top_rows(logits: Tensor, keep: int) -> Tensor:
    """Mask (B, N) of the `keep` highest logits of each sample."""
    kept = logits.topk(keep, dim=1, sorted=False).indices
    return torch.zeros_like(logits, dtype=torch.bool).scatter_(1, kept, True)


def top_flat(logits: Tensor, keep: int) -> Tensor:
    """Rows of `top_rows` in the flattened batch (B * keep,), rising; the number of rows never depends on the values."""
    kept = logits.topk(keep, dim=1, sorted=False).indices.sort(dim=1).values  # (B, keep)
    first = torch.arange(len(logits), device=logits.device)[:, None] * logits.shape[1]
    return (kept + first).flatten()


def share_of_rows(share: float, rows: int) -> int:
    """How many of `rows` a share keeps: the share goes to sixteenths, so that a model has few shapes."""
    return max(1, math.ceil(max(1, round(share * 16)) / 16 * rows))


def padded_rows(mask: Tensor) -> Tensor:
    """The open rows of each sample (B, M) of a mask (B, N), M the largest count; short ones repeat their first row.

    Every sample must have an open row.
    """
    longest = int(mask.sum(1).max())
    order = mask.to(torch.uint8).argsort(dim=1, descending=True, stable=True)[:, :longest]  # open ones first, in order
    return torch.where(mask.gather(1, order), order, order[:, :1])
