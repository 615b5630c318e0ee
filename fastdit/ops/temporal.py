"""Groups of consecutive latent frames that attend as one: which frames, by what rule they stay apart, as a Reduction.

Temporal-dimension token merging of On-device Sora (Kim et al., arXiv 2503.23796, section 4), with a rule for the frame
that a causal VAE makes of one picture alone, for frame counts that the group does not divide, and for motion.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from fastdit.ops.reduction import Grid, Reduction

Groups = tuple[int, ...]  # sizes of consecutive groups of frames: (1, 2, 2) is frame 0, frames 1 and 2, frames 3 and 4


def frame_groups(frames: int, group: int, first_alone: bool = False, offset: int = 0) -> Groups:
    """Sizes of groups of `group` consecutive frames, with frame 0 alone if asked for and smaller groups at the ends.

    With an `offset` that many frames form a group of their own before the others. ValueError for less than 1 frame.
    """
    if frames < 1 or group < 1:
        raise ValueError(f"frames and group are at least 1, got {frames} and {group}")
    first = 1 if first_alone else 0
    lead = min(offset % group, frames - first)
    whole, rest = divmod(frames - first - lead, group)
    return (1,) * first + ((lead,) if lead else ()) + (group,) * whole + ((rest,) if rest else ())


def kept_apart(groups: Groups, apart: Sequence[bool]) -> Groups:
    """Groups with every one taken apart in which a pair of neighbours is: `apart[f]` speaks of frames f and f + 1."""
    if len(apart) != sum(groups) - 1:
        raise ValueError(f"{sum(groups)} frames have {sum(groups) - 1} pairs of neighbours, not {len(apart)}")
    found: list[int] = []
    for size in groups:
        start = sum(found)
        found += [1] * size if any(apart[start : start + size - 1]) else [size]
    return tuple(found)


def merge_frames(groups: Groups, grid: Grid, device: torch.device | str | None = None) -> Reduction:
    """The reduction that averages, at every place of a frame, the tokens of each group of frames, for all samples."""
    frames, height, width = grid
    if sum(groups) != frames or min(groups) < 1:
        raise ValueError(f"groups {groups} do not cover {frames} frames")
    sizes = torch.tensor(groups, device=device)
    frame = torch.arange(len(groups), device=device)
    frame = frame.repeat_interleave(sizes, output_size=frames)  # (F,): the group of each frame
    place = torch.arange(height * width, device=device)
    assign = frame.unsqueeze(1) * (height * width) + place  # (F, H W)
    return Reduction(assign.view(1, -1), len(groups) * height * width)


def frame_changes(video: Tensor, frames: int) -> Tensor:
    """How much each frame of latents (B, C, F p, H, W) differs from the one before it: (B, F - 1), free of scale.

    The RMS of the difference over the RMS of all frames about the mean of each channel over time and place.
    """
    video = video.detach().float().unflatten(2, (frames, -1))  # (B, C, F, p, H, W)
    places = (1, 3, 4, 5)
    step = video.diff(dim=2).square().mean(places)  # (B, F - 1)
    spread = video.var((2, 3, 4, 5), unbiased=False).mean(1, keepdim=True)  # (B, 1)
    return (step / spread.clamp(min=1e-12)).sqrt()
