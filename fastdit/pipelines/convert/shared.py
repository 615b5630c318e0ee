"""DiT's own layout (Peebles & Xie, 2022), which both methods' authors build on, and diffusers' names for it."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from fastdit.pipelines.convert.source import Source

HEADS = {384: 6, 768: 12, 1024: 16, 1152: 16}  # of DiT-S, B, L and XL, by their width: no checkpoint says it
FREQUENCIES = 256  # values that a timestep is turned into

# Linear layers of an attention, each as (C, C) parts one below the other, and diffusers' layers that the parts become.
ATTENTION: dict[str, dict[str, tuple[str, ...]]] = {
    "self": {"attn.qkv": ("to_q", "to_k", "to_v")},
    "cross": {"attn.q": ("to_q",), "attn.kv": ("to_k", "to_v")},
    "pooled": {"attn.v": ("to_v",)},
}
PARTS = ("to_q", "to_k", "to_v")


@dataclass(frozen=True)
class Block:
    """A transformer block: its name in the checkpoint, and which form of ATTENTION it has."""

    name: str
    attention: str = "self"


@dataclass(frozen=True)
class Geometry:
    """Everything that the shapes of a DiT depend on. `side` is that of the square of patches."""

    width: int
    heads: int
    blocks: int
    patch: int
    side: int
    classes: int
    in_channels: int
    out_channels: int

    @property
    def config(self) -> dict[str, Any]:
        """Arguments of diffusers' DiTTransformer2DModel."""
        return {
            "num_attention_heads": self.heads,
            "attention_head_dim": self.width // self.heads,
            "in_channels": self.in_channels,
            "out_channels": self.out_channels,
            "num_layers": self.blocks,
            "sample_size": self.side * self.patch,
            "patch_size": self.patch,
            "num_embeds_ada_norm": self.classes,
            "norm_eps": 1e-6,
        }


def read_geometry(source: Source, blocks: int, known_heads: int | None, num_heads: int | None) -> Geometry:
    """The geometry by a few shapes; `known_heads` is what the file says about heads, `num_heads` what the user says."""
    width, in_channels, patch, _ = source.shape("x_embedder.proj.weight", 4)
    _, tokens, _ = source.shape("pos_embed", 3)
    rows, _ = source.shape("y_embedder.embedding_table.weight", 2)
    (outputs,) = source.shape("final_layer.linear.bias", 1)
    if width % 4:
        raise ValueError(f"{source.label} has width {width}, and DiT's positions need a multiple of 4")
    side, out_channels = math.isqrt(tokens), outputs // max(1, patch**2)
    if side**2 != tokens:
        raise ValueError(f"{source.label}: pos_embed has {tokens} positions, which are no square")
    if out_channels not in (in_channels, 2 * in_channels):
        raise ValueError(
            f"{source.label}: final_layer.linear gives {outputs} values a patch, which are neither {in_channels} nor "
            f"{2 * in_channels} channels of {patch} x {patch} pixels"
        )
    heads = _heads(source.label, width, known_heads, num_heads)
    return Geometry(width, heads, blocks, patch, side, rows - 1, in_channels, out_channels)


def _heads(label: str, width: int, known: int | None, given: int | None) -> int:
    if known is not None and given is not None and known != given:
        raise ValueError(f"--num-heads {given}: the routers of {label} are for {known} heads; leave it out")
    heads = known or given or HEADS.get(width)
    if heads is None:
        widths = ", ".join(map(str, HEADS))
        raise ValueError(
            f"--num-heads: {label} has width {width}, and heads are known for {widths} only: say how many it has"
        )
    if heads < 1 or width % heads:
        raise ValueError(f"--num-heads: {heads} heads do not divide the width {width} of {label}")
    return heads


def take_dit(source: Source, geometry: Geometry, blocks: Sequence[Block]) -> dict[str, Tensor]:
    """The state dict of diffusers' DiTTransformer2DModel from embedders, blocks in order of execution, and output."""
    width, patch = geometry.width, geometry.patch
    _take_positions(source, geometry)
    state: dict[str, Tensor] = {
        "pos_embed.proj.weight": source.take("x_embedder.proj.weight", width, geometry.in_channels, patch, patch),
        "pos_embed.proj.bias": source.take("x_embedder.proj.bias", width),
    }
    outputs = patch**2 * geometry.out_channels
    _put(state, "proj_out_1", source.linear("final_layer.adaLN_modulation.1", 2 * width, width))
    _put(state, "proj_out_2", source.linear("final_layer.linear", outputs, width))
    embedders = _take_embedders(source, geometry)
    for index, block in enumerate(blocks):
        path = f"transformer_blocks.{index}"
        _put(state, f"{path}.norm1.emb", embedders)  # diffusers has them once in every block
        _put(state, path, _take_block(source, block, width))
    return state


def _take_block(source: Source, block: Block, width: int) -> dict[str, Tensor]:
    """One block under diffusers' names; parts that its attention does not have are zeros."""
    state = {f"attn1.{part}.weight": torch.zeros(width, width) for part in PARTS}
    state |= {f"attn1.{part}.bias": torch.zeros(width) for part in PARTS}
    for name, parts in ATTENTION[block.attention].items():
        for word, stacked in source.linear(f"{block.name}.{name}", len(parts) * width, width).items():
            for part, value in zip(parts, stacked.chunk(len(parts)), strict=True):
                state[f"attn1.{part}.{word}"] = value
    _put(state, "attn1.to_out.0", source.linear(f"{block.name}.attn.proj", width, width))
    _put(state, "ff.net.0.proj", source.linear(f"{block.name}.mlp.fc1", 4 * width, width))
    _put(state, "ff.net.2", source.linear(f"{block.name}.mlp.fc2", width, 4 * width))
    _put(state, "norm1.linear", source.linear(f"{block.name}.adaLN_modulation.1", 6 * width, width))
    return state


def _take_embedders(source: Source, geometry: Geometry) -> dict[str, Tensor]:
    width = geometry.width
    table = source.take("y_embedder.embedding_table.weight", geometry.classes + 1, width)
    state = {"class_embedder.embedding_table.weight": table}
    _put(state, "timestep_embedder.linear_1", source.linear("t_embedder.mlp.0", width, FREQUENCIES))
    _put(state, "timestep_embedder.linear_2", source.linear("t_embedder.mlp.2", width, width))
    return state


def _take_positions(source: Source, geometry: Geometry) -> None:
    """They are fixed and diffusers computes them: ValueError if these are others."""
    found = source.take("pos_embed", 1, geometry.side**2, geometry.width)
    table = positions(geometry.side, geometry.width)
    if source.sound and (found[0] - table).abs().max() > 1e-2:  # room for a file in bfloat16
        raise ValueError(
            f"{source.label}: pos_embed is not DiT's fixed table of sines and cosines, and diffusers keeps no other"
        )


def positions(side: int, width: int) -> Tensor:
    """DiT's table (side^2, C): sines and cosines of the column, then of the row, at C / 4 frequencies each."""
    frequencies = 10000 ** -(torch.arange(width // 4, dtype=torch.float64) / (width / 4))
    angles = torch.arange(side, dtype=torch.float64)[:, None] * frequencies  # (side, C / 4)
    line = torch.cat([angles.sin(), angles.cos()], dim=1)  # (side, C / 2)
    columns, rows = line.repeat(side, 1), line.repeat_interleave(side, dim=0)
    return torch.cat([columns, rows], dim=1).float()


def _put(state: dict[str, Tensor], path: str, tensors: dict[str, Tensor]) -> None:
    state.update({f"{path}.{name}": tensor for name, tensor in tensors.items()})
