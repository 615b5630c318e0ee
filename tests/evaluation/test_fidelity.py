"""PSNR and SSIM against slow references written out by hand, and against skimage and torchmetrics."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from fastdit.evaluation.fidelity import CAP, capped, frame_psnr, frame_ssim, psnr, ssim


def pictures(seed: int = 0, size: int = 16) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    a = rng.random((size, size + 2, 3))
    return a, (a + 0.1 * rng.standard_normal(a.shape)).clip(0, 1)


def photo() -> np.ndarray:
    return pytest.importorskip("skimage.data").astronaut()[:256, :256]


def noisy(picture: np.ndarray, sigma: float, seed: int = 0) -> np.ndarray:
    noise = np.random.default_rng(seed).normal(0, sigma, picture.shape)
    return (picture + noise).clip(0, 255).astype(np.uint8)


def test_psnr_by_hand():
    a = np.zeros((4, 4, 3))
    b = a + 0.1
    assert psnr(a, b) == pytest.approx(20)
    assert psnr(a, a) == float("inf")


def test_uint8_does_not_wrap_around():
    a, b = np.full((12, 12, 3), 250, np.uint8), np.full((12, 12, 3), 5, np.uint8)
    assert psnr(a, b) == pytest.approx(-20 * math.log10(245 / 255))
    assert ssim(a, b) == pytest.approx(ssim(a / 255, b / 255))


@pytest.mark.parametrize("sigma, true, wrapped", [(8, 30.26, 31.37), (20, 22.50, 28.89), (40, 16.83, 28.20)])
def test_the_published_wrap_around_is_not_ours(sigma, true, wrapped):
    """A published metric subtracts uint8 from uint8: noise of these strengths then looks up to 11 dB better."""
    a = photo()
    b = noisy(a, sigma)
    assert 10 * math.log10(255**2 / ((a - b) ** 2).mean()) == pytest.approx(wrapped, abs=0.05)
    assert psnr(a, b) == pytest.approx(true, abs=0.05)
    assert psnr(a, b) == pytest.approx(psnr(a / 255, b / 255), abs=1e-9)


def slow_psnr(a: np.ndarray, b: np.ndarray) -> float:
    """Pixel by pixel, in whole numbers."""
    total = sum((int(x) - int(y)) ** 2 for x, y in zip(a.ravel(), b.ravel(), strict=True))
    return math.inf if total == 0 else 10 * math.log10(255**2 * a.size / total)


shapes = st.tuples(st.integers(1, 3), st.integers(1, 5), st.integers(1, 5), st.sampled_from([1, 3]))


@settings(max_examples=60, deadline=None)
@given(shapes.flatmap(lambda shape: st.tuples(*[hnp.arrays(np.uint8, shape)] * 2)))
def test_psnr_agrees_with_the_slow_reference(pair):
    a, b = pair
    expected = [slow_psnr(x, y) for x, y in zip(a, b, strict=True)]
    assert frame_psnr(a, b) == pytest.approx(expected)
    assert psnr(a, b) == pytest.approx(sum(min(value, 100) for value in expected) / len(expected))
    assert psnr(a[0], b[0]) == pytest.approx(expected[0])
    assert frame_psnr(a, b) == pytest.approx(frame_psnr(b, a))


def test_identical_frames_count_100_db_in_a_mean():
    a = np.random.default_rng(0).integers(0, 256, (4, 12, 12, 3), np.uint8)
    b = a.copy()
    b[2:] = noisy(a[2:], 20)
    values = frame_psnr(a, b)
    assert np.isinf(values[:2]).all() and np.isfinite(values[2:]).all() and (capped(values)[:2] == CAP).all()
    assert psnr(a, b) == pytest.approx((200 + values[2] + values[3]) / 4)
    assert psnr(a, a) == 100 and ssim(a, a) == pytest.approx(1, abs=1e-12)
    assert (capped(np.array([120.0, 99.0])) == [100, 99]).all()  # floats may be nearer than 100 dB


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


@pytest.mark.parametrize("height, width, channels", [(11, 11, 3), (12, 40, 1), (42, 11, 3), (43, 12, 3), (75, 13, 1)])
def test_ssim_at_the_edges_of_its_bands(height, width, channels):
    rng = np.random.default_rng(0)
    a, b = rng.random((2, height, width, channels))
    assert ssim(a, b) == pytest.approx(slow_ssim(a, b), abs=1e-10)


def test_ssim_of_frames_is_that_of_each():
    a = np.stack([photo()[:60, :50], photo()[60:120, :50]])
    b = noisy(a, 20)
    assert frame_ssim(a, b) == pytest.approx([ssim(x, y) for x, y in zip(a, b, strict=True)])
    assert ssim(a, b) == pytest.approx(frame_ssim(a, b).mean())


@pytest.mark.parametrize("sigma", [2, 8, 40])
def test_ssim_agrees_with_skimage(sigma):
    metrics = pytest.importorskip("skimage.metrics")
    a = photo()
    b = noisy(a, sigma)
    options = {"gaussian_weights": True, "sigma": 1.5, "use_sample_covariance": False}
    theirs = metrics.structural_similarity(a, b, data_range=255, channel_axis=-1, **options)
    assert ssim(a, b) == pytest.approx(theirs, abs=1e-10)


def test_ssim_agrees_with_torchmetrics_where_windows_fit_whole():
    """torchmetrics 1.9 also counts windows over a mirrored border: its mean differs, its map inside does not."""
    metric = pytest.importorskip("torchmetrics.functional.image").structural_similarity_index_measure
    a = photo()[:120, :100]
    for sigma in (2, 40):
        b = noisy(a, sigma)
        tensors = [torch.from_numpy(x).movedim(-1, 0)[None].double() / 255 for x in (a, b)]
        _, full = metric(*tensors, data_range=1.0, return_full_image=True)
        assert ssim(a, b) == pytest.approx(float(full[..., 5:-5, 5:-5].mean()), abs=1e-10)


def test_more_noise_is_worse():
    a = photo()
    worse = [noisy(a, sigma) for sigma in (1, 4, 16, 64)]
    for metric in (psnr, ssim):
        values = [metric(a, b) for b in worse]
        assert values == sorted(values, reverse=True) and len(set(values)) == 4


def test_shapes_must_match_and_be_large_enough():
    a, b = pictures()
    with pytest.raises(ValueError, match="one shape"):
        psnr(a, b[:-1])
    with pytest.raises(ValueError, match="at least 11"):
        ssim(a[:8], b[:8])
    with pytest.raises(ValueError, match=r"must be \(H, W, C\) or frames"):
        psnr(a[..., 0], b[..., 0])


@pytest.mark.parametrize(
    "bad, message",
    [
        (np.full((16, 18, 3), np.nan), "not finite"),
        (np.full((16, 18, 3), np.inf), "not finite"),
        (np.full((16, 18, 3), 255.0), "must lie in"),
        (np.full((16, 18, 3), -0.1), "must lie in"),
        (np.zeros((16, 18, 3), np.int64), "uint8 or floats"),
    ],
)
def test_values_that_would_give_a_wrong_figure_are_refused(bad, message):
    good = pictures()[0]
    for metric in (psnr, ssim):
        for pair in ((good, bad), (bad, good)):
            with pytest.raises(ValueError, match=message):
                metric(*pair)


def test_uint8_and_floats_may_be_mixed():
    a, b = photo(), noisy(photo(), 8)
    assert psnr(a, b / 255) == pytest.approx(psnr(a, b))
    assert psnr(a, (b / 255).astype(np.float32)) == pytest.approx(psnr(a, b), abs=1e-5)
