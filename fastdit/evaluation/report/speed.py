"""Seconds and speed-up from the manifests: batches that took turns in one process are paired, others only compared."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from fastdit.evaluation.intervals import DRAWS, Interval, bootstrap, draws_of, ratio_of_medians
from fastdit.evaluation.manifest import Record

WARM = 3  # so many warm batches stand for a run; with fewer, the cold ones are kept
Key = tuple[str, int, int]  # session, rank, batch


@dataclass(frozen=True)
class Batch:
    """Seconds a sample of one batch."""

    seconds: float
    cold: bool


@dataclass(frozen=True)
class Speed:
    """Seconds a sample, the speed-up over the dense run, whether they took turns, and what to know of it."""

    seconds: Interval | None
    speedup: Interval | None = None
    in_turns: bool | None = None
    warnings: tuple[str, ...] = ()


def batches(records: Sequence[Record]) -> dict[Key, Batch]:
    """The timed batches of a run, by session, rank and number."""
    shares: dict[Key, list[Record]] = {}
    for record in records:
        if record.seconds > 0:
            shares.setdefault((record.session, record.rank, record.batch), []).append(record)
    # all samples of a batch carry the same share, also where a kill left only some of them to this session
    return {
        key: Batch(float(np.mean([r.seconds for r in part])), any(r.cold for r in part)) for key, part in shares.items()
    }


def warm(cold: Sequence[bool]) -> list[int]:
    """Which batches count: the warm ones, or all of them where fewer than three are warm."""
    chosen = [number for number, it in enumerate(cold) if not it]
    return chosen if len(chosen) >= WARM else list(range(len(cold)))


def speed(dense: Sequence[Record] | None, run: Sequence[Record]) -> Speed:
    """Seconds of a run, and its speed-up over the dense one; both None if nothing was timed.

    Batches of one session, rank and number were drawn in turns by one process: the ratio of medians is taken over these
    pairs, and drawn pair by pair. Without such pairs the medians of all batches are divided, and a warning says so.
    Warnings of warming up are of the batches behind a figure: seconds and speed-up need not be of the same ones.
    """
    own = batches(run)
    if not own:
        return Speed(None)
    times, kept_cold = _warm_seconds(own)
    value = bootstrap(times, statistic=lambda drawn: float(np.median(drawn)))
    warnings = [f"its seconds hold warming up, as fewer than {WARM} batches are warm"] if kept_cold else []
    if dense is None:
        return Speed(value, warnings=tuple(warnings))
    reference = batches(dense)
    if not reference:
        return Speed(value, warnings=(*warnings, "no speed-up, as the dense run was not timed"))
    shared = [key for key in reference if key in own and key[0]]
    # one pair of a hundred batches, as a kill may leave it, says less than all of them unpaired
    if len(shared) >= WARM or (shared and len(shared) == min(len(reference), len(own))):
        rows = np.array([(reference[key].seconds, own[key].seconds) for key in shared])  # (n, 2)
        cold = [reference[key].cold or own[key].cold for key in shared]
        chosen = warm(cold)
        if any(cold[number] for number in chosen):
            warnings.append(f"its speed-up holds warming up, as fewer than {WARM} pairs of batches are warm")
        return Speed(value, bootstrap(rows[chosen], statistic=ratio_of_medians), True, tuple(warnings))
    warnings.append("its speed-up is of runs that were not timed in turns: other work on the machine may be part of it")
    dense_times, dense_cold = _warm_seconds(reference)
    if kept_cold or dense_cold:
        whose = " and ".join(["the dense run"] * dense_cold + ["this one"] * kept_cold)
        warnings.append(f"its speed-up holds warming up of {whose}, as fewer than {WARM} batches are warm")
    return Speed(value, _unpaired(dense_times, times), False, tuple(warnings))


def _warm_seconds(found: dict[Key, Batch]) -> tuple[np.ndarray, bool]:
    """Seconds a sample of the batches that count (n,), and whether cold ones are among them."""
    listed = list(found.values())
    chosen = [listed[number] for number in warm([batch.cold for batch in listed])]
    return np.array([batch.seconds for batch in chosen]), any(batch.cold for batch in chosen)


def _unpaired(dense: np.ndarray, run: np.ndarray) -> Interval:
    """Ratio of the medians of (n,) and (m,) seconds; both sides are drawn by themselves."""
    value, n = float(np.median(dense) / np.median(run)), min(len(dense), len(run))
    if n < 2:
        return Interval(value, None, None, n)
    drawn = [
        np.array([np.median(np.repeat(side, count)) for count in draws_of(range(len(side)), DRAWS, seed)])
        for seed, side in enumerate((dense, run))
    ]
    low, high = np.quantile(drawn[0] / drawn[1], [0.025, 0.975])
    return Interval(value, float(low), float(high), n)
