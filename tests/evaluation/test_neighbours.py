"""Precision and recall against point by point, and against torch-fidelity's."""

import numpy as np
import pytest
import torch

from fastdit.evaluation.neighbours import precision_recall


def sets(n: int = 60, m: int = 50, shift: float = 0.7) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(0)
    return (rng.standard_normal((n, 6)) + shift).astype(np.float32), rng.standard_normal((m, 6)).astype(np.float32)


def slow(points: np.ndarray, centres: np.ndarray, k: int) -> float:
    """Point by point."""
    inside = 0
    for point in points.astype(np.float64):
        for index, centre in enumerate(centres.astype(np.float64)):
            others = np.delete(centres, index, axis=0)
            radius = sorted(np.linalg.norm(others - centre, axis=1))[k - 1]
            if np.linalg.norm(point - centre) <= radius:
                inside += 1
                break
    return inside / len(points)


@pytest.mark.parametrize("k", [1, 3])
@pytest.mark.parametrize("cells", [1 << 24, 100])
def test_agrees_with_the_slow_reference_in_any_blocks(monkeypatch, k, cells):
    monkeypatch.setattr("fastdit.evaluation.neighbours.CELLS", cells)
    x, y = sets()
    assert precision_recall(x, y, k) == (slow(x, y, k), slow(y, x, k))


def test_agrees_with_torch_fidelity():
    theirs = pytest.importorskip("torch_fidelity.metric_prc")
    x, y = sets(300, 200)
    found = theirs.prc_features_to_metric(torch.from_numpy(x), torch.from_numpy(y), verbose=False)
    assert precision_recall(x, y) == pytest.approx((found["precision"], found["recall"]), rel=1e-4)


def test_what_precision_and_recall_mean():
    x, y = sets()
    assert precision_recall(y, y) == (1, 1)
    assert precision_recall(x + 100, y) == (0, 0)
    collapsed = np.repeat(y[:1], 20, axis=0)  # one good picture twenty times: real, without variety
    assert precision_recall(collapsed, y) == (1, 1 / len(y))


def test_bad_input():
    x, y = sets()
    with pytest.raises(ValueError, match="3 neighbours need more samples than 3"):
        precision_recall(x[:3], y)
    with pytest.raises(ValueError, match="one extractor"):
        precision_recall(x[:, :2], y)
    with pytest.raises(ValueError, match="not finite"):
        precision_recall(x * np.float32(np.nan), y)
