"""Distances between sets of features in float64: Frechet (Heusel et al., 2017) and kernel (Binkowski et al., 2018).

Features are rows (n, D). Linear algebra is torch's: its symmetric eigenvalues take a fraction of numpy's time.
"""

import re
import zipfile
from collections.abc import Hashable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch

from fastdit.core.files import write_whole
from fastdit.evaluation.intervals import DRAWS, Interval, draws_of

ROWS = 4096  # rows of features turned into float64 at a time
CELLS = 1 << 24  # numbers of a kernel or distance matrix held at a time, 128 MiB


@dataclass(frozen=True)
class Statistics:
    """Mean (D,) and covariance (D, D) of features in float64, and whose features they are.

    `extractor` is Extractor.identity; `assumed` where a file does not say it. With the `features` (n, D) themselves
    there are also kernel distances, and the Frechet distance of few samples costs n^3 instead of D^3. `groups` (n,)
    numbers what belongs together (a prompt, the frames of a video); None where each row stands alone.
    """

    mean: np.ndarray
    covariance: np.ndarray
    n: int | None
    extractor: str
    features: np.ndarray | None = field(default=None, repr=False)
    assumed: bool = False
    groups: np.ndarray | None = field(default=None, repr=False)

    @property
    def dimension(self) -> int:
        return len(self.mean)

    @staticmethod
    def of(
        features: np.ndarray | Iterable[np.ndarray], extractor: str, groups: Sequence[Hashable] | None = None
    ) -> "Statistics":
        """Statistics of features (n, D), or of an iterable of such blocks that are not kept."""
        if not isinstance(features, np.ndarray):
            return Statistics(*moments(features), extractor)
        if features.ndim != 2:
            raise ValueError(f"features must be (samples, dimensions), got shape {features.shape}")
        blocks = (features[start : start + ROWS] for start in range(0, len(features), ROWS))
        numbers = None if groups is None else _numbers(groups, len(features))
        alone = numbers is None or len(np.unique(numbers)) == len(features)
        return Statistics(*moments(blocks), extractor, features, groups=None if alone else numbers)

    def save(self, path: Path) -> Path:
        """Write mu and sigma as clean-fid and ADM name them, plus n, extractor, features, groups, our version."""
        if path.suffix != ".npz":
            raise ValueError(f"{path}: statistics are saved as .npz")
        data: dict[str, Any] = {"mu": self.mean, "sigma": self.covariance, "extractor": self.extractor}
        more = {"n": self.n, "features": self.features, "groups": self.groups, "fastdit": version("fastdit")}
        data.update({name: value for name, value in more.items() if value is not None})
        return write_whole(path, lambda temporary: np.savez(temporary, **data))

    @staticmethod
    def load(path: Path) -> "Statistics":
        """Read ours, clean-fid's or ADM's statistics; ValueError names the file and what is wrong with it."""
        try:
            with np.load(path, allow_pickle=False) as file:
                wanted = [name for name in ("mu", "sigma", "n", "extractor", "features", "groups") if name in file]
                found = {name: file[name] for name in wanted}  # ADM's arr_0 may be gigabytes: left where it is
        except (OSError, EOFError, ValueError, zipfile.BadZipFile, TypeError, AttributeError) as error:
            raise ValueError(f"{path} is no npz of statistics that can be read: {error}") from error
        if missing := {"mu", "sigma"} - set(found):
            raise ValueError(f"{path} holds no statistics: {' and '.join(sorted(missing))} missing")
        for name in ("mu", "sigma", "n", "features", "groups"):
            if name in found and found[name].dtype.kind not in ("iu" if name == "groups" else "fiu"):
                raise ValueError(f"{path}: {name} must hold numbers, not {found[name].dtype}: make the file anew")
        mean, covariance = (found[name].astype(np.float64) for name in ("mu", "sigma"))
        if mean.ndim != 1 or covariance.shape != (len(mean), len(mean)):
            raise ValueError(f"{path}: mu {mean.shape} and sigma {covariance.shape} must be (D,) and (D, D)")
        if not (np.isfinite(mean).all() and np.isfinite(covariance).all()):
            raise ValueError(f"{path} holds statistics that are not finite: make them anew")
        n, extractor, features, groups = (found.get(name) for name in ("n", "extractor", "features", "groups"))
        if n is not None and (n.size != 1 or not float(n.item()).is_integer()):
            raise ValueError(f"{path}: n must be one whole number, it is {n.tolist()}: make the file anew")
        if features is not None:
            if features.ndim != 2 or features.shape[1] != len(mean) or len(features) < 2:
                raise ValueError(f"{path}: features {features.shape} must be (samples, {len(mean)}) of at least 2, as "
                                 "mu is: make the file anew")  # fmt: skip
            if not np.isfinite(features).all():
                raise ValueError(f"{path} holds features that are not finite: make the file anew")
        if groups is not None and (features is None or groups.shape != (len(features),)):
            raise ValueError(f"{path}: groups {groups.shape} must number each row of features: make the file anew")
        return Statistics(
            mean,
            (covariance + covariance.T) / 2,
            None if n is None else int(n.item()),
            "inception" if extractor is None else str(extractor),
            features,
            assumed=extractor is None,
            groups=groups,
        )

    def check(self, extractor: str, dimension: int, assumed: bool = False) -> None:
        """ValueError if these are not statistics of that extractor's features."""
        if self.dimension != dimension:
            raise ValueError(f"the statistics (of {self.extractor}) have {self.dimension} dimensions where {extractor} "
                             f"has {dimension}: make both with one extractor")  # fmt: skip
        names = self.extractor, extractor
        if self.assumed or assumed:  # taken for Inception's, however the pictures were resized
            names = re.split("[-:]", names[0])[0], re.split("[-:]", names[1])[0]
        if names[0] != names[1]:
            raise ValueError(f"features of {self.extractor} cannot be compared with those of {extractor}: make both "
                             "statistics with one extractor")  # fmt: skip


