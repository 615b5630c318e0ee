"""The size of a run's samples: what is asked for, or the model's own; held to what VAE and patches divide."""

from dataclasses import astuple, dataclass
from typing import Any

import torch

from fastdit.models.base import family_of
from fastdit.training.conditions.base import Conditions, call_argument, part, transformer_of, vae_scale
from fastdit.training.sources import Source


@dataclass(frozen=True)
class Size:
    """Pixels, and the number of frames of a video (None: pictures)."""

    height: int
    width: int
    frames: int | None

    def to_list(self) -> list[int | None]:
        return list(astuple(self))


def size_of(
    pipe: Any, conditions: Conditions, source: Source, size: int | tuple[int, int] | None, frames: int | None
) -> Size:
    """The size of all samples; ValueError names the option and the nearest ones that fit."""
    asked = (size, size) if isinstance(size, int) else size
    known = source.shape[-3:-1] if source.shape else None
    height, width = asked or known or _own(pipe)
    multiple = vae_scale(pipe) * family_of(transformer_of(pipe)).patch(transformer_of(pipe).config)
    for side in (height, width):
        if side % multiple or side < multiple:
            lower = max(multiple, side // multiple * multiple)
            raise ValueError(
                f"--size: samples of {height} x {width} pixels do not fit, as both sides must be multiples of "
                f"{multiple}: give --size {lower} or {lower + multiple}"
            )
    if conditions.square and height != width:
        raise ValueError(
            f"--size: this model takes square pictures alone, not {height} x {width}: give --size {height}"
        )
    return Size(height, width, _frames(pipe, source, frames) if conditions.video else None)


def _own(pipe: Any) -> tuple[int, int]:
    """Height and width of a call of the pipeline that names none."""
    height, width = call_argument(pipe, "height"), call_argument(pipe, "width")
    if height is None or width is None:
        sample: int = transformer_of(pipe).config.get("sample_size") or pipe.default_sample_size
        return sample * vae_scale(pipe), sample * vae_scale(pipe)
    return height, width


def _frames(pipe: Any, source: Source, frames: int | None) -> int:
    """The number of frames: as asked, or what fits into those of an npz, or those of a call of the pipeline."""
    step = pipe.vae_scale_factor_temporal
    known = source.shape[0] if source.shape else None
    if frames is None:
        most = known or call_argument(pipe, "num_frames")
        return (most - 1) // step * step + 1
    if frames < 1 or (frames - 1) % step:
        lower = max(0, frames - 1) // step * step + 1
        raise ValueError(
            f"--frames {frames} does not fit, as this VAE takes 1 and a multiple of {step}: use {lower} or "
            f"{lower + step}"
        )
    if known and known < frames:
        raise ValueError(f"--frames {frames}: the videos in {source.path} have {known}")
    return frames


def check_channels(pipe: Any, conditions: Conditions) -> None:
    """ValueError where the transformer takes more than latents: image to video, inpainting, reference pictures."""
    config = part(pipe, "vae").config
    channels = config.get("latent_channels") or config.get("z_dim")
    latents = torch.empty(1, channels, *([1] if conditions.video else []), 2, 2, device="meta")
    given = conditions.packed(latents).shape[conditions.channel_axis]
    taken = transformer_of(pipe).config.in_channels
    if given != taken:
        raise ValueError(
            f"{type(pipe).__name__} cannot be trained here: its transformer takes {taken} channels and latents have "
            f"{given}, so it is shown more than noisy latents (image to video, inpainting); use the text model"
        )
