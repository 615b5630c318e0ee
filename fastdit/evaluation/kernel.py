"""Kernel distance of features (Binkowski et al., 2018) in float64, with intervals over prompts.

Features are rows (n, D).
"""

from collections.abc import Hashable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch

from fastdit.evaluation.intervals import DRAWS, Interval, draws_of, numbers_of

CELLS = 1 << 24  # numbers of a kernel matrix held at a time, 128 MiB


def kid(x: np.ndarray, y: np.ndarray, subset_size: int | None = None, subsets: int = 100, seed: int = 0) -> float:
    """Squared maximum mean discrepancy of x (n, D) and y (m, D), kernel (a.b / D + 1)^3, unbiased: may be below 0.

    Over all pairs (a U-statistic, no draws), or with `subset_size` the mean over random subsets of both sets, drawn in
    torch-fidelity's order (its `rng_seed` is `seed`; clean-fid's `kernel_distance` after `numpy.random.seed(seed)`).
    """
    _check(x, y)
    first, second = _double(x), _double(y)
    if subset_size is None:
        return _discrepancy(first, second)
    size = min(subset_size, len(x), len(y))
    rng = np.random.RandomState(seed)
    found = []
    for _ in range(subsets):
        part = first[rng.choice(len(x), size, replace=False)]
        found.append(_discrepancy(part, second[rng.choice(len(y), size, replace=False)]))
    return float(np.mean(found))


@dataclass(frozen=True)
class KidDraws:
    """Kernel distances of several sample sets to one reference, and of their bootstrap draws (paired across sets).

    `across` is the same without the pairs within a group; None where rows stand alone, or all are one group.
    """

    n: int
    values: dict[str, float]
    drawn: dict[str, np.ndarray]  # (draws,) each; nan where a draw has no pairs
    across: "KidDraws | None" = None

    def interval(self, name: str) -> Interval:
        """The distance of one set with its 95 % interval."""
        return self._interval(self.values[name], self.drawn[name])

    def difference(self, name: str, baseline: str) -> Interval:
        """By how much `name` is farther from the reference than `baseline`, with its own 95 % interval."""
        return self._interval(self.values[name] - self.values[baseline], self.drawn[name] - self.drawn[baseline])

    def _interval(self, value: float, drawn: np.ndarray) -> Interval:
        if np.isnan(drawn).any():  # so few groups that a draw may be one alone: no interval is better than half of one
            return Interval(value, None, None, self.n)
        low, high = np.quantile(drawn, [0.025, 0.975])
        return Interval(value, float(low), float(high), self.n)


def kid_interval(
    sets: Mapping[str, np.ndarray],
    reference: np.ndarray,
    groups: Sequence[Hashable] | None = None,
    draws: int = DRAWS,
    seed: int = 0,
    reference_groups: Sequence[Hashable] | np.ndarray | None = None,
) -> KidDraws:
    """Kernel distances of sample sets (n, D) to a fixed reference (m, D), bootstrapped over the samples.

    Row i of every set must be the same item (prompt and seed): all sets share the draws, so a difference of two has an
    interval of its own. `groups` (n,) names what is drawn together, the prompt. A group drawn w times stands for w
    groups: each brings the pairs within it once, and no copy pairs with another: k(a, a) is large and would pull all
    draws up. Simulated coverage is 93 to 96 % where the distributions differ, and above 99 % where they are equal.

    The value is over all pairs, as papers and torch-fidelity have it: it compares with theirs, and it is right where
    the groups are all there are, as ImageNet's classes. Where they are a sample of many (prompts), pairs within one
    are too alike and pull it up; `across` leaves them out, in the reference too (`reference_groups`), and is unbiased.
    """
    if len({len(x) for x in sets.values()}) != 1:
        raise ValueError("paired sets must have equally many samples, row i of each from one prompt and seed: "
                         + ", ".join(f"{name} has {len(x)}" for name, x in sets.items()))  # fmt: skip
    for x in sets.values():
        _check(x, reference)
    n = len(next(iter(sets.values())))
    member, fixed_member = numbers_of(groups, n), numbers_of(reference_groups, len(reference))
    count, fixed_count = len(np.unique(member)), len(np.unique(fixed_member))
    counts = draws_of(member.tolist(), draws, seed)  # (draws, n)
    weights = torch.from_numpy(np.concatenate([np.ones((1, n)), counts]))
    fixed = _double(reference)
    own = _within(fixed, _once(fixed), fixed_member)
    found: list[dict[str, np.ndarray]] = [{}, {}]  # over all pairs, and over those of two groups
    for name, values in sets.items():
        rows = _double(values)
        between = _between(rows, weights, fixed)
        for distances, within, constant in zip(found, _within(rows, weights, member), own):
            distances[name] = (within + constant - 2 * between).numpy()
            if count < 2:
                distances[name][1:] = np.nan  # every draw is the one group again
    made = [KidDraws(n, {k: float(d[0]) for k, d in ds.items()}, {k: d[1:] for k, d in ds.items()}) for ds in found]
    grouped = count < n or fixed_count < len(reference)
    return replace(made[0], across=made[1] if grouped and min(count, fixed_count) > 1 else None)


