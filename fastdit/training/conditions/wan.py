"""Wan: UMT5 states, zero behind the text; latents are standardised channel by channel."""

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

CHUNK = 4  # frames that AutoencoderKLWan encodes at a time, whatever its temporal factor


def _encode(pipe: Any, captions: Sequence[str]) -> Rows:
    how = call_arguments(pipe, "max_sequence_length")
    states, _ = pipe.encode_prompt(list(captions), do_classifier_free_guidance=False, **how)
    return {"encoder_hidden_states": states}  # (n, L, C)


def _arguments(transformer: Any, rows: Rows, geometry: Geometry, guidance: float) -> dict[str, Any]:
    return dict(rows)


def _latents(vae: Any, pixels: torch.Tensor) -> torch.Tensor:
    """Standardised latents (B, C, F, H, W) of all frames.

    Encoding drops frames behind the last whole chunk, so the last frame is repeated to fill it. The VAE is causal:
    what comes after cannot change the latents that are kept.
    """
    frames = pixels.shape[2]
    missing = (1 - frames) % CHUNK
    pixels = torch.cat([pixels, pixels[:, :, -1:].expand(-1, -1, missing, -1, -1)], 2)
    latents = mean(vae, pixels)[:, :, : 1 + (frames - 1) // vae.config.scale_factor_temporal]
    shift, spread = (
        torch.tensor(values, device=latents.device).reshape(1, -1, 1, 1, 1)
        for values in (vae.config.latents_mean, vae.config.latents_std)
    )
    return (latents - shift) / spread


WAN = register_conditions(
    Conditions(family="wan", told="captions", encode=_encode, arguments=_arguments, latents=_latents, video=True)
)
