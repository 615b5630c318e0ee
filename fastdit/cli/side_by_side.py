"""Drawings that set dense beside accelerated: both whole, as a picture or a video, and a strip of some frames."""

from collections.abc import Sequence

import numpy as np
from PIL import Image, ImageDraw, ImageFont

MARGIN, LINE = 12, 28  # pixels; a line holds one row of text
PAPER = "#e6e6e6"  # grey: on white, nobody sees where a thing leaves a white frame


def side_by_side(
    dense: Sequence[np.ndarray], fast: Sequence[np.ndarray], prompts: Sequence[str], seconds: dict[str, float]
) -> np.ndarray:
    """Dense left and accelerated right, one row a prompt, as frames (T, height, width, 3) uint8.

    Clips are (T, H, W, 3) uint8, a picture has T = 1; small ones are enlarged by whole pixels to 256 or more in height.
    """
    scale = _scale(dense[0], 256)
    height, width = (side * scale for side in dense[0].shape[1:3])
    row = height + LINE + MARGIN
    size = (2 * width + 3 * MARGIN, LINE + len(prompts) * row)
    paper = "white" if len(dense[0]) == 1 else PAPER
    sheet = Image.new("RGB", (size[0], size[1] + size[1] % 2), paper)  # even, for mp4
    lefts = MARGIN, width + 2 * MARGIN
    for left, (name, spent) in zip(lefts, seconds.items(), strict=True):
        _write(sheet, (left, 8), f"{name}, {spent:.2f} s", width)
    for index, prompt in enumerate(prompts):
        _write(sheet, (MARGIN, LINE + index * row + height + 6), prompt, 2 * width + MARGIN)
    frames = np.repeat(np.asarray(sheet)[None], len(dense[0]), axis=0)  # (T, height, width, 3)
    for index, pair in enumerate(zip(dense, fast, strict=True)):
        top = LINE + index * row
        for left, clip in zip(lefts, pair, strict=True):
            for frame, picture in zip(frames, clip, strict=True):
                frame[top : top + height, left : left + width] = _enlarged(picture, scale)
    return frames


def strip(
    dense: Sequence[np.ndarray], fast: Sequence[np.ndarray], titles: Sequence[str], count: int = 8, widest: int = 320
) -> np.ndarray:
    """Evenly spaced frames of clips (T, H, W, 3) uint8, two rows a title, dense above accelerated: (height, width, 3).

    At most `count` frames, enlarged by whole pixels to 128 or more in height, reduced to `widest` pixels in width.
    """
    picks = sorted({round(at) for at in np.linspace(0, len(dense[0]) - 1, count).tolist()})
    scale = _scale(dense[0], 128)
    height, width = (side * scale for side in dense[0].shape[1:3])
    if width > widest:
        height, width = max(1, round(height * widest / width)), widest
    names = 100  # pixels of the column of names
    row, gap = 2 * LINE + 2 * (height + 4) + MARGIN, width + 4
    sheet = Image.new("RGB", (names + len(picks) * gap + MARGIN, len(titles) * row), PAPER)
    for index, (title, *pair) in enumerate(zip(titles, dense, fast, strict=True)):
        top = index * row
        _write(sheet, (MARGIN, top + 8), title, sheet.width - 2 * MARGIN)
        for column, pick in enumerate(picks):
            left = names + column * gap
            _write(sheet, (left, top + LINE + 8), f"frame {pick}" if column == 0 else str(pick), width)
            for line, clip in enumerate(pair):
                picture = Image.fromarray(_enlarged(clip[pick], scale))
                picture = picture.resize((width, height), Image.Resampling.LANCZOS)  # of its own size: no change
                sheet.paste(picture, (left, top + 2 * LINE + line * (height + 4)))
        for line, name in enumerate(("dense", "accelerated")):
            middle = top + 2 * LINE + line * (height + 4) + height // 2 - 8
            _write(sheet, (MARGIN, middle), name, names)
    return np.asarray(sheet)


def _scale(clip: np.ndarray, least: int) -> int:
    """How many times a clip (T, H, W, 3) is enlarged to be at least so many pixels high."""
    return max(1, -(-least // clip.shape[1]))


def _enlarged(picture: np.ndarray, scale: int) -> np.ndarray:
    """A picture (H, W, 3) with each pixel `scale` times as high and wide."""
    return picture.repeat(scale, axis=0).repeat(scale, axis=1)


def _write(sheet: Image.Image, place: tuple[int, int], text: str, width: int) -> None:
    """Black text on one line, cut short where it is wider than `width` pixels."""
    font, text = ImageFont.load_default(14), " ".join(text.split())
    short = text
    while short and font.getlength(short if short == text else short + "...") > width:
        short = short[:-1]
    ImageDraw.Draw(sheet).text(place, short if short == text else short + "...", "black", font)