def moments(blocks: Iterable[np.ndarray]) -> tuple[np.ndarray, np.ndarray, int]:
    """Mean, covariance (divided by n - 1) and n of rows that come in blocks (b, D); ValueError if not finite or n < 2.

    Each block is centred on its own mean and merged (Chan, Golub and LeVeque, 1983): no digits are lost to the mean.
    """
    n, mean, scatter = 0, torch.zeros(0), torch.zeros(0)
    for block in blocks:
        rows = torch.from_numpy(np.asarray(block, np.float64))
        if not torch.isfinite(rows).all():
            raise ValueError("features hold values that are not finite: the network or a picture is broken")
        own = rows.mean(0)
        rows = rows - own
        if n == 0:
            n, mean, scatter = len(rows), own, rows.T @ rows
            continue
        step, both = own - mean, n + len(rows)
        scatter += rows.T @ rows + torch.outer(step, step) * (n * len(rows) / both)
        n, mean = both, mean + step * (len(rows) / both)
    if n < 2:
        raise ValueError(f"a covariance needs at least 2 samples, got {n}")
    return mean.numpy(), (scatter / (n - 1)).numpy(), n


def frechet_distance(a: Statistics, b: Statistics) -> float:
    """|mean_a - mean_b|^2 + tr(A + B - 2 (A B)^(1/2)) of covariances A and B, at least 0.

    ValueError if the statistics are of different features. With A = R R^T the last trace is the sum of the square roots
    of the eigenvalues of R^T B R, which is symmetric: no general matrix square root, no complex numbers.
    """
    b.check(a.extractor, a.dimension, a.assumed)
    distance = ((a.mean - b.mean) ** 2).sum() + np.trace(a.covariance) + np.trace(b.covariance)
    root, other = _few(a), _few(b)
    if root is None or (other is not None and other.shape[1] < root.shape[1]):
        a, b, root, other = b, a, other, root  # the narrower root gives the smaller matrix to decompose
    if root is None:
        root = _root(a.covariance)
    if other is None:
        product = root.T @ torch.from_numpy(b.covariance) @ root
    else:
        half = root.T @ other
        product = half @ half.T
    cross = torch.linalg.eigvalsh((product + product.T) / 2).clamp(min=0).sqrt().sum().item()
    return max(0.0, float(distance) - 2 * cross)


def _few(statistics: Statistics) -> torch.Tensor | None:
    """R (D, n) with R R^T the covariance, where there are fewer samples than dimensions."""
    features = statistics.features
    if features is None or len(features) >= statistics.dimension or len(features) != statistics.n:
        return None  # ADM's statistics are of more pictures than lie beside them
    return torch.from_numpy((features - statistics.mean).T / np.sqrt(len(features) - 1))


def _root(covariance: np.ndarray) -> torch.Tensor:
    """R (D, r) with R R^T = covariance: Cholesky's factor, or by eigenvectors where the matrix is singular."""
    matrix = torch.from_numpy(covariance)
    root, failed = torch.linalg.cholesky_ex(matrix)
    if not failed:
        return root
    values, vectors = torch.linalg.eigh(matrix)
    keep = values > values[-1] * len(values) * torch.finfo(values.dtype).eps  # the rest is rounding, of either sign
    return vectors[:, keep] * values[keep].sqrt()


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
    member, fixed_member = _numbers(groups, n), _numbers(reference_groups, len(reference))
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


def _numbers(groups: Sequence[Hashable] | np.ndarray | None, n: int) -> np.ndarray:
    """The number of each row's group (n,), counted in order of appearance; each its own if None."""
    if groups is None:
        return np.arange(n)
    if len(groups) != n:
        raise ValueError(f"groups must name one group a sample: {len(groups)} groups, {n} samples")
    found = {group: number for number, group in enumerate(dict.fromkeys(groups))}
    return np.array([found[group] for group in groups])


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
