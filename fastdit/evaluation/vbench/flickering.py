"""VBench's temporal flickering, natively: it is the one dimension that needs no weights."""

import itertools

import numpy as np

UNFILTERED = (
    "unfiltered: VBench first drops videos that move (`vbench static_filter`, which needs RAFT and CUDA); "
    "give the kept ones with --static"
)


def temporal_flickering(frames: np.ndarray) -> float:
    """1 - mean |next frame - frame| / 255 of uint8 (T, H, W, 3); 1 is a still. ValueError below two frames.

    Equal to VBench's `cal_score` (vbench/temporal_flickering.py) to 6 digits: it averages in float32, we in float64.
    The order of the colour channels plays no role in a mean.
    """
    if frames.dtype != np.uint8 or frames.ndim != 4:
        raise ValueError(f"frames must be uint8 (T, H, W, 3), got {frames.dtype} {frames.shape}")
    if len(frames) < 2:
        raise ValueError(f"temporal flickering needs at least two frames, got {len(frames)}")
    # larger minus smaller stays in uint8 without wrapping around
    steps = [(np.maximum(a, b) - np.minimum(a, b)).mean(dtype=np.float64) for a, b in itertools.pairwise(frames)]
    return (255 - float(np.mean(steps))) / 255
