"""Fidelity to the dense model: PSNR and SSIM of raw frames, in float64.

Frames of a video are measured one by one and averaged; a frame's PSNR counts at most 100 dB in an average, as in the
published comparisons of TeaCache and Sparse VideoGen, so that identical frames do not make it infinite.
"""

from collections.abc import Iterator

import numpy as np

CAP = 100.0  # dB
WINDOW, SIGMA = 11, 1.5  # Wang et al., 2004
_BAND = 16  # rows that are filtered together: what they need stays in the processor's cache


def psnr(reference: np.ndarray, other: np.ndarray) -> float:
    """Peak signal-to-noise ratio in dB of two pictures (H, W, C) or frames (T, H, W, C), uint8 or floats in [0, 1].

    Equal pictures give inf; for frames it is the mean of theirs, each at most 100. ValueError if the shapes differ.
    """
    values = frame_psnr(reference, other)
    return float(values[0] if reference.ndim == 3 else capped(values).mean())


def ssim(reference: np.ndarray, other: np.ndarray) -> float:
    """Structural similarity (Wang et al., 2004) of two pictures (H, W, C), or the mean over frames (T, H, W, C).

    Gaussian window of 11, sigma 1.5, only where it fits whole, each channel by itself. ValueError below 11 pixels.
    """
    return float(frame_ssim(reference, other).mean())


def frame_psnr(reference: np.ndarray, other: np.ndarray) -> np.ndarray:
    """PSNR in dB of each frame (T,), inf where two are identical."""
    errors = np.array([((a - b) ** 2).mean() for a, b in _pairs(reference, other)])
    with np.errstate(divide="ignore"):
        return -10 * np.log10(errors)


def capped(decibels: np.ndarray) -> np.ndarray:
    """What enters an average: at most 100 dB."""
    return np.minimum(decibels, CAP)


def frame_ssim(reference: np.ndarray, other: np.ndarray) -> np.ndarray:
    """SSIM of each frame (T,)."""
    if min(reference.shape[-3:-1], default=0) < WINDOW:
        size = " x ".join(map(str, reference.shape[-3:-1]))
        raise ValueError(f"SSIM needs pictures of at least 11 x 11 pixels, got {size}")
    return np.array([_ssim(a, b) for a, b in _pairs(reference, other)])


def _pairs(reference: np.ndarray, other: np.ndarray) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Frame by frame (H, W, C), float64 in [0, 1]: uint8 is converted first, so that differences cannot wrap around."""
    if reference.shape != other.shape:
        raise ValueError(f"pictures must have one shape, got {reference.shape} and {other.shape}")
    if reference.ndim not in (3, 4) or reference.size == 0:
        raise ValueError(f"pictures must be (H, W, C) or frames (T, H, W, C), got {reference.shape}")
    for x in (reference, other):
        _check_values(x)
    for a, b in zip(*(x[None] if x.ndim == 3 else x for x in (reference, other)), strict=True):
        yield _scaled(a), _scaled(b)


def _scaled(frame: np.ndarray) -> np.ndarray:
    return frame.astype(np.float64) / (255 if frame.dtype == np.uint8 else 1)


def _check_values(x: np.ndarray) -> None:
    if x.dtype == np.uint8:
        return
    if not np.issubdtype(x.dtype, np.floating):
        raise ValueError(f"pictures must be uint8 or floats in [0, 1], got {x.dtype}")
    low, high = float(x.min()), float(x.max())  # a NaN anywhere is both
    if not np.isfinite([low, high]).all():
        raise ValueError("a picture holds values that are not finite")
    if low < 0 or high > 1:
        raise ValueError(f"floats must lie in [0, 1], got {low:.4g} to {high:.4g}: divide by 255, or clip")


def _ssim(a: np.ndarray, b: np.ndarray) -> float:
    """Mean over all windows and channels of two frames (H, W, C)."""
    rows = a.shape[0] - WINDOW + 1
    bands = (slice(y, y + _BAND + WINDOW - 1) for y in range(0, rows, _BAND))
    return sum(_ssim_sum(a[band], b[band]) for band in bands) / (rows * (a.shape[1] - WINDOW + 1) * a.shape[2])


def _ssim_sum(a: np.ndarray, b: np.ndarray) -> float:
    """The sum over the windows of a band; of the two variances only their sum is needed."""
    mean_a, mean_b, squares, product = _blur(a), _blur(b), _blur(a * a + b * b), _blur(a * b)
    means, mean_product = mean_a**2 + mean_b**2, mean_a * mean_b
    c1, c2 = 0.01**2, 0.03**2
    numerator = (2 * mean_product + c1) * (2 * (product - mean_product) + c2)
    return float((numerator / ((means + c1) * (squares - means + c2))).sum())


def _blur(x: np.ndarray) -> np.ndarray:
    """Gaussian mean of every window that fits into (H, W, C), as (H - 10, (W - 10) * C).

    Shifted sums down, then across, where channels lie side by side and a step is C values. Far faster than torch's
    conv2d, which has no quick path for float64, and without its threads, which wait for each other on a busy machine.
    """
    height, width, channels = x.shape
    down = _weighted(x.reshape(height, width * channels), 1, height - WINDOW + 1)
    return _weighted(down.T, channels, (width - WINDOW + 1) * channels).T


def _weighted(x: np.ndarray, step: int, length: int) -> np.ndarray:
    """Weighted sum of the eleven slices of `length` rows that begin at 0, step, 2 step, ...; the weights mirror."""
    middle = WINDOW // 2
    weights = np.exp(-((np.arange(WINDOW) - middle) ** 2) / (2 * SIGMA**2))
    weights /= weights.sum()
    slices = [x[index * step : index * step + length] for index in range(WINDOW)]
    out = slices[middle] * weights[middle]
    pair = np.empty_like(out)
    for index in range(middle):
        np.add(slices[index], slices[-1 - index], out=pair)
        pair *= weights[index]
        out += pair
    return out
