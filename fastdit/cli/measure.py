"""Timing dense against accelerated on a shared machine: in turns, after a warm-up, by medians."""

import statistics
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Timing:
    """Results and reports of alternating runs, dense and accelerated, and the seconds of each."""

    dense: list[tuple[Any, Any]]
    fast: list[tuple[Any, Any]]

    @property
    def seconds(self) -> tuple[float, float]:
        """Medians: (dense, accelerated)."""
        return tuple(statistics.median(report.seconds for _, report in runs) for runs in (self.dense, self.fast))  # type: ignore[return-value]

    @property
    def ratio(self) -> str:
        """`1.20x (1.15 to 1.24)`: ratio of medians and the spread of the pairs."""
        pairs = [d.seconds / f.seconds for (_, d), (_, f) in zip(self.dense, self.fast, strict=True)]
        dense, fast = self.seconds
        return f"{dense / fast:.2f}x ({min(pairs):.2f} to {max(pairs):.2f})"


def in_turns(pipe: Any, run: Callable[[], Any], repeats: int) -> Timing:
    """Run dense and accelerated alternately, `repeats` times each after one warm-up of both."""

    def once() -> tuple[Any, Any]:
        return run(), pipe.report

    timing = Timing([], [])
    for turn in range(repeats + 1):
        pipe.set_progress_bar_config(desc=f"timing, pair {turn} of {repeats}" if turn else "warm-up")
        with pipe.dense():
            dense = once()
        fast = once()
        if turn:
            timing.dense.append(dense)
            timing.fast.append(fast)
    pipe.set_progress_bar_config()
    return timing
