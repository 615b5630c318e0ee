"""FLUX.1: text to image on packed latents, text tokens first."""

from typing import Any

import torch
from diffusers import FluxTransformer2DModel
from torch.utils.weak import WeakIdKeyDictionary

from fastdit.core.layout import TokenLayout
from fastdit.models.base import BlockGroup, ModelFamily, Rotary, register_family

_SIZES: Any = WeakIdKeyDictionary()  # img_ids -> (height, width)


def _layout(transformer: Any, arguments: Any) -> TokenLayout:
    ids = arguments["img_ids"]  # (N, 3): (0, row, column)
    if ids not in _SIZES:  # read once per tensor: the values may live on a GPU
        _SIZES[ids] = tuple(int(n) + 1 for n in ids.reshape(-1, 3)[:, 1:].amax(0))
    height, width = _SIZES[ids]
    tokens = arguments["hidden_states"].shape[1]
    if height * width != tokens:
        raise ValueError(
            f"img_ids describe {height} x {width} positions but there are {tokens} image tokens: pipelines that add "
            "reference images to the sequence (Kontext, Fill) are not described"
        )
    return TokenLayout(1, height, width, text_length=arguments["encoder_hidden_states"].shape[1], text="first")


def _time_embedder(transformer: Any) -> tuple[Any, Any]:
    embed = transformer.time_text_embed
    return embed.time_proj, embed.timestep_embedder


def _inputs(config: Any, batch: int, frames: int, height: int, width: int) -> dict[str, Any]:
    height, width = height // 2, width // 2  # 2x2 latent pixels are packed into a token
    rows, columns = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
    return {
        "hidden_states": torch.empty(batch, height * width, config.in_channels),
        "encoder_hidden_states": torch.empty(batch, 512, config.joint_attention_dim),
        "pooled_projections": torch.empty(batch, config.pooled_projection_dim),
        "timestep": torch.full((batch,), 0.5),
        "img_ids": torch.stack([torch.zeros_like(rows), rows, columns], -1).flatten(0, 1).float(),
        "txt_ids": torch.zeros(512, 3),
        "guidance": torch.full((batch,), 3.5) if config.guidance_embeds else None,
    }


FLUX = register_family(
    ModelFamily(
        name="flux",
        title="FLUX.1",
        transformer_class=FluxTransformer2DModel,
        groups=(
            BlockGroup(
                "transformer_blocks",
                "attn",
                output=1,
                rotary="image_rotary_emb",
                feed_forward="ff",
                feed_forward_norm="norm2",
            ),
            BlockGroup(
                "single_transformer_blocks",
                "attn",
                output=1,
                rotary="image_rotary_emb",
                attention_norm="norm",
                parallel=True,
            ),
        ),
        layout=_layout,
        inputs=_inputs,
        offers=frozenset({"tokens", "one_sdpa", "dynamic_tokens"}),
        rotary=Rotary("image_rotary_emb"),
        guidance="embedded",
        time_embedder=_time_embedder,
        time_factor=1000.0,
        text_routing=True,
        timestep_scale=1.0,  # the pipeline passes t / 1000
        flow_shift=3.0,
        patch=lambda config: 2,  # the pipeline packs 2x2 latent pixels
        quirks=("rotary rows have no batch axis, so samples that merge differently attend one by one",),
    )
)
