"""Improved precision and recall (Kynkaanniemi et al., 2019): shares of samples that lie among their neighbours."""

from collections.abc import Iterator

import numpy as np
import torch

CELLS = 1 << 24  # distances held at a time, 128 MiB


def precision_recall(samples: np.ndarray, reference: np.ndarray, neighbours: int = 3) -> tuple[float, float]:
    """(precision, recall) of features (n, D) against (m, D), each in [0, 1].

    A set's region is the union of balls about its points, each reaching to the point's k-th neighbour in the set.
    Precision is the share of samples in the reference's region (looks real), recall that of the reference in the
    samples' (variety is covered). ValueError if a set has no k-th neighbour.
    """
    if samples.shape[1:] != reference.shape[1:]:
        raise ValueError(f"features of shapes {samples.shape} and {reference.shape}: make both with one extractor")
    for values in (samples, reference):
        if len(values) <= neighbours:
            raise ValueError(f"precision and recall with {neighbours} neighbours need more samples than {len(values)}")
        if not np.isfinite(values).all():
            raise ValueError("features hold values that are not finite: the network or a picture is broken")
    middle = reference.mean(0, dtype=np.float64)  # distances stay, and far fewer digits cancel in them
    a, b = (torch.from_numpy(values - middle) for values in (samples, reference))
    return _share_inside(a, b, neighbours), _share_inside(b, a, neighbours)


def _share_inside(points: torch.Tensor, centres: torch.Tensor, neighbours: int) -> float:
    """The share of points that lie in the ball of at least one centre."""
    radii = torch.empty(len(centres), dtype=torch.float64)
    for rows, distances in _squared(centres, centres):
        distances.diagonal(rows.start).fill_(float("inf"))  # nothing is its own neighbour
        radii[rows] = distances.kthvalue(neighbours).values
    # equal points must lie in each other's balls of radius 0, and rounding leaves about eps * |x|^2 in a distance
    slack = 1e-12 * (centres.square().sum(1).max() + points.square().sum(1).max())
    inside = sum(int((distances <= radii + slack).any(1).sum()) for _, distances in _squared(points, centres))
    return inside / len(points)


def _squared(a: torch.Tensor, b: torch.Tensor) -> Iterator[tuple[slice, torch.Tensor]]:
    """Blocks of rows of the squared distances (n, m)."""
    norms, size = b.square().sum(1), max(1, CELLS // len(b))
    for start in range(0, len(a), size):
        rows = slice(start, min(start + size, len(a)))
        part = a[rows]
        yield rows, (part @ b.T).mul_(-2).add_(part.square().sum(1, keepdim=True)).add_(norms).clamp_(min=0)
