"""Video files through the ffmpeg that imageio-ffmpeg brings: every frame once, no resizing, no damage unnoticed.

The binary is called directly: imageio's reader ends quietly where a damaged stream ends, and its writer does not look
at ffmpeg's exit code.
"""

import subprocess
from pathlib import Path

import numpy as np

SUFFIXES = (".mp4", ".webm", ".gif")
QUALITY = 5  # imageio's scale of 1 to 10 and diffusers' default: published VBench scores are of videos coded like this


def decode(path: Path) -> np.ndarray:
    """All frames of a video file as uint8 (T, H, W, 3); ValueError if it is empty, truncated or damaged."""
    command = ["-nostdin", "-protocol_whitelist", "file", "-i", f"file:{path}", "-map", "0:v:0"]
    # passthrough: each stored frame once, whatever the time stamps; ppm: the stream says its own size
    command += ["-fps_mode", "passthrough", "-f", "image2pipe", "-c:v", "ppm", "-"]
    done = _run(["-xerror", *command])
    if done.returncode or done.stderr:  # a truncated webm is only a message, with exit code 0
        raise ValueError(f"{path} is no video that can be read whole: {_reason(done)}")
    if not done.stdout:
        raise ValueError(f"{path} holds no frames")
    _, size, _ = done.stdout.split(b"\n", 3)[:3]  # P6, width height, 255
    width, height = map(int, size.split())
    head = len(b"P6\n\n255\n") + len(size)
    rows = np.frombuffer(done.stdout, np.uint8).reshape(-1, head + height * width * 3)
    return rows[:, head:].copy().reshape(-1, height, width, 3)


def encode(path: Path, frames: np.ndarray, fps: float, quality: float = QUALITY, comment: str = "") -> None:
    """Write frames (T, H, W, 3) uint8 as mp4 (H.264), webm (VP9) or gif, at their own size; OSError if ffmpeg fails.

    Even sizes get yuv420p, which plays everywhere. It cannot hold odd ones: those get yuv444p rather than a padded
    or resized picture, as every pixel must stay in its place (QuickTime does not play such files). A gif has no place
    for the comment.
    """
    if not 1 <= quality <= 10:
        raise ValueError(f"quality must lie between 1 and 10, got {quality}")
    height, width = frames.shape[1:3]
    pixels = "yuv420p" if height % 2 == width % 2 == 0 else "yuv444p"
    constant_rate = str(int((1 - quality / 10) * 51))  # imageio's rule, so that quality means what it means there
    coding = {
        # one thread: x264's bits depend on the number of threads, and the codec is part of what VBench measures
        ".mp4": ["-c:v", "libx264", "-crf", constant_rate, "-pix_fmt", pixels, "-threads", "1"],
        ".webm": ["-c:v", "libvpx-vp9", "-crf", constant_rate, "-b:v", "0", "-pix_fmt", pixels, "-threads", "1"],
        # Pillow's gif writer would drop repeated frames; a palette of its own for the whole clip
        ".gif": ["-filter_complex", "split[a][b];[a]palettegen[p];[b][p]paletteuse"],
    }[path.suffix.lower()]
    source = ["-f", "rawvideo", "-pix_fmt", "rgb24", "-s", f"{width}x{height}", "-r", str(fps), "-i", "-"]
    coding += ["-metadata", f"comment={comment}"] if comment else []
    done = _run(["-y", *source, *coding, f"file:{path}"], np.ascontiguousarray(frames).reshape(-1).data)
    if done.returncode:
        raise OSError(f"ffmpeg failed: {_reason(done)}")


def _run(arguments: list[str], data: memoryview | bytes = b"") -> subprocess.CompletedProcess[bytes]:
    import imageio_ffmpeg

    command = [imageio_ffmpeg.get_ffmpeg_exe(), "-v", "error", *arguments]
    return subprocess.run(command, input=data, capture_output=True)


def _reason(done: subprocess.CompletedProcess[bytes]) -> str:
    """The first thing that ffmpeg complained about, without the address it came from."""
    lines = done.stderr.decode(errors="replace").strip().splitlines()
    return lines[0].rpartition("] ")[2] if lines else f"exit code {done.returncode}"
