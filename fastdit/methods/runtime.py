"""What a method meets while it runs: the host it is attached to, and the facts of one forward."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol

import torch
from torch import nn

from fastdit.core.layout import TokenLayout
from fastdit.core.ledger import PatchLedger
from fastdit.core.report import MethodReport
from fastdit.models.base import BlockGroup, ModelFamily

if TYPE_CHECKING:  # it loads torch's compiler, which a list of methods does not need
    from fastdit.attention.processor import ProcessorWrapper


@dataclass
class Host:
    """One transformer under acceleration, or its skeleton on the meta device."""

    label: str  # the pipeline's component name
    module: nn.Module
    family: ModelFamily
    wrappers: list[ProcessorWrapper] = field(default_factory=list)
    reduced: set[int] = field(default_factory=set)  # blocks whose attention sees fewer tokens in the forward to come

    def blocks(self) -> list[tuple[str, nn.Module, BlockGroup]]:
        return self.family.blocks(self.module)


@dataclass(frozen=True)
class Forward:
    """One transformer forward, about to begin. `step_index` is -1 outside a run."""

    layout: TokenLayout
    batch: int
    noise: float
    step_index: int = -1
    num_steps: int = 0
    pass_index: int = 0
    device: torch.device | None = None
    dtype: torch.dtype = torch.float32


def idle_reasons(runtimes: Sequence[Runtime], layout: TokenLayout, noises: Sequence[float]) -> list[str | None]:
    """For each runtime None if it will act in a run with these noise levels, or the reason why not."""
    reduced = [frozenset().union(*(runtime.reduces(layout, noise) for runtime in runtimes)) for noise in noises]
    return [runtime.acts(layout, noises, reduced) for runtime in runtimes]


def carry_out(runtimes: Sequence[Runtime], plans: Sequence[Any], forward: Forward, host: Host) -> None:
    """Make the next forward of the host run by these plans; token methods tell kernels which blocks they reduce."""
    host.reduced.clear()
    for runtime, plan in zip(runtimes, plans, strict=True):
        runtime.apply(plan, forward)


class Runtime(Protocol):
    """A method at work on one host. A plan is a pure decision; applying it changes what the wrappers do."""

    report: MethodReport

    @property
    def uses_attention(self) -> bool:
        """Whether the method acts through the processor wrappers."""

    def install(self, ledger: PatchLedger) -> None:
        """Install block hooks, through the ledger."""

    def start(self) -> None:
        """A run begins or ends: drop the state of the last one."""

    def reduces(self, layout: TokenLayout, noise: float) -> frozenset[int]:
        """The blocks whose attention sees fewer tokens at this noise."""

    def acts(self, layout: TokenLayout, noises: Sequence[float], reduced: Sequence[frozenset[int]] = ()) -> str | None:
        """None if the method will do something at these noise levels, otherwise the reason why not.

        `reduced` are the blocks that other methods reduce in each step, if any do.
        """

    def plan(self, forward: Forward) -> Hashable:
        """The decision for one forward; None: do nothing."""

    def apply(self, plan: Any, forward: Forward) -> None:
        """Make the next forward of the host run by this plan."""

    def book(self, plan: Any, forward: Forward) -> float:
        """Enter the plan in the report; returns the density for the step's row."""
