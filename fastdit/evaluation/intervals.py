"""Intervals: how far a figure would move if other prompts had been drawn (percentile bootstrap)."""

from collections.abc import Callable, Hashable, Sequence
from dataclasses import asdict, dataclass

import numpy as np

DRAWS = 1000


@dataclass(frozen=True)
class Interval:
    """A value with its 95 % interval and the number of samples; one sample (or group) has no interval."""

    value: float
    low: float | None
    high: float | None
    n: int

    def __str__(self) -> str:
        return self.text(1)

    def text(self, digits: int) -> str:
        """`28.5 (27.1 to 29.8)` with this many digits after the point."""
        if self.low is None or self.high is None:
            return f"{self.value:.{digits}f}"
        return f"{self.value:.{digits}f} ({self.low:.{digits}f} to {self.high:.{digits}f})"

    def to_dict(self) -> dict[str, float | None]:
        return asdict(self)


def numbers_of(groups: Sequence[Hashable] | np.ndarray | None, n: int) -> np.ndarray:
    """The number of each row's group (n,), counted in order of appearance; each its own if None."""
    if groups is None:
        return np.arange(n)
    if len(groups) != n:
        raise ValueError(f"groups must name one group a sample: {len(groups)} groups, {n} samples")
    found = {group: number for number, group in enumerate(dict.fromkeys(groups))}
    return np.array([found[group] for group in groups])


def draws_of(groups: Sequence[Hashable], draws: int = DRAWS, seed: int = 0) -> np.ndarray:
    """How often each sample appears in each bootstrap draw: (draws, n) counts; samples of one group stay together."""
    member = numbers_of(groups, len(groups))  # (n,)
    rng = np.random.default_rng(seed)
    count = int(member.max()) + 1
    return rng.multinomial(count, np.full(count, 1 / count), size=draws)[:, member]  # (draws, n)


def bootstrap(
    values: Sequence[float] | np.ndarray,
    groups: Sequence[Hashable] | None = None,
    statistic: Callable[[np.ndarray], float] | None = None,
    draws: int = DRAWS,
    seed: int = 0,
) -> Interval:
    """The statistic (the mean, if None) of values (n,) or rows (n, k) with its 95 % interval over groups.

    `groups` (n,) says which samples belong together (the prompt); without it each is its own. ValueError if empty.
    """
    values = np.asarray(values, np.float64)
    n = len(values)
    if n == 0:
        raise ValueError("an interval needs at least one sample, got none")
    member = numbers_of(groups, n)  # (n,)
    value = float(values.mean() if statistic is None else statistic(values))
    if member.max() == 0:  # one group
        return Interval(value, None, None, n)
    counts = draws_of(member.tolist(), draws, seed)
    if statistic is None:
        drawn = counts @ values / counts.sum(1)
    else:
        drawn = np.array([statistic(np.repeat(values, count, axis=0)) for count in counts])
    low, high = np.quantile(drawn, [0.025, 0.975])
    return Interval(value, float(low), float(high), n)


def ratio_of_medians(pairs: np.ndarray) -> float:
    """Median of column 0 over median of column 1 of (n, 2): the speed-up of paired seconds."""
    dense, fast = np.median(pairs, axis=0)
    return float(dense / fast)
