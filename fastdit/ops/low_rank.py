"""Low-rank changes of linear layers whose up matrices are mixed by the timestep (TD-LoRA-style, after DyDiT++)."""

import torch
from torch import Tensor
from torch.nn import functional as F


def up_shares(embedding: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """Share of each up matrix: a = softmax(W E_t + b), from embedded timesteps (B, C) to (B, K), in float32."""
    return F.linear(embedding.float(), weight.float(), bias.float()).softmax(-1)


def folded_change(down: Tensor, up: Tensor, shares: Tensor | None = None) -> Tensor:
    """The change of a weight (out, in) in float32: sum_k a_k B_k A, from down A (r, in), up B (K, out, r), shares (K).

    Without shares there must be one up matrix.
    """
    return _mixed(up.float(), None if shares is None else shares[None])[0] @ down.float()


def low_rank_change(hidden_states: Tensor, down: Tensor, up: Tensor, shares: Tensor | None = None) -> Tensor:
    """The change of a layer's output (B, ..., out), from its input (B, ..., in) and each sample's shares (B, K)."""
    inner = F.linear(hidden_states, down.to(hidden_states.dtype))  # (B, ..., r)
    mixed = _mixed(up, shares).to(inner.dtype)  # (B, out, r), or (1, out, r) for all
    if len(mixed) == 1:
        return F.linear(inner, mixed[0])
    rows = inner.reshape(len(inner), -1, inner.shape[-1])  # (B, M, r)
    return torch.matmul(rows, mixed.mT).reshape(*inner.shape[:-1], mixed.shape[1])


def _mixed(up: Tensor, shares: Tensor | None) -> Tensor:
    """Up matrices (K, out, r) by shares (B, K) to (B, out, r): before the product, where they are small."""
    if shares is None:
        if len(up) != 1:
            raise ValueError(f"{len(up)} up matrices need the share of each")
        return up
    return torch.einsum("bk,kor->bor", shares.to(up.dtype), up)
