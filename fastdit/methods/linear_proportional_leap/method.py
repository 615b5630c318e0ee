"""LinearProportionalLeap at work on the steps of one pipeline."""

import functools
import inspect
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from fastdit.core.clock import SchedulerMethod, StepClock
from fastdit.core.ledger import PatchLedger
from fastdit.core.report import MethodReport, RunReport
from fastdit.methods.linear_proportional_leap.config import LinearProportionalLeap
from fastdit.methods.linear_proportional_leap.host import check_pipeline, check_scheduler
from fastdit.ops.leap import Settling, cosines, leap


class LeapingStep(SchedulerMethod):
    """`scheduler.step` with the leap over it: the step itself is always made, so that solver and clock go on."""

    def __init__(self, scheduler: Any, runtime: "LeapRuntime") -> None:
        super().__init__(scheduler.step)
        # the class's own: what stands on the instance may be anybody's wrapper
        self._runtime, self._signature = runtime, inspect.signature(type(scheduler).step)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        given = self._signature.bind(None, *args, **kwargs).arguments
        if given.get("per_token_timesteps") is not None:
            raise ValueError(f"{self._runtime.method.name}: a leap from a noise level per token is not defined")
        index = self._runtime.clock.step_index
        result = super().__call__(*args, **kwargs)
        latents = result[0] if isinstance(result, tuple) else result.prev_sample
        kept = self._runtime.after_step(index, given["model_output"], given["sample"], latents)
        if isinstance(result, tuple):
            return (kept, *result[1:])
        result.prev_sample = kept
        return result


class LeapRuntime:
    """Decides for each sample when it leaps, keeps its final latents, and ends the loop when all have leapt."""

    def __init__(self, method: LinearProportionalLeap, pipe: Any) -> None:
        self.method, self.pipe = method, pipe
        self.report = MethodReport()
        self.clock = StepClock()
        self.bar: Any = None
        self.interrupted = False
        self.start()

    def check(self) -> None:
        check_pipeline(self.method.name, self.pipe)
        check_scheduler(self.method.name, self.pipe.scheduler)

    def open(self, clock: StepClock, ledger: PatchLedger) -> None:
        self.clock, scheduler = clock, self.pipe.scheduler
        ledger.set_attribute(scheduler, "step", LeapingStep(scheduler, self), "scheduler.step")
        ledger.set_attribute(self.pipe, "progress_bar", self._watched(self.pipe.progress_bar), "pipe.progress_bar")

    def start(self) -> None:
        self.previous: Tensor | None = None  # the velocity of the step before
        self.final: Tensor | None = None  # latents, those of the samples that have leapt being the last ones
        self.rules: list[Settling] = []  # one per sample
        self.leapt: list[int] = []  # for each sample the number of steps it took part in, 0 while it still does
        self.held: int | None = None
        self._let_go_on()

    def acts(self, noises: Sequence[float]) -> str | None:
        return None if self.method.neutral else self.method.idle(noises, self.held_steps())

    def held_steps(self) -> int:
        """How many steps at the start belong to a transformer for high noise alone, as the pipeline counts them."""
        if self.held is None:
            share = self.pipe.config.get("boundary_ratio")
            timesteps = torch.as_tensor(self.pipe.scheduler.timesteps)[-self.clock.num_steps :]
            limit = 0.0 if share is None else share * self.pipe.scheduler.config.num_train_timesteps
            self.held = 0 if share is None else int((timesteps >= limit).sum())
        return self.held

    def after_step(self, index: int, velocity: Tensor, sample: Tensor, latents: Tensor) -> Tensor:
        """What the scheduler's step is to return for step `index`: latents (B, ...), leapt samples at their end."""
        if not self.clock.open:
            return latents
        self.report.calls += 1
        if not self.leapt:
            self.leapt, self.rules = [0] * len(latents), [Settling() for _ in latents]
        if new := self.leaping(index, velocity):
            sigmas = self.pipe.scheduler.sigmas
            here, last = float(sigmas[self.pipe.scheduler.step_index - 1]), float(sigmas[-1])
            final = leap(sample[new], velocity[new], here, last).to(latents.dtype)
            self.final = latents.clone() if self.final is None else self.final
            self.final[new] = final
            for row in new:
                self.leapt[row] = index + 1
        if self.final is None:
            return latents
        kept = latents.clone()
        done = [row for row, steps in enumerate(self.leapt) if steps]
        kept[done] = self.final[done]
        if len(done) == len(kept):
            self._end_loop()
        return kept

    def leaping(self, index: int, velocity: Tensor) -> list[int]:
        """The samples that leap in step `index`, by the rule or by its fixed number; none in the last step."""
        method, noises, held = self.method, self.clock.levels, self.held_steps()
        live = [row for row, steps in enumerate(self.leapt) if not steps]
        if method.leap_step is not None:
            return live if index + 1 == method.leap_step < len(noises) else []
        settled = []
        if self.previous is not None:
            values = cosines(velocity, self.previous).tolist()
            settled = [row for row in live if self.rules[row].settled(values[row], method.tolerance, method.patience)]
        counts_next = method.counts(index + 1, noises, held)
        self.previous = velocity.detach().clone() if counts_next else None  # compiled graphs write into their outputs
        return settled if index + 1 < len(noises) else []

    def close(self, report: RunReport) -> None:
        self._let_go_on()
        steps, asked = self.clock.step_index, self.clock.num_steps
        done = self.report
        done.sample_steps = [own or steps for own in self.leapt]
        ended = bool(self.leapt) and all(self.leapt)
        for row in report.rows:
            row.density[self.method.name] = 1.0
        if ended:
            report.skip(self.clock.levels[steps:])
        for row in report.rows[-(asked - steps) :] if ended and asked > steps else ():
            row.density[self.method.name] = 0.0
        if done.calls:
            done.density = steps / asked if ended else 1.0
        self._explain(report, steps, asked)
        self.bar = None
        self.start()
        self.clock = StepClock()

    def _explain(self, report: RunReport, steps: int, asked: int) -> None:
        """Say in the report which samples leapt, or why none did."""
        done = self.report
        if leapt := [own for own in self.leapt if own]:
            done.note = f"leapt after {', '.join(map(str, leapt))} of {asked} steps"
            if len(leapt) < len(self.leapt):
                done.note += f"; {len(self.leapt) - len(leapt)} of {len(self.leapt)} samples did not leap"
        elif done.calls and not done.reason and not self.method.neutral:
            done.reason = f"the run ended after step {steps}, before any leap"
            if steps == asked:
                done.reason = (
                    "no sample leapt: the cosine of following velocities grew by more than tolerance "
                    f"{self.method.tolerance:g} until the end; raise tolerance or noise, or give leap_step"
                )
                report.warnings.append(f"{self.method.name}: {done.reason}")

    def _watched(self, progress_bar: Callable[..., Any]) -> Callable[..., Any]:
        """The pipeline's `progress_bar`, noting the bar that it makes."""

        @functools.wraps(progress_bar)
        def make(*args: Any, **kwargs: Any) -> Any:
            self.bar = progress_bar(*args, **kwargs)
            return self.bar

        return make

    def _end_loop(self) -> None:
        """Let the pipeline pass over the steps that are left, and its bar be full with the update of this one."""
        self.pipe._interrupt = self.interrupted = True
        if getattr(self.bar, "iterable", None) is None and hasattr(self.bar, "total"):
            self.bar.total = self.bar.n + 1

    def _let_go_on(self) -> None:
        """Take back an interrupt of ours: a run of several loops goes on, and the pipeline is left as it was."""
        if self.interrupted:
            self.pipe._interrupt = self.interrupted = False
