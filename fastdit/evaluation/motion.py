"""Sharpness and motion: what falls when a method blurs or freezes, while consistency scores rise.

Both stand beside fidelity and are compared as ratios of the accelerated samples to the dense ones.
"""

from itertools import pairwise

import numpy as np

LUMA = np.array([0.299, 0.587, 0.114])  # ITU-R BT.601, the grey of Pillow and OpenCV


def sharpness(frames: np.ndarray) -> float:
    """Variance of the Laplacian of the luma of (T, H, W, 3) uint8, in levels of 0 to 255 squared, mean over frames.

    Pech-Pacheco et al., "Diatom autofocusing in brightfield microscopy" (ICPR 2000); among the measures that Pertuz et
    al. compare (Pattern Recognition 46, 2013). The 4-neighbour kernel, without the border. Blur lowers it; noise and
    hard block edges raise it, so a ratio above 1 is no praise. ValueError below 3 pixels.
    """
    _, height, width, _ = frames.shape
    if min(height, width) < 3:
        raise ValueError(f"sharpness needs pictures of at least 3 x 3 pixels, got {height} x {width}")
    return float(np.mean([_laplacian(frame @ LUMA).var() for frame in frames]))


def motion(frames: np.ndarray) -> float | None:
    """Mean absolute difference of consecutive frames (T, H, W, 3) uint8, in levels of 0 to 255; None for one frame.

    1 - motion / 255 is VBench's temporal_flickering of the same frames.
    """
    if len(frames) < 2:
        return None
    # int16 holds every difference of two uint8: they would wrap around
    steps = [np.abs(b.astype(np.int16) - a).mean() for a, b in pairwise(frames)]
    return float(np.mean(steps))


def _laplacian(x: np.ndarray) -> np.ndarray:
    """(H, W) -> (H - 2, W - 2)."""
    return x[:-2, 1:-1] + x[2:, 1:-1] + x[1:-1, :-2] + x[1:-1, 2:] - 4 * x[1:-1, 1:-1]
