"""Wan 2.1 (T2V, I2V) and Wan 2.2 (A14B with two transformers, TI2V-5B with a timestep per token)."""

from typing import Any

import torch
from diffusers import WanTransformer3DModel

from fastdit.core.layout import TokenLayout
from fastdit.models.base import BlockGroup, ModelFamily, Rotary, register_family


def _layout(transformer: Any, arguments: Any) -> TokenLayout:
    frames, height, width = arguments["hidden_states"].shape[-3:]  # (B, C, F, H, W)
    p_t, p_h, p_w = transformer.config.patch_size
    return TokenLayout(frames // p_t, height // p_h, width // p_w)


def _time_embedder(transformer: Any) -> tuple[Any, Any]:
    embed = transformer.condition_embedder
    return embed.timesteps_proj, embed.time_embedder


def _inputs(config: Any, batch: int, frames: int, height: int, width: int) -> dict[str, Any]:
    return {
        "hidden_states": torch.empty(batch, config.in_channels, frames, height, width),
        "timestep": torch.full((batch,), 500.0),
        "encoder_hidden_states": torch.empty(batch, 512, config.text_dim),
        "encoder_hidden_states_image": torch.empty(batch, 257, config.image_dim) if config.image_dim else None,
    }


WAN = register_family(
    ModelFamily(
        name="wan",
        title="Wan 2.1, Wan 2.2",
        transformer_class=WanTransformer3DModel,
        groups=(
            BlockGroup(
                "blocks",
                "attn1",
                rotary="rotary_emb",
                per_token="temb",
                cross_attention="attn2",
                feed_forward="ffn",
                feed_forward_norm="norm3",
            ),
        ),
        layout=_layout,
        inputs=_inputs,
        offers=frozenset({"tokens", "one_sdpa", "video", "cross_attention", "dynamic_width", "dynamic_tokens"}),
        rotary=Rotary("rotary_emb", axis=1),
        guidance="two passes",
        time_embedder=_time_embedder,
        norm_over_heads=True,
        flow_shift=5.0,
        causal_frames=True,
        patch=lambda config: config.patch_size[1],
        quirks=(
            "Wan 2.2 A14B switches between two transformers at boundary_ratio: methods attach to both",
            "TI2V-5B has a timestep per token, so its modulation (B, N, 6, C) is reduced with the tokens",
        ),
    )
)
