"""What a step learns from: samples, noise and times as functions of seed and step, so that a run can go on anywhere."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from fastdit.training.data import Samples
from fastdit.training.learner import Batch
from fastdit.training.objectives import Objective
from fastdit.training.options import TrainOptions
from fastdit.training.times import draw_times

Interval = tuple[float, float]


class Order:
    """Samples without end: each of `indices` once an epoch, in an order drawn anew for each."""

    def __init__(self, indices: Sequence[int], seed: int) -> None:
        self.indices, self.seed = list(indices), seed
        self._epoch, self._shuffled = -1, self.indices

    def take(self, start: int, count: int) -> list[int]:
        """`count` samples from position `start` on."""
        taken = []
        for position in range(start, start + count):
            epoch, place = divmod(position, len(self.indices))
            if epoch != self._epoch:
                order = np.random.default_rng((self.seed, epoch)).permutation(len(self.indices))
                self._epoch, self._shuffled = epoch, [self.indices[i] for i in order]
            taken.append(self._shuffled[place])
        return taken


def generator_for(*numbers: int) -> torch.Generator:
    """A CPU generator that these whole numbers alone determine."""
    state = np.random.SeedSequence(numbers).generate_state(1)
    return torch.Generator().manual_seed(int(state[0]))


def turn(intervals: Sequence[Interval], count: int) -> Interval:
    """The interval of the `count`-th batch: each comes up as often as it is long, so that all times are as likely."""
    ends = np.cumsum([high - low for low, high in intervals])
    place = (0.5 + count * 0.6180339887498949) % 1.0 * ends[-1]  # golden section: even over any number of batches
    return intervals[min(int(np.searchsorted(ends, place, side="right")), len(intervals) - 1)]


@dataclass
class Batches:
    """The batches of one process of several; a step's share of a process is worked through in `accumulate` parts.

    A batch has its times from one of `intervals`; `flow_shift` moves them towards noise.
    """

    samples: Samples
    order: Order
    objective: Objective
    options: TrainOptions
    intervals: Sequence[Interval]
    flow_shift: float
    device: torch.device
    process: int
    processes: int

    @property
    def parts(self) -> int:
        """Parts of a step, over all processes."""
        return self.processes * self.options.accumulate

    @property
    def size(self) -> int:
        """Samples of one part."""
        return self.options.batch // self.parts

    def take(self, step: int, part: int) -> tuple[Batch, Callable[[], dict[str, Any]]]:
        """One part of a step, and what draws its conditions again; torch's own generator is seeded for the gates."""
        options, number = self.options, self.process * self.options.accumulate + part
        generator = generator_for(options.seed, step, number)
        torch.manual_seed(int(torch.randint(2**31, (), generator=generator)))
        indices = self.order.take(step * options.batch + number * self.size, self.size)
        batch = self.samples.batch(indices, generator, device=self.device)
        batch["noise"] = torch.randn(batch["latents"].shape, generator=generator).to(self.device)
        batch["time"] = draw_times(
            self.size, generator, interval=turn(self.intervals, step * self.parts + number), strata=options.strata,
            flow_shift=self.flow_shift, kind=options.times, steps=self.objective.steps,
        ).to(self.device)  # fmt: skip
        return batch, lambda: self.samples.conditions(indices, generator, device=self.device)
