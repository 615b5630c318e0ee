"""What a method meets while it runs: the host it is attached to, and the facts of one forward."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

import torch
from torch import nn

from fastdit.core.clock import StepClock
from fastdit.core.layout import TokenLayout
from fastdit.core.ledger import PatchLedger
from fastdit.core.report import MethodReport, RunReport
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
    cross_wrappers: list[ProcessorWrapper] = field(default_factory=list)  # where a method needs "cross_attention"
    kept: dict[Any, Any] = field(default_factory=dict)  # what methods keep while `dense()` sets them aside
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
    timestep: torch.Tensor | None = None  # (B,) as the transformer takes it
    guided: bool = False  # the batch is the two halves of one guidance
    training: bool = False  # gradients are wanted


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


@runtime_checkable
class DataDependent(Protocol):
    """A runtime whose cost is known only once a forward is over."""

    def settle(self) -> tuple[int, float]:
        """MACs that the last forward did not do although its plan counts them, and the density that came out.

        Asked for once after each forward.
        """


class Weights(Protocol):
    """The weights of a pipeline's models, held by a load method."""

    @property
    def report(self) -> MethodReport:
        """Of the run that is under way, or the last."""

    @property
    def models(self) -> dict[str, nn.Module]:
        """The models by component name."""

    def start(self) -> None:
        """A run begins: a new report; RuntimeError where something else moves the weights as well."""

    def stop(self) -> None:
        """A run is over, whole or not: nothing is under way any more, and the report is complete."""

    def refit(self, method: Any) -> Weights:
        """The same weights under other settings; ValueError leaves these in place."""

    def give_back(self) -> None:
        """All weights are in memory as if the method had never been; MemoryError where they do not fit."""

    def refuse_saving(self) -> None:
        """RuntimeError that tells where the weights are, since they cannot be saved from here."""


@dataclass(frozen=True)
class PartForecast:
    """What a load method would do with one model: bytes of all weights, held while it runs, and read in one pass."""

    label: str
    weights: int
    units: int
    kept: int
    held: int
    read: int


class StepRuntime(Protocol):
    """A method at work on the steps of a pipeline: on its scheduler while a run is open."""

    report: MethodReport

    def check(self) -> None:
        """ValueError where the pipeline, or the scheduler that it has now, does not go with the method."""

    def open(self, clock: StepClock, ledger: PatchLedger) -> None:
        """A run begins, the clock is on the scheduler: go over it, through the run's ledger."""

    def start(self) -> None:
        """A loop of steps begins (a run may hold several): drop the state of the last one."""

    def acts(self, noises: Sequence[float]) -> str | None:
        """None if the method may do something in a run with these noise levels, otherwise the reason why not."""

    def close(self, report: RunReport) -> None:
        """The run is over, whole or not, and the ledger undone: enter what was done, and drop all state."""
