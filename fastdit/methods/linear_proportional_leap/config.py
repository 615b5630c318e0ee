"""LinearProportionalLeap: end a flow model's run in one leap, where the velocity has settled."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from fastdit.methods.base import Method, Stage, checked_count, option, register_method
from fastdit.methods.runtime import StepRuntime


@register_method
@dataclass(frozen=True)
class LinearProportionalLeap(Method):
    """Leap from a step straight to the final latents, along its guided velocity; the steps behind are not run.

    Each sample leaps by itself, when the direction of its velocity has stopped getting steadier, and its latents are
    final from then on; the run ends when all have leapt. Source: On-device Sora (Kim et al., 2025, arXiv 2502.04363
    and 2503.23796), which measured one slice of the first sample; here it is all of each sample's velocity.
    """

    name = "linear_proportional_leap"
    summary = "end the run of a flow model in one leap along its velocity, as soon as that has settled"
    under_sharding: ClassVar[frozenset[str]] = frozenset({"ulysses", "ring"})  # every process has the whole velocity

    noise: float = option(
        0.69, "noise at which the rule begins to count: at more, leaps blur; 0 never leaps", range=(0, 1)
    )
    tolerance: float = option(
        1e-4, "how much the cosine of two steps' velocities must grow to count as growing", range=(0, None)
    )
    patience: int = option(3, "steps in a row without growth after which a sample leaps", range=(1, None))
    leap_step: int | None = option(
        None, "leap in this step of the run, counted from 1, by no rule; 16 of 30 was published", range=(1, None)
    )

    def __post_init__(self) -> None:
        for name in ("noise", "tolerance"):
            value = getattr(self, name)
            if not isinstance(value, (int, float)) or isinstance(value, bool):
                raise ValueError(f"{name} must be a number, got {value!r}")
        if not 0 <= self.noise <= 1:
            raise ValueError(f"noise must lie in [0, 1], got {self.noise:g}: 0.69 leaps late, 0 never")
        if not 0 <= self.tolerance < float("inf"):
            raise ValueError(f"tolerance must be at least 0, got {self.tolerance:g}: try 0.0001")
        checked_count("patience", self.patience, 1)
        if self.leap_step is not None:
            checked_count("leap_step", self.leap_step, 1)

    @property
    def stage(self) -> Stage:
        return "step"

    @property
    def neutral(self) -> bool:
        return self.leap_step is None and self.noise == 0

    @property
    def needs(self) -> frozenset[str]:
        return frozenset({"flow"})

    def clash(self, other: Method) -> str | None:
        if isinstance(other, LinearProportionalLeap):
            return "one leap at a time: the earlier one ends the run"
        return super().clash(other)

    def counts(self, index: int, noises: Sequence[float], held: int = 0) -> bool:
        """Whether the rule counts step `index` (from 0); it compares with the step before, from the `held`th on."""
        return self.leap_step is None and held < index < len(noises) and noises[index] <= self.noise

    def earliest(self, noises: Sequence[float], held: int = 0) -> int | None:
        """The number of steps after which the first leap may come; None where that saves no step."""
        if self.leap_step is not None:
            steps = self.leap_step
        else:
            first = next((i for i in range(len(noises)) if self.counts(i, noises, held)), len(noises))
            steps = first + self.patience + 1
        return steps if steps < len(noises) else None

    def idle(self, noises: Sequence[float], held: int = 0) -> str | None:
        """Why no leap can come in a run with these noise levels, or None; ValueError for a leap_step outside of it.

        The first `held` steps belong to a model of the high noise alone.
        """
        steps = len(noises)
        if self.leap_step is not None and self.leap_step > steps:
            raise ValueError(f"leap_step={self.leap_step} lies beyond this run of {steps} steps: give 1 to {steps - 1}")
        if self.leap_step is not None and self.leap_step <= held:
            raise ValueError(
                f"leap_step={self.leap_step} lies in the {held} steps of the high-noise transformer, which has not "
                f"learnt where the path ends: give {held + 1} to {steps - 1}"
            )
        if self.earliest(noises, held) is not None:
            return None
        if self.leap_step is not None:
            return f"leap_step={self.leap_step} is the last step, where a leap saves nothing: give less"
        counted = sum(self.counts(index, noises, held) for index in range(steps))
        return (
            f"only {counted} of {steps} steps count (noise at most {self.noise:g}, with a step before), and a leap "
            f"needs one and patience={self.patience} more before the last one: raise noise or take more steps"
        )

    def foresee(self, noises: Sequence[float], held: int = 0) -> tuple[int, str]:
        reason, earliest = self.idle(noises, held), self.earliest(noises, held)
        if reason or earliest is None:
            return len(noises), reason or ""
        fewer = f"{len(noises) / earliest:.2f}x fewer steps"
        if self.leap_step is not None:
            return earliest, f"leaps after step {earliest} of {len(noises)}, {fewer}"
        return len(noises), f"leaps after step {earliest} of {len(noises)} at the earliest, then {fewer}; counted whole"

    def bind_steps(self, pipe: Any) -> StepRuntime:
        from fastdit.methods.linear_proportional_leap.method import LeapRuntime

        return LeapRuntime(self, pipe)
