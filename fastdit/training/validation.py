"""The loss at fixed samples, noise and times, with the averaged weights and gates that no noise moves."""

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch

from fastdit.pipelines.engine import Engine
from fastdit.training.batches import generator_for
from fastdit.training.data import Samples
from fastdit.training.learner import Learner

LEVELS = 8  # times, in the middle of as many equal parts of [0, 1]
Pair = tuple[int, int]  # (sample, level)


class Validation:
    """Every chosen sample at every level; its noise depends on the sample and the level alone.

    A batch mixes the levels of one interval, so that routed parts are masked and not sliced: the same result, and low-
    rank layers in training can stay as they are.
    """

    def __init__(
        self, samples: Samples, indices: Sequence[int], learner: Learner, engine: Engine, accelerator: Any,
        intervals: Sequence[tuple[float, float]], batch: int,
    ) -> None:  # fmt: skip
        self.samples, self.indices, self.learner, self.engine = samples, indices, learner, engine
        self.accelerator, self.intervals = accelerator, intervals
        self.batch = max(2, batch)

    @staticmethod
    def choose(count: int, wanted: int) -> list[int]:
        """`wanted` samples of `count`, evenly spread."""
        return sorted({number * count // wanted for number in range(wanted)})

    def batches(self) -> Iterator[list[Pair]]:
        """All pairs in batches of at most the run's size, those of an interval together."""
        for low, high in self.intervals:
            levels = [level for level in range(LEVELS) if low <= time_of(level) < high]
            pairs = [(sample, level) for sample in self.indices for level in levels]
            for part in np.array_split(np.arange(len(pairs)), -(-len(pairs) // self.batch)) if pairs else ():
                yield [pairs[place] for place in part]

    @torch.no_grad()
    def measure(self) -> dict[str, float]:
        """{"validation": mean loss without weighting, and "routed" or "macs": the share of them that was executed}."""
        self.learner.eval()
        self.engine.renew_report()
        sums = torch.zeros(3, dtype=torch.float64)  # of losses, of shares, and their number
        for pairs in list(self.batches())[self.accelerator.process_index :: self.accelerator.num_processes]:
            with self.accelerator.autocast():
                loss = self.learner.predict(self._batch(pairs), "none")[1].double().cpu()  # (B,)
            runtime = self.learner.runtime
            routed = None if runtime is None else runtime.executed()  # (B,)
            share = torch.zeros(1) if routed is None else routed.double().cpu().expand(len(loss))
            sums += torch.stack([loss.sum(), share.sum(), torch.tensor(float(len(loss)))])
        self.learner.train()
        if self.accelerator.num_processes > 1:
            sums = self.accelerator.reduce(sums.float().to(self.accelerator.device), "sum").cpu()
        loss, share, count = sums.tolist()
        report = self.engine.report
        kept = {"routed": share / count} if share else {"macs": report.macs_executed / max(1, report.macs_dense)}
        return {"validation": loss / count, **kept}

    def _batch(self, pairs: Sequence[Pair]) -> dict[str, Any]:
        device = self.accelerator.device
        batch = self.samples.batch([sample for sample, _ in pairs], None, device=device)
        shape = batch["latents"].shape[1:]
        noise = [torch.randn(shape, generator=generator_for(2**31, sample, level)) for sample, level in pairs]
        times = [time_of(level) for _, level in pairs]
        return {**batch, "noise": torch.stack(noise).to(device), "time": torch.tensor(times, device=device)}


def time_of(level: int) -> float:
    return (level + 0.5) / LEVELS
