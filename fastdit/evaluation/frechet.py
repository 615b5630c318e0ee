"""Statistics of features and their Frechet distance (Heusel et al., 2017), in float64.

Features are rows (n, D). Linear algebra is torch's: its symmetric eigenvalues take a fraction of numpy's time.
"""

import re
import zipfile
from collections.abc import Hashable, Iterable, Sequence
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch

from fastdit.core.files import write_whole
from fastdit.evaluation.intervals import numbers_of

ROWS = 4096  # rows of features turned into float64 at a time


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
        numbers = None if groups is None else numbers_of(groups, len(features))
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
