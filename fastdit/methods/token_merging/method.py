"""TokenMerging at work on one transformer."""

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from fastdit.attention.tokens import Match, TokenStep
from fastdit.core.layout import TokenLayout
from fastdit.core.ledger import PatchLedger
from fastdit.core.report import MethodReport
from fastdit.methods.runtime import Forward, Host
from fastdit.methods.token_merging.block import MergedBlock
from fastdit.methods.token_merging.config import TokenMerging
from fastdit.ops.reducers import REDUCERS, Reducer
from fastdit.ops.reduction import Reduction


@dataclass(frozen=True)
class MergePlan:
    """Reduce to `rows` tokens; `refresh`: find new matchings instead of reusing the last ones."""

    rows: int
    refresh: bool


@dataclass
class Slot:
    """The matching that some blocks share, for one pass of the guidance."""

    match: Match | None = None


@dataclass(frozen=True)
class Finder:
    """Finds a matching for the tokens at hand and leaves it in the slot."""

    slot: Slot
    reducer: Reducer
    layout: TokenLayout
    rows: int

    def match(self, visual: Tensor) -> Match:
        self.slot.match = Match(self.reducer.find(visual, self.rows, self.layout.grid))
        return self.slot.match


@dataclass(frozen=True)
class Follower:
    """Hands out the matching that an earlier block or step has left in the slot."""

    slot: Slot

    def match(self, visual: Tensor) -> Match:
        if self.slot.match is None:
            raise RuntimeError(
                "a block wants to reuse a matching that was never made, as something (a diffusers cache?) skipped the "
                "block that makes it: use reuse_blocks=1 and reuse_steps=1, or switch the cache off"
            )
        return self.slot.match


@dataclass
class TokenMergingRuntime:
    """Decides rows and refreshes per forward, and hands the wrappers (or merged blocks) their token step."""

    method: TokenMerging
    host: Host
    report: MethodReport = field(default_factory=MethodReport)

    def __post_init__(self) -> None:
        depth = len(self.host.blocks())
        low, high = (round(share * depth) for share in self.method.layers)
        low = min(low, depth - 1)
        self.layers = range(low, max(high, low + 1))  # at least one layer
        self.report.layers = len(self.layers)
        self.reducer = REDUCERS[self.method.reducer]
        self.merged_blocks: dict[int, MergedBlock] = {}
        self.start()

    @property
    def uses_attention(self) -> bool:
        return self.method.scope == "attention"

    def install(self, ledger: PatchLedger) -> None:
        if self.uses_attention:
            return
        for index, (name, block, group) in enumerate(self.host.blocks()):
            if index in self.layers:
                self.merged_blocks[index] = MergedBlock(block, group, self.host.family.rotary, self.reducer)
                ledger.set_attribute(block, "forward", self.merged_blocks[index], f"{name}.forward")

    def start(self) -> None:
        self.slots: dict[tuple[int, int], Slot] = {}  # (pass, group of blocks) -> its matching
        self.last: dict[int, tuple] = {}  # pass -> what its matchings were found for, and at which step
        for wrapper in self.host.wrappers if self.uses_attention else ():
            wrapper.tokens = None
        for block in self.merged_blocks.values():
            block.step = None

    def tokens(self, layout: TokenLayout) -> int:
        """Tokens that may be merged: in block scope the host's protected rows are left out."""
        return layout.tokens - (0 if self.uses_attention else layout.protected)

    def rows(self, layout: TokenLayout, noise: float) -> int:
        low, high = self.method.noise
        if not low <= noise <= high:
            return self.tokens(layout)
        return self.reducer.rows(self.method.density.quantised(noise), self.mergeable(layout).grid)

    def mergeable(self, layout: TokenLayout) -> TokenLayout:
        """The grid that is merged: without the protected leading frames in block scope."""
        if self.uses_attention or not layout.protected:
            return layout
        frames = layout.frames - layout.protected // (layout.height * layout.width)
        return TokenLayout(frames, layout.height, layout.width, layout.text_length, layout.text)

    def reduces(self, layout: TokenLayout, noise: float) -> frozenset[int]:
        return frozenset(self.layers if self.rows(layout, noise) < self.tokens(layout) else ())

    def acts(self, layout: TokenLayout, noises: Sequence[float], reduced: Sequence[frozenset[int]] = ()) -> str | None:
        if any(self.rows(layout, noise) < self.tokens(layout) for noise in noises):
            return None
        low, high = self.method.noise
        return (
            f"density {self.method.density} within noise {low:g}:{high:g} keeps all {self.tokens(layout)} tokens "
            f"at every step of this run: lower density or widen the noise range"
        )

    def plan(self, forward: Forward) -> MergePlan | None:
        rows = self.rows(forward.layout, forward.noise)
        if rows >= self.tokens(forward.layout):
            self.last.pop(forward.pass_index, None)  # what follows a dense step finds its tokens anew
            return None
        found = (forward.layout, forward.batch, rows)
        before, at_step = self.last.get(forward.pass_index, (None, 0))
        refresh = found != before or not 0 <= forward.step_index < at_step + self.method.reuse_steps
        if refresh:
            self.last[forward.pass_index] = found, forward.step_index
        return MergePlan(rows, refresh)

    def apply(self, plan: MergePlan | None, forward: Forward) -> None:
        layout = self.mergeable(forward.layout)
        shared = self.method.reuse_blocks or len(self.layers)
        for index in range(len(self.host.blocks())):
            step = None
            if plan is not None and index in self.layers:
                self.host.reduced.add(index)
                group, place = divmod(index - self.layers.start, shared)
                slot = self.slots.setdefault((forward.pass_index, group), Slot())
                if plan.refresh and place == 0:
                    matcher: Finder | Follower = Finder(slot, self.reducer, layout, plan.rows)
                else:
                    matcher = Follower(slot)
                    if slot.match is None and not plan.refresh:  # only when counting MACs on the meta device
                        slot.match = Match(_placeholder(layout.tokens, plan.rows))
                step = TokenStep(layout, matcher, self.method.tokens, self.method.proportional)  # type: ignore[arg-type]
            if self.uses_attention:
                self.host.wrappers[index].tokens = step
            elif index in self.merged_blocks:
                self.merged_blocks[index].step = step
                self.merged_blocks[index].protected = forward.layout.protected

    def book(self, plan: MergePlan | None, forward: Forward) -> float:
        density = 1.0 if plan is None else plan.rows / self.tokens(forward.layout)
        self.report.book(len(self.layers), density)
        return density


def _placeholder(tokens: int, rows: int) -> Reduction:
    """A reduction of the right shape, for counting."""
    return Reduction(torch.zeros(1, tokens, dtype=torch.long, device="meta"), rows)
