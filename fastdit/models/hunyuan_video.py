"""HunyuanVideo, text to video and image to video (latent concatenation or a replaced first frame)."""

from typing import Any

import torch
from diffusers import HunyuanVideoTransformer3DModel

from fastdit.core.layout import TokenLayout
from fastdit.models.base import BlockGroup, ModelFamily, Rotary, register_family


def _layout(transformer: Any, arguments: Any) -> TokenLayout:
    frames, height, width = arguments["hidden_states"].shape[-3:]  # (B, C, F, H, W)
    config = transformer.config
    height, width = height // config.patch_size, width // config.patch_size
    replaced = config.image_condition_type == "token_replace"
    return TokenLayout(
        frames // config.patch_size_t,
        height,
        width,
        text_length=arguments["encoder_hidden_states"].shape[1],
        text="last",
        protected=height * width if replaced else 0,
    )


def _time_embedder(transformer: Any) -> tuple[Any, Any]:
    embed = transformer.time_text_embed
    return embed.time_proj, embed.timestep_embedder


def _inputs(config: Any, batch: int, frames: int, height: int, width: int) -> dict[str, Any]:
    return {
        "hidden_states": torch.empty(batch, config.in_channels, frames, height, width),
        "timestep": torch.full((batch,), 500),
        "encoder_hidden_states": torch.empty(batch, 256, config.text_embed_dim),
        "encoder_attention_mask": torch.ones(batch, 256, dtype=torch.bool),
        "pooled_projections": torch.empty(batch, config.pooled_projection_dim),
        "guidance": torch.full((batch,), 6000.0) if config.guidance_embeds else None,
    }


HUNYUAN_VIDEO = register_family(
    ModelFamily(
        name="hunyuan_video",
        title="HunyuanVideo",
        transformer_class=HunyuanVideoTransformer3DModel,
        groups=(
            BlockGroup(
                "transformer_blocks",
                "attn",
                rotary="freqs_cis",
                mask="attention_mask",
                feed_forward="ff",
                feed_forward_norm="norm2",
            ),
            BlockGroup(
                "single_transformer_blocks",
                "attn",
                rotary="image_rotary_emb",
                mask="attention_mask",
                attention_norm="norm",
                parallel=True,
            ),
        ),
        layout=_layout,
        inputs=_inputs,
        offers=frozenset({"tokens", "one_sdpa", "video", "dynamic_width", "dynamic_tokens"}),
        rotary=Rotary("image_rotary_emb"),
        guidance="embedded",
        time_embedder=_time_embedder,
        flow_shift=7.0,
        causal_frames=True,
        quirks=(
            "rotary rows have no batch axis, so samples that merge differently attend one by one",
            "the token refiner's attention has no video tokens and is left alone",
        ),
    )
)
