"""Temporal flickering: VBench 0.1.5's own numbers for the same frames, to 6 digits."""

import numpy as np
import pytest

from fastdit.evaluation import frames
from fastdit.evaluation.vbench.flickering import temporal_flickering


def noise() -> np.ndarray:
    return np.random.default_rng(7).integers(0, 256, (6, 32, 48, 3), dtype=np.uint8)


def ramp() -> np.ndarray:
    steps = np.arange(5, dtype=np.uint8)[:, None, None, None] * 40 + np.arange(16, dtype=np.uint8)[None, :, None, None]
    return steps * np.ones((1, 1, 24, 3), np.uint8)


# made by vbench 0.1.5's `mae_seq` and `cal_score` (opencv-python-headless 5.0) on these frames
@pytest.mark.parametrize(("make", "golden"), [(noise, 0.666258030311734), (ramp, 0.8431372549019608)])
def test_golden(make, golden):
    assert temporal_flickering(make()) == pytest.approx(golden, abs=1e-6)


def test_equals_the_direct_formula():
    x = noise().astype(np.float64)
    assert temporal_flickering(noise()) == pytest.approx(1 - np.abs(np.diff(x, axis=0)).mean() / 255, abs=1e-12)


def test_differences_do_not_wrap_around():
    black_white = np.zeros((3, 4, 4, 3), np.uint8)
    black_white[1] = 255
    assert temporal_flickering(black_white) == 0
    assert temporal_flickering(black_white[::2]) == 1
    assert temporal_flickering(black_white[..., ::-1]) == 0


@pytest.mark.parametrize("bad", [noise()[:1], noise().astype(np.float32), noise()[0]])
def test_refuses_what_it_cannot_judge(bad):
    with pytest.raises(ValueError, match=r"two frames|uint8"):
        temporal_flickering(bad)


def test_the_codec_is_part_of_the_score(tmp_path):
    """The encoder smooths flicker away: the mp4 scores higher than the frames it was made from."""
    raw = (128 + np.random.default_rng(0).normal(0, 12, (8, 64, 64, 3))).clip(0, 255).astype(np.uint8)
    frames.write_video(tmp_path / "x.mp4", raw, 8)
    assert temporal_flickering(frames.read(tmp_path / "x.mp4")) > temporal_flickering(raw) + 0.01
