"""PixArt-alpha and PixArt-Sigma (Chen et al., 2023 and 2024): text to image."""

from typing import Any

import torch
from diffusers import PixArtSigmaPipeline, PixArtTransformer2DModel

from fastdit.core.layout import TokenLayout
from fastdit.models.base import BlockGroup, ModelFamily, register_family

_BINNED_SAMPLE_SIZES = {32, 64, 128}  # the sizes for which the pipelines have tables of aspect ratios


def _layout(transformer: Any, arguments: Any) -> TokenLayout:
    height, width = arguments["hidden_states"].shape[-2:]  # (B, C, H, W)
    patch = transformer.config.patch_size
    return TokenLayout(1, height // patch, width // patch)


def _time_embedder(transformer: Any) -> tuple[Any, Any]:
    """Without resolution and aspect ratio, which `adaln_single` may add."""
    embed = transformer.adaln_single.emb
    return embed.time_proj, embed.timestep_embedder


def _guided(transformer: Any, arguments: Any) -> bool:
    """The pipeline's batch is the same latents twice, [no text, text]."""
    latents = arguments["hidden_states"]  # (B, C, H, W)
    if len(latents) % 2 or latents.is_meta:
        return False
    first, second = latents.chunk(2)
    return torch.equal(first, second)


def _inputs(config: Any, batch: int, frames: int, height: int, width: int) -> dict[str, Any]:
    micro = config.use_additional_conditions
    if micro is None:  # diffusers' own rule
        micro = config.sample_size == 128
    return {
        "hidden_states": torch.empty(batch, config.in_channels, height, width),
        "encoder_hidden_states": torch.empty(batch, 120, config.caption_channels or config.cross_attention_dim),
        "encoder_attention_mask": torch.ones(batch, 120),
        "timestep": torch.full((batch,), 500),
        "added_cond_kwargs": {
            "resolution": torch.full((batch, 2), 8.0 * height) if micro else None,
            "aspect_ratio": torch.ones(batch, 1) if micro else None,
        },
    }


def _defaults(pipe: Any) -> dict[str, Any]:
    """Resolution binning only where it is right: the tables hold pixel sizes of an 8x VAE."""
    sizes = _BINNED_SAMPLE_SIZES | ({256} if isinstance(pipe, PixArtSigmaPipeline) else set())
    binned = pipe.transformer.config.sample_size in sizes and pipe.vae_scale_factor == 8
    return {} if binned else {"use_resolution_binning": False}


PIXART = register_family(
    ModelFamily(
        name="pixart",
        title="PixArt-alpha, PixArt-Sigma",
        transformer_class=PixArtTransformer2DModel,
        groups=(BlockGroup("transformer_blocks", "attn1", feed_forward="ff", feed_forward_norm="norm2"),),
        layout=_layout,
        inputs=_inputs,
        offers=frozenset({"tokens", "one_sdpa", "dynamic_width", "dynamic_tokens", "token_grid", "batched_guidance"}),
        prediction="epsilon",
        time_embedder=_time_embedder,
        guided=_guided,
        conditional_half=1,
        defaults=_defaults,
        quirks=("use_resolution_binning is off by default unless the sample size is 32, 64 or 128 with an 8x VAE",),
    )
)
