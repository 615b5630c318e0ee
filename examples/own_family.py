"""Describe a transformer that fastdit does not ship, and accelerate it: here Stable Diffusion 3's.

python examples/own_family.py
"""

import torch
from diffusers import SD3Transformer2DModel

from fastdit import TokenMerging, accelerate
from fastdit.core.layout import TokenLayout
from fastdit.models import BlockGroup, ModelFamily, register_family


def layout(transformer, arguments):
    """Rows and columns of tokens, read from the latents (B, C, H, W) of a forward; text tokens come last."""
    height, width = (size // transformer.config.patch_size for size in arguments["hidden_states"].shape[-2:])
    text = arguments["encoder_hidden_states"].shape[1]
    return TokenLayout(1, height, width, text_length=text, text="last")


def inputs(config, batch, frames, height, width):
    """Inputs of the right shapes, for predictions without weights."""
    return {
        "hidden_states": torch.empty(batch, config.in_channels, height, width),
        "encoder_hidden_states": torch.empty(batch, 154, config.joint_attention_dim),
        "pooled_projections": torch.empty(batch, config.pooled_projection_dim),
        "timestep": torch.full((batch,), 500.0),
    }


register_family(
    ModelFamily(
        name="sd3",
        title="Stable Diffusion 3",
        transformer_class=SD3Transformer2DModel,
        groups=(BlockGroup("transformer_blocks", "attn", output=1),),  # a block returns (text, image)
        layout=layout,
        inputs=inputs,
        offers=frozenset({"tokens", "one_sdpa"}),
        flow_shift=3.0,
    )
)

if __name__ == "__main__":
    torch.manual_seed(0)
    transformer = SD3Transformer2DModel(
        sample_size=32, num_layers=4, attention_head_dim=32, num_attention_heads=4, joint_attention_dim=64,
        caption_projection_dim=128, pooled_projection_dim=32,
    ).eval()  # fmt: skip
    call = {
        "hidden_states": torch.randn(1, 16, 32, 32),
        "encoder_hidden_states": torch.randn(1, 20, 64),
        "pooled_projections": torch.randn(1, 32),
        "timestep": torch.tensor([700.0]),
    }
    with torch.no_grad(), accelerate(transformer, [TokenMerging(density=0.5)]) as handle:
        transformer(**call)
        print(handle.report)
