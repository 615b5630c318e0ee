"""TemporalTokenMerging at work on one transformer."""

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from fastdit.attention.tokens import Match, TokenStep
from fastdit.core.layout import TokenLayout
from fastdit.core.ledger import PatchLedger
from fastdit.core.report import MethodReport
from fastdit.methods.runtime import Forward, Host
from fastdit.methods.temporal_token_merging.config import TemporalTokenMerging
from fastdit.methods.temporal_token_merging.guard import MotionGuard
from fastdit.ops.temporal import Groups, frame_groups, kept_apart, merge_frames


@dataclass(frozen=True)
class TemporalPlan:
    """The groups of frames of each sample, or in one entry those of all samples."""

    groups: tuple[Groups, ...]


@dataclass(frozen=True, eq=False)
class Frames:
    """Hands out the match of given groups of frames, whatever the tokens are, made once for each device."""

    groups: Groups
    layout: TokenLayout
    made: dict[torch.device, Match] = field(default_factory=dict)

    def match(self, visual: Tensor) -> Match:
        if visual.device not in self.made:
            self.made[visual.device] = Match(merge_frames(self.groups, self.layout.grid, visual.device))
        return self.made[visual.device]


@dataclass
class TemporalRuntime:
    """Decides the groups of a forward, and hands the wrappers their token step."""

    method: TemporalTokenMerging
    host: Host
    report: MethodReport = field(default_factory=MethodReport)

    def __post_init__(self) -> None:
        self.report.layers = len(self.host.blocks())
        threshold = self.method.motion_guard
        self.guard = None if threshold is None else MotionGuard(threshold, self.host)
        self.start()

    @property
    def uses_attention(self) -> bool:
        return True

    def install(self, ledger: PatchLedger) -> None:
        if self.guard is not None:
            self.guard.install(ledger)

    def start(self) -> None:
        # summed over the forwards within the range: frames that attend, groups that merge and that could
        self.attended, self.merged, self.possible, self.forwards = 0.0, 0.0, 0, 0
        if self.guard is not None:
            self.guard.forget()
        for wrapper in (*self.host.wrappers, *self.host.cross_wrappers):
            wrapper.tokens = None

    def groups(self, layout: TokenLayout, noise: float, step: int = 0) -> Groups | None:
        """What is merged at this noise and step if no guard objects; None if nothing is."""
        low, high = self.method.noise
        if not low <= noise <= high:
            return None
        about = layout.frames, self.method.group, self.host.family.causal_frames
        groups = frame_groups(*about, offset=step if self.method.alternate else 0)
        if len(groups) == layout.frames:  # only two frames can merge, and no other groups hold both
            groups = frame_groups(*about)
        return groups if len(groups) < layout.frames else None

    def reduces(self, layout: TokenLayout, noise: float) -> frozenset[int]:
        # with a guard too: what a step does to one sample must not hang on what another one's guard finds
        return frozenset(range(self.report.layers) if self.groups(layout, noise) else ())

    def acts(self, layout: TokenLayout, noises: Sequence[float], reduced: Sequence[frozenset[int]] = ()) -> str | None:
        steps = [index for index, noise in enumerate(noises) if self.groups(layout, noise)]
        low, high = self.method.noise
        if self.method.neutral:
            return "group 1 merges no frames: take 2 or more"
        if not any(low <= noise <= high for noise in noises):
            return f"no step of this run has noise within {low:g}:{high:g}: widen the noise range"
        if not steps:
            alone = ", and the first stays alone" if self.host.family.causal_frames else ""
            return f"{layout.frames} latent frames leave no two to merge{alone}: raise num_frames"
        if self.guard is not None and steps == [0]:
            return (
                f"the motion guard knows nothing before the first step, the only one with noise within {low:g}:{high:g}"
                ": widen the noise range, take more steps or leave out motion_guard"
            )
        return None

    def plan(self, forward: Forward) -> TemporalPlan | None:
        groups = self.groups(forward.layout, forward.noise, max(forward.step_index, 0))
        if self.guard is None or self.method.neutral:
            return None if groups is None else TemporalPlan((groups,))
        if forward.step_index < 0:
            raise ValueError(
                "motion_guard compares with the step before in a pipeline's run, and this transformer is called "
                "outside of one: leave it out (motion_guard=None)"
            )
        self.guard.watch(forward)
        return None if groups is None else TemporalPlan(self.guarded(groups, forward))

    def guarded(self, groups: Groups, forward: Forward) -> tuple[Groups, ...]:
        """The groups that the guard leaves of these, for each sample, or in one entry where all agree."""
        assert self.guard is not None
        if forward.device is None and forward.step_index > 0:  # a prediction from the config alone
            return (groups,)
        apart = self.guard.apart(forward)
        if apart is None:
            return ((1,) * forward.layout.frames,)
        each = tuple(kept_apart(groups, pairs) for pairs in apart)
        return each[:1] if len(set(each)) == 1 else each

    def apply(self, plan: TemporalPlan | None, forward: Forward) -> None:
        if plan is not None:
            self.host.reduced.update(range(self.report.layers))
        groups = ((1,) * forward.layout.frames,) if plan is None else plan.groups
        frames = {own: Frames(own, forward.layout) for own in groups if len(own) < forward.layout.frames}
        for wrappers, cross in ((self.host.wrappers, False), (self.host.cross_wrappers, True)):
            steps = tuple(
                TokenStep(forward.layout, frames[own], cross=cross) if own in frames else None for own in groups
            )
            for wrapper in wrappers:
                wrapper.tokens = steps if len(steps) > 1 else steps[0]

    def book(self, plan: TemporalPlan | None, forward: Forward) -> float:
        frames = forward.layout.frames
        density = 1.0 if plan is None else sum(map(len, plan.groups)) / len(plan.groups) / frames
        self.report.book(self.report.layers, density)
        if plan is not None:
            self.note(plan, forward)
        return density

    def note(self, plan: TemporalPlan, forward: Forward) -> None:
        """Tell in the report what is merged, or that the guard has kept everything apart so far."""
        whole = self.groups(forward.layout, forward.noise, max(forward.step_index, 0))
        assert whole is not None
        self.forwards += 1
        self.possible += merged_groups(whole)
        self.merged += sum(map(merged_groups, plan.groups)) / len(plan.groups)
        self.attended += sum(map(len, plan.groups)) / len(plan.groups)
        self.report.note = (
            f"{forward.layout.frames} latent frames attend as {self.attended / self.forwards:.3g} on average"
        )
        if self.guard is None:
            return
        possible, merged = self.possible / self.forwards, self.merged / self.forwards
        predicted = " at most, as the guard decides in the run" if forward.device is None else " on average"
        self.report.note = f"merged {merged:.3g} of {possible:.3g} groups of frames{predicted}"
        never = f"motion_guard={self.guard.threshold:g} kept all groups of frames apart: a higher one merges more"
        self.report.reason = "" if merged else never


def merged_groups(groups: Groups) -> int:
    """How many groups hold several frames."""
    return sum(size > 1 for size in groups)
