"""Pictures and videos from files, as uint8 arrays, brought to one size."""

from pathlib import Path

import numpy as np
from PIL import Image, ImageSequence

PICTURES = (".png", ".jpg", ".jpeg", ".webp", ".bmp")
VIDEOS = (".mp4", ".gif", ".webm", ".mov", ".mkv")


def read_picture(file: Path) -> np.ndarray:
    """A picture (H, W, 3), transparent parts on white; ValueError if it cannot be read."""
    try:
        with Image.open(file) as image:
            return _rgb(image)
    except Exception as error:  # Pillow's readers raise half a dozen kinds for damaged files
        raise ValueError(f"{file} is no picture that can be read: {error}") from error


def read_video(file: Path, frames: int | None) -> np.ndarray:
    """The first `frames` frames of a video (F, H, W, 3), or all; ValueError if it cannot be read."""
    try:
        found = _gif(file, frames) if file.suffix.lower() == ".gif" else _decoded(file, frames)
    except Exception as error:  # ffmpeg's errors come as several kinds
        line = str(error).strip().splitlines()[:1]
        raise ValueError(f"{file} is no video that can be read: {''.join(line)}") from error
    if not len(found):
        raise ValueError(f"{file} holds no frame that can be read")
    return found


def _gif(file: Path, frames: int | None) -> np.ndarray:
    with Image.open(file) as image:
        pictures: list[np.ndarray] = []
        for frame in ImageSequence.Iterator(image):
            if len(pictures) == frames:
                break
            pictures.append(_rgb(frame))
        return np.stack(pictures)


def _decoded(file: Path, frames: int | None) -> np.ndarray:
    """Every stored frame once, whatever the time stamps."""
    import imageio_ffmpeg

    how = ["-fps_mode", "passthrough"] + ([] if frames is None else ["-frames:v", str(frames)])
    reader = imageio_ffmpeg.read_frames(str(file), pix_fmt="rgb24", output_params=how)
    width, height = next(reader)["size"]
    return np.array([np.frombuffer(frame, np.uint8).reshape(height, width, 3) for frame in reader])


def _rgb(image: Image.Image) -> np.ndarray:
    if image.has_transparency_data:
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image.convert("RGBA"))
    return np.asarray(image.convert("RGB"))


def fitted(pixels: np.ndarray, height: int, width: int) -> np.ndarray:
    """Pictures (..., H, W, 3) resized to cover height x width, then cropped at the centre; untouched where they fit."""
    if pixels.shape[-3:-1] == (height, width):
        return pixels
    if pixels.ndim == 4:
        return np.stack([fitted(frame, height, width) for frame in pixels])
    rows, columns = pixels.shape[:2]
    ratio = max(height / rows, width / columns)
    rows, columns = max(height, round(rows * ratio)), max(width, round(columns * ratio))
    resized = Image.fromarray(np.ascontiguousarray(pixels)).resize((columns, rows), Image.Resampling.LANCZOS)
    top, left = (rows - height) // 2, (columns - width) // 2
    return np.asarray(resized)[top : top + height, left : left + width]
