"""The account of a forward: which share of the routable work its plan promises, and which was done."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from fastdit.core.layout import TokenLayout
from fastdit.methods.dydit.blocks import RoutedBlock
from fastdit.methods.dydit.plan import DyDiTPlan
from fastdit.methods.dydit.work import BlockWork

MEMORY = 0.95  # of the running means


class Account:
    """Shares of heads, channels and tokens; `running` (L, 3) are their means, as training has seen them last."""

    def __init__(self, blocks: Sequence[RoutedBlock], running: Any) -> None:
        self.blocks = blocks
        self.running = None if running is None else torch.tensor(running)
        self.works: list[BlockWork] = []
        self.planned = 1.0

    def begin(self, plan: DyDiTPlan, layout: TokenLayout, norm_over_heads: bool) -> float:
        """The density that a plan promises: as if all tokens ran where the router decides."""
        self.works = [block.work(layout, norm_over_heads) for block in self.blocks]
        shares = [(block.shares if plan.form == "slice" else (1.0, 1.0)) for block in self.blocks]
        keep = plan.keep if plan.keep and plan.form == "slice" else [work.tokens for work in self.works]
        tokens = [kept / work.tokens for kept, work in zip(keep, self.works, strict=True)]
        self.planned = self._density([(*pair, t) for pair, t in zip(shares, tokens, strict=True)])
        return self.planned

    def settle(self, plan: DyDiTPlan) -> tuple[int, float, float | None]:
        """(MACs that tokens have spared, density, share of tokens) of the forward that is over."""
        if plan.form == "train":
            shares = self.of_gates().detach().mean(2).cpu()  # (L, 3)
            before = shares if self.running is None else self.running
            self.running = before.lerp(shares, 1 - MEMORY)
        if plan.form != "slice" or plan.keep:
            return 0, self.planned, None
        pairs = list(zip(self.blocks, self.works, strict=True))
        tokens = [1 - b.routing.passed / b.routing.tokens if b.routing.tokens else 1.0 for b in self.blocks]
        spared = sum(block.spared(work) for block, work in pairs)
        density = self._density([(*block.shares, share) for block, share in zip(self.blocks, tokens, strict=True)])
        routed = any(block.routing.tokens for block in self.blocks)
        return spared, density, sum(tokens) / len(tokens) if routed else None

    def _density(self, shares: Sequence[tuple[float, float, float]]) -> float:
        done = sum(work.macs(*own) for work, own in zip(self.works, shares, strict=True))
        return done / sum(work.macs(1.0, 1.0, 1.0) for work in self.works)

    def of_gates(self) -> Tensor:
        """Open shares (L, 3, B) of heads, channels and tokens in the last gated forward, with gradients."""
        rows = []
        for block in self.blocks:
            routing, gate = block.routing, block.routing.gate  # (B, S)
            like = block.gates[0] if block.gates else gate
            ones = torch.ones(1) if like is None else torch.ones(len(like), device=like.device)
            heads, channels = (g.float().mean(1) for g in block.gates) if block.gates else (ones, ones)
            visual = None if gate is None else gate[:, routing.before : gate.shape[1] - routing.behind]
            tokens = ones if visual is None else visual.float().mean(1).to(heads.device)
            rows.append(torch.stack([heads, channels, tokens]))
        return torch.stack(torch.broadcast_tensors(*rows))

    def executed(self) -> Tensor:
        """Share (B,) of the routable work in the last gated forward, with gradients (DyDiT's FLOPs-aware loss)."""
        done: Any = sum(work.macs(*shares) for work, shares in zip(self.works, self.of_gates(), strict=True))
        executed: Tensor = done / sum(work.macs(1.0, 1.0, 1.0) for work in self.works)
        return executed
