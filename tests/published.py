"""Checkpoints in the layout of DyDiT's and FlexDiT's authors: random ones, and slow references of their forwards.

Written from the papers' formulas (DiT: Peebles & Xie, 2022; DyDiT: arXiv 2410.03456; FlexDiT: arXiv 2412.06028). The
fixtures of tests/pipelines/test_convert.py, made with the authors' own code, hold the references.
"""

import math
from dataclasses import dataclass
from typing import Any

import torch
from diffusers.models.embeddings import get_2d_sincos_pos_embed
from torch import Tensor
from torch.nn import functional as F

State = dict[str, Tensor]


@dataclass(frozen=True)
class Shape:
    """A DiT's geometry; `side` is that of the square of patches."""

    width: int = 8
    heads: int = 2
    patch: int = 2
    side: int = 4
    classes: int = 10
    outputs: int = 8  # channels, of 4 that come in

    def inputs(self, batch: int) -> tuple[Tensor, Tensor]:
        """Latents (B, 4, H, W) and labels (B,), the last one of no class."""
        generator = torch.Generator().manual_seed(1)
        size = self.side * self.patch
        labels = torch.randint(self.classes, (batch,), generator=generator)
        labels[-1] = self.classes
        return torch.randn(batch, 4, size, size, generator=generator), labels


@dataclass(frozen=True)
class Groups:
    """FlexDiT's: lowest blocks, modules with sparse and dense blocks, blocks above."""

    pooling: int = 1
    modules: int = 1
    sparse: int = 1
    dense: int = 1
    top: int = 1


def dydit_state(shape: Shape, depth: int, seed: int = 0) -> State:
    """Random weights, with routers that close about half of everything."""
    layers = _outer(shape)
    for index in range(depth):
        path = f"blocks.{index}"
        layers |= _block(shape, path, {"qkv": 3})
        layers |= {f"{path}.{kind}.router": (shape.heads - 1, shape.width) for kind in ("attn_rate", "mlp_rate")}
        hidden = shape.width // 16
        layers[f"{path}.token_selection.mlp_head.0"] = (hidden, shape.width)
        layers[f"{path}.token_selection.mlp_head.2"] = (1, hidden)
    return _drawn(shape, layers, seed)


def flexdit_state(shape: Shape, groups: Groups, seed: int = 0) -> State:
    """Random weights."""
    layers = _outer(shape)
    for path, attention in flexdit_blocks(groups):
        layers |= _block(shape, path, attention)
        if "token_recover" in path:
            layers |= {f"{path}.merged_layer{number}": (shape.width, shape.width) for number in (1, 2)}
    return _drawn(shape, layers, seed)


def flexdit_blocks(groups: Groups) -> list[tuple[str, dict[str, int]]]:
    """(name, attention's layers) of every block in order of execution."""
    own, other = {"qkv": 3}, {"q": 1, "kv": 2}
    found = [(f"poolingformer_blocks.{index}", {"v": 1}) for index in range(groups.pooling)]
    for module in range(groups.modules):
        path = f"dumbbell_blocks.{module}"
        found.append((f"{path}.token_merge_blocks.0", other))
        found += [(f"{path}.semantic_blocks.{index}", own) for index in range(groups.sparse)]
        found.append((f"{path}.token_recover_blocks.0", other))
        found += [(f"{path}.normal_blocks.{index}", own) for index in range(groups.dense)]
    return found + [(f"normal_blocks.{index}", own) for index in range(groups.top)]


