"""PixArt-alpha and PixArt-Sigma: T5 states with their mask, for some models resolution and aspect ratio too."""

from collections.abc import Sequence
from typing import Any

import torch

from fastdit.training.conditions.base import (
    Conditions,
    Geometry,
    Rows,
    call_arguments,
    register_conditions,
    scaled,
)


def _encode(pipe: Any, captions: Sequence[str]) -> Rows:
    how = call_arguments(pipe, "clean_caption", "max_sequence_length")
    states, mask, *_ = pipe.encode_prompt(list(captions), do_classifier_free_guidance=False, **how)
    return {"encoder_hidden_states": states, "encoder_attention_mask": mask}  # (n, L, C), (n, L)


def _arguments(transformer: Any, rows: Rows, geometry: Geometry, guidance: float) -> dict[str, Any]:
    added: dict[str, torch.Tensor | None] = {"resolution": None, "aspect_ratio": None}
    if transformer.use_additional_conditions:
        batch, (height, width) = len(rows["encoder_hidden_states"]), geometry.pixels
        added = {
            "resolution": torch.tensor([[float(height), float(width)]]).repeat(batch, 1),
            "aspect_ratio": torch.full((batch, 1), height / width),
        }
    return {**rows, "added_cond_kwargs": added}


PIXART = register_conditions(
    Conditions(family="pixart", told="captions", encode=_encode, arguments=_arguments, latents=scaled)
)