def _check(x: np.ndarray, y: np.ndarray) -> None:
    for values in (x, y):
        if values.ndim != 2 or len(values) < 2:
            raise ValueError(f"a kernel distance needs features (n, D) of at least 2 samples, got {values.shape}")
        if not np.isfinite(values).all():
            raise ValueError("features hold values that are not finite: the network or a picture is broken")
    if x.shape[1] != y.shape[1]:
        raise ValueError(f"features of {x.shape[1]} and {y.shape[1]} dimensions: make both with one extractor")


def _discrepancy(x: torch.Tensor, y: torch.Tensor) -> float:
    within = [_within(rows, _once(rows), np.arange(len(rows)))[0] for rows in (x, y)]
    return (within[0] + within[1] - 2 * _between(x, _once(x), y)).item()


def _within(x: torch.Tensor, weights: torch.Tensor, member: np.ndarray) -> tuple[torch.Tensor, torch.Tensor]:
    """(w,) mean kernel over ordered pairs of different rows of x (n, D), and over those of different groups alone.

    `member` (n,) numbers the groups and weights (w, n) count them: pairs of two groups by the product of their counts,
    pairs within one by its count. Nan where there are no pairs.
    """
    group = torch.from_numpy(member)
    size = group.bincount()[group].double()  # (n,) rows in the group of each
    total, linear, square = torch.zeros(3, len(weights), dtype=torch.float64)
    for rows in _blocks(len(x), len(x)):
        kernel = _kernel(x[rows], x[rows.start :])  # its pairs with earlier rows were counted there
        kernel[:, rows.stop - rows.start :] *= 2
        kernel.diagonal().zero_()
        total += (weights[:, rows] * (weights[:, rows.start :] @ kernel.T)).sum(1)
        if size.max() > 1:
            alike = kernel.mul_(group[rows, None] == group[rows.start :]).sum(1)
            linear += weights[:, rows] @ alike
            square += weights[:, rows] ** 2 @ alike
    across, pairs = total - square, weights.sum(1) ** 2 - weights**2 @ size
    return _mean(across + linear, pairs + weights @ (size - 1)), _mean(across, pairs)


def _mean(total: torch.Tensor, pairs: torch.Tensor) -> torch.Tensor:
    return torch.where(pairs > 0, total / pairs, torch.nan)


def _between(x: torch.Tensor, weights: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    """(w,) mean kernel over pairs of x (n, D), counted by weights (w, n), and y (m, D), counted once each."""
    total = torch.zeros(len(weights), dtype=torch.float64)
    for rows in _blocks(len(x), len(y)):
        total += weights[:, rows] @ _kernel(x[rows], y).mean(1)
    return total / weights.sum(1)


def _double(values: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(values.astype(np.float64))


def _once(x: torch.Tensor) -> torch.Tensor:
    return torch.ones(1, len(x), dtype=torch.float64)


def _kernel(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    return (a @ b.T).div_(a.shape[1]).add_(1).pow_(3)


def _blocks(rows: int, columns: int) -> Iterator[slice]:
    size = max(1, min(CELLS // columns, -(-rows // 8)))  # eighths at least, so that symmetry saves its share
    return (slice(start, min(start + size, rows)) for start in range(0, rows, size))
