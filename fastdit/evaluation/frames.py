"""Samples on disk: a picture or a video is one uint8 array (T, H, W, 3), and a picture has T = 1."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageSequence

from fastdit.core.files import write_whole
from fastdit.evaluation import ffmpeg

PICTURES = (".png", ".jpg", ".jpeg", ".webp")
VIDEOS = ffmpeg.SUFFIXES
RAW = ".npy"
KINDS = frozenset((*PICTURES, *VIDEOS, RAW))


def check_kind(path: Path) -> None:
    """ValueError for a file type that `read` does not know."""
    if path.suffix.lower() not in KINDS:
        raise ValueError(f"{path}: unknown file type {path.suffix!r}, use one of {' '.join(sorted(KINDS))}")


def read(path: str | Path) -> np.ndarray:
    """Read a picture, a video or an npy as uint8 (T, H, W, 3); ValueError, one line, if it is damaged or of no use.

    Grey becomes RGB. Transparent pixels are laid on white, as a page shows them: dropping alpha would compare colours
    that nobody sees.
    """
    path = Path(path)
    check_kind(path)
    if not path.is_file():
        raise ValueError(f"{path} does not exist")
    if path.suffix.lower() == RAW:
        return _read_array(path)
    if path.suffix.lower() in (".mp4", ".webm"):
        return ffmpeg.decode(path)
    return _read_picture(path)


def is_lossy(path: Path) -> bool:
    """Whether the file type keeps other pixels than were made: fidelity of such files is fidelity after encoding."""
    suffix = path.suffix.lower()
    if suffix == ".webp":
        with open(path, "rb") as file:
            return file.read(16)[12:] != b"VP8L"
    return suffix in (".jpg", ".jpeg", *VIDEOS)


def from_array(values: np.ndarray, what: str) -> np.ndarray:
    """Pictures (H, W), (H, W, C) or frames (T, H, W, C), C 1 or 3, uint8 or floats in [0, 1], as uint8 (T, H, W, 3).

    Floats are rounded to the nearest of 256 levels. ValueError names `what` and what is wrong with it.
    """
    if values.dtype != np.uint8 and not np.issubdtype(values.dtype, np.floating):
        raise ValueError(f"{what} holds {values.dtype}: save uint8, or floats in [0, 1]")
    shape = values.shape
    if len(shape) not in (2, 3, 4) or (len(shape) > 2 and shape[-1] not in (1, 3)):
        raise ValueError(f"{what} has shape {shape}: save (H, W), (H, W, C) or (T, H, W, C) with C = 1 or 3 last")
    if 0 in shape:
        raise ValueError(f"{what} is empty, its shape is {shape}")
    if values.dtype != np.uint8:
        if not np.isfinite(values).all():
            raise ValueError(f"{what} holds values that are not finite")
        low, high = float(values.min()), float(values.max())
        if low < 0 or high > 1:
            raise ValueError(f"{what} holds floats from {low:.4g} to {high:.4g}: they must lie in [0, 1]")
        values = (values.astype(np.float64) * 255).round().astype(np.uint8)
    values = values[None, ..., None] if len(shape) == 2 else values[None] if len(shape) == 3 else values
    return np.array(np.broadcast_to(values, (*values.shape[:3], 3)), order="C")  # a copy: a mapped file is let go


def write_picture(path: Path, frame: np.ndarray, text: Mapping[str, Any] | None = None) -> None:
    """Write one frame (H, W, 3) uint8; a PNG carries `text` as JSON in its text chunk `fastdit`, other types none."""
    if path.suffix.lower() not in PICTURES:
        raise ValueError(f"{path}: {path.suffix!r} is no picture, use one of {' '.join(PICTURES)}")
    frame = _checked(frame[None], path)[0]
    more: dict[str, Any] = {".png": {}, ".webp": {"lossless": True}}.get(path.suffix.lower(), {"quality": 95})
    if text is not None and path.suffix.lower() == ".png":
        from PIL.PngImagePlugin import PngInfo

        more["pnginfo"] = PngInfo()
        more["pnginfo"].add_text("fastdit", json.dumps(text))
    write_whole(path, lambda temporary: Image.fromarray(frame).save(temporary, **more))


def write_raw(path: Path, frames: np.ndarray) -> None:
    """Write frames (T, H, W, 3) uint8 as npy: the pixels as they are."""
    if path.suffix != RAW:
        raise ValueError(f"{path}: raw frames are written as {RAW}")
    frames = _checked(frames, path)
    write_whole(path, lambda temporary: np.save(temporary, frames, allow_pickle=False))


def write_video(
    path: Path,
    frames: np.ndarray,
    fps: float,
    quality: float = ffmpeg.QUALITY,
    text: Mapping[str, Any] | None = None,
) -> None:
    """Write frames (T, H, W, 3) uint8 as mp4, webm or gif, never resized; for the eye and for VBench, not lossless.

    mp4 and webm carry `text` as JSON in their comment.
    """
    if path.suffix.lower() not in VIDEOS:
        raise ValueError(f"{path}: {path.suffix!r} is no video, use one of {' '.join(VIDEOS)}")
    if not fps > 0:
        raise ValueError(f"fps must be above 0, got {fps}")
    frames = _checked(frames, path)
    comment = "" if text is None else json.dumps(text)
    write_whole(path, lambda temporary: ffmpeg.encode(temporary, frames, fps, quality, comment))


def _checked(frames: np.ndarray, path: Path) -> np.ndarray:
    if frames.dtype != np.uint8 or frames.ndim != 4 or frames.shape[-1] != 3 or 0 in frames.shape:
        raise ValueError(f"{path}: frames must be uint8 (T, H, W, 3), got {frames.dtype} {frames.shape}")
    return frames


def _read_array(path: Path) -> np.ndarray:
    try:
        # mapped: the header is judged before any pixel is read, and a file shorter than its header says is an error
        values = np.load(path, mmap_mode="r", allow_pickle=False)
    except Exception as error:  # a bent header reaches numpy's parser, which raises what it likes
        raise ValueError(f"{path} is no npy file that can be read: {_line(error)}") from error
    if not isinstance(values, np.ndarray):
        raise ValueError(f"{path} is an npz, not an npy: rename it, or save one array with numpy.save")
    return from_array(values, str(path))


def _read_picture(path: Path) -> np.ndarray:
    try:
        with Image.open(path) as image:
            if image.format == "GIF" and path.read_bytes().rstrip(b"\0")[-1:] != b"\x3b":
                raise ValueError("the end is missing")  # Pillow would return the frames that are left
            # a jpg may carry a second picture (a preview, the other eye): only these types play theirs as a video
            plays = image.format in ("GIF", "WEBP", "PNG")
            pictures = [_rgb(frame) for frame in (ImageSequence.Iterator(image) if plays else [image])]
    except Exception as error:  # Pillow's readers raise half a dozen kinds for damaged files
        raise ValueError(f"{path} is no picture that can be read: {_line(error)}") from error
    if len({picture.shape for picture in pictures}) > 1:
        raise ValueError(f"{path} has frames of several sizes")
    return np.stack(pictures)


def _rgb(image: Image.Image) -> np.ndarray:
    """One frame as uint8 (H, W, 3)."""
    if image.mode in ("I", "F") or image.mode.startswith("I;"):
        raise ValueError(f"it has more than 8 bits a channel (mode {image.mode}), convert it to 8")
    if image.has_transparency_data:
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image.convert("RGBA"))
    return np.asarray(image.convert("RGB"))


def _line(error: Exception) -> str:
    return " ".join(str(error).split()) or type(error).__name__