def dydit_reference(state: State, shape: Shape, latents: Tensor, timestep: Tensor, labels: Tensor) -> Tensor:
    """DyDiT's forward at inference, with gates multiplied."""
    tokens, time, condition = _embedded(state, shape, latents, timestep, labels)
    ones = torch.ones(len(latents), 1)
    for index in range(sum(name.endswith("attn.qkv.weight") for name in state)):
        path = f"blocks.{index}"
        opened = ((_linear(state, f"{path}.{kind}.router", time) > 0).float() for kind in ("attn_rate", "mlp_rate"))
        heads, groups = (
            torch.cat([ones, gates], 1).repeat_interleave(total // shape.heads, 1)[:, None]
            for gates, total in zip(opened, (shape.width, 4 * shape.width), strict=True)
        )  # (B, 1, C) and (B, 1, 4C)
        first, second, gates = _modulation(state, path, condition)
        normed = first(tokens)
        mixed = _attention(*_linear(state, f"{path}.attn.qkv", normed).chunk(3, -1), shape.heads) * heads
        tokens = tokens + gates[0] * _linear(state, f"{path}.attn.proj", mixed)
        router = _linear(state, f"{path}.token_selection.mlp_head.0", tokens).relu()
        let_in = (_linear(state, f"{path}.token_selection.mlp_head.2", router) > 0).float()  # (B, N, 1)
        tokens = tokens + let_in * gates[1] * _mlp(state, path, second(tokens), groups)
    return _output(state, shape, tokens, condition)


def flexdit_reference(
    state: State, shape: Shape, latents: Tensor, timestep: Tensor, labels: Tensor, groups: Groups, grid: int
) -> Tensor:
    """FlexDiT's forward on a fixed sparse grid."""
    tokens, _, condition = _embedded(state, shape, latents, timestep, labels)
    full = tokens
    for path, attention in flexdit_blocks(groups):
        first, second, gates = _modulation(state, path, condition)
        keys = None
        if "token_merge" in path:
            full = tokens
            tokens = _map(tokens, shape.side, lambda x: F.adaptive_avg_pool2d(x, grid))
            keys = full
        elif "token_recover" in path:
            keys = tokens
            spread = _map(tokens, grid, lambda x: F.interpolate(x, (shape.side, shape.side), mode="nearest"))
            tokens = _linear(state, f"{path}.merged_layer1", spread) + _linear(state, f"{path}.merged_layer2", full)
        normed = first(tokens)
        if "v" in attention:
            mixed = _linear(state, f"{path}.attn.v", normed).mean(1, keepdim=True).expand_as(normed)
        elif keys is not None:
            key, value = _linear(state, f"{path}.attn.kv", first(keys)).chunk(2, -1)
            mixed = _attention(_linear(state, f"{path}.attn.q", normed), key, value, shape.heads)
        else:
            mixed = _attention(*_linear(state, f"{path}.attn.qkv", normed).chunk(3, -1), shape.heads)
        tokens = tokens + gates[0] * _linear(state, f"{path}.attn.proj", mixed)
        tokens = tokens + gates[1] * _mlp(state, path, second(tokens))
    return _output(state, shape, tokens, condition)


def _outer(shape: Shape) -> dict[str, tuple[int, ...]]:
    width = shape.width
    return {
        "x_embedder.proj": (width, 4, shape.patch, shape.patch),
        "t_embedder.mlp.0": (width, 256),
        "t_embedder.mlp.2": (width, width),
        "final_layer.adaLN_modulation.1": (2 * width, width),
        "final_layer.linear": (shape.patch**2 * shape.outputs, width),
    }


def _block(shape: Shape, path: str, attention: dict[str, int]) -> dict[str, tuple[int, ...]]:
    width = shape.width
    return {
        **{f"{path}.attn.{name}": (parts * width, width) for name, parts in attention.items()},
        f"{path}.attn.proj": (width, width),
        f"{path}.mlp.fc1": (4 * width, width),
        f"{path}.mlp.fc2": (width, 4 * width),
        f"{path}.adaLN_modulation.1": (6 * width, width),
    }


def _drawn(shape: Shape, layers: dict[str, tuple[int, ...]], seed: int) -> State:
    generator = torch.Generator().manual_seed(seed)
    position = get_2d_sincos_pos_embed(shape.width, shape.side, base_size=shape.side)
    table = torch.randn(shape.classes + 1, shape.width, generator=generator)
    state = {"pos_embed": position.float()[None], "y_embedder.embedding_table.weight": table}
    for name, size in layers.items():
        state[f"{name}.weight"] = torch.randn(size, generator=generator) / math.sqrt(math.prod(size[1:]))
        state[f"{name}.bias"] = 0.1 * torch.randn(size[0], generator=generator)
    return state


def _linear(state: State, name: str, x: Tensor) -> Tensor:
    return F.linear(x, state[f"{name}.weight"], state[f"{name}.bias"])


def _embedded(state: State, shape: Shape, latents: Tensor, timestep: Tensor, labels: Tensor) -> tuple[Tensor, ...]:
    """Tokens (B, N, C), embedded timestep (B, C), and the condition (B, C)."""
    weight, bias = state["x_embedder.proj.weight"], state["x_embedder.proj.bias"]
    tokens = F.conv2d(latents, weight, bias, stride=shape.patch).flatten(2).mT + state["pos_embed"]
    angles = timestep[:, None].float() * torch.exp(-math.log(10000) * torch.arange(128) / 128)
    time = _linear(state, "t_embedder.mlp.0", torch.cat([angles.cos(), angles.sin()], 1))
    time = _linear(state, "t_embedder.mlp.2", F.silu(time))
    return tokens, time, time + state["y_embedder.embedding_table.weight"][labels]


def _modulation(state: State, path: str, condition: Tensor) -> tuple[Any, Any, tuple[Tensor, Tensor]]:
    """Norms before attention and MLP, and both gates."""
    values = _linear(state, f"{path}.adaLN_modulation.1", F.silu(condition))[:, None].chunk(6, -1)  # (B, 1, C) each
    return _norm(values[0], values[1]), _norm(values[3], values[4]), (values[2], values[5])


def _norm(shift: Tensor, scale: Tensor) -> Any:
    return lambda x: F.layer_norm(x, x.shape[-1:], eps=1e-6) * (1 + scale) + shift


def _attention(query: Tensor, key: Tensor, value: Tensor, heads: int) -> Tensor:
    query, key, value = (x.unflatten(-1, (heads, -1)).transpose(1, 2) for x in (query, key, value))
    weights = (query @ key.mT / math.sqrt(query.shape[-1])).softmax(-1)
    return (weights @ value).transpose(1, 2).flatten(2)


def _mlp(state: State, path: str, x: Tensor, gates: Tensor | float = 1.0) -> Tensor:
    hidden = F.gelu(_linear(state, f"{path}.mlp.fc1", x) * gates, approximate="tanh")
    return _linear(state, f"{path}.mlp.fc2", hidden)


def _map(tokens: Tensor, side: int, change: Any) -> Tensor:
    """Change tokens (B, N, C) as a picture (B, C, side, side)."""
    return change(tokens.mT.unflatten(2, (side, side))).flatten(2).mT


def _output(state: State, shape: Shape, tokens: Tensor, condition: Tensor) -> Tensor:
    shift, scale = _linear(state, "final_layer.adaLN_modulation.1", F.silu(condition))[:, None].chunk(2, -1)
    patches = _linear(state, "final_layer.linear", _norm(shift, scale)(tokens))
    patches = patches.unflatten(2, (shape.patch, shape.patch, -1)).unflatten(1, (shape.side, shape.side))
    return patches.permute(0, 5, 1, 3, 2, 4).flatten(4).flatten(2, 3)  # (B, C, H, W)
