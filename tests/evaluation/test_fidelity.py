"""PSNR and SSIM against slow references written out by hand."""

import math

import numpy as np
import pytest

from fastdit.evaluation.fidelity import psnr, ssim


def pictures(seed: int = 0, size: int = 16) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    a = rng.random((size, size + 2, 3))
    return a, (a + 0.1 * rng.standard_normal(a.shape)).clip(0, 1)


def test_psnr_by_hand():
    a = np.zeros((4, 4, 3))
    b = a + 0.1
    assert psnr(a, b) == pytest.approx(20)
    assert psnr(a, a) == float("inf")


def test_uint8_does_not_wrap_around():
    a, b = np.full((12, 12, 3), 250, np.uint8), np.full((12, 12, 3), 5, np.uint8)
    assert psnr(a, b) == pytest.approx(-20 * math.log10(245 / 255))
    assert ssim(a, b) == pytest.approx(ssim(a / 255, b / 255))


def slow_ssim(a: np.ndarray, b: np.ndarray) -> float:
    """Window by window, channel by channel."""
    line = [math.exp(-((i - 5) ** 2) / (2 * 1.5**2)) for i in range(11)]
    window = np.outer(line, line) / sum(line) ** 2
    values = []
    for c in range(a.shape[2]):
        for y in range(a.shape[0] - 10):
            for x in range(a.shape[1] - 10):
                p, q = a[y : y + 11, x : x + 11, c], b[y : y + 11, x : x + 11, c]
                mp, mq = (window * p).sum(), (window * q).sum()
                vp, vq = (window * (p - mp) ** 2).sum(), (window * (q - mq) ** 2).sum()
                cov = (window * (p - mp) * (q - mq)).sum()
                top = (2 * mp * mq + 1e-4) * (2 * cov + 9e-4)
                values.append(top / ((mp**2 + mq**2 + 1e-4) * (vp + vq + 9e-4)))
    return float(np.mean(values))


def test_ssim_agrees_with_the_slow_reference():
    a, b = pictures()
    assert ssim(a, b) == pytest.approx(slow_ssim(a, b), abs=1e-10)
    assert ssim(a, a) == pytest.approx(1)


def test_shapes_must_match_and_be_large_enough():
    a, b = pictures()
    with pytest.raises(ValueError, match="one shape"):
        psnr(a, b[:-1])
    with pytest.raises(ValueError, match="at least 11"):
        ssim(a[:8], b[:8])
