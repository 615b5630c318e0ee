"""Timing dense against accelerated on a shared machine: in turns, after a warm-up, by medians."""

import contextlib
import statistics
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Timing:
    """What each run made and the reports of every pair of runs, always as (dense, accelerated)."""

    made: list[tuple[Any, Any]]  # of the first pair alone: videos fill the memory
    reports: list[tuple[Any, Any]]

    @property
    def seconds(self) -> tuple[float, float]:
        """Medians: (dense, accelerated)."""
        dense, fast = (statistics.median(report.seconds for report in side) for side in zip(*self.reports, strict=True))
        return dense, fast

    @property
    def ratio(self) -> str:
        """`1.20x (1.15 to 1.24)`: ratio of medians and the spread of the pairs."""
        pairs = [dense.seconds / fast.seconds for dense, fast in self.reports]
        dense, fast = self.seconds
        return f"{dense / fast:.2f}x ({min(pairs):.2f} to {max(pairs):.2f})"


@contextlib.contextmanager
def _as_loaded(pipe: Any) -> Iterator[None]:
    """Within, the model runs as it was loaded, also where a method has exchanged its weights, which `dense()` keeps."""
    methods = pipe.methods
    if not any(method.replaces_weights for method in methods):
        with pipe.dense():
            yield
        return
    pipe.set_methods([])
    try:
        yield
    finally:
        pipe.set_methods(methods)


def in_turns(pipe: Any, runs: Sequence[Callable[[], Any]], repeats: int) -> Timing:
    """Run dense and accelerated alternately, `repeats` times each of `runs`, after one warm-up of both."""

    def pair(run: Callable[[], Any], doing: str) -> tuple[tuple[Any, Any], tuple[Any, Any]]:
        pipe.set_progress_bar_config(desc=doing)
        with _as_loaded(pipe):
            dense, report = run(), pipe.report
        return (dense, run()), (report, pipe.report)

    timing = Timing([], [])
    pair(runs[0], "warm-up")
    for run in runs:
        for turn in range(repeats):
            made, reports = pair(run, f"timing, pair {len(timing.reports) + 1} of {len(runs) * repeats}")
            timing.reports.append(reports)
            if turn == 0:
                timing.made.append(made)
    pipe.set_progress_bar_config()
    return timing
