"""Classifier-free guidance of some latent channels only."""

import torch
from torch import Tensor


def unguided_beyond(prediction: Tensor, channels: int) -> Tensor:
    """The halves (2B, C, H, W) of one guidance with channels from `channels` on equal: those of the first half.

    A pipeline's own uncond + scale * (cond - uncond) then leaves these channels as the condition has them, as DiT's
    authors sample (3 of 4 latent channels). The first half must be the conditional one.
    """
    conditional, unconditional = prediction.chunk(2)
    return torch.cat([conditional, torch.cat([unconditional[:, :channels], conditional[:, channels:]], dim=1)])
