"""HunyuanVideo: Llama states in the pipeline's template with their mask, pooled CLIP, embedded guidance."""

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
    how = call_arguments(pipe, "prompt_template", "max_sequence_length")
    states, pooled, mask = pipe.encode_prompt(list(captions), **how)
    return {"encoder_hidden_states": states, "encoder_attention_mask": mask, "pooled_projections": pooled}


def _arguments(transformer: Any, rows: Rows, geometry: Geometry, guidance: float) -> dict[str, Any]:
    batch = len(rows["pooled_projections"])
    embedded = torch.full((batch,), 1000.0 * guidance) if transformer.config.guidance_embeds else None
    return {**rows, "guidance": embedded}


HUNYUAN_VIDEO = register_conditions(
    Conditions(
        family="hunyuan_video",
        told="captions",
        encode=_encode,
        arguments=_arguments,
        latents=scaled,
        models=("text_encoder", "text_encoder_2"),
        video=True,
    )
)
