"""The step clock: which run, which step, which pass, and how much noise.

The scheduler instance's `set_timesteps` (a run starts) and `step` (a step ends) are the only source of time. Counting
forwards would be wrong (one or two passes a step, two transformers in Wan 2.2), watching the timestep too (Heun
repeats it). All schedules of fastdit run on `noise` in [0, 1], so that 10 and 50 steps see the same setting.
"""

import functools
from collections.abc import Callable, Sequence
from typing import Any

import torch

from fastdit.core.ledger import PatchLedger


def noise_levels(scheduler: Any) -> list[float]:
    """Noise in [0, 1] of every `scheduler.step` call to come: the flow sigma, or s / (1 + s) of a VP model.

    s = sqrt((1 - abar) / abar) is the noise-to-signal ratio. Reads `timesteps`, `sigmas` and `alphas_cumprod`.
    """
    timesteps = torch.as_tensor(scheduler.timesteps)
    abar = getattr(scheduler, "alphas_cumprod", None)
    config = scheduler.config
    flow = config.get("use_flow_sigmas", False) or "flow" in (config.get("prediction_type") or "")
    if abar is None or flow:
        sigmas = [float(sigma) for sigma in scheduler.sigmas[: len(timesteps)]]
        return [1 - sigma for sigma in sigmas] if config.get("invert_sigmas", False) else sigmas
    return vp_noise(abar, timesteps)


def vp_noise(alphas_cumprod: torch.Tensor, timesteps: torch.Tensor) -> list[float]:
    """s / (1 + s) at each timestep of a variance-preserving model, timesteps rounded to the training grid."""
    index = timesteps.round().long().clamp(0, len(alphas_cumprod) - 1).to(alphas_cumprod.device)
    abar = alphas_cumprod[index].double()
    s = ((1 - abar) / abar).sqrt()
    return (s / (1 + s)).tolist()


class SchedulerMethod:
    """A scheduler method replaced on the instance, with the original's signature. Refuses to be copied."""

    def __init__(self, original: Callable[..., Any]) -> None:
        functools.update_wrapper(self, original)
        self._original = original

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return self._original(*args, **kwargs)

    def __deepcopy__(self, memo: dict) -> Any:
        raise RuntimeError(
            "this pipeline deep-copies its scheduler while fastdit's clock is on it; the copy would step the original. "
            "Run it under `pipe.dense()` or restore() it"
        )


class _Ticking(SchedulerMethod):
    """Calls the original and tells the clock."""

    def __init__(self, original: Callable[..., Any], after: Callable[[], None]) -> None:
        super().__init__(original)
        self._after = after

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        result = super().__call__(*args, **kwargs)
        self._after()
        return result


class StepClock:
    """Time of one run: `step_index`, `num_steps`, `pass_index` within the step, and `noise`."""

    def __init__(self) -> None:
        self.reset()

    def reset(self) -> None:
        self.scheduler: Any = None
        self._levels: Sequence[float] = ()
        self._first = 0  # the level that the run begins at, where the scheduler itself does not know it
        self.step_index = 0
        self.pass_index = -1  # no forward of this step was seen yet
        self.open = False

    @property
    def levels(self) -> Sequence[float]:
        """Noise of every step of this run: image- and video-to-video begin at a later step than the first."""
        begin = getattr(self.scheduler, "begin_index", None)
        return self._levels[self._first if begin is None else begin :]

    @property
    def num_steps(self) -> int:
        return len(self.levels)

    @property
    def noise(self) -> float | None:
        """Noise of the step under way, or None where no run is open."""
        levels = self.levels
        if not self.open or not levels:
            return None
        return levels[min(self.step_index, len(levels) - 1)]

    def expect(self, steps: int | None) -> None:
        """The host says that its run has so many steps, the last ones of the schedule (None: it does not say)."""
        self._first = max(0, len(self._levels) - steps) if steps else 0

    def install(self, scheduler: Any, ledger: PatchLedger, began: Callable[[], None] = lambda: None) -> None:
        """Put the clock on a scheduler instance, through the ledger; `began` is called whenever a loop of steps begins.

        A pipeline's call may hold several loops, each of which sets the time steps anew.
        """

        def start() -> None:
            self.reset()
            self.scheduler, self._levels, self.open = scheduler, noise_levels(scheduler), True
            began()

        def end_step() -> None:
            self.step_index += 1
            self.pass_index = -1

        for name, after in (("set_timesteps", start), ("step", end_step)):
            ledger.set_attribute(scheduler, name, _Ticking(getattr(scheduler, name), after), f"scheduler.{name}")

    def next_pass(self) -> None:
        """A transformer forward begins: the first of a step is pass 0, a second (guidance in two passes) is 1."""
        self.pass_index += 1
