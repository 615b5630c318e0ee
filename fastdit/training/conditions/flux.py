"""FLUX.1: T5 states, pooled CLIP, embedded guidance; 2x2 latent pixels are packed into a token, which has an id."""

from collections.abc import Sequence
from typing import Any

import torch

from fastdit.training.conditions.base import (
    Conditions,
    Geometry,
    Rows,
    call_arguments,
    mean,
    register_conditions,
)


def _encode(pipe: Any, captions: Sequence[str]) -> Rows:
    states, pooled, _ = pipe.encode_prompt(list(captions), **call_arguments(pipe, "max_sequence_length"))
    return {"encoder_hidden_states": states, "pooled_projections": pooled}  # (n, L, C), (n, D)


def _arguments(transformer: Any, rows: Rows, geometry: Geometry, guidance: float) -> dict[str, Any]:
    states = rows["encoder_hidden_states"]
    height, width = (side // 2 for side in geometry.latent)
    places = torch.cartesian_prod(torch.arange(height), torch.arange(width)).float()  # (N, 2)
    return {
        **rows,
        "img_ids": torch.cat([torch.zeros(height * width, 1), places], 1),
        "txt_ids": torch.zeros(states.shape[1], 3),
        "guidance": torch.full((len(states),), guidance) if transformer.config.guidance_embeds else None,
    }


def _latents(vae: Any, pixels: torch.Tensor) -> torch.Tensor:
    return (mean(vae, pixels) - (vae.config.shift_factor or 0.0)) * vae.config.scaling_factor


def _packed(latents: torch.Tensor) -> torch.Tensor:
    """(B, C, H, W) as tokens (B, N, 4 C), the channels of one latent channel side by side."""
    blocks = latents.unflatten(3, (-1, 2)).unflatten(2, (-1, 2))  # (B, C, H/2, 2, W/2, 2)
    return blocks.permute(0, 2, 4, 1, 3, 5).flatten(3).flatten(1, 2)


FLUX = register_conditions(
    Conditions(
        family="flux",
        told="captions",
        encode=_encode,
        arguments=_arguments,
        models=("text_encoder", "text_encoder_2"),
        latents=_latents,
        packed=_packed,
        channel_axis=2,
    )
)
