"""DiT (Peebles & Xie, 2022): class-conditional images, DiTPipeline."""

from typing import Any

import torch
from diffusers import DiTTransformer2DModel

from fastdit.core.layout import TokenLayout
from fastdit.models.base import BlockGroup, ModelFamily, register_family


def _layout(transformer: Any, arguments: Any) -> TokenLayout:
    height, width = arguments["hidden_states"].shape[-2:]  # (B, C, H, W)
    patch = transformer.config.patch_size
    return TokenLayout(1, height // patch, width // patch)


def _time_embedder(transformer: Any) -> tuple[Any, Any]:
    """Block 0 speaks for all: each block owns a copy of the same embedder."""
    embed = transformer.transformer_blocks[0].norm1.emb
    return embed.time_proj, embed.timestep_embedder


def _guided(transformer: Any, arguments: Any) -> bool:
    """The pipeline's batch is [classes, no class]; the class after the last stands for none."""
    labels = arguments["class_labels"]  # (B,)
    if labels is None or len(labels) % 2 or labels.is_meta:
        return False
    first, second = labels.chunk(2)
    none = transformer.config.num_embeds_ada_norm
    return bool((second == none).all() and (first < none).all())


def _inputs(config: Any, batch: int, frames: int, height: int, width: int) -> dict[str, Any]:
    return {
        "hidden_states": torch.empty(batch, config.in_channels, height, width),
        "timestep": torch.full((batch,), 500),
        "class_labels": torch.zeros(batch, dtype=torch.long),
    }


DIT = register_family(
    ModelFamily(
        name="dit",
        title="DiT",
        transformer_class=DiTTransformer2DModel,
        groups=(BlockGroup("transformer_blocks", "attn1", feed_forward="ff", feed_forward_norm="norm3"),),
        layout=_layout,
        inputs=_inputs,
        offers=frozenset({"tokens", "one_sdpa", "dynamic_width", "dynamic_tokens", "token_grid", "batched_guidance"}),
        prediction="epsilon",
        time_embedder=_time_embedder,
        guided=_guided,
        called_alone=("transformer_blocks.0.norm1.emb",),
        quirks=(
            "the prompt is an ImageNet class name or id; pictures are square, of the model's own size",
            "the output layer reads block 0's norm1.emb, so block 0 is never replaced as a module",
        ),
    )
)
