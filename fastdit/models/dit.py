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
        groups=(BlockGroup("transformer_blocks", "attn1"),),
        layout=_layout,
        inputs=_inputs,
        offers=frozenset({"tokens", "one_sdpa"}),
        prediction="epsilon",
        called_alone=("transformer_blocks.0.norm1.emb",),
        quirks=(
            "the prompt is an ImageNet class name or id; pictures are square, of the model's own size",
            "the output layer reads block 0's norm1.emb, so block 0 is never replaced as a module",
        ),
    )
)
