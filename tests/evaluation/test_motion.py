"""Sharpness falls with blur, motion with freezing; both by hand on patterns whose values are known."""

import numpy as np
import pytest
from PIL import Image, ImageFilter

from fastdit.evaluation.motion import motion, sharpness


def photos():
    data = pytest.importorskip("skimage.data")
    return [data.astronaut()[:200, :200], data.coffee()[100:300, 100:300], data.chelsea()[:200, :200]]


def blurred(picture, radius):
    return np.asarray(Image.fromarray(picture).filter(ImageFilter.GaussianBlur(radius)))


def panning(picture, count=6, step=3, size=150):
    return np.stack([picture[:size, index * step : index * step + size] for index in range(count)])


def test_sharpness_by_hand():
    plane = np.arange(20, dtype=np.uint8)[None, :, None].repeat(10, 0).repeat(3, 2)
    assert sharpness(plane[None]) == pytest.approx(0, abs=1e-18)  # a ramp has no second derivative
    board = (np.indices((10, 12)).sum(0) % 2 * 255).astype(np.uint8)[..., None].repeat(3, 2)
    assert sharpness(board[None]) == pytest.approx((4 * 255) ** 2)  # -1020 and 1020, as often
    assert sharpness(np.stack([plane[:, :12], board])) == pytest.approx((4 * 255) ** 2 / 2)  # mean over frames


def test_sharpness_weighs_colours_by_their_luma():
    board = (np.indices((10, 12)).sum(0) % 2 * 255).astype(np.uint8)
    for channel, weight in enumerate((0.299, 0.587, 0.114)):
        one = np.zeros((1, 10, 12, 3), np.uint8)
        one[0, ..., channel] = board
        assert sharpness(one) == pytest.approx((weight * 4 * 255) ** 2)


@pytest.mark.parametrize("index", [0, 1, 2])
def test_blur_lowers_sharpness(index):
    picture = photos()[index]
    values = [sharpness(blurred(picture, radius)[None]) for radius in (0, 0.7, 1.5, 4)]
    assert values == sorted(values, reverse=True) and values[-1] < 0.1 * values[0]


def test_motion_by_hand_without_wrap_around():
    frames = np.zeros((3, 4, 5, 3), np.uint8)
    frames[1], frames[2] = 250, 5
    assert motion(frames) == pytest.approx((250 + 245) / 2)
    assert motion(frames[::-1]) == pytest.approx((250 + 245) / 2)
    assert motion(frames[:1]) is None


def test_a_frozen_or_slower_clip_moves_less():
    for picture in photos():
        fast, slow = panning(picture, step=6), panning(picture, step=1)
        stutter = panning(picture, step=6)[[0, 0, 2, 2, 4, 4]]
        assert motion(fast) > motion(slow) > 0
        assert motion(stutter) < motion(fast)
        assert motion(fast[:1].repeat(6, 0)) == 0


def test_too_small_pictures():
    with pytest.raises(ValueError, match="at least 3 x 3 pixels, got 2 x 9"):
        sharpness(np.zeros((1, 2, 9, 3), np.uint8))
