"""What videos add to the commands: frames per second, a first frame, and frame counts that the model can make."""

from pathlib import Path
from typing import Annotated, Any

import typer

FpsOption = Annotated[int, typer.Option("--fps", min=1, help="frames per second of a video")]
ImageOption = Annotated[Path | None, typer.Option("--image", help="first frame for image-to-video models")]


def first_frame(path: Path | None) -> Any:
    """The picture of --image as PIL, RGB; ValueError if it cannot be read."""
    if path is None:
        return None
    if not path.is_file():
        raise ValueError(f"--image {path} does not exist")
    from PIL import Image, ImageOps, UnidentifiedImageError

    try:
        return ImageOps.exif_transpose(Image.open(path)).convert("RGB")
    except (UnidentifiedImageError, OSError) as error:
        raise ValueError(f"--image {path} is no picture that can be read ({error})") from error


def check_num_frames(pipe: Any, given: dict[str, Any]) -> None:
    """ValueError for a number of frames that the pipeline would round in silence; it names the nearest two.

    A video VAE codes the first frame alone and then `scale` frames at a time. Latte's codes each by itself: any number.
    """
    scale: int = getattr(pipe, "vae_scale_factor_temporal", getattr(pipe, "vae_temporal_scale_factor", 1))
    count = {**pipe.call_defaults, **given}.get("num_frames")
    if count is not None and (count - 1) % scale:
        lower = (count - 1) // scale * scale + 1
        raise ValueError(
            f"--num-frames {count}: this model makes 1 frame and then {scale} at a time: use {lower} or {lower + scale}"
        )
