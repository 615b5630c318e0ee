"""Fidelity to the dense model: PSNR and SSIM on raw frames, in float64."""

import numpy as np
import torch
from torch.nn import functional as F


def _pair(reference: np.ndarray, other: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Two pictures (H, W, C) as float64 in [0, 1]; uint8 is scaled first, so that differences cannot wrap around."""
    if reference.shape != other.shape:
        raise ValueError(f"pictures must have one shape, got {reference.shape} and {other.shape}")
    scaled = (x.astype(np.float64) / (255 if x.dtype == np.uint8 else 1) for x in (reference, other))
    return tuple(scaled)  # type: ignore[return-value]


def psnr(reference: np.ndarray, other: np.ndarray) -> float:
    """Peak signal-to-noise ratio in dB of two pictures (H, W, C), uint8 or floats in [0, 1]; equal ones give inf."""
    a, b = _pair(reference, other)
    error = float(((a - b) ** 2).mean())
    return float("inf") if error == 0 else -10 * float(np.log10(error))


def ssim(reference: np.ndarray, other: np.ndarray) -> float:
    """Structural similarity (Wang et al., 2004) of two pictures: Gaussian window of 11, sigma 1.5, mean over all."""
    a, b = (torch.from_numpy(np.ascontiguousarray(x)).movedim(-1, 0)[:, None] for x in _pair(reference, other))
    if min(a.shape[-2:]) < 11:
        raise ValueError(f"SSIM needs pictures of at least 11 x 11 pixels, got {a.shape[-2]} x {a.shape[-1]}")
    steps = torch.arange(11, dtype=torch.float64) - 5
    line = torch.exp(-(steps**2) / (2 * 1.5**2))
    window = torch.outer(line, line)[None, None] / line.sum() ** 2

    def blur(x: torch.Tensor) -> torch.Tensor:
        return F.conv2d(x, window)

    mean_a, mean_b = blur(a), blur(b)
    variance_a, variance_b = blur(a * a) - mean_a**2, blur(b * b) - mean_b**2
    covariance = blur(a * b) - mean_a * mean_b
    c1, c2 = 0.01**2, 0.03**2
    numerator = (2 * mean_a * mean_b + c1) * (2 * covariance + c2)
    return float((numerator / ((mean_a**2 + mean_b**2 + c1) * (variance_a + variance_b + c2))).mean())
