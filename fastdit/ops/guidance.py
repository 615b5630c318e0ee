"""Classifier-free guidance of some latent channels only."""

import torch
from torch import Tensor


def unguided_beyond(prediction: Tensor, channels: int, conditional: int = 0) -> Tensor:
    """The halves (2B, C, H, W) of one guidance with channels from `channels` on equal: those of half `conditional`.

    A pipeline's own uncond + scale * (cond - uncond) then leaves these channels as the condition has them, as DiT's
    authors sample (3 of 4 latent channels).
    """
    halves = prediction.chunk(2)
    kept = halves[conditional][:, channels:]
    return torch.cat([torch.cat([half[:, :channels], kept], dim=1) for half in halves])
