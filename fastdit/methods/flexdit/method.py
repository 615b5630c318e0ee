"""FlexDiT at work on one transformer: the grid of each forward, and the roles of the blocks."""

from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager
from operator import attrgetter
from typing import Any

import torch
from torch import Tensor

from fastdit.core.layout import TokenLayout
from fastdit.core.ledger import PatchLedger
from fastdit.core.report import MethodReport
from fastdit.methods.flexdit.blocks import Generate, GridBlock, GridPlan, Passage, PooledAttention, Recover, Recoveries
from fastdit.methods.flexdit.config import FlexDiT
from fastdit.methods.flexdit.low_rank import LowRankLayers
from fastdit.methods.flexdit.structure import structure_of
from fastdit.methods.guidance import GuidedChannels
from fastdit.methods.lora import LowRank
from fastdit.methods.runtime import Forward, Host
from fastdit.ops.token_grid import Grid


class FlexDiTRuntime:
    """Chooses the sparse grid once a forward, by its timestep, and tells it to the blocks."""

    def __init__(self, method: FlexDiT, host: Host) -> None:
        self.method, self.host = method, host
        adapter = method.adapter()
        self.shape, self.trained = structure_of(method, adapter.structure if adapter else None)
        self.roles = self.shape.roles(len(host.blocks()))
        self.changed = frozenset(index for index, role in enumerate(self.roles) if role != "dense")
        self.report = MethodReport(layers=len(self.roles))
        self._check_unfused()
        self.on_meta = any(parameter.is_meta for parameter in host.module.parameters())
        if method not in host.kept:
            host.kept[method] = self._new_module(adapter)
        self.module: Recoveries = host.kept[method]
        self.passage = Passage()
        self.guidance = GuidedChannels(method.guidance_channels)
        self.low_rank: LowRankLayers | None = None
        if adapter is not None and adapter.kind == "lora":
            self.low_rank = LowRankLayers(LowRank(adapter.lora_state()), host)
        self.grids: list[Grid] = []  # that this run has seen

    def _attentions(self) -> list[tuple[str, Any]]:
        """(name, self-attention) of every block that has a role of its own."""
        found = self.host.family.attentions(self.host.module)
        return [found[index] for index in sorted(self.changed)]

    def _width(self) -> int:
        attention: Any = self.host.family.attentions(self.host.module)[0][1]
        width: int = attention.to_q.in_features
        return width

    def _check_unfused(self) -> None:
        for name, attention in self._attentions():
            if getattr(attention, "fused_projections", False):
                raise ValueError(
                    f"flexdit takes queries and keys from different tokens, and the projections of {name} are fused: "
                    "call unfuse_qkv_projections()"
                )

    def _new_module(self, adapter: Any) -> Recoveries:
        with torch.device("meta" if self.on_meta else "cpu"):
            module = Recoveries(self.shape.modules, self._width())
        if adapter is not None and not self.on_meta:
            self._load(module, adapter.own_state())
        return module

    def _load(self, module: Recoveries, state: dict[str, Tensor]) -> None:
        try:
            module.load_state_dict(state)
        except RuntimeError as error:
            raise ValueError(
                f"checkpoint {self.method.checkpoint} does not hold the recovery layers of this model: "
                f"{' '.join(str(error).split())}"
            ) from None

    @property
    def uses_attention(self) -> bool:
        return False

    def install(self, ledger: PatchLedger) -> None:
        ledger.record("what stood in for blocks of FlexDiT", self._retire)
        recoveries: Iterator[Any] = iter(self.module.recover)
        for role, (name, block, group) in zip(self.roles, self.host.blocks(), strict=True):
            stand_in: GridBlock | None = None
            if role == "pooling":
                attention: Any = attrgetter(group.attention)(block)
                pooled = PooledAttention(attention, self.passage)
                ledger.set_attribute(attention, "forward", pooled, f"{name}.{group.attention}.forward")
            elif role == "generate":
                stand_in = Generate(block, group, self.passage)
            elif role == "recover":
                stand_in = Recover(block, group, self.passage, next(recoveries))
            if stand_in is not None:
                stand_in.install(name, group, block, ledger)
        if self.low_rank is not None:
            self.low_rank.install(ledger)
        self.guidance.install(self.host, ledger)

    def _retire(self) -> None:
        """What hooks of others still hold of the stand-ins passes through from now on."""
        self.passage.plan = self.passage.full = None

    def start(self) -> None:
        """The plan stays: gradient checkpointing may compute a block again after a run in between."""
        self.passage.full = None
        self.grids.clear()
        self.guidance.start()

    def reduces(self, layout: TokenLayout, noise: float) -> frozenset[int]:
        return self.changed

    def acts(self, layout: TokenLayout, noises: Sequence[float], reduced: Sequence[frozenset[int]] = ()) -> str | None:
        self.report.cautions.clear()
        if self.method.checkpoint is None and not self.method.neutral:
            self.report.cautions.append(
                "flexdit: this model was not trained for it: for measuring speed, the result is wrong"
            )
        return None

    def plan(self, forward: Forward) -> GridPlan | None:
        if not self.changed:
            return None
        self._check_unfused()
        grid = (forward.layout.height, forward.layout.width)
        if not self.shape.modules:
            return GridPlan(grid, grid)
        small = self._sparse_grid(grid, forward)
        if not forward.training:
            self._caution_untrained(grid, small)
        return GridPlan(grid, small)

    def _sparse_grid(self, grid: Grid, forward: Forward) -> Grid:
        """The one sparse grid that all samples of a forward lead to; ValueError where they do not agree."""
        if not isinstance(self.shape.rate, tuple) or self.shape.grid is not None:
            return self.shape.sparse_grid(grid)
        timestep, family = forward.timestep, self.host.family
        if timestep is None or timestep.is_meta:  # a prediction from the config alone
            return self.shape.sparse_grid(grid, family.time_of(forward.noise))
        times = family.time(timestep).tolist()
        found = {self.shape.sparse_grid(grid, time): time for time in times}
        if len(found) > 1:
            seen = ", ".join(f"{_text(small)} at t/T {time:.3f}" for small, time in found.items())
            raise ValueError(
                f"flexdit: the samples of one batch have timesteps of different token grids ({seen}): give "
                f"timesteps of one grid together, or fix it with a single rate such as rate={self.shape.rate[0]:g}"
            )
        return next(iter(found))

    def _caution_untrained(self, grid: Grid, small: Grid) -> None:
        if self.trained is None or self.shape == self.trained:
            return
        known = {self.trained.sparse_grid(grid, low) for low, _ in self.trained.intervals(grid)}
        if small not in known:
            text = (
                f"flexdit: the sparse grid {_text(small)} of {_text(grid)} tokens was not trained, "
                f"{_list(sorted(known, reverse=True))} was: the result may be worse"
            )
            if text not in self.report.cautions:
                self.report.cautions.append(text)

    def apply(self, plan: GridPlan | None, forward: Forward) -> None:
        self.passage.plan, self.passage.full = plan, None
        self.guidance.guided = forward.guided
        if plan is not None:
            self.host.reduced |= self.changed
        if forward.device is not None and not self.on_meta:
            self.module.to(forward.device)
        if self.low_rank is not None:
            self.low_rank.begin(forward, self.on_meta)

    def book(self, plan: GridPlan | None, forward: Forward) -> float:
        """The density is the mean share of tokens that attention has queries of."""
        density = 1.0
        if plan is not None:
            tokens, sparse = forward.layout.tokens, plan.small[0] * plan.small[1]
            queries = {"pooling": 1, "generate": sparse, "sparse": sparse}
            density = sum(queries.get(role, tokens) for role in self.roles) / (tokens * len(self.roles))
            self._note(plan)
        self.report.book(len(self.roles), density)
        return density

    def _note(self, plan: GridPlan) -> None:
        if self.shape.modules and plan.small not in self.grids:
            self.grids.append(plan.small)
        parts = [_count(self.shape.pooling, "pooled block")] if self.shape.pooling else []
        if self.shape.modules:
            modules = _count(self.shape.modules, "module")
            parts.append(f"{modules} on {_list(self.grids)} of {_text(plan.grid)} tokens")
        self.report.note = ", ".join(parts)

    def structure(self) -> dict[str, Any]:
        return self.shape.to_dict()

    def executed(self) -> Tensor | None:
        return None

    def opened(self) -> AbstractContextManager[None]:
        raise ValueError("flexdit has no complete model beside it to learn from: train without complete steps")

    def intervals(self, layout: TokenLayout) -> Sequence[tuple[float, float]]:
        return self.shape.intervals((layout.height, layout.width))


def _count(number: int, what: str) -> str:
    return f"{number} {what}" if number == 1 else f"{number} {what}s"


def _text(grid: Grid) -> str:
    return f"{grid[0]} x {grid[1]}"


def _list(grids: Sequence[Grid]) -> str:
    return ", ".join(_text(grid) for grid in grids)
