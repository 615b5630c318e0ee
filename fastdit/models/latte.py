"""Latte: text to video with alternating spatial and temporal blocks."""

from typing import Any

import torch
from diffusers import LatteTransformer3DModel

from fastdit.core.layout import TokenLayout
from fastdit.models.base import BlockGroup, ModelFamily, register_family


def _layout(transformer: Any, arguments: Any) -> TokenLayout:
    """The tokens of one spatial attention: a single frame (frames are its batch)."""
    height, width = arguments["hidden_states"].shape[-2:]  # (B, C, F, H, W)
    patch = transformer.config.patch_size
    return TokenLayout(1, height // patch, width // patch)


def _inputs(config: Any, batch: int, frames: int, height: int, width: int) -> dict[str, Any]:
    return {
        "hidden_states": torch.empty(batch, config.in_channels, frames, height, width),
        "timestep": torch.full((batch,), 500),
        "encoder_hidden_states": torch.empty(batch, 120, config.caption_channels),
        "encoder_attention_mask": torch.ones(batch, 120),
    }


LATTE = register_family(
    ModelFamily(
        name="latte",
        title="Latte",
        transformer_class=LatteTransformer3DModel,
        groups=(BlockGroup("transformer_blocks", "attn1"),),
        layout=_layout,
        inputs=_inputs,
        offers=frozenset({"tokens", "one_sdpa"}),
        prediction="epsilon",
        quirks=("only the spatial blocks are accelerated; temporal blocks see one token per frame and stay dense",),
    )
)
