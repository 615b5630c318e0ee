"""DyDiT's own parameters: for each block a router of heads, one of channel groups, and one of tokens."""

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

WIDTH_BIAS, TOKEN_BIAS, TEXT_BIAS = 15.0, 35.0, 5.0  # published: everything is open at first


class TokenRouter(nn.Module):
    """Logits of tokens from the stream before the feed-forward layer: two layers, C -> C/16 -> 1. DyDiT, eq. 5."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.hidden = nn.Linear(width, max(1, width // 16))
        self.out = nn.Linear(max(1, width // 16), 1)
        nn.init.constant_(self.out.bias, TOKEN_BIAS)

    def forward(self, stream: Tensor, text: Tensor | None = None, condition: Tensor | None = None) -> Tensor:
        """Stream (B, N, C) to logits (B, N)."""
        return self.out(F.relu(self.hidden(stream))).squeeze(-1)


class TextTokenRouter(nn.Module):
    """Logits of image tokens that hang on text and timestep too, with a modulation of its own (DyFLUX)."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.modulation = nn.Linear(width, 4 * width)
        self.norm = nn.LayerNorm(width, eps=1e-5)
        self.out = nn.Linear(width, 1)
        nn.init.xavier_uniform_(self.out.weight)
        nn.init.constant_(self.out.bias, TEXT_BIAS)

    def forward(self, stream: Tensor, text: Tensor | None = None, condition: Tensor | None = None) -> Tensor:
        """Stream (B, N, C), text tokens (B, T, C) and condition (B, C) to logits (B, N)."""
        assert text is not None and condition is not None
        shift, scale, text_shift, text_scale = self.modulation(F.silu(condition))[:, None].chunk(4, dim=-1)  # (B, 1, C)
        image = self.norm(stream) * (1 + scale) + shift  # (B, N, C)
        words = self.norm(text) * (1 + text_scale) + text_shift  # (B, T, C)
        return self.out(image + words.mean(1, keepdim=True)).squeeze(-1)


class BlockRouters(nn.Module):
    """The routers of one block; `heads` and `channels` give one logit less than there are, as the first is kept."""

    def __init__(self, width: int, heads: int, groups: int, tokens: bool, text: bool) -> None:
        super().__init__()
        self.heads = width_router(width, heads)
        self.channels = width_router(width, groups)
        self.tokens = None if not tokens else TextTokenRouter(width) if text else TokenRouter(width)


class Routers(nn.Module):
    """All of them; `sizes` are (width, heads, groups) of each block, heads and groups 0 where width is not routed."""

    def __init__(self, sizes: list[tuple[int, int, int]], tokens: bool, text: bool) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(BlockRouters(*size, tokens, text) for size in sizes)


def width_router(width: int, parts: int) -> nn.Linear | None:
    """One layer from the embedded timestep (B, C) to logits of all parts but the first."""
    if parts == 0:
        return None
    router = nn.Linear(width, parts - 1)
    nn.init.xavier_uniform_(router.weight) if parts > 1 else None
    nn.init.constant_(router.bias, WIDTH_BIAS)
    return router


@torch.no_grad()
def close_at_random(routers: Routers, heads: float, channels: float) -> None:
    """Untrained routers that keep a share of heads and channels whatever the timestep, other ones in each block."""
    generator = torch.Generator().manual_seed(0)
    each: Any = routers.blocks
    for block in each:
        for router, share in ((block.heads, heads), (block.channels, channels)):
            if router is None or share == 1 or router.bias.is_meta:
                continue
            parts = router.out_features + 1
            kept = max(1, round(share * parts)) - 1
            router.weight.zero_()
            router.bias.fill_(-WIDTH_BIAS)
            router.bias[torch.randperm(parts - 1, generator=generator)[:kept]] = WIDTH_BIAS
