"""Mochi 1: text to video, joint attention over video and valid text tokens."""

from typing import Any

import torch
from diffusers import MochiTransformer3DModel

from fastdit.core.layout import TokenLayout
from fastdit.models.base import BlockGroup, ModelFamily, Rotary, register_family


def _layout(transformer: Any, arguments: Any) -> TokenLayout:
    frames, height, width = arguments["hidden_states"].shape[-3:]  # (B, C, F, H, W)
    patch = transformer.config.patch_size
    text_length = arguments["encoder_hidden_states"].shape[1]
    return TokenLayout(frames, height // patch, width // patch, text_length=text_length, text="last")


def _inputs(config: Any, batch: int, frames: int, height: int, width: int) -> dict[str, Any]:
    return {
        "hidden_states": torch.empty(batch, config.in_channels, frames, height, width),
        "encoder_hidden_states": torch.empty(batch, config.max_sequence_length, config.text_embed_dim),
        "timestep": torch.full((batch,), 500.0),
        "encoder_attention_mask": torch.ones(batch, config.max_sequence_length, dtype=torch.bool),
    }


def _ready_skeleton(skeleton: Any) -> None:
    """Mochi builds its rotary rows under autocast, which the meta device does not know; their shape is all we need."""

    def create_rope(freqs: torch.Tensor, pos: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        angles = torch.einsum("nd,dhf->nhf", pos.float(), freqs.float())
        return angles.cos(), angles.sin()

    skeleton.rope._create_rope = create_rope


MOCHI = register_family(
    ModelFamily(
        name="mochi",
        title="Mochi 1",
        transformer_class=MochiTransformer3DModel,
        groups=(BlockGroup("transformer_blocks", "attn1", rotary="image_rotary_emb"),),
        layout=_layout,
        inputs=_inputs,
        offers=frozenset({"tokens"}),  # its processor calls SDPA once per sample: no "one_sdpa"
        rotary=Rotary("image_rotary_emb"),
        timestep_rises=True,
        ready_skeleton=_ready_skeleton,
        quirks=(
            "attention runs sample by sample inside the host, so reducing only q or kv is not offered",
            "MACs count all text tokens as valid",
        ),
    )
)
